"""The forecast of a run for `--dry-run`: what it would send to the device and run there. It does not connect."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from edgeprune import runtimes
from edgeprune.devices import bench, energy, transports
from edgeprune.frontends.model import Network
from edgeprune.limits import LIMITS
from edgeprune.network import weights
from edgeprune.network.cut import formed
from edgeprune.network.survey import survey
from edgeprune.records import Limit, Precision, Project, Target
from edgeprune.records.budget import ON_DEVICE
from edgeprune.runtimes.base import Runtime
from edgeprune.runtimes.formats import FORMATS
from edgeprune.stages import bounds, confirm, experiments, measuring
from edgeprune.stages.verdicts import ondevice
from edgeprune.stages.verdicts.verdict import POLICY
from edgeprune.storage.profiles import read as read_profile

PREPARED_S = LIMITS.warmup_s / 4  # warm-up ends when the times are stable, mostly long before its limit
ROUND_S = PREPARED_S + LIMITS.timed_s


@dataclass(frozen=True)
class Part:
    """What a stage does on the device, and how many seconds of its time that takes."""

    lines: tuple[str, ...]
    least_s: float
    most_s: float
    engines: tuple[int, int] = (0, 0)  # the fewest and the most that the device builds, where its runtime needs engines


def forecast(project: Project, target: Target, whole: bool, budgets: int = 1) -> list[str]:
    """What a run sends to the device and runs there at most, and how many minutes that takes.

    Args:
        project: the project. Without a budget, a whole run only compiles and verifies.
        target: the target.
        whole: whether all stages run, or only `profile`.
        budgets: how many runs share the profile. Each is counted as if it ran alone; a sweep measures parts together.

    Returns:
        Lines of text.
    """
    network, runtime = Network(project), runtimes.host(target.runtime)
    network.require_locks(project.prune.lock)
    pruned = project.budget.prunes
    candidates = runtime.candidates(target.precision)
    parts = []
    timed = project.budget.latency is not None
    if (pruned and timed) or not whole:
        parts.append(_profile(project, network, runtime))
    if len(candidates) > 1:
        parts.append(_choice(candidates, runtime))
    for _ in range(budgets if whole else 0):
        parts += [_limit(limit) for limit in project.budget.limits if limit.figure in ON_DEVICE]
        parts += [_confirm()] if timed else []
        parts.append(_verify(network, runtime))
    least_s, most_s = sum(part.least_s for part in parts), sum(part.most_s for part in parts)
    return [
        *transports.commands(target),
        "  agent: identify",
        *(f"  {line}" for part in parts for line in part.lines),
        *(_engines(parts, project.folder / "profiles" / target.name) if runtime.engines else ()),
        f"expected: {least_s / 60:.1f} to {most_s / 60:.1f} minutes of the device's time",
    ]


def _range(least: int, most: int) -> str:
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def _engines(parts: Sequence[Part], folder: Path) -> list[str]:
    """How many engines the device builds, and how long that took in earlier profiles of this target."""
    least, most = (sum(part.engines[i] for part in parts) for i in (0, 1))
    count = f"  the device builds {least} to {most} engines, without those that it has kept"
    runs = [
        run.after
        for path in sorted(folder.glob("*.json"))
        for experiment in read_profile(path).experiments
        for run in experiment.samples.runs
    ]
    spent = [float(after["engine_s"]) for after in runs if "engine_s" in after]
    if not spent:
        return [
            f"{count}. How long a build takes is not known before the first profile; it is not in the minutes below"
        ]
    each = median(spent)
    return [
        f"{count}: {least * each / 60:.0f} to {most * each / 60:.0f} minutes more, at {each:.0f} s each in {folder}"
    ]


def _profile(project: Project, network: Network, runtime: Runtime) -> Part:
    groups = survey(network.module, network.inputs, project.prune.lock)
    model = formed(network.module, groups, network.inputs)
    file = FORMATS[runtime.format](model, network.inputs, groups).variant(groups.full())
    sent = len(zlib.compress(file, 1)) * (2 if runtime.separate_profile else 1)
    least, most = experiments.processes(groups)
    together = experiments.TOGETHER
    variants = experiments.TIMED_S + bench.PROFILED_S + PREPARED_S
    seconds = LIMITS.start_s + (experiments.ANCHORS + together) * variants
    lines = (
        f"files: {_range(least * together, most * together)} variants, at most {sent:,} bytes each"
        f" ({len(file):,} unpacked), {most * together * sent / 1e6:.1f} MB in all",
        f"agent: time, with times by operator: {_range(least, most)} processes of about {seconds:.0f} s",
    )
    return Part(lines, least * seconds, most * seconds, (1 + least * together, 1 + most * together))


def _choice(candidates: Sequence[Precision], runtime: Runtime) -> Part:
    each = LIMITS.start_s + len(candidates) * ROUND_S
    outputs = len(candidates) * LIMITS.metric_s
    processes = POLICY.verify.processes
    line = (
        f"agent: time and outputs, to choose from {', '.join(candidates)}: {processes} processes of about"
        f" {each:.1f} s and at most {outputs:.0f} s of outputs"
    )
    engines = len(candidates) * runtime.engines
    return Part((line,), processes * each, processes * each + outputs, (engines, engines))


def _limit(limit: Limit) -> Part:
    """A figure that the device tells: of the original, at two widths, of one or several plans, and for the verdict."""
    each, processes, verdict = {
        "memory": (ROUND_S, bounds.PROCESSES, 0),  # the verdict reads it in the processes that it times
        "throughput": (ROUND_S, bounds.PROCESSES, 2 * POLICY.verify.processes),
        "energy": (PREPARED_S + 2 * energy.CYCLES * energy.WINDOW_S, 1, 2 * ondevice.ENERGY_PROCESSES),
    }[limit.figure]
    each += LIMITS.start_s
    least, most = (processes * (3 + plans) + verdict for plans in (1, LIMITS.size_rounds))
    line = f"agent: {limit.figure}, for its limit: {_range(least, most)} processes of about {each:.1f} s"
    return Part((line,), least * each, most * each)


def _confirm() -> Part:
    each = LIMITS.start_s + (2 + confirm.PLANS) * (PREPARED_S + measuring.TIMED_S)
    least, most = bench.SETTLED, measuring.PROCESSES * measuring.REPEATS * LIMITS.confirm_rounds_open
    return Part(
        (f"agent: time, to confirm plans: {least} to {most} processes of about {each:.1f} s",),
        least * each,
        most * each,
        (1 + confirm.PLANS, 1 + confirm.PLANS * LIMITS.confirm_rounds_open),
    )


def _verify(network: Network, runtime: Runtime) -> Part:
    each = LIMITS.start_s + ROUND_S
    least, most = 2 * bench.SETTLED, 2 * POLICY.verify.processes * POLICY.verify.rounds
    lines = (
        f"files: the original and the final artifact, at most {8 * weights.count_parameters(network.module):,} bytes",
        f"agent: time, for the verdict: {least} to {most} processes of about {each:.1f} s",
        f"agent: outputs, for the metric: at most {2 * LIMITS.metric_s:.0f} s",
    )
    return Part(lines, least * each, most * each + 2 * LIMITS.metric_s, (2 * runtime.engines, 2 * runtime.engines))
