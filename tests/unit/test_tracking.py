"""What TensorBoard shows of a run."""

from __future__ import annotations

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_planning import CHAINS, network, stepped

from edgeprune.records import Budget, Epoch, Figures
from edgeprune.stages import events as tracking


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in read(folder).Scalars(tag)]


def test_epochs_become_curves_and_a_resumed_run_writes_none_twice(tmp_path: Path) -> None:
    for done in (Epoch(0, None, 0.25), Epoch(1, 2.0, 0.5, 0.25), Epoch(2, 9.0, 0.0, 0.5), Epoch(2, 1.0, 0.75, 0.125)):
        tracking.epoch(tmp_path, done)
    assert scalars(tmp_path, "training/loss") == [(1, 2.0), (2, 1.0)]
    assert scalars(tmp_path, "training/metric") == [(0, 0.25), (1, 0.5), (2, 0.75)]
    assert scalars(tmp_path, "training/learning_rate") == [(1, 0.25), (2, 0.125)]


def test_layers_are_shown_before_and_after(tmp_path: Path) -> None:
    groups = network(CHAINS[0], {"a": 8, "b": 8})
    model = stepped(groups, [1, 1, 1])
    tracking.layers(tmp_path, groups, model, {"a": 4, "b": 8})
    assert scalars(tmp_path, "channels/before") == [(0, 8), (1, 8), (2, 10)]
    assert scalars(tmp_path, "channels/after") == [(0, 4), (1, 8), (2, 10)]
    shares = [value for _, value in scalars(tmp_path, "latency_share/after")]
    full = {"a": 4, "b": 8}
    assert sum(shares) == pytest.approx(1 - model.overhead_ns / model.sum_ns(model.ns(full)), rel=1e-5)
    (text,) = read(tmp_path).Tensors("layers/text_summary")
    assert b"| 0 | l0 | 8 | 4 |" in text.tensor_proto.string_val[0]


def test_the_front_shows_every_budget_in_any_order_and_its_last_verdict(tmp_path: Path) -> None:
    for budget, ms, metric in (("80%", 3.0, 1.0), ("1.5 ms", 1.5, 0.75), ("80%", 2.5, 0.5), ("60%", 2.0, 0.25)):
        tracking.front(tmp_path, Budget.parse(budget), Figures(ms, 2 * ms, metric, 1, 1, 1, 1))
    runs = sorted(path.name for path in (tmp_path / tracking.FRONT).iterdir())
    assert runs == ["1.5ms", "60%", "80%"]
    points = [scalars(tmp_path / tracking.FRONT / run, "front/metric_by_p50_us") for run in runs]
    assert points == [[(1500, 0.75)], [(2000, 0.25)], [(2500, 0.5)]]
