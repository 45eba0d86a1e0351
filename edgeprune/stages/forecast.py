"""What a run would send to a device and run there, without asking it: for `--dry-run`."""

from __future__ import annotations

import zlib

from edgeprune import runtimes
from edgeprune.devices import bench, transports
from edgeprune.frontends import user_code as user
from edgeprune.limits import LIMITS
from edgeprune.network import surgery as network
from edgeprune.records import Project, Target
from edgeprune.runtimes.formats import FORMATS
from edgeprune.stages import confirm as confirming
from edgeprune.stages import profile as profiling
from edgeprune.stages import verify as verifying

PREPARED_S = LIMITS.warmup_s / 4  # warming up is over when the times are level, which is soon as a rule
ROUND_S = PREPARED_S + LIMITS.timed_s


def forecast(project: Project, target: Target, whole: bool) -> list[str]:
    """Lines on what a run, or its profile alone (not `whole`), sends and runs at most, and the minutes it takes."""
    model, runtime = user.build_model(project), runtimes.RUNTIMES[target.runtime]
    inputs = user.example_inputs(project)
    groups = network.survey(model, inputs, project.lock)
    file = FORMATS[runtime.format](model, inputs, groups).variant(groups.full())
    sent = len(zlib.compress(file, 1))
    if runtime.format == "tflite":  # which sends its operators beside it
        sent *= 2
    at_least, most = profiling.processes(groups)
    variants = profiling.TIMED_S + profiling.PROFILED_S + PREPARED_S
    seconds = LIMITS.start_s + (profiling.ANCHORS + profiling.TOGETHER) * variants
    lines = [
        *transports.commands(target),
        "  agent: identify",
        f"  sftp put {at_least * profiling.TOGETHER} to {most * profiling.TOGETHER} variants, at most {sent:,} bytes each"
        f" ({len(file):,} unpacked), {most * profiling.TOGETHER * sent / 1e6:.1f} MB in all",
        f"  agent: time, with times by operator: {at_least} to {most} processes of about {seconds:.0f} s",
    ]
    spent = [at_least * seconds, most * seconds]
    candidates = runtime.candidates(target.precision)
    if len(candidates) > 1:
        each = LIMITS.start_s + len(candidates) * ROUND_S
        outputs = len(candidates) * LIMITS.metric_s
        lines.append(
            f"  agent: time and outputs, to choose from {', '.join(candidates)}: {verifying.PROCESSES} processes of about"
            f" {each:.1f} s and at most {outputs:.0f} s of outputs"
        )
        spent = [seconds + verifying.PROCESSES * each for seconds in spent]
        spent[1] += outputs
    if whole:
        turns = LIMITS.start_s + (2 + confirming.PLANS) * ROUND_S
        confirm = confirming.PROCESSES * LIMITS.confirm_rounds
        each = LIMITS.start_s + ROUND_S
        least, final = 2 * bench.SETTLED, 2 * verifying.PROCESSES * verifying.ROUNDS
        lines += [
            f"  agent: time, to confirm plans: {bench.SETTLED} to {confirm} processes of about {turns:.1f} s",
            f"  sftp put the unpruned and the pruned artifact: at most {8 * network.parameters(model):,} bytes",
            f"  agent: time, for the verdict: {least} to {final} processes of about {each:.1f} s",
            f"  agent: outputs, for the metric: at most {2 * LIMITS.metric_s:.0f} s",
        ]
        spent[0] += bench.SETTLED * turns + least * each
        spent[1] += confirm * turns + final * each + 2 * LIMITS.metric_s
    return [*lines, f"expected: {spent[0] / 60:.1f} to {spent[1] / 60:.1f} minutes of the device's time"]
