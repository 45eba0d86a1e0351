"""The profile stage: latencies of the network's variants on the device. Nothing is measured twice."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgeprune.pipeline.run import Run
from edgeprune.pipeline.stage import Output, Stage
from edgeprune.records import Explanation, Groups, Profile
from edgeprune.stages import survey
from edgeprune.storage.profiles import ProfileFile

if TYPE_CHECKING:
    from edgeprune.devices.bench import Bench
    from edgeprune.devices.pool import Pool
    from edgeprune.frontends.model import Network
    from edgeprune.stages.inputs import Variants


@dataclass(frozen=True)
class Reads:
    """The network's groups and variants, the devices, and the profile's file with earlier measurements."""

    network: Network
    survey: Groups
    variants: Variants
    device: Bench
    pool: Pool
    profile_file: ProfileFile


@dataclass(frozen=True)
class Profiled:
    """A profile, and its file. `known` experiments, and the batches before `first_batch`, are from earlier runs.

    `boards` were still measuring at the end.
    """

    profile: Profile
    path: Path
    known: int
    first_batch: int
    boards: int = 1


def run(reads: Reads, output: Output) -> Profiled:
    """Measure variants until the latency model predicts well enough. The file is updated after every step."""
    from edgeprune.stages import experiments

    profile = reads.profile_file.empty if output.fresh else reads.profile_file.read()
    known, first = len(profile.experiments), profile.next_batch
    subject = experiments.Subject(reads.device, reads.variants, reads.survey, reads.network.files(output.scratch))
    with closing(reads.pool):
        for grown in experiments.measure(subject, profile, output.watch.step, reads.pool):
            profile = grown
            reads.profile_file.keep(profile)
        return Profiled(profile, reads.profile_file.path, known, first, reads.pool.size)


def describe(profiled: Profiled, reads: Reads) -> str:
    """How many experiments were reused and measured, and the profile's file."""
    new = len(profiled.profile.experiments) - profiled.known
    processes = profiled.profile.next_batch - profiled.first_batch
    boards = f" on {profiled.boards} boards" if profiled.boards > 1 else ""
    return f"{profiled.known} experiments reused, {new} measured in {processes} processes{boards}; {profiled.path}"


STAGE = Stage("profile", Reads, run, Profiled, describe, kept=False)


def explanation(run: Run) -> Explanation:
    """The latency model of the profile, explained, and compared with other targets' profiles of the same network."""
    from edgeprune.latency import explain

    profile = run.record(STAGE).profile
    others = {other.target: other for other in run.value("profile_file").others()}
    return explain.explain(run.record(survey.STAGE), profile, others)
