"""Each check can pass, fail or be inconclusive, and the verdict follows from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from edgeprune.errors import DeviceError, UsageError
from edgeprune.frontends import toml
from edgeprune.frontends.data import Metric, Split
from edgeprune.frontends.model import build_model, example_inputs
from edgeprune.limits import LIMITS
from edgeprune.pipeline.request import Quiet
from edgeprune.records import Artifact, Budget, Check, Choice, Device, Outcome, Project, Run, Samples, Verdict
from edgeprune.stages import choice
from edgeprune.stages import verify as verify_stage
from edgeprune.stages.series import ahead
from edgeprune.stages.verdicts import accuracy
from edgeprune.stages.verdicts import verdict as verdict_rules
from edgeprune.stages.verdicts.accuracy import Evaluation, Timer
from edgeprune.stages.verdicts.verdict import POLICY
from edgeprune.stages.verdicts.verification import Version, timed, verify


class Board:
    """A device that computes with torch, adds an error, and has these medians."""

    def __init__(
        self, models: dict[Path, torch.nn.Module], medians: dict[Path, list[float]], error: float, memory: int
    ):
        self._models, self._medians, self._error, self._memory = models, medians, error, memory
        self.rounds = self.timed = self.computed = 0  # the last two count models
        self.discarded = 0
        facts = {
            "machine": "m",
            "cpu": "c",
            "cores": 1,
            "system": "s",
            "runtime": "r",
            "runtime_version": "1",
            "boot_id": "b",
        }
        self.device = Device(**facts, emulated=False)  # type: ignore[arg-type]

    def call_ns(self, model: Path, stacked: list[np.ndarray], latency_ns: float) -> float:
        return latency_ns

    def outputs(self, model: Path, stacked: Sequence[np.ndarray], count: int) -> list[np.ndarray]:
        self.computed += 1
        with torch.no_grad():
            rows = [self._models[model](torch.from_numpy(sample)).numpy() for sample in stacked[0]]
        return [np.stack(rows) * (1 + self._error)]

    def time(
        self, models: Sequence[Path], inputs: Sequence[Path], processes: int, runs: int = 5, timed_s: float = 0.25
    ) -> list[Samples]:
        self.rounds += 1
        self.timed += len(models)
        found = []
        for i, model in enumerate(models):
            medians = self._medians[model]
            memory = 1000 if i == 0 else self._memory
            found.append(Samples(tuple(Run((round(medians[p % len(medians)]),) * 9, memory) for p in range(processes))))
        return found


def took(*medians: int) -> Samples:
    return Samples(tuple(Run((median,) * 9, 1) for median in medians))


TIMES = {"fp32": took(100, 101, 99, 100), "fp16": took(99, 101, 100, 99), "int8": took(50, 51, 50, 49)}


@pytest.mark.parametrize(
    ("metrics", "chosen"),
    [
        ((0.9, 0.9, 0.9), "int8"),
        ((0.9, 0.9, 0.885), "fp32"),  # int8 loses too much, and fp16 is not surely faster
        ((0.9, 0.9, 0.89), "int8"),  # just within the limit
        ((0.5, 0.6, 0.7), "int8"),  # no metric holds: the most accurate
    ],
)
def test_the_fastest_precision_whose_metric_holds_is_chosen(metrics: tuple[float, ...], chosen: str) -> None:
    assert choice.best(TIMES, dict(zip(TIMES, metrics, strict=True)), 0.89) == chosen


def evaluation(project: Project, name: str) -> Evaluation:
    split = Split(project, name if project.data.split(name) else "valid")
    return Evaluation(split, Metric(project), example_inputs(project), project.finetune.seed)


def verdict(
    project: Path,
    tmp_path: Path,
    budget: str = "60%",
    pruned: Sequence[float] = (500.0,),
    error: float = 0.0,
    memory: int = 1000,
    spoil: bool = False,
    sizes: tuple[int, int] = (100, 50),
) -> tuple[Verdict, Board]:
    known = toml.read_project(project, budget)
    model = build_model(known)
    small = build_model(known)
    if spoil:
        with torch.no_grad():
            small.fc.weight.neg_()  # type: ignore[union-attr, operator]
    files = [tmp_path / "big", tmp_path / "small"]
    for file, size in zip(files, sizes, strict=True):
        file.write_bytes(b"x" * size)
    artifacts = [Artifact((file,), file.name, "fake", "fp32", "source", 1) for file in files]
    board = Board(
        dict(zip(files, (model, small), strict=True)), {files[0]: [1000.0], files[1]: list(pruned)}, error, memory
    )
    original, changed = (
        Version(network, artifact, macs)
        for network, artifact, macs in zip((model, small), artifacts, (100, 50), strict=True)
    )
    return verified(board, known, (original, changed)), board


def verified(board: Board, project: Project, versions: tuple[Version, Version]) -> Verdict:
    budget, drop = project.budget.latency, project.budget.max_metric_drop
    times = timed(Timer(board, []), budget, versions)  # type: ignore[arg-type]
    return verify(times, evaluation(project, "test"), board, versions, budget, drop).verdict  # type: ignore[arg-type]


def test_runs_that_share_the_test_set_ask_the_original_network_once(project: Path, tmp_path: Path) -> None:
    """The second verdict of a sweep has the same figures as a verdict alone."""
    alone, board = verdict(project, tmp_path)
    known = toml.read_project(project, "60%")
    shared, budget = evaluation(known, "test"), known.budget.latency
    versions = tuple(
        Version(model, Artifact((file,), file.name, "fake", "fp32", "source", 1), 1)
        for file, model in board._models.items()
    )
    times = timed(Timer(board, []), budget, versions)  # type: ignore[arg-type]
    computed = []
    for _ in range(2):
        board.computed = 0
        found = verify(times, shared, board, versions, budget, 0.01).verdict  # type: ignore[arg-type]
        computed.append(board.computed)
        assert found.baseline.metric == alone.baseline.metric and found.pruned.metric == alone.pruned.metric
    assert computed == [2, 1]


class Choosing(Board):
    """One that cannot run some of the models."""

    cannot: frozenset[Path] = frozenset()

    def estimate(self, model: Path, inputs: Sequence[Path]) -> None:
        if model in self.cannot:
            raise DeviceError("killed: out of memory?")

    def compare(self, models: Sequence[Path], inputs: Sequence[Path], processes: int, timed_s: float) -> list[Samples]:
        return self.time(models, inputs, processes)


def chosen(project: Path, tmp_path: Path, medians: dict[str, float], cannot: Sequence[str] = ()) -> Choice:
    known = toml.read_project(project)
    model = build_model(known)
    files = {name: tmp_path / name for name in medians}
    board = Choosing(dict.fromkeys(files.values(), model), {files[n]: [ns] for n, ns in medians.items()}, 0.0, 1000)
    board.cannot = frozenset(files[name] for name in cannot)
    artifacts = {name: Artifact((file,), name, "fake", name, "source", 1) for name, file in files.items()}
    candidates = {name: artifact for name, artifact in artifacts.items() if name != "fp32" or len(medians) > 2}
    drop = known.budget.max_metric_drop
    return choice.fastest(Timer(board, []), evaluation(known, "valid"), artifacts["fp32"], candidates, drop)  # type: ignore[arg-type]


def test_a_precision_that_the_device_cannot_run_is_left_out(project: Path, tmp_path: Path) -> None:
    medians = {"fp32": 100.0, "fp16": 80.0, "int8": 50.0}
    found = chosen(project, tmp_path, medians)
    assert found.precision == "int8" and [c.precision for c in found.candidates] == list(medians)
    assert all(candidate.metric > 0.9 for candidate in found.candidates)
    without = chosen(project, tmp_path, medians, ["int8"])
    assert without.precision == "fp16" and [c.precision for c in without.candidates] == ["fp32", "fp16"]
    with pytest.raises(DeviceError, match="out of memory"):
        chosen(project, tmp_path, {"fp32": 100.0, "int8": 50.0}, ["int8"])


def outcomes(found: Verdict) -> dict[str, Outcome]:
    return {check.name: check.outcome for check in found.checks}


def test_a_faithful_faster_artifact_passes(project: Path, tmp_path: Path) -> None:
    found, board = verdict(project, tmp_path)
    assert found.outcome is Outcome.PASS and set(outcomes(found).values()) == {Outcome.PASS}
    assert found.budget_ms == pytest.approx(600e-6)
    assert found.baseline.metric == found.pruned.metric > 0.9
    assert board.rounds == 1


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"pruned": [700.0]}, "latency_p50_ms"),
        ({"pruned": [1200.0]}, "latency_p90_ms"),
        ({"budget": "400 ns"}, "latency_p50_ms"),
        ({"error": 0.01}, "output_max_relative_error"),
        ({"spoil": True}, "metric_drop"),
        ({"memory": 2000}, "peak_memory_bytes"),
        ({"sizes": (100, 101)}, "size_bytes"),
    ],
)
def test_each_fault_fails_its_own_check(change: dict, name: str, project: Path, tmp_path: Path) -> None:  # type: ignore[type-arg]
    found, _ = verdict(project, tmp_path, **change)
    assert outcomes(found)[name] is Outcome.FAIL
    assert found.outcome is Outcome.FAIL


def test_noise_across_the_limit_is_inconclusive_after_more_rounds(project: Path, tmp_path: Path) -> None:
    found, board = verdict(project, tmp_path, pruned=[400.0, 800.0])
    assert outcomes(found)["latency_p50_ms"] is Outcome.INCONCLUSIVE
    assert found.outcome is Outcome.INCONCLUSIVE
    assert board.rounds == POLICY.verify.rounds


def test_rounds_report_what_is_open_and_samples_of_an_earlier_run_count(project: Path, tmp_path: Path) -> None:
    known = toml.read_project(project, "60%")
    model = build_model(known)
    files = (tmp_path / "big", tmp_path / "small")
    versions = tuple(Version(model, Artifact((file,), file.name, "fake", "fp32", "source", 1), 1) for file in files)
    board = Board(dict.fromkeys(files, model), {files[0]: [1000.0], files[1]: [400.0, 800.0]}, 0.0, 1000)
    log: list[tuple[int, list[Samples], list[Outcome]]] = []

    def on_round(number: int, taken: list[Samples], checks: Sequence[Check]) -> None:
        log.append((number, taken, [check.outcome for check in checks]))

    timed(Timer(board, []), known.budget.latency, versions, on_round)  # type: ignore[arg-type]
    assert [number for number, _, _ in log] == list(range(1, POLICY.verify.rounds + 1))
    assert all(outcomes[0] is Outcome.INCONCLUSIVE for _, _, outcomes in log)
    kept = log[-1][1]
    quiet = Board(dict.fromkeys(files, model), {files[0]: [1000.0], files[1]: [400.0]}, 0.0, 1000)
    found = timed(Timer(quiet, []), known.budget.latency, versions, on_round, kept)  # type: ignore[arg-type]
    assert len(found.samples.runs) == len(kept[1].runs) + POLICY.verify.processes * quiet.rounds
    assert (
        quiet.rounds < POLICY.verify.rounds
        and verdict_rules.budget(known.budget.latency, found).outcome is Outcome.PASS
    )
    again = Board({}, {}, 0.0, 1000)
    timed(Timer(again, []), known.budget.latency, versions, on_round, [found.original, found.samples])  # type: ignore[arg-type, list-item]
    assert again.rounds == 0  # the samples that are kept decide


def test_artifacts_of_several_budgets_are_timed_with_one_original_on_their_own_device(tmp_path: Path) -> None:
    medians = {"whole": 1000.0, **{f"cut{number}": 400.0 + number for number in range(8)}}
    files = {name: tmp_path / name for name in medians}
    board = Board({}, {files[name]: [ns] for name, ns in medians.items()}, 0.0, 1000)
    board.lost, here = (), board.device.identity  # type: ignore[attr-defined]
    known: dict[str, verify_stage.Times] = {}
    values = {"device": board, "timed_ahead": known, "network": SimpleNamespace(files=lambda folder: [])}
    run: Any = SimpleNamespace(value=values.__getitem__, scratch=tmp_path, request=SimpleNamespace(watch=Quiet()))
    whole, *cut = (Artifact((file,), name, "fake", "fp32", "source", 1) for name, file in files.items())
    cells = [ahead.Compiled(whole, one, Budget(fraction=0.5), "elsewhere" if one is cut[3] else here) for one in cut]
    ahead.time_artifacts(run, cells)
    assert set(known) == {verify_stage.pair(whole, one) for one in cut if one is not cut[3]}
    assert board.timed == 7 + 2, "six artifacts and the original, then the last one and the original"
    times = known[verify_stage.pair(whole, cut[7])]
    assert {run.times_ns[0] for run in times.pruned.runs} == {407}
    original, pruned = verify_stage.joined([times, times])
    assert original.runs == times.original.runs * 2 and pruned.runs == times.pruned.runs * 2
    assert verify_stage.joined([]) == []


def test_the_same_artifact_is_decided_in_one_round(project: Path, tmp_path: Path) -> None:
    known = toml.read_project(project, "100%")
    model, file = build_model(known), tmp_path / "big"
    file.write_bytes(b"x")
    board = Board({file: model}, {file: [900.0, 1100.0]}, 0.0, 1000)
    one = Version(model, Artifact((file,), "a", "fake", "fp32", "source", 1), 100)
    found = verified(board, known, (one, one))
    assert found.outcome is Outcome.PASS and "latency_p90_ms" not in outcomes(found) and board.rounds == 1


def test_an_artifact_that_is_its_own_original_is_measured_once(project: Path, tmp_path: Path) -> None:
    known = toml.read_project(project)
    model, file = build_model(known), tmp_path / "big"
    file.write_bytes(b"x")
    board = Board({file: model}, {file: [900.0]}, 0.0, 1000)
    one = Version(model, Artifact((file,), "a", "fake", "fp32", "source", 1), 100)
    times = timed(Timer(board, []), None, (one, one))  # type: ignore[arg-type]
    found = verify(times, evaluation(known, "test"), board, (one, one), None, 0.0).verdict  # type: ignore[arg-type]
    assert found.outcome is Outcome.PASS and found.baseline == found.pruned
    assert (board.timed, board.computed) == (1, 1)


def test_outputs_that_are_not_finite_are_an_error(project: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not finite"):
        verdict(project, tmp_path, error=float("nan"))


def test_without_a_test_set_the_validation_set_is_used_and_named(project: Path, tmp_path: Path) -> None:
    project.write_text(project.read_text().replace('test = "blobs:test"\n', ""))
    found, _ = verdict(project, tmp_path)
    assert "valid samples" in next(check.note for check in found.checks if check.name == "metric_drop")


def test_an_incomplete_last_batch_is_not_padded_into_the_metric(project: Path, tmp_path: Path) -> None:
    """The artifact takes 7 at a time, the data has 96: the rows that fill the last call are dropped again."""
    module = project.with_name("blobs.py")
    module.write_text(module.read_text().replace("torch.zeros(1, 1, 24, 24)", "torch.zeros(7, 1, 24, 24)"))
    found, _ = verdict(project, tmp_path)
    assert "96 test samples" in next(check.note for check in found.checks if check.name == "metric_drop")
    assert found.outcome is Outcome.PASS


def test_a_budget_is_a_share_or_a_time() -> None:
    assert Budget.parse("50%").resolve(1000) == 500
    assert Budget.parse("12 ms").resolve(1000) == 12_000_000
    assert replace(Budget.parse("1 us")).ns == 1000


def test_an_emulated_device_gets_fewer_samples_and_the_note_reports_it(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accuracy, "LIMITS", replace(LIMITS, emulated_metric_s=40 * 1000e-9))
    emulate = Board.__init__

    def init(self: Board, *arguments: object) -> None:
        emulate(self, *arguments)  # type: ignore[arg-type]
        self.device = replace(self.device, emulated=True)

    monkeypatch.setattr(Board, "__init__", init)
    found, _ = verdict(project, tmp_path)
    assert found.emulated
    assert "the first 40 of 96 test samples" in next(c.note for c in found.checks if c.name == "metric_drop")
