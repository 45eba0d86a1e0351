"""The forecast of a run for `--dry-run`: what it would send to the device and run there. It does not connect."""

from __future__ import annotations

import zlib

from edgeprune import runtimes
from edgeprune.devices import bench, transports
from edgeprune.frontends.model import Network
from edgeprune.limits import LIMITS
from edgeprune.network import weights
from edgeprune.network.survey import survey
from edgeprune.records import Project, Target
from edgeprune.runtimes.formats import FORMATS
from edgeprune.stages import confirm, experiments
from edgeprune.stages.verdict import POLICY

PREPARED_S = LIMITS.warmup_s / 4  # warm-up ends when the times are stable, mostly long before its limit
ROUND_S = PREPARED_S + LIMITS.timed_s


def forecast(project: Project, target: Target, whole: bool) -> list[str]:
    """What a run sends to the device and runs there at most, and how many minutes that takes.

    Args:
        project: the project.
        target: the target.
        whole: whether all stages run, or only `profile`.

    Returns:
        Lines of text.
    """
    network, runtime = Network(project), runtimes.host(target.runtime)
    network.require_locks(project.prune.lock)
    model, inputs = network.module, network.inputs
    groups = survey(model, inputs, project.prune.lock)
    file = FORMATS[runtime.format](model, inputs, groups).variant(groups.full())
    sent = len(zlib.compress(file, 1))
    if runtime.separate_profile:
        sent *= 2
    at_least, most = experiments.processes(groups)
    variants = experiments.TIMED_S + experiments.PROFILED_S + PREPARED_S
    seconds = LIMITS.start_s + (experiments.ANCHORS + experiments.TOGETHER) * variants
    lines = [
        *transports.commands(target),
        "  agent: identify",
        f"  sftp put {at_least * experiments.TOGETHER} to {most * experiments.TOGETHER} variants, at most {sent:,} bytes each"
        f" ({len(file):,} unpacked), {most * experiments.TOGETHER * sent / 1e6:.1f} MB in all",
        f"  agent: time, with times by operator: {at_least} to {most} processes of about {seconds:.0f} s",
    ]
    spent = [at_least * seconds, most * seconds]
    candidates = runtime.candidates(target.precision)
    if len(candidates) > 1:
        each = LIMITS.start_s + len(candidates) * ROUND_S
        outputs = len(candidates) * LIMITS.metric_s
        lines.append(
            f"  agent: time and outputs, to choose from {', '.join(candidates)}: {POLICY.verify.processes} processes of about"
            f" {each:.1f} s and at most {outputs:.0f} s of outputs"
        )
        spent = [seconds + POLICY.verify.processes * each for seconds in spent]
        spent[1] += outputs
    if whole:
        confirming = LIMITS.start_s + (2 + confirm.PLANS) * ROUND_S
        to_confirm = confirm.PROCESSES * confirm.REPEATS * LIMITS.confirm_rounds
        each = LIMITS.start_s + ROUND_S
        least, final = 2 * bench.SETTLED, 2 * POLICY.verify.processes * POLICY.verify.rounds
        lines += [
            f"  agent: time, to confirm plans: {bench.SETTLED} to {to_confirm} processes of about {confirming:.1f} s",
            f"  sftp put the original and the pruned artifact: at most {8 * weights.count_parameters(model):,} bytes",
            f"  agent: time, for the verdict: {least} to {final} processes of about {each:.1f} s",
            f"  agent: outputs, for the metric: at most {2 * LIMITS.metric_s:.0f} s",
        ]
        spent[0] += bench.SETTLED * confirming + least * each
        spent[1] += to_confirm * confirming + final * each + 2 * LIMITS.metric_s
    return [*lines, f"expected: {spent[0] / 60:.1f} to {spent[1] / 60:.1f} minutes of the device's time"]
