"""What a check decides, from samples alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprune import checking, codec, reporting, stats
from edgeprune.errors import UsageError
from edgeprune.types import (
    Baseline,
    Budget,
    Check,
    Device,
    Interval,
    Measurement,
    Outcome,
    Record,
    Report,
    Run,
    Samples,
    Target,
)

DEVICE = Device("aarch64", "Cortex-A76", 4, "Linux 6.1", "onnxruntime", "1.20", "boot", "serial")


def samples(
    level: float, processes: int = 6, runs: int = 30, spread: float = 0.002, seed: int = 0, **state: Any
) -> Samples:
    random = np.random.default_rng(seed)
    return Samples(
        tuple(
            Run(tuple(int(level * (1 + spread * x)) for x in random.standard_normal(runs)), 10**6, before=state)
            for _ in range(processes)
        )
    )


def measured(level: float = 1e6, device: Device = DEVICE, **state: Any) -> Measurement:
    return Measurement(
        artifact="a" * 64,
        files=("model.onnx",),
        precision="fp32",
        threads=1,
        dla=None,
        device=device,
        samples=samples(level, **{"governor": "performance", **state}),
        size_bytes=1000,
        metric=0.9,
        data="d",
        count=100,
    )


# ------------------------------------------------------------------------------------------------------- statistics


def test_a_quantile_needs_as_many_times_as_bound_it_at_all() -> None:
    assert (stats.needed(0.5), stats.needed(0.9), stats.needed(0.99)) == (5, 29, 299)
    assert stats.quantile(samples(1e6, 1, 28), 0.9) is None
    found = stats.quantile(samples(1e6, 1, 29), 0.9)
    assert found is not None and found.high == max(samples(1e6, 1, 29).runs[0].times_ns)


def test_the_bounds_of_a_quantile_hold_as_often_as_they_say() -> None:
    random = np.random.default_rng(1)
    held = 0
    for _ in range(300):
        runs = [Run(tuple(int(1e6 * np.exp(0.1 * x)) for x in random.standard_normal(50)), 1) for _ in range(6)]
        found = stats.quantile(Samples(tuple(runs)), 0.9)
        assert found is not None
        held += found.low <= 1e6 * np.exp(0.1 * 1.28155) <= found.high
    assert held >= 0.88 * 300  # 95 % on either side


def test_whole_processes_that_differ_widen_the_bounds() -> None:
    alike = stats.quantile(samples(1e6, 6, 100), 0.9)
    two = Samples(samples(1e6, 5, 100).runs + samples(1.5e6, 1, 100).runs)
    apart = stats.quantile(two, 0.9)
    assert alike is not None and apart is not None
    assert apart.high - apart.low > 10 * (alike.high - alike.low)


@given(st.integers(0, 2**32 - 1), st.integers(6, 60))
def test_a_level_that_only_wobbles_does_not_change(seed: int, count: int) -> None:
    values = 1e6 * np.exp(0.005 * np.random.default_rng(seed).standard_normal(count))
    assert stats.changes(values.tolist(), 0.03) == []


@given(st.integers(3, 20), st.integers(3, 20), st.sampled_from([0.8, 0.9, 1.1, 1.5]))
def test_a_new_level_is_found_where_it_begins(before: int, after: int, factor: float) -> None:
    assert stats.changes([1.0] * before + [factor] * after, 0.03) == [before]


def test_one_outlier_is_no_new_level() -> None:
    values = [1.0, 1.01, 0.99, 1.0, 1.02, 1.0, 1.3, 1.0, 0.99, 1.01, 1.0, 1.0]
    assert stats.changes(values, 0.03) == []


# --------------------------------------------------------------------------------------------------------- the checks


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("1.1 ms", "pass"),
        ("0.9 ms", "fail"),
        ("p90 1.1 ms", "pass"),
        ("p90 0.9 ms", "fail"),
        ("p99 1.1 ms", "inconclusive"),  # 180 times say nothing of a p99, however far below they are
        ("1 ms", "inconclusive"),
    ],
)
def test_a_budget_is_decided_at_its_quantile(text: str, outcome: str) -> None:
    found = checking.against_budget(Budget.parse(text), samples(1e6), samples(1e6))
    assert found.outcome == outcome
    if "p99" in text:
        assert "takes 299 times" in found.note and "180" in found.note


def test_a_share_is_decided_on_pairs() -> None:
    assert checking.against_budget(Budget.parse("50%"), samples(4e5), samples(1e6)).outcome is Outcome.PASS
    assert checking.against_budget(Budget.parse("50%"), samples(6e5), samples(1e6)).outcome is Outcome.FAIL


@pytest.mark.parametrize(("now", "outcome"), [(1.0e6, "pass"), (1.02e6, "pass"), (1.05e6, "fail"), (0.8e6, "pass")])
def test_a_device_that_repeats_itself_is_held_to_what_was_recorded(now: float, outcome: str) -> None:
    assert checking.against_recorded(measured(now), measured(), 0.03).outcome == outcome


def test_a_machine_whose_clock_is_free_never_fails_by_what_was_recorded() -> None:
    free = {"governor": "schedutil"}
    assert checking.against_recorded(measured(1.1e6, **free), measured(**free), 0.03).outcome is Outcome.PASS
    found = checking.against_recorded(measured(2e6, **free), measured(**free), 0.03)
    assert found.outcome is Outcome.INCONCLUSIVE and "clock is free" in found.note


def test_another_board_or_a_hot_one_is_not_called_slower() -> None:
    other = replace(DEVICE, serial="other")
    found = checking.against_recorded(measured(1.1e6, other), measured(), 0.03)
    assert found.outcome is Outcome.INCONCLUSIVE and "another device" in found.note
    found = checking.against_recorded(measured(1.1e6, temperature_mc=80_000), measured(temperature_mc=50_000), 0.03)
    assert found.outcome is Outcome.INCONCLUSIVE and "was 50 °C, is 80 °C" in found.note


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (measured(device=replace(DEVICE, runtime_version="1.21")), "runtime_version was 1.20, is 1.21"),
        (measured(device=replace(DEVICE, system="Linux 6.6")), "system was Linux 6.1, is Linux 6.6"),
        (measured(governor="ondemand"), "governor was performance, is ondemand"),
        (measured(power_mode="MAXN"), "power_mode was not told, is MAXN"),
        (replace(measured(), threads=4), "threads was 1, is 4"),
        (measured(frequency_khz=1_500_000), "frequency_khz was 1800000, is 1500000"),
    ],
)
def test_a_stale_baseline_is_named(now: Measurement, said: str) -> None:
    assert checking.stale(now, measured(frequency_khz=1_800_000)) == (said,) or (
        "frequency" not in said and checking.stale(now, measured()) == (said,)
    )


def test_a_new_boot_does_not_make_a_baseline_stale() -> None:
    now = measured(device=replace(DEVICE, boot_id="next"), temperature_mc=70_000)
    assert checking.stale(now, measured()) == ()


def test_data_that_changed_leaves_the_metric_open_and_a_worse_one_fails(project: Any) -> None:
    known = codec.read_project(project)
    then = measured()

    def outcomes(now: Measurement) -> dict[str, Outcome]:
        return {check.name: check.outcome for check in checking.held(known, now, then, comparable=True)}

    assert set(outcomes(then).values()) == {Outcome.PASS}
    assert outcomes(replace(then, metric=0.8))["metric_drop"] is Outcome.FAIL
    assert outcomes(replace(then, data="other"))["metric_drop"] is Outcome.INCONCLUSIVE
    assert outcomes(replace(then, size_bytes=1100))["size_bytes"] is Outcome.FAIL


def test_the_operators_that_add_most_come_first() -> None:
    found = checking.shifts({"a": 600, "b": 400}, {"a": 605, "b": 500, "new": 300})
    assert [(s.operator, s.before_ns, s.after_ns) for s in found] == [("new", 0, 300), ("b", 400, 500)]


# ------------------------------------------------------------------------------------------------- files and reports


def test_a_baseline_comes_back_as_it_was_and_may_not_lead_elsewhere() -> None:
    made = Baseline("p", "t", "first", "abc", 1, measured(), {"a": 600})
    text = codec.dumps_kept(made)
    assert codec.loads_kept(Baseline, text, "file") == made
    with pytest.raises(UsageError, match="names without folders"):
        codec.loads_kept(Baseline, text.replace('"model.onnx"', '"../model.onnx"'), "file")


def record(level: float, device: str = "d") -> Record:
    around = Interval(level, level, level)
    return Record(1, "", "a" * 64, device, Outcome.PASS, around, around, 1, 1, 0.9)


def test_history_changes_with_the_level_and_with_the_device() -> None:
    local = Target(Path("t.toml"), "t", "local", "null")
    records = [record(1e6)] * 5 + [record(1.2e6)] * 5 + [record(3e6, "other")] * 2
    assert checking.history("p", local, records, "p50_ns").changes == (5, 10)


REPORT = Report(
    "p, q: r",
    "pi",
    "a" * 64,
    (
        Check("latency_p50_ms", Outcome.PASS, 1.0, 2.0),
        Check("slowdown", Outcome.FAIL, 1.1, 1.03, "105 to 110% | <b>\n::error::x"),
        Check("baseline", Outcome.INCONCLUSIVE, 1, 0, "stale"),
    ),
    "of 2026-01-01: first",
)


def test_reports_for_machines_hold_what_a_device_says_as_text() -> None:
    suite = ElementTree.fromstring(reporting.junit(REPORT).partition("\n")[2])
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("3", "1", "1")
    commands = reporting.workflow_commands(REPORT)
    assert [line.partition(" ")[0] for line in commands] == ["::error", "::warning"]
    assert not any("\n" in line for line in commands)
    assert "title=p%2C q%3A r on pi::" in commands[0]
    summary = reporting.markdown(REPORT)
    assert "<b>" not in summary and all(line.count(" | ") == 4 for line in summary.splitlines() if "%" in line)
