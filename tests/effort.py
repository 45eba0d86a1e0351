"""How much tests measure: less than users do. Processes differ more than parts of one, and a busy machine is expected.

Import it before anything else of edgeprune reads the limits.
"""

from __future__ import annotations

from dataclasses import replace

from edgeprune import limits

limits.LIMITS = replace(limits.LIMITS, timed_s=0.05, warmup_s=0.1, pause_s=1.0)

from edgeprune.devices import bench  # noqa: E402 - these read the limits
from edgeprune.records import device  # noqa: E402
from edgeprune.stages import experiments, measuring  # noqa: E402
from edgeprune.stages.verdicts import verdict  # noqa: E402

device.CROWDED = 0.5  # fewer processes are measured again
bench.PROFILED_S, experiments.TIMED_S, measuring.TIMED_S = 0.02, 0.03, 0.04
verdict.POLICY = replace(
    verdict.POLICY, verify=replace(verdict.POLICY.verify, rounds=4), slowdown=verdict.Schedule(processes=6, rounds=2)
)
