"""Measures how much sooner a profile is finished if k equal boards share its experiments.

    python benchmarks/farm.py [--variants 48] [--boards 1 2 4] [--farm]

The boards are simulated: a process waits for as long as `--dry-run` expects of a real one, and its latencies follow from the
widths. So the boards share nothing, as real ones do. All else is real: choosing variants, fitting the latency model, the pool.

With `--farm`, a labgrid coordinator and two sshds on this machine measure the digits example with ONNX Runtime, by one board
and by two. These two share the cores of this machine. Needs root and the extra `farm`.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "unit"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "faults"))
from farm import absent, loopback
from nets import NETS, image
from test_profile_kept import Machine

from edgeprune.api import verbs
from edgeprune.devices.bench import PROFILED_S
from edgeprune.devices.pool import Pool
from edgeprune.limits import LIMITS
from edgeprune.network.survey import survey
from edgeprune.pipeline.request import Quiet
from edgeprune.records import Groups
from edgeprune.stages import experiments, forecast
from edgeprune.stages import profile as profiling

SHARE = 0.7  # of k that the wall time must fall by


class Waiting(Machine):
    """A simulated board whose processes take as long as on a real one."""

    def answer(self, job: Mapping[str, Any]) -> Mapping[str, Any]:
        each_s = forecast.PREPARED_S + experiments.TIMED_S + PROFILED_S
        time.sleep(LIMITS.start_s + each_s * len(job.get("models", ())))
        return super().answer(job)


def simulated(folder: Path, groups: Groups, boards: int, variants: int) -> tuple[float, int]:
    """Seconds of a profile of at least so many variants, and how many it had."""
    machines = []
    for number in range(boards):
        own = folder / f"{boards}-{number}"
        own.mkdir()
        machines.append(Waiting(own, groups))
    first, *others = machines
    pool = Pool(first.bench, {f"board {i}": lambda m=m: nullcontext(m.bench) for i, m in enumerate(others, 2)})
    subject = experiments.Subject(first.bench, first, first.groups, [])  # type: ignore[arg-type]
    usual = experiments.GOOD_ENOUGH, experiments.WORTHWHILE
    experiments.GOOD_ENOUGH, experiments.WORTHWHILE = 0.0, -math.inf  # only the number of variants ends it
    began, fitted = time.monotonic(), 0
    for grown in experiments.measure(subject, first.profile, lambda done, most, note: None, pool):
        fitted = sum(e.role == "fit" for e in grown.experiments)
        if fitted >= variants:
            break
    spent_s = time.monotonic() - began
    experiments.GOOD_ENOUGH, experiments.WORTHWHILE = usual
    pool.close()
    return spent_s, fitted


def table(folder: Path, counts: Sequence[int], variants: int) -> None:
    """Print the times of simulated profiles by so many boards."""
    print(f"| boards | wall time | variants | times as fast | at least {SHARE} k |\n|---|---|---|---|---|")
    groups, alone = survey(NETS["Bottlenecks"](), image()), 0.0
    for boards in counts:
        spent_s, fitted = simulated(folder, groups, boards, variants)
        alone = alone or spent_s
        verdict = "yes" if alone / spent_s >= SHARE * boards else "no"
        print(f"| {boards} | {spent_s:.0f} s | {fitted} | {alone / spent_s:.2f} | {verdict} |", flush=True)


class Timed(Quiet):
    """Notes when the profile stage begins and ends."""

    began_s = spent_s = 0.0
    text = ""

    def start(self, stage: str) -> None:
        if stage == "profile":
            self.began_s = time.monotonic()

    def done(self, stage: str, note: str) -> None:
        if stage == "profile":
            self.spent_s, self.text = time.monotonic() - self.began_s, note


def on_farm(folder: Path) -> None:
    """Profiles of the digits example by one and by two boards of a farm on this machine."""
    if reason := absent():
        sys.exit(reason)
    with loopback(folder) as farm:
        for boards in (1, 2):
            project = folder / f"digits{boards}"
            shutil.copytree(Path(__file__).parents[1] / "examples" / "digits", project)
            farm.write(project / "targets" / "pi5.toml", "onnxruntime", f"boards = {boards}")
            watch = Timed()
            with verbs.opened(project, "pi5", fresh=True, watch=watch) as run:
                run.record(profiling.STAGE)
            print(f"| {boards} sshd | {watch.spent_s:.0f} s | {watch.text.rpartition(';')[0]} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", type=int, default=48, help="variants of a simulated profile")
    parser.add_argument("--boards", type=int, nargs="*", default=[1, 2, 4], help="of simulated profiles")
    parser.add_argument("--farm", action="store_true", help="also real processes on two sshds")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")
    with tempfile.TemporaryDirectory() as scratch:
        if options.boards:
            table(Path(scratch), options.boards, options.variants)
        if options.farm:
            on_farm(Path(scratch))


if __name__ == "__main__":
    main()
