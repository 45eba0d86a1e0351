"""The survey stage: which channels of the network can be cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgeprune.pipeline.stage import Output, Stage
from edgeprune.records import Groups, Project, Survey

if TYPE_CHECKING:
    from edgeprune.frontends.model import Network

LOCKED_SHOWN = 3  # locked groups in the progress line; the table of the plan shows all


@dataclass(frozen=True)
class Reads:
    """The network and the parameters that are locked."""

    network: Network
    prune_lock: tuple[str, ...]


def run(reads: Reads, output: Output) -> Groups:
    """Find the network's channel groups, and prove each with a trial cut."""
    from edgeprune.network.survey import survey

    reads.network.require_locks(reads.prune_lock)
    return survey(reads.network.module, reads.network.inputs, reads.prune_lock, output.watch.step)


def describe(groups: Groups, reads: Reads) -> str:
    """How many groups can be cut, how many blocks can be removed, which groups are locked, and how the model was adapted."""
    locked = [f"{g.name} ({g.locked.partition(':')[0]})" for g in groups.groups if g.locked and g.width > 1]
    more = f" and {len(locked) - LOCKED_SHOWN} more" if len(locked) > LOCKED_SHOWN else ""
    blocks = f", {len(groups.blocks)} blocks can be removed" if groups.blocks else ""
    shown = f"locked: {', '.join(locked[:LOCKED_SHOWN]) or 'none'}{more}"
    adapted = "".join(f"; {note}" for note in reads.network.notes)
    return f"{len(groups.free)} channel groups can be cut{blocks}; {shown}{adapted}"


STAGE = Stage("survey", Reads, run, Groups, describe)


@dataclass(frozen=True)
class TraceReads:
    """The network."""

    network: Network


def trace(reads: TraceReads, output: Output) -> Groups:
    """Export the network, and lock all its groups: nothing is pruned, so nothing needs to be proved."""
    from edgeprune.network.survey import whole

    return whole(reads.network.module, reads.network.inputs)


def describe_trace(groups: Groups, reads: TraceReads) -> str:
    """That nothing is pruned, and why."""
    return f"{groups.operators} operators; nothing is pruned, since there is no latency budget"


TRACE = Stage("trace", TraceReads, trace, Groups, describe_trace)


def of_project(project: Project) -> Survey:
    """The channel groups and blocks of a project's model that can be removed. It contacts no device and keeps nothing."""
    from edgeprune.frontends.model import Network
    from edgeprune.graph.groups import summarise
    from edgeprune.network.survey import survey

    network = Network(project)
    network.require_locks(project.prune.lock)
    return summarise(project.name, survey(network.module, network.inputs, project.prune.lock))
