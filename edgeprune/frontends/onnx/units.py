"""Units: a unit is a step, or a module that holds units."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from edgeprune.frontends.onnx.graph import Layer, Step, Value

Path = tuple[str, ...]


@dataclass(eq=False)
class Unit:
    """A step, or a module.

    Attributes:
        reads: the values that it needs from outside, in the order of their use; constants do not count.
        makes: the values that it makes; of a module those that are read outside.
        step: None for a module.
        path: the module's.
        units: the module's, in order.
    """

    reads: tuple[Value, ...]
    makes: tuple[Value, ...]
    step: Step | None = None
    path: Path = ()
    units: list[Unit] = field(default_factory=list)

    @property
    def steps(self) -> Iterator[Step]:
        """All steps in it."""
        if self.step is not None:
            yield self.step
        for unit in self.units:
            yield from unit.steps

    @property
    def layers(self) -> Iterator[Layer]:
        """The layers that it calls."""
        return (step.target for step in self.steps if isinstance(step.target, Layer))

    @property
    def has_weights(self) -> bool:
        """Whether a layer or another weight is in it."""
        return any(isinstance(step.target, Layer) or any(value.weight for value in step.reads) for step in self.steps)


def unit_of(step: Step) -> Unit:
    """A step as a unit."""
    return Unit(tuple(dict.fromkeys(v for v in step.reads if v.constant is None)), tuple(step.results), step)


def is_one_call(units: Sequence[Unit], members: Collection[Unit]) -> bool:
    """Whether nothing outside the members lies between two of them."""
    return _order(units, members) is not None


def _order(units: Sequence[Unit], members: Collection[Unit]) -> tuple[list[Unit], list[Unit]] | None:
    """The other units, as units that may come before the members and units that must come after. None if one must do both."""
    inside: set[Value] = set()
    outside: set[Value] = set()
    before: list[Unit] = []
    after: list[Unit] = []
    for unit in units:
        if unit in members:
            if not outside.isdisjoint(unit.reads):
                return None
            inside.update(unit.makes)
        elif inside.isdisjoint(unit.reads) and outside.isdisjoint(unit.reads):
            before.append(unit)
        else:
            outside.update(unit.makes)
            after.append(unit)
    return before, after


def contracted(units: Sequence[Unit], members: Collection[Unit], path: Path, needed: Collection[Value]) -> list[Unit]:
    """The units with the members as one module. They must be one call.

    Args:
        units: in order.
        members: some of them.
        path: of the module.
        needed: what is read outside the units.
    """
    own = [unit for unit in units if unit in members]
    first, last = units.index(own[0]), units.index(own[-1])
    order = _order(units[first : last + 1], members)
    assert order is not None
    made = {value for unit in own for value in unit.makes}
    outside = {value for unit in units if unit not in members for value in unit.reads}.union(needed)
    reads = dict.fromkeys(value for unit in own for value in unit.reads if value not in made)
    makes = tuple(value for unit in own for value in unit.makes if value in outside)
    module = Unit(tuple(reads), makes, path=path, units=own)
    return [*units[:first], *order[0], module, *order[1], *units[last + 1 :]]
