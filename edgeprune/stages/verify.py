"""The verify stage: does the artifact compute what the network computes, within the budget, on the device?"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgeprune.pipeline.stage import Output, Stage
from edgeprune.records import Artifact, BudgetSection, Check, Discarded, Figures, Groups, Outcome, Samples, Verdict
from edgeprune.records.budget import ON_DEVICE
from edgeprune.stages import bounds, events
from edgeprune.storage import codec
from edgeprune.storage import evidence as evidence_files
from edgeprune.storage.store import write_atomic

if TYPE_CHECKING:
    from torch import nn

    from edgeprune.devices.bench import Bench
    from edgeprune.frontends.data import Metric, Split
    from edgeprune.frontends.model import Network
    from edgeprune.stages.final import Final
    from edgeprune.stages.verdicts.verdict import Timed

TIMES = "times.json"  # samples that an inconclusive or interrupted verdict keeps for the next run


@dataclass(frozen=True)
class Reads:
    """Both networks, their artifacts, the device, the test data, the limits, and times that a sweep took for several cells."""

    network: Network
    groups: Groups
    original: Artifact
    final: Final
    compile: Artifact
    device: Bench
    test: Split
    metric: Metric
    budget_section: BudgetSection
    finetune_seed: int
    timed_ahead: Mapping[str, Times]


@dataclass(frozen=True)
class Times:
    """The samples of both artifacts so far, and the disturbed processes that were discarded meanwhile."""

    original: Samples
    pruned: Samples
    discarded: tuple[Discarded, ...] = ()


def pair(original: Artifact, pruned: Artifact) -> str:
    """Names two artifacts of one target, for times of both."""
    return f"{pruned.files[0]} {pruned.sha256} {original.sha256}"


def run(reads: Reads, output: Output) -> Verdict:
    """All checks of the pruned artifact, with the original network's beside it. What they rest on is kept with the verdict."""
    from edgeprune.stages.verdicts.accuracy import Evaluation, Timer
    from edgeprune.stages.verdicts.evidence import evidence
    from edgeprune.stages.verdicts.verification import Version, timed, verify

    groups, network, final = reads.groups, reads.network, reads.final
    timer = Timer(reads.device, network.files(output.scratch))
    evaluation = Evaluation(reads.test, reads.metric, network.inputs, reads.finetune_seed)
    original = Version(network.module, reads.original, groups.macs(groups.full()))
    pruned = Version(final.module, reads.compile, groups.macs(final.widths))
    versions, budget = (original, pruned), reads.budget_section.latency
    kept = output.partial() / TIMES
    parts = None if output.fresh else _read(kept), reads.timed_ahead.get(pair(reads.original, reads.compile))
    earlier = [one for one in parts if one is not None]
    before, known = len(reads.device.lost), tuple(lost for one in earlier for lost in one.discarded)

    def discarded() -> tuple[Discarded, ...]:
        return known + reads.device.lost[before:]

    times = timed(timer, budget, versions, _on_round(output, kept, discarded), joined(earlier), len(known))
    found = verify(times, evaluation, reads.device, versions, budget, reads.budget_section.max_metric_drop)
    evidence_files.write(output.folder, evidence(times, discarded(), found.differences))
    events.front(output.events, budget, found.verdict.pruned)
    return _on_device(reads, times, timer.files, _limited(reads, found.verdict))


def _limited(reads: Reads, verdict: Verdict) -> Verdict:
    """The verdict with a check of each other limit of `[budget]`. Live tensors are counted in the networks' own graphs."""
    limits = reads.budget_section.limits

    def figures(of: Figures, network: nn.Module) -> dict[str, float]:
        found = {"size": of.size_bytes, "parameters": of.parameters, "macs": of.macs}
        if any(limit.figure == "activations" for limit in limits):
            from edgeprune.network.activations import peak_bytes

            found["activations"] = peak_bytes(network, reads.network.inputs)
        return {**found}

    if not limits:
        return verdict
    before = figures(verdict.baseline, reads.network.module)
    after = figures(verdict.pruned, reads.final.module)
    return replace(verdict, checks=(*verdict.checks, *bounds.checks(limits, before, after)))


def _on_device(reads: Reads, times: Timed, files: Sequence[Path], verdict: Verdict) -> Verdict:
    """The verdict with a check of each limit that the device decides."""
    from edgeprune.stages.verdicts import ondevice

    assert times.original is not None
    checks = []
    subject = ondevice.Subject(reads.device, files, reads.test.size(reads.network.inputs))
    for limit in reads.budget_section.limits:
        if limit.figure == "memory":
            checks.append(ondevice.check(limit, ondevice.peaks(times.original), ondevice.peaks(times.samples)))
        elif limit.figure in ON_DEVICE:
            models = reads.original.files[0], reads.compile.files[0]
            checks.append(ondevice.check(limit, *ondevice.pairs(limit, subject, models)))
    return replace(verdict, checks=(*verdict.checks, *checks))


def _on_round(
    output: Output, path: Path, discarded: Callable[[], tuple[Discarded, ...]]
) -> Callable[[int, list[Samples], Sequence[Check]], None]:
    """A function that keeps all samples so far, and reports what is not yet decided."""
    from edgeprune.stages.verdicts.verdict import POLICY

    def on_round(number: int, taken: list[Samples], checks: Sequence[Check]) -> None:
        write_atomic(path, codec.dumps(Times(taken[0], taken[1], discarded())).encode())
        open_ = [check for check in checks if check.outcome is Outcome.INCONCLUSIVE]
        waits = (
            "; ".join(f"{check.name} is not yet decided: {check.note}" for check in open_) or "the latency is measured"
        )
        output.watch.step(number, POLICY.verify.rounds, waits)

    return on_round


def joined(times: Sequence[Times]) -> list[Samples]:
    """The samples of both artifacts, of all these times. Empty without any."""
    columns = zip(*((one.original.runs, one.pruned.runs) for one in times), strict=True)
    return [Samples(tuple(itertools.chain(*runs))) for runs in columns]


def _read(path: Path) -> Times | None:
    """The samples that an earlier run kept; None if there are none."""
    return codec.loads(Times, path.read_text(encoding="utf-8"), str(path)) if path.is_file() else None


def describe(verdict: Verdict, reads: Reads) -> str:
    """The outcome, and how many checks pass."""
    passed = sum(check.outcome is Outcome.PASS for check in verdict.checks)
    return f"{verdict.outcome}: {passed} of {len(verdict.checks)} checks pass"


def settled(verdict: Verdict) -> bool:
    """An inconclusive verdict is measured again."""
    return verdict.outcome is not Outcome.INCONCLUSIVE


STAGE = Stage("verify", Reads, run, Verdict, describe, settled=settled)
