"""Fronts: exact plans over the whole range of latency, and the knee."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from test_planning import CHAINS, brute_force, network, stepped

from edgeprune.api.series import PlannedFront
from edgeprune.errors import UsageError
from edgeprune.records import Front, FrontPoint, Groups, Interval, Scores
from edgeprune.reports import sweep as reports
from edgeprune.stages.series import front

WIDTHS = {"a": 4, "b": 5, "c": 3}


def scored(groups: Groups, seed: int = 0) -> Scores:
    values = np.random.default_rng(seed)
    return Scores("test", {g.name: tuple(values.random(g.width).tolist()) for g in groups.free})


def point(latency_ms: float, loss: float) -> FrontPoint:
    return FrontPoint(Interval(latency_ms, latency_ms, latency_ms), latency_ms, loss, 0.0, 8, (), {"a": 8})


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 50), st.sampled_from(CHAINS[:2]))
def test_no_other_plan_of_a_points_latency_has_a_smaller_loss(seed: int, spans: object) -> None:
    groups = network(spans, WIDTHS)  # type: ignore[arg-type]
    model, scores = stepped(groups, [1] * len(groups.layers)), scored(groups, seed)
    for one in front.plans(groups, model, scores, model.ns(groups.full()), 6)[:-1]:
        best = brute_force(groups, model, scores, model.ns({**groups.full(), **one.widths}))
        assert best is not None and one.loss <= best * (1 + 1e-3) + 1e-9


def test_a_front_reaches_from_the_fastest_network_to_the_original() -> None:
    groups = network(CHAINS[0], WIDTHS)
    model, scores = stepped(groups, [1, 1, 1]), scored(groups)
    full = groups.full()
    points = front.plans(groups, model, scores, model.ns(full), 8)
    assert points[0].widths == {"a": 1, "b": 1, "c": 3} | front.fastest(groups, model, scores)
    assert points[-1].widths == full and points[-1].loss == 0 and points[-1].share == pytest.approx(1)
    assert [one.latency_ns for one in points] == sorted(one.latency_ns for one in points)
    assert [one.loss for one in points] == sorted((one.loss for one in points), reverse=True)
    assert 4 <= len(points) <= 8


def test_a_network_that_cannot_be_cut_has_one_point() -> None:
    groups = network(CHAINS[0], WIDTHS)
    locked = replace(groups, groups=tuple(replace(g, locked="output of the model") for g in groups.groups))
    model = stepped(locked, [1, 1, 1])
    (only,) = front.plans(locked, model, Scores("test", {}), model.ns(locked.full()), 8)
    assert only.loss == 0 and only.share == pytest.approx(1)


def test_the_knee_is_where_the_loss_begins_to_rise_steeply() -> None:
    points = [point(1, 100.0), point(2, 1.0), point(3, 0.8), point(4, 0.6), point(5, 0.5), point(6, 0.0)]
    assert front.knee(points) == 1


def test_a_straight_or_a_short_front_has_no_knee() -> None:
    straight = [point(i, 10.0**-i) for i in range(1, 6)]
    assert (
        front.knee([replace(one, loss=one.loss * f) for one, f in zip(straight, [1, 2, 2, 2, 1], strict=True)]) is None
    )
    assert front.knee([point(1, 1.0), point(2, 0.5)]) is None
    assert front.knee([point(1, 1.0), point(2, 1.0), point(3, 1.0)]) is None


def known(knee: int | None = 1) -> Front:
    points = (point(0.5, 2.0), point(1.0, 0.01), replace(point(2.0, 0.0), removed=("block1",)))
    return Front(1, "digits", "local", "onnxruntime", "fp32", True, False, 2.0, 0.04, points, knee)


def test_a_front_is_printed_with_its_knee_and_the_command_that_runs_it(capsys: pytest.CaptureFixture[str]) -> None:
    reports.show_front(known(), Console(width=80, no_color=True))
    out = capsys.readouterr().out
    assert "knee" in out and "original" in out and "--target local --budget 100%" in out
    assert "emulated" in out and "4.0%" in out and "block1" in out
    assert all(len(line) <= 80 for line in out.splitlines()[:9])


def test_a_front_without_a_knee_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    reports.show_front(known(None), Console(width=80))
    assert "knee" not in capsys.readouterr().out


def test_a_front_without_removed_blocks_has_no_column_for_them() -> None:
    found = known()
    assert "blocks removed" in reports.front_rows(found)[0]
    assert "blocks removed" not in reports.front_rows(replace(found, points=found.points[:2]))[0]


def test_a_front_draws_itself_and_is_a_table_in_a_notebook() -> None:
    pytest.importorskip("matplotlib")
    front = PlannedFront(**vars(known()))
    assert front.plot().svg.startswith("<svg") and "knee" in front.plot().alt
    assert "<table>" in front._repr_html_() and "knee='100%'" in repr(front)


@pytest.mark.parametrize("count", [1, 201])
def test_a_front_has_2_to_200_points(count: int) -> None:
    with pytest.raises(UsageError, match=f"2 to 200 points, not {count}"):
        front.front(None, count)  # type: ignore[arg-type]
