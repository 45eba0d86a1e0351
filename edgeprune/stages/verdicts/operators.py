"""Times by operator: of one file, and what differs between two. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median

from edgeprune import runtimes
from edgeprune.records import OperatorChange, OperatorTime
from edgeprune.runtimes.timing import NodeTime

Times = Mapping[str, Sequence[float]]  # by the name of a node, or of a kind: microseconds of each that is executed


def timed(runtime: str, processes: Sequence[Sequence[NodeTime]]) -> tuple[OperatorTime, ...]:
    """The median time of each node over processes, which execute the same nodes in the same order."""
    nodes = processes[0]
    names = [node.name for node in nodes]
    alike = [one for one in processes if [node.name for node in one] == names]
    times = [median(one[i].ns for one in alike) for i in range(len(nodes))]
    total = max(sum(times), 1)
    exported = [name for name, _ in runtimes.host(runtime).node_times(nodes)]
    return tuple(
        OperatorTime(name, node.kind or "unknown", ns / 1e3, ns / total)
        for name, node, ns in zip(exported, nodes, times, strict=True)
    )


def stored_changes(first: Mapping[str, int], second: Mapping[str, int]) -> tuple[OperatorChange, ...]:
    """The operators that two files hold in different numbers."""
    found = [
        OperatorChange(kind, first.get(kind, 0), second.get(kind, 0))
        for kind in dict.fromkeys([*first, *second])
        if first.get(kind, 0) != second.get(kind, 0)
    ]
    return tuple(sorted(found, key=lambda one: -abs(one.second_count - one.first_count)))


def executed_changes(first: Sequence[OperatorTime], second: Sequence[OperatorTime]) -> tuple[OperatorChange, ...]:
    """All kinds that are executed, with their number and summed time in both rows. The largest difference comes first."""
    return _changes(_times(first, lambda one: one.kind), _times(second, lambda one: one.kind))


def same_nodes(first: Sequence[OperatorTime], second: Sequence[OperatorTime]) -> tuple[OperatorChange, ...]:
    """The same by node, if most nodes have the same names: one file, or one runtime in two versions."""
    before, after = _times(first, lambda one: one.name), _times(second, lambda one: one.name)
    shared = before.keys() & after.keys()
    return _changes(before, after) if 2 * len(shared) > max(len(before), len(after)) else ()


def _times(operators: Sequence[OperatorTime], key: Callable[[OperatorTime], str]) -> Times:
    found: dict[str, list[float]] = {}
    for one in operators:
        found.setdefault(key(one), []).append(one.us)
    return found


def _changes(first: Times, second: Times) -> tuple[OperatorChange, ...]:
    names = dict.fromkeys([*first, *second])
    before, after = ({name: row.get(name, ()) for name in names} for row in (first, second))
    return tuple(
        OperatorChange(name, len(before[name]), len(after[name]), float(sum(before[name])), float(sum(after[name])))
        for name in sorted(names, key=lambda name: -abs(sum(after[name]) - sum(before[name])))
    )
