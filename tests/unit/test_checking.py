"""What the rules of verdicts decide from samples, and what a check reports."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import edgeprune
from edgeprune.api import fleets, series, sweeps, verbs
from edgeprune.cli import answers
from edgeprune.devices.agent import facts
from edgeprune.errors import UsageError
from edgeprune.frontends import toml
from edgeprune.frontends.data import Metric, Split
from edgeprune.latency import stats
from edgeprune.latency.changes import changes
from edgeprune.pipeline.request import request
from edgeprune.pipeline.run import open_run
from edgeprune.records import (
    Artifact,
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
from edgeprune.reports import ci as reporting
from edgeprune.reports import pytest_plugin
from edgeprune.runtimes.device import find
from edgeprune.stages import compile as compiling
from edgeprune.stages import inputs
from edgeprune.stages.registry import RULES
from edgeprune.stages.verdicts import comparable, comparison, history, verdict
from edgeprune.stages.verdicts.accuracy import Evaluation, Timer
from edgeprune.stages.verdicts.verdict import POLICY, Timed
from edgeprune.storage import baselines, codec
from edgeprune.storage.baselines import Kept

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


def test_a_quantile_needs_enough_times_for_both_bounds() -> None:
    assert (stats.needed(0.5), stats.needed(0.9), stats.needed(0.99)) == (5, 29, 299)
    assert stats.needed(0.9, POLICY.sure) == 39 and stats.needed(0.99, POLICY.sure) == 408
    assert stats.quantile(samples(1e6, 1, 28), 0.9) is None
    found = stats.quantile(samples(1e6, 1, 29), 0.9)
    assert found is not None and found.high == max(samples(1e6, 1, 29).runs[0].times_ns)


def test_the_bounds_of_a_quantile_hold_as_often_as_claimed() -> None:
    random = np.random.default_rng(1)
    held = 0
    for _ in range(300):
        runs = [Run(tuple(int(1e6 * np.exp(0.1 * x)) for x in random.standard_normal(50)), 1) for _ in range(6)]
        found = stats.quantile(Samples(tuple(runs)), 0.9)
        assert found is not None
        held += found.low <= 1e6 * np.exp(0.1 * 1.28155) <= found.high
    assert held >= 0.88 * 300  # 95 % on either side


def test_processes_that_differ_widen_the_bounds() -> None:
    alike = stats.quantile(samples(1e6, 30, 100), 0.9)
    apart = stats.quantile(Samples(samples(1e6, 20, 100).runs + samples(1.01e6, 10, 100).runs), 0.9)
    assert alike is not None and apart is not None
    assert apart.high - apart.low > 3 * (alike.high - alike.low)


@pytest.mark.parametrize(("processes", "between"), [(6, 0.005), (6, 0.01), (12, 0.01), (30, 0.02)])
def test_the_bounds_hold_too_where_times_of_one_process_are_alike(processes: int, between: float) -> None:
    random = np.random.default_rng(2)
    truth = 1e6 * np.exp(1.28155 * np.hypot(between, 0.01))
    found = [stats.quantile(clustered(random, processes, between), 0.9) for _ in range(300)]
    known = [one for one in found if one is not None]
    assert len(known) > 100
    # 7 % were seen where 5 % are meant, of few processes; without the design effect 26 %.
    assert sum(one.high < truth for one in known) <= 0.08 * 300
    assert sum(one.low > truth for one in known) <= 0.08 * 300


def clustered(random: np.random.Generator, processes: int, between: float) -> Samples:
    """Processes of 25 times that differ by 1 %, with levels that differ by `between`."""
    levels = 1e6 * np.exp(between * random.standard_normal(processes))
    return Samples(
        tuple(Run(tuple(int(level * np.exp(0.01 * x)) for x in random.standard_normal(25)), 1) for level in levels)
    )


def test_times_that_only_differ_by_process_count_as_processes() -> None:
    apart = Samples(tuple(Run((level,) * 50, 1) for level in range(1000, 1020)))
    assert stats.independent(samples(1e6, 20, 50), 0.9) > 500
    assert stats.independent(apart, 0.9) <= 22 and stats.quantile(apart, 0.9) is None
    found = verdict.budget(Budget.parse("p90 1 ms"), Timed(apart))
    assert found.outcome is Outcome.INCONCLUSIVE and "the 1000 taken count as" in found.note


class Alone:
    """A device whose processes differ as much as their times do."""

    discarded = 0

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    def time(self, models: Any, files: Any, processes: int, runs: int, timed_s: float) -> list[Samples]:
        return [clustered(self._random, processes, 0.005)]


def test_three_rounds_pass_a_slow_network_as_rarely_as_one_round() -> None:
    budget = Budget(int(1e6 * np.exp(1.28155 * np.hypot(0.005, 0.01)) / 1.0005), quantile=0.9)
    passed = 0
    for seed in range(150):
        timer = Timer(Alone(seed), [])  # type: ignore[arg-type]
        timed = comparison.time_budgets(timer, [Path("model")], [budget])
        passed += verdict.budget(budget, timed).outcome is Outcome.PASS
    assert passed <= 0.06 * 150


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(6, 60))
def test_noise_is_no_change_of_level(seed: int, count: int) -> None:
    values = 1e6 * np.exp(0.005 * np.random.default_rng(seed).standard_normal(count))
    assert changes(values.tolist(), 0.03) == []


@settings(deadline=None)
@given(st.integers(3, 20), st.integers(3, 20), st.sampled_from([0.8, 0.9, 1.1, 1.5]))
def test_a_new_level_is_found_where_it_begins(before: int, after: int, factor: float) -> None:
    assert changes([1.0] * before + [factor] * after, 0.03) == [before]


def test_one_outlier_is_no_new_level() -> None:
    values = [1.0, 1.01, 0.99, 1.0, 1.02, 1.0, 1.3, 1.0, 0.99, 1.01, 1.0, 1.0]
    assert changes(values, 0.03) == []


def test_small_steps_add_up_to_a_change_of_level() -> None:
    assert changes([1.0] * 10 + [1.029] * 10 + [1.058] * 10 + [1.088] * 10, 0.03) == [10, 30]
    assert changes([1.0] * 10 + [1.02] * 10, 0.03) == []


# --------------------------------------------------------------------------------------------------------- the checks


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("1.1 ms", "pass"),
        ("0.9 ms", "fail"),
        ("p90 1.1 ms", "pass"),
        ("p90 0.9 ms", "fail"),
        ("p99 1.1 ms", "inconclusive"),  # 180 times cannot decide a p99, however low they are
        ("1 ms", "inconclusive"),
    ],
)
def test_a_budget_is_decided_at_its_quantile(text: str, outcome: str) -> None:
    found = verdict.budget(Budget.parse(text), Timed(samples(1e6)))
    assert found.outcome == outcome
    if "p99" in text:
        assert "needs 408 timings" in found.note and "180" in found.note


def test_a_share_is_decided_on_pairs() -> None:
    assert verdict.budget(Budget.parse("50%"), Timed(samples(4e5), samples(1e6))).outcome is Outcome.PASS
    assert verdict.budget(Budget.parse("50%"), Timed(samples(6e5), samples(1e6))).outcome is Outcome.FAIL
    with pytest.raises(ValueError, match="needs samples of the original network"):
        verdict.budget(Budget.parse("50%"), Timed(samples(4e5)))


@pytest.mark.parametrize(("text", "outcome"), [("100%", "pass"), ("99%", "fail"), ("2 ms", "pass")])
def test_a_share_of_the_same_artifact_is_decided_without_its_times(text: str, outcome: str) -> None:
    same = Timed(samples(1.1e6), samples(1e6), same=True)
    found = verdict.budget(Budget.parse(text), same)
    assert found.outcome == outcome and ("original network's artifact" in found.note) == ("%" in text)


def test_a_budget_s_note_reports_how_it_was_measured() -> None:
    runs = tuple(replace(run, copies_ns=2_000_000, fallbacks=3) for run in samples(1e6).runs)
    found = verdict.budget(Budget.parse("2 ms"), Timed(Samples(runs), samples(2e6), discarded=2))
    for part in ("6 processes each, interleaved", "2 disturbed ones discarded", "2 ms more", "3 layers"):
        assert part in found.note


@pytest.mark.parametrize(("level", "outcome"), [(1.0e6, "pass"), (1.2e6, "fail"), (1.0505e6, "inconclusive")])
def test_the_tail_is_held_to_the_original_network_s(level: float, outcome: str) -> None:
    found = verdict.tail(samples(level, seed=1), samples(1e6))
    assert found.outcome == outcome and found.name == "latency_p90_ms"


def test_the_constants_of_verdicts_are_what_the_documentation_states() -> None:
    assert (POLICY.floor, POLICY.emulated_floor, POLICY.free_clock) == (0.03, 0.005, 0.25)
    assert POLICY.tail == POLICY.memory == POLICY.size == 1.05
    assert POLICY.sure == pytest.approx(0.983, abs=1e-3)
    assert POLICY.allowed_slowdown(0.1, emulated=True) == 0.1
    assert (POLICY.allowed_slowdown(None, True), POLICY.allowed_slowdown(None, False)) == (0.005, 0.03)


def test_a_share_at_a_quantile_needs_as_many_times_as_the_quantile() -> None:
    found = verdict.budget(Budget.parse("p99 50%"), Timed(samples(4e5, runs=5), samples(1e6, runs=5)))
    assert found.outcome is Outcome.INCONCLUSIVE
    assert found.note.startswith("95% confidence needs 408 timings, and there was time for 30;")
    found = verdict.budget(Budget.parse("p99 50%"), Timed(samples(4e5, runs=70), samples(1e6, runs=70)))
    assert found.outcome is Outcome.PASS


def test_budgets_of_one_quantile_have_different_names() -> None:
    budgets = [Budget.parse(text) for text in ("50%", "12 ms", "p90 20 ms")]
    found = verdict.budgets(budgets, Timed(samples(4e5), samples(1e6)))
    assert [check.name for check in found] == ["latency_p50_ms (50%)", "latency_p50_ms (12 ms)", "latency_p90_ms"]


@pytest.mark.parametrize("text", ["1 ms", "100%", "p90 1.0026 ms"])
def test_an_inconclusive_budget_reports_what_would_decide_it(text: str) -> None:
    found = verdict.budget(Budget.parse(text), Timed(samples(1e6), samples(1e6, seed=1)))
    assert found.outcome is Outcome.INCONCLUSIVE
    assert "processes would decide it" in found.note or "no number of runs separates" in found.note


def test_a_note_reports_that_no_number_of_runs_decides() -> None:
    assert verdict.undecided(Interval(0.9, 0.98, 1.06), 1.0, 6) == (
        "; about 96 processes would decide it: quiet or pin the device, and run again"
    )
    never = verdict.undecided(Interval(0.9, 0.9999, 1.1), 1.0, 6)
    assert never == ("; no number of runs separates 0.01% from the limit: quiet or pin the device, or move the limit")
    assert verdict.undecided(Interval(0.8, 0.9, 0.95), 1.0, 6) == verdict.undecided(Interval(2, 2, 2), 1.0, 6) == ""


@pytest.mark.parametrize(("now", "outcome"), [(1.0e6, "pass"), (1.02e6, "pass"), (1.05e6, "fail"), (0.8e6, "pass")])
def test_a_device_that_repeats_itself_is_held_to_what_was_recorded(now: float, outcome: str) -> None:
    assert verdict.slowdown_recorded(measured(now), measured(), 0.03).outcome == outcome


def test_recorded_times_never_fail_where_the_clock_is_not_pinned() -> None:
    free = {"governor": "schedutil"}
    assert verdict.slowdown_recorded(measured(1.1e6, **free), measured(**free), 0.03).outcome is Outcome.PASS
    found = verdict.slowdown_recorded(measured(2e6, **free), measured(**free), 0.03)
    assert found.outcome is Outcome.INCONCLUSIVE and "clock is not pinned" in found.note


def test_an_interval_around_the_drift_of_a_free_clock_decides_nothing() -> None:
    medians = [1.2e6, 1.2e6, 1.9e6, 1.9e6, 1.9e6, 2e6]
    now = replace(
        measured(governor="schedutil"),
        samples=Samples(tuple(Run((int(m),) * 9, 10**6, before={"governor": "schedutil"}) for m in medians)),
    )
    found = verdict.slowdown_recorded(now, measured(governor="schedutil"), 0.03)
    assert found.outcome is Outcome.INCONCLUSIVE and found.value > 1.8


class Bench:
    """A device with this latency and these outputs for every network."""

    discarded = 0

    def __init__(self, level: float = 1e6, outputs: np.ndarray | None = None) -> None:
        self.device, self._level, self._outputs = DEVICE, level, outputs

    def time(self, models: list[Path], files: Any, processes: int, runs: int, timed_s: float) -> list[Samples]:
        return [samples(self._level) for _ in models]

    def call_ns(self, model: Path, stacked: Any, latency_ns: float) -> float:
        return latency_ns

    def outputs(self, model: Path, stacked: list[np.ndarray], count: int) -> list[np.ndarray]:
        calls = stacked[0]
        return [np.zeros((*calls.shape[:2], 4), np.float32) if self._outputs is None else self._outputs]


def checked(project: Path, now: Measurement, kept: Kept | None) -> Report:
    known = toml.read_project(project)
    target = Target(Path("t.toml"), "t", "local", "onnxruntime")
    artifact = Artifact((Path("model.onnx"),), now.artifact, "onnxruntime", "fp32", "", 1)
    timer = Timer(cast("Any", Bench()), [])
    return comparison.compare(timer, known, target, comparison.Measured(artifact, now, ()), kept)


def test_another_artifact_without_the_baseline_s_is_inconclusive(project: Path, tmp_path: Path) -> None:
    then = measured(governor="schedutil")
    made = Baseline("p", "t", "first", "", 1, then, {})
    place = tmp_path / "p.baseline.json"
    kept = baselines.with_artifact(place, made)
    assert kept.model is None and kept.missing == f"{tmp_path / 'p.baseline' / 'model.onnx'} is missing"
    now = replace(measured(1.24e6, governor="schedutil"), artifact="b" * 64)
    found = {check.name: check for check in checked(project, now, kept).checks}["slowdown"]
    assert found.outcome is Outcome.INCONCLUSIVE and kept.missing in found.note and found.limit == 1.03
    same = {check.name: check for check in checked(project, replace(now, artifact="a" * 64), kept).checks}
    assert same["slowdown"].outcome is Outcome.PASS and kept.missing not in same["slowdown"].note
    (tmp_path / "p.baseline").mkdir()
    (tmp_path / "p.baseline" / "model.onnx").write_text("version https://git-lfs.github.com/spec/v1\n")
    kept = baselines.with_artifact(place, made)
    assert kept.model is None and "git lfs pull" in kept.missing


def test_another_board_or_a_hot_one_is_inconclusive() -> None:
    other = replace(DEVICE, serial="other")
    found = verdict.slowdown_recorded(measured(1.1e6, other), measured(), 0.03)
    assert found.outcome is Outcome.INCONCLUSIVE and "another device" in found.note
    found = verdict.slowdown_recorded(measured(1.1e6, temperature_mc=80_000), measured(temperature_mc=50_000), 0.03)
    assert found.outcome is Outcome.INCONCLUSIVE and "was 50 °C, is 80 °C" in found.note


def test_a_condition_that_is_no_number_is_none() -> None:
    odd = {"temperature_mc": "hot", "frequency_khz": "fast"}
    assert comparable.moved(measured(**odd), measured(temperature_mc=50_000)) == ""
    assert comparable.stale(measured(**odd), measured(frequency_khz=1_800_000)) == ()


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (measured(device=replace(DEVICE, runtime_version="1.21")), "runtime_version was 1.20, is 1.21"),
        (measured(device=replace(DEVICE, system="Linux 6.6")), "system was Linux 6.1, is Linux 6.6"),
        (measured(governor="ondemand"), "governor was performance, is ondemand"),
        (measured(power_mode="MAXN"), "power_mode was not reported, is MAXN"),
        (replace(measured(), threads=4), "threads was 1, is 4"),
        (measured(frequency_khz=1_500_000), "frequency_khz was 1800000, is 1500000"),
    ],
)
def test_a_stale_baseline_is_named(now: Measurement, said: str) -> None:
    assert comparable.stale(now, measured(frequency_khz=1_800_000)) == (said,) or (
        "frequency" not in said and comparable.stale(now, measured()) == (said,)
    )


def test_another_system_or_firmware_is_stale_unless_the_baseline_is_older_than_the_fact() -> None:
    then, now = {"os": "Debian 12", "firmware": "version a"}, {"os": "Debian 13", "firmware": "version b"}
    assert comparable.stale(measured(**now), measured(**then)) == (
        "os was Debian 12, is Debian 13",
        "firmware was version a, is version b",
    )
    assert comparable.stale(measured(**now), measured()) == ()
    assert comparable.stale(measured(), measured(**then))[0] == "os was Debian 12, is not reported"


def test_the_agent_reports_the_system_and_the_firmware(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release, jetson = tmp_path / "os-release", tmp_path / "nv_tegra_release"
    release.write_text('NAME="Debian"\nPRETTY_NAME="Debian GNU/Linux 13 (trixie)"\n')
    assert facts.os_name((str(tmp_path / "none"), str(release))) == "Debian GNU/Linux 13 (trixie)"
    assert facts.os_name(()) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert facts.firmware(str(jetson)) is None
    jetson.write_text(f"# R36 (release), REVISION: 3.0, {'x' * 200}\n")
    assert (
        facts.firmware(str(jetson)).startswith("R36 (release), REVISION: 3.0")
        and len(facts.firmware(str(jetson))) == 100
    )
    tool = tmp_path / "vcgencmd"
    tool.write_text(
        "#!/bin/sh\nprintf '2024/01/05 15:57:40\\nCopyright (c) 2012 Broadcom\\nversion 30cc5f37 (release)\\n'\n"
    )
    tool.chmod(0o755)
    assert facts.firmware(str(jetson)) == "version 30cc5f37 (release)"
    assert facts.conditions(find("null"))["firmware"] == "version 30cc5f37 (release)"


def test_a_new_boot_does_not_make_a_baseline_stale() -> None:
    now = measured(device=replace(DEVICE, boot_id="next"), temperature_mc=70_000)
    assert comparable.stale(now, measured()) == ()


def test_changed_data_leaves_the_metric_inconclusive_and_a_worse_one_fails(project: Path) -> None:
    then = measured()
    kept = Kept(Baseline("p", "t", "first", "", 1, then, {}), None)

    def outcomes(now: Measurement) -> dict[str, Outcome]:
        return {check.name: check.outcome for check in checked(project, now, kept).checks}

    assert set(outcomes(then).values()) == {Outcome.PASS}
    assert outcomes(replace(then, metric=0.8))["metric_drop"] is Outcome.FAIL
    assert outcomes(replace(then, data="other"))["metric_drop"] is Outcome.INCONCLUSIVE
    assert outcomes(replace(then, size_bytes=1100))["size_bytes"] is Outcome.FAIL
    assert set(outcomes(then)) == {"slowdown", "metric_drop", "size_bytes", "peak_memory_bytes"}
    assert set(outcomes(replace(then, threads=4))) == {"baseline", "metric_drop", "size_bytes"}


def test_the_operators_that_add_most_come_first() -> None:
    found, said = comparison.shifts({"a": 600, "b": 400}, {"a": 605, "b": 500, "new": 300})
    assert [(s.operator, s.before_ns, s.after_ns) for s in found] == [("new", 0, 300), ("b", 400, 500)] and not said


def test_a_slowdown_of_all_operators_is_named_too() -> None:
    before = {f"layer{i}": 1000 for i in range(60)}
    found, said = comparison.shifts(before, {**dict.fromkeys(before, 1100), "layer7": 1200})
    assert [s.operator for s in found] == ["layer7"] and said == "spread evenly over 60 operators"
    assert comparison.shifts(before, before) == ((), "the profiler reports no operator that takes longer")


SHUFFLED = """
import torch
from torch.utils.data import DataLoader, TensorDataset
from blobs import _data

