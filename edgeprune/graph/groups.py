"""Operations on channel groups: lock one, make a recipe, list candidate widths, summarise. Pure."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from edgeprune.limits import LIMITS
from edgeprune.records import Group, Groups, Slot, Span, Survey, SurveyedGroup, Widths


def matches(parameter: str, pattern: str) -> bool:
    """Whether a lock's shell pattern matches a parameter or the layer of that parameter."""
    return fnmatch.fnmatchcase(parameter, pattern) or fnmatch.fnmatchcase(parameter.rpartition(".")[0], pattern)


def lock(groups: Groups, name: str, reason: str) -> Groups:
    """Lock one group. Every layer then counts its channels as fixed, and blocks with this group are dropped."""
    width = {group.name: group.width for group in groups.groups}

    def fixed(span: Span) -> Span:
        terms: Counter[tuple[str, ...]] = Counter()
        for names, count in span.terms:
            terms[tuple(other for other in names if other != name)] += count * (width[name] if name in names else 1)
        return Span(span.fixed + terms.pop((), 0), tuple(terms.items()))

    return replace(
        groups,
        blocks=tuple(block for block in groups.blocks if name not in block.groups),
        groups=tuple(replace(g, locked=reason) if g.name == name else g for g in groups.groups),
        layers=tuple(
            replace(
                layer,
                inputs=fixed(layer.inputs),
                outputs=fixed(layer.outputs),
                per_group=None if layer.per_group is None else fixed(layer.per_group),
                made_per_group=None if layer.made_per_group is None else fixed(layer.made_per_group),
            )
            for layer in groups.layers
        ),
    )


def remaining_groups(groups: int, channels: int, kept: Sequence[int]) -> int:
    """Groups of a convolution or a norm that keep some of its `channels`, given the kept indices of these."""
    return len({index * groups // channels for index in kept})


def factors(groups: Groups) -> tuple[str, ...]:
    """Names of the free groups that share indices with another group: the dimension is their product."""
    owners: dict[tuple[str, int, int], list[str]] = {}
    for group in groups.groups:
        for slot in group.slots:
            for index in (i for unit in slot.indices for i in unit):
                owners.setdefault((slot.parameter, slot.dim, index), []).append(group.name)
    shared = {name for names in owners.values() if len(names) > 1 for name in names}
    return tuple(group.name for group in groups.free if group.name in shared)


def make_recipe(groups: Groups, keep: Mapping[str, Sequence[int]]) -> dict[str, dict[int, tuple[int, ...]]]:
    """Translate kept units of groups into kept indices of parameters.

    A block is removed when all its inner groups keep no unit. Its parameters then keep no index of dimension 0, and it has
    a separate entry, without dimensions.

    Args:
        groups: The channel groups of the network.
        keep: For each group the units to keep. A group that is not named keeps all units.

    Returns:
        `{parameter: {dim: indices}}`, indices ascending. Parameters that keep everything are not listed.

    Raises:
        ValueError: A group is locked or unknown, or a unit is out of range. Or a group would keep no unit without its
            block being removed.

    Example:
        >>> groups = survey(model, inputs)
        >>> pruned = cut(model, make_recipe(groups, {"conv1": [0, 2, 5]}), inputs)
    """
    removed_blocks = groups.removed({g.name: len(keep.get(g.name, range(g.width))) for g in groups.groups})
    emptied = {group for block in removed_blocks for group in block.groups}
    known = {group.name: group for group in groups.groups}
    removed: dict[tuple[str, int], set[int]] = {}
    for name, units in keep.items():
        if name not in known:
            raise ValueError(f"no group is called {name!r}")
        if name in emptied:
            continue
        for slot, indices in _removed(known[name], set(units)):
            removed.setdefault((slot.parameter, slot.dim), set()).update(indices)
    owned = _owned(groups)
    result: dict[str, dict[int, tuple[int, ...]]] = {}
    for (parameter, dim), indices in removed.items():
        result.setdefault(parameter, {})[dim] = tuple(sorted(owned[parameter, dim] - indices))
    result |= {parameter: {0: ()} for block in removed_blocks for parameter in block.parameters}
    return result | {block.name: {} for block in removed_blocks}


def _removed(group: Group, kept: set[int]) -> list[tuple[Slot, set[int]]]:
    """For each slot of a group the indices that are removed when only the `kept` units stay."""
    if not kept or not kept <= set(range(group.width)):
        raise ValueError(f"group {group.name!r} of width {group.width} cannot keep units {sorted(kept)}")
    if len(kept) == group.width:
        return []
    if group.locked is not None:
        raise ValueError(f"group {group.name!r} is locked: {group.locked}")
    gone = [unit for unit in range(group.width) if unit not in kept]
    return [(slot, {i for unit in gone for i in slot.indices[unit]}) for slot in group.slots]


def _owned(groups: Groups) -> dict[tuple[str, int], set[int]]:
    """All indices of each (parameter, dim) that any group owns. Groups may share an index, as heads and widths do."""
    owned: dict[tuple[str, int], set[int]] = {}
    for group in groups.groups:
        for slot in group.slots:
            owned.setdefault((slot.parameter, slot.dim), set()).update(i for unit in slot.indices for i in unit)
    return owned


def first_units(groups: Groups, widths: Widths) -> dict[str, tuple[int, ...]]:
    """Keep the first units of every free group. That is enough where only latency matters."""
    return {group.name: tuple(range(widths.get(group.name, group.width))) for group in groups.free}


def candidate_widths(group: Group) -> tuple[int, ...]:
    """The widths that the planner chooses from: multiples of a power of two, and the full width.

    There are at most `LIMITS.group_widths`. Kernels work in blocks of 4 to 32 channels, so a width between two blocks
    is often slower than the next block. Groups of 16 and more channels therefore use multiples of at least 4.
    """
    step = 4 if group.width >= 16 else 2 if group.width >= 8 else 1
    while step * LIMITS.group_widths < group.width:
        step *= 2
    return (*range(step, group.width, step), group.width)


def summarise(project: str, groups: Groups) -> Survey:
    """Summarise which channels of a project's model can be cut."""
    full = groups.full()

    def summary(group: Group) -> SurveyedGroup:
        weights = {slot.parameter for slot in group.slots}
        layers = [layer for layer in groups.layers if layer.weight in weights]
        names = tuple(layer.name for layer in layers)
        return SurveyedGroup(group.name, group.width, names, sum(layer.macs(full) for layer in layers), group.locked)

    return Survey(
        project=project,
        macs=groups.macs(full),
        least_macs=groups.macs(groups.least()),
        groups=tuple(map(summary, groups.groups)),
        blocks=tuple(block.name for block in groups.blocks),
        unknown_operators=groups.unknown_operators,
    )