def test():
    images, labels = (torch.cat(column) for column in zip(*_data(2, 96)))
    return DataLoader(TensorDataset(images, labels), 96, shuffle=True)
"""


def measured_by(bench: Bench, path: Path, known: Measurement | None = None) -> tuple[Measurement, list[Check]]:
    """The measurement, and the checks that failed."""
    project = toml.read_project(path)
    target = Target(Path("t.toml"), "t", "local", "onnxruntime")
    model = path.parent / "model.onnx"
    model.write_bytes(b"model")
    artifact = Artifact((model,), "a" * 64, "onnxruntime", "fp32", "", 1)
    compiled = comparison.Compiled(artifact, [np.zeros((1, 1, 1, 24, 24), np.float32)], [np.zeros((1, 4), np.float32)])
    inputs = (torch.zeros(1, 1, 24, 24),)
    most = known.count if known else None
    evaluation = Evaluation(Split(project, "test"), Metric(project), inputs, project.finetune.seed, most)
    timer = Timer(cast("Any", bench), [])
    found = comparison.measure(timer, evaluation, target, compiled, [Budget.parse("1.6 s")], None)
    return found.now, [check for check in found.checks if check.outcome is Outcome.FAIL]


def test_the_metric_is_of_the_baseline_s_samples_however_fast_the_device_is_today(project: Path) -> None:
    (project.parent / "shuffled.py").write_text(SHUFFLED)
    project.write_text(project.read_text().replace("blobs:test", "shuffled:test"))
    then, _ = measured_by(Bench(0.5e9), project)
    assert 20 < then.count < 40
    for level in (1.5e9, 1e6):
        torch.rand(3)  # something else has drawn numbers in between
        now, _ = measured_by(Bench(level), project, then)
        assert (now.count, now.data) == (then.count, then.data)


def test_outputs_that_are_not_finite_fail_and_are_reported(project: Path) -> None:
    broken = np.zeros((96, 1, 4), np.float32)
    broken[5] = np.nan
    now, failed = measured_by(Bench(outputs=broken), project)
    assert now.metric is None
    assert [(check.name, check.value) for check in failed] == [("metric_not_finite", 1)]
    kept = Kept(Baseline("p", "t", "first", "", 1, measured(), {}), None, "gone")
    report = checked(project, now, kept)
    assert "metric_drop" not in {check.name for check in report.checks}
    codec.dumps(history.record(now, Outcome.FAIL, "", 1, ""))
    with pytest.raises(ValueError, match="has a metric"):
        Baseline("p", "t", "first", "", 1, now, {})


def test_a_metric_that_is_no_number_fails_and_one_that_raises_is_the_user_s_error(project: Path) -> None:
    module = project.parent / "blobs.py"
    text = module.read_text()
    project.write_text(project.read_text().replace("[budget]", 'metric = "blobs:metric"\n\n[budget]'))
    module.write_text(text + '\ndef metric(outputs, targets):\n    return float("nan")\n')
    now, failed = measured_by(Bench(), project)
    assert now.metric is None and "return a finite number" in failed[0].note
    module.write_text(text + "\ndef metric(outputs, targets):\n    return 1 / 0\n")
    with pytest.raises(UsageError, match="ZeroDivisionError"):
        measured_by(Bench(), project)


def test_numerics_of_outputs_that_are_all_zero_or_huge_are_numbers() -> None:
    real, zero = np.array([[1.0, 2.0], [3.0, 1.0]], np.float32), np.zeros((2, 2), np.float32)
    for wanted, got in ((real, zero), (zero, real), (real, real * np.float32(1e30))):
        found = verdict.outputs(wanted, got, "fp32")
        codec.dumps(found)
        assert Outcome.of(found) is Outcome.FAIL
    assert {check.name: check.value for check in verdict.outputs(real, zero, "fp32")}["output_cosine"] == 0
    assert Outcome.of(verdict.outputs(zero, zero, "fp32")) is Outcome.PASS
    huge = real * np.float32(1e30)
    assert Outcome.of(verdict.outputs(huge, huge, "fp32")) is Outcome.PASS


# ------------------------------------------------------------------------------------------------- files and reports


def test_a_baseline_is_read_back_as_it_was_written_and_has_no_path_outside_its_folder() -> None:
    made = Baseline("p", "t", "first", "abc", 1, measured(), {"a": 600})
    text = codec.dumps_kept(made)
    assert codec.loads_kept(Baseline, text, "file") == made
    with pytest.raises(UsageError, match="names without folders"):
        codec.loads_kept(Baseline, text.replace('"model.onnx"', '"../model.onnx"'), "file")


def test_a_broken_baseline_reports_the_fix_and_is_replaced(tmp_path: Path) -> None:
    made = Baseline("p", "t", "first", "abc", 1, measured(), {"a": 600})
    place, model = tmp_path / "p.baseline.json", tmp_path / "model.onnx"
    model.write_bytes(b"model")
    artifact = Artifact((model,), "a" * 64, "onnxruntime", "fp32", "", 1)
    whole = codec.dumps_kept(made)
    for text in (
        whole[:99],
        "\xff",
        whole.replace('"metric": 0.9', '"metric": "x"'),
        whole.replace('"schema": 1', '"schema": 0'),
    ):
        place.write_text(text, encoding="latin-1")
        with pytest.raises(UsageError, match=r"put back an earlier copy, or make a new one: edgeprune check --update"):
            baselines.read(place)
        baselines.declare(place, made, artifact)
        assert baselines.read(place) == made


@pytest.mark.parametrize("name", ["good", ".json", "folder.json"])
def test_a_path_that_cannot_be_a_baseline_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(UsageError, match=r"ends in \.json"):
        baselines.valid_path(tmp_path / name)
    assert baselines.valid_path(tmp_path / "good.json") == tmp_path / "good.json"


def test_a_history_that_was_merged_is_in_order_and_a_bad_line_is_named(tmp_path: Path) -> None:
    place = tmp_path / "p.history.jsonl"
    for created_s in (1, 5, 3, 4):
        baselines.remember(place, replace(record(1e6), created_s=created_s))
    assert [one.created_s for one in baselines.history(place)] == [1, 3, 4, 5]
    with place.open("a") as file:
        file.write("<<<<<<< HEAD\n")
    with pytest.raises(UsageError, match=r"history\.jsonl:5: .*; remove that line"):
        baselines.history(place)


def test_checks_without_a_metric_are_left_out_of_its_history() -> None:
    local = Target(Path("t.toml"), "t", "local", "null")
    records = [record(1e6), replace(record(1e6), metric=None), record(1e6)]
    assert history.history("p", local.name, local.emulated, records, "metric").values == (0.9, 0.9)
    assert len(history.history("p", local.name, local.emulated, records, "p50_ns").values) == 3


@pytest.mark.parametrize("auto", [False, True])
def test_libraries_and_device_do_not_make_a_project_another_one(
    auto: bool, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "t.toml"
    precision = "auto" if auto else "fp32"
    target.write_text(f'[connect]\ntransport = "local"\n\n[runtime]\nname = "onnxruntime"\nprecision = "{precision}"\n')

    def found() -> tuple[str, str]:
        with open_run(request(project, str(target)), RULES) as run:
            return run.settings(compiling.STAGE), run.key(compiling.ORIGINAL)

    before = found()
    monkeypatch.setattr(inputs, "installed", lambda package: "another")
    after = found()
    assert before[0] == after[0] and before[1] != after[1]
    project.write_text(project.read_text().replace("epochs = 2", "epochs = 3"))
    assert found()[0] != after[0]


def record(level: float, device: str = "d") -> Record:
    around = Interval(level, level, level)
    return Record(1, "", "a" * 64, device, Outcome.PASS, around, around, 1, 1, 0.9)


def test_history_changes_with_the_level_and_with_the_device() -> None:
    local = Target(Path("t.toml"), "t", "local", "null")
    records = [record(1e6)] * 5 + [record(1.2e6)] * 5 + [record(3e6, "other")] * 2
    assert history.history("p", local.name, local.emulated, records, "p50_ns").changes == (5, 10)


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


def test_text_of_a_device_is_escaped_in_reports_for_machines() -> None:
    suite = ElementTree.fromstring(reporting.junit([REPORT]).partition("\n")[2])
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("3", "1", "1")
    commands = reporting.workflow_commands(REPORT)
    assert [line.partition(" ")[0] for line in commands] == ["::error", "::warning"]
    assert not any("\n" in line for line in commands)
    assert "title=p%2C q%3A r on pi::" in commands[0]
    summary = reporting.markdown(REPORT)
    assert "&#60;b&#62;" in summary and "&#38;" not in summary
    assert "<b>" not in summary and all(line.count(" | ") == 4 for line in summary.splitlines() if "%" in line)


def test_text_of_a_baseline_s_file_stays_on_its_line(project: Path) -> None:
    made = Baseline("p", "t", "ok\n::stop-commands::x\x1b[31m", "a\nb", 1, measured(), {})
    shown = checked(project, measured(), Kept(made, None, "gone")).baseline
    assert shown.isprintable() and "ok\\n::stop-commands" in shown


def test_a_report_without_a_baseline_warns_and_is_decided_by_the_other_checks(project: Path) -> None:
    report = checked(project, measured(), None)
    assert (report.baseline, report.outcome) == ("", Outcome.PASS)
    (warning,) = reporting.workflow_commands(report)
    assert warning.startswith("::warning title=") and "--update --reason" in warning
    assert "Baseline: none" in reporting.markdown(report)
    assert reporting.workflow_commands(replace(report, baseline="of today")) == []


# -------------------------------------------------------------------------------------------------- pytest and Python


def test_a_device_is_sent_an_artifact_s_own_files_only(tmp_path: Path) -> None:
    for name in ("model.tflite", "model.xml", "model.bin", "model.onnx", "build.json", ".env", "data.zip"):
        (tmp_path / name).write_text(name)
    for runtime, model, files in (
        ("tflite", "model.tflite", {"model.tflite"}),
        ("openvino", "model.xml", {"model.xml", "model.bin"}),
        ("tensorrt", "model.onnx", {"model.onnx", "build.json"}),
    ):
        folder = tmp_path / runtime
        folder.mkdir()
        assert pytest_plugin._copied(tmp_path / model, runtime, folder) == folder / model
        assert {path.name for path in folder.iterdir()} == files
    (tmp_path / "model.bin").unlink()
    for model, runtime in (("model.xml", "openvino"), ("none.onnx", "onnxruntime")):
        with pytest.raises(UsageError, match="is no file"):
            pytest_plugin._copied(tmp_path / model, runtime, tmp_path / "tflite")


def test_a_marker_s_arguments_are_checked() -> None:
    assert pytest_plugin._marked(None) == ("local", False)
    assert pytest_plugin._marked(pytest.mark.latency("pi", strict=True).mark) == ("pi", True)
    for mark in (pytest.mark.latency("pi", stict=True), pytest.mark.latency("a", True, 3)):
        with pytest.raises(UsageError, match=r"latency: .*write latency"):
            pytest_plugin._marked(mark.mark)


def test_a_report_as_json_has_a_schema_and_a_status() -> None:
    document = json.loads(answers._document(REPORT))
    assert list(document)[:2] == ["schema", "status"] and (document["schema"], document["status"]) == (1, "fail")
    assert document["checks"][0]["name"] == "latency_p50_ms"


def test_check_and_history_are_functions_of_the_package() -> None:
    assert edgeprune.check is verbs.check and edgeprune.history is verbs.history
    assert {*verbs.__all__, *fleets.__all__, *series.__all__, *sweeps.__all__, "Project"} == set(edgeprune.__all__)
