"""Width allocation: the plan with the least expected loss within all limits, exact and with a proof; pure.

Each group gets one width, and zero if its block is removed. `program` is the mixed-integer linear program over widths and
pairs of widths. HiGHS solves it through `scipy.optimize.milp` and returns a bound. Every figure of the plan is added up again
by plain arithmetic before the plan is accepted.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np

from edgeprune.errors import InfeasibleError, SolverError
from edgeprune.graph.groups import candidate_widths
from edgeprune.latency.model import LatencyModel
from edgeprune.limits import LIMITS
from edgeprune.records import Amount, Block, Group, Groups, Plan, Scores, Widths
from edgeprune.records.budget import amount_text, time_text
from edgeprune.stages.planning.figures import Bound, Latency
from edgeprune.stages.planning.program import GAP, Program

log = logging.getLogger("edgeprune")


def losses(group: Group, scores: Scores, block: Block | None = None) -> dict[int, float]:
    """Expected loss of a group at every width, if it keeps its best units.

    It is the measured curve, or else the sum of the scores of the removed units.

    Args:
        group: A free group.
        scores: The scores of its units, and measured losses.
        block: The block with this inner group. Width 0 then removes the block. A measured loss of the block counts for its
            first group only.

    Returns:
        `{width: loss}` for widths from 1, or from 0 with a block.
    """
    cheapest_first = np.sort(np.array(scores.units[group.name]))
    removed = np.concatenate([[0.0], np.cumsum(cheapest_first)])
    table = {width: float(removed[group.width - width]) for width in range(group.width + 1)}
    none = table.pop(0)
    if group.name in scores.curves:
        table = dict(enumerate(scores.curves[group.name], 1))
    if block is not None:
        measured = scores.blocks.get(block.name)
        table[0] = none if measured is None else measured if group.name == block.groups[0] else 0.0
    return table


def loss_of(groups: Groups, scores: Scores) -> Callable[[Widths], float]:
    """The expected loss of the network as a function of widths: the sum over its free groups."""
    inner = groups.block_of
    tables = {group.name: losses(group, scores, inner.get(group.name)) for group in groups.free}
    return lambda widths: sum(table[widths[name]] for name, table in tables.items())


def best_units(group: Group, scores: Scores, width: int) -> tuple[int, ...]:
    """The `width` units with the highest scores, ascending. Of equal scores, the earlier unit is kept."""
    values = scores.units[group.name]
    ranked = sorted(range(group.width), key=lambda unit: (-values[unit], unit))
    return tuple(sorted(ranked[:width]))


def plans(
    groups: Groups,
    model: LatencyModel,
    scores: Scores,
    budget_ns: float,
    profile: str,
    aims: Sequence[float] = (1.0,),
) -> list[Plan]:
    """Plan the widths with the least expected loss within a latency budget. See `planned`.

    Args:
        groups: The channel groups, layers and blocks.
        model: The latency model.
        scores: The importance scores.
        budget_ns: The latency budget in nanoseconds.
        profile: The digest of the profile that `model` was fitted to.
        aims: Factors on the budget: a margin, or a correction from an earlier round. One plan is made for each. If none is
            feasible and the first is below one, the budget itself is tried.

    Example:
        >>> (plan,) = plans(groups, fit(groups, profile), scores, 12e6, digest)
        >>> plan.widths
    """
    rounds = [[Bound(Latency(model), budget_ns, aim)] for aim in aims]
    return planned(groups, scores, rounds, profile)


def planned(
    groups: Groups, scores: Scores, rounds: Sequence[Sequence[Bound]], profile: str, most: int | None = None
) -> list[Plan]:
    """Plan the widths with the least expected loss within all limits.

    If the original network meets them, its plan keeps all units.

    Args:
        groups: The channel groups, layers and blocks.
        scores: The importance scores.
        rounds: The limits of each plan. They differ only in the aims of figures that a device measures. If no plan is feasible
            and an aim of the first is below one, the limits themselves are tried.
        profile: The digest of what the latency models were fitted to; empty if there are none.
        most: At most so many plans are made.

    Returns:
        Different plans, in the order of `rounds`, at least one.

    Raises:
        InfeasibleError: No widths are predicted to meet all limits. The message names the limit and the least value.
        SolverError: The solution does not add up, or nothing is proved about it.
        InconclusiveError: The solver found no plan in `LIMITS.solver_s`.
    """
    first, full = rounds[0], groups.full()
    if all(_value(bound, full) <= max(bound.aim or 1.0, 1.0) * bound.most for bound in first):
        keep = {group.name: tuple(range(group.width)) for group in groups.free}
        return [_plan(groups, first, keep, full, (0.0, 0.0, 0.0), profile)]
    if not groups.free:
        reasons = "; ".join(f"{group.name}: {group.locked}" for group in groups.groups[:3])
        limit = next(b for b in first if _value(b, full) > b.most)
        raise InfeasibleError(f"nothing in the model can be cut, so {_limit_text(limit)} cannot be met ({reasons})")
    task = _Task(groups, scores, first)
    made = [*islice((plan for bounds in rounds if (plan := task.plan(bounds, profile)) is not None), most)]
    if not made and any(bound.aim is not None and bound.aim < 1 for bound in first):
        last = task.plan([replace(b, aim=None if b.aim is None else 1.0 - b.slack) for b in first], profile)
        made = [] if last is None else [last]
    if not made:
        raise InfeasibleError(task.infeasible())
    return list({tuple(plan.widths.values()): plan for plan in made}.values())


def _value(bound: Bound, widths: Widths) -> float:
    """The figure at these widths: found out if it can be, else by plain arithmetic."""
    return bound.measured(widths) if bound.measured else bound.figure.of(widths)


def _excess(bound: Bound, widths: Widths) -> float:
    """How far a figure that can be found out is above its aim; below zero if a plan should use more of it; zero if neither."""
    if bound.measured is None:
        return 0.0
    excess = bound.measured(widths) - _aimed(bound)
    if bound.slack and abs(excess) > bound.slack * bound.most:
        return excess
    return 0.0 if bound.slack else max(0.0, excess)


def _aimed(bound: Bound) -> float:
    return bound.most if bound.aim is None else bound.aim * bound.most


def _plan(
    groups: Groups,
    bounds: Sequence[Bound],
    keep: Mapping[str, tuple[int, ...]],
    widths: Widths,
    proof: tuple[float, float, float],
    profile: str,
) -> Plan:
    """The plan with these widths. Of several latencies, the one that uses most of its limit is the plan's own."""
    full = groups.full()
    amounts = [
        Amount(
            b.figure.name, _value(b, widths), b.most, _value(b, full) if b.original is None else b.original, b.target
        )
        for b in bounds
        if b.target or not isinstance(b.figure, Latency)
    ]
    timed = [(b.figure.of(widths) / b.most, b.figure, b.most) for b in bounds if isinstance(b.figure, Latency)]
    if not timed:
        return Plan(dict(keep), None, None, None, *proof, profile, tuple(amounts))
    _, latency, most = max(timed, key=lambda one: one[0])
    return Plan(dict(keep), latency.predict(widths), latency.predict(full), most, *proof, profile, tuple(amounts))


class _Task:
    """The program of a network with some limits. Only the limits' values differ between its plans."""

    def __init__(self, groups: Groups, scores: Scores, bounds: Sequence[Bound]) -> None:
        self.groups, self.scores, self.bounds = groups, scores, bounds
        inner = groups.block_of
        self.places = [i for i, bound in enumerate(bounds) for _ in bound.figure.rows(bound.most)]
        rows = [row for bound in bounds for row in bound.figure.rows(bound.most)]
        self.program = Program.build(groups, rows, lambda group: losses(group, scores, inner.get(group.name)))

    def plan(self, bounds: Sequence[Bound], profile: str) -> Plan | None:
        """The plan within these limits; None if no widths meet them.

        A figure that can be found out may differ from its sum. Then its limit is moved by the difference, and solved again.
        """
        limits, best = [_aimed(bound) for bound in bounds], None
        seen: set[tuple[int, ...]] = set()
        for _ in range(LIMITS.size_rounds):
            solved = self.program.solve(self._most(bounds, limits))
            if solved is None:
                break
            widths = self._widened(bounds, {**self.groups.full(), **solved[0]}, limits)
            _check(bounds, widths, limits)
            if tuple(widths.values()) in seen:
                break
            seen.add(tuple(widths.values()))
            over = [_excess(bound, widths) for bound in bounds]
            if max(over) <= 0:
                keep, loss, gap = _proved(self.groups, self.scores, widths, solved[1])
                plan = _plan(self.groups, bounds, keep, widths, (loss, min(solved[1], loss), gap), profile)
                best = plan if best is None or plan.loss < best.loss else best
                if min(over) == 0:
                    return best
            limits = [
                bound.figure.of(widths) - excess if excess else limit
                for bound, limit, excess in zip(bounds, limits, over, strict=True)
            ]
        else:
            if best is None:
                raise SolverError(
                    f"no plan's figures were confirmed in {LIMITS.size_rounds} rounds; give a smaller limit"
                )
        return best

    def _most(self, bounds: Sequence[Bound], limits: Sequence[float]) -> list[float]:
        """The largest value of each row."""
        return [row.most for b, limit in zip(bounds, limits, strict=True) for row in b.figure.rows(limit)]

    def _widened(self, bounds: Sequence[Bound], widths: dict[str, int], limits: Sequence[float]) -> dict[str, int]:
        """Widen groups within the limits while that does not raise the expected loss.

        The solver is indifferent to units with a score of zero, so it may leave budget unused. Restoring a block at its
        narrowest widths may raise the loss.
        """
        loss, pairs = loss_of(self.groups, self.scores), list(zip(bounds, limits, strict=True))

        def fits(wide: Widths) -> bool:
            return loss(wide) <= loss(widths) and all(b.figure.of(wide) <= limit for b, limit in pairs)

        while fitting := [wide for wide in wider(self.groups, widths) if fits(wide)]:
            widths = min(fitting, key=lambda wide: (loss(wide), bounds[0].figure.of(wide)))
        return widths

    def infeasible(self) -> str:
        """Why no plan meets all limits: the limit that cannot be met, and the least value that can."""
        full = self.groups.full()
        for number, bound in enumerate(self.bounds):
            widths = {**full, **self._least(number)}
            if bound.figure.of(widths) > bound.usable:
                return _too_low(self.groups, bound, widths)
        for number, bound in enumerate(self.bounds):
            if self.places.count(number) == 1 and (found := self._least(number, beside=True)):
                least = amount_text(bound.figure.name, bound.figure.of({**full, **found}) / (1 - bound.slack))
                others = ", ".join(_limit_text(other) for other in self.bounds if other is not bound)
                return (
                    f"no plan meets {_limit_text(bound)} beside {others}: each can be met alone, but within the others the"
                    f" least {bound.name} is predicted to be {least}; raise it to that, or raise another limit"
                )
        texts = " and ".join(map(_limit_text, self.bounds))
        return f"no plan meets {texts} together, though each can be met alone; raise one of them"

    def _least(self, number: int, beside: bool = False) -> dict[str, int]:
        """The widths with the least value of a figure: of all widths, or of those within the other limits."""
        if self.places.count(number) > 1:  # bytes of tensors never fall with another channel
            inner = self.groups.block_of
            return {g.name: 0 if g.name in inner else candidate_widths(g)[0] for g in self.groups.free}
        most = self._most(self.bounds, [bound.usable for bound in self.bounds])
        limits = [np.inf if place == number else value for place, value in zip(self.places, most, strict=True)]
        return self.program.least(self.places.index(number), limits if beside else None)


def _proved(
    groups: Groups, scores: Scores, widths: Widths, bound: float
) -> tuple[dict[str, tuple[int, ...]], float, float]:
    """The units kept at these widths, their loss, and its gap to the bound. Raises `SolverError` if there is no bound."""
    free = groups.free
    loss_at = loss_of(groups, scores)
    loss, total = loss_at(widths), loss_at({group.name: 1 for group in free})
    gap = max(0.0, (loss - bound) / max(abs(loss), 1e-9 * total, 1e-300))
    if not math.isfinite(gap):
        raise SolverError(f"the solver proved nothing about the plan's loss of {loss}")
    if gap > GAP:
        text = "the solver was stopped after %g s: another plan may have up to %.2g%% less loss; a quieter machine proves more"
        log.warning(text, LIMITS.solver_s, 100 * gap)
    return {group.name: best_units(group, scores, widths[group.name]) for group in free}, loss, gap


def wider(groups: Groups, widths: Widths) -> list[dict[str, int]]:
    """All configurations with one group at its next candidate width, or with one removed block back at its narrowest."""
    candidates = {group.name: candidate_widths(group) for group in groups.free}
    blocks = groups.removed(widths)
    removed = {group for block in blocks for group in block.groups}
    result = [{**widths, **{group: candidates[group][0] for group in block.groups}} for block in blocks]
    for name in candidates:
        larger = [width for width in candidates[name] if width > widths[name]]
        if larger and name not in removed:
            result.append({**widths, name: larger[0]})
    return result


def _check(bounds: Sequence[Bound], widths: Widths, limits: Sequence[float]) -> None:
    """Add up the plan's figures again: solvers have reported solutions that violate their constraints."""
    for bound, limit in zip(bounds, limits, strict=True):
        again = bound.figure.of(widths)
        if not again <= limit * (1 + 1e-6):
            name = bound.figure.name
            found, most = amount_text(name, again), amount_text(name, limit)
            raise SolverError(f"the solver's plan adds up to a {bound.name} of {found}, over its limit of {most}")


def _limit_text(bound: Bound) -> str:
    """A limit in messages: "2.500 ms", or "size 4 MB"."""
    text = amount_text(bound.figure.name, bound.most)
    return text if bound.name == "latency" else f"{bound.name} {text}"


def _too_low(groups: Groups, bound: Bound, widths: Widths) -> str:
    """The message of a limit that no widths meet. `widths` are those with the least value."""
    full = groups.full()
    least, original = bound.figure.of(widths) / (1 - bound.slack), bound.figure.of(full)
    parts = [f"{name} {width}/{full[name]}" for name, width in widths.items() if 0 < width < full[name]]
    text = ", ".join([*parts, *(f"{block.name} removed" for block in groups.removed(widths))]) or "nothing can be cut"
    part = original / least if bound.figure.name == "throughput" else least / original
    share = f"{100 * part:.0f}% of the original network; {text}"
    if isinstance(bound.figure, Latency):
        where = f" on {bound.target}" if bound.target else ""
        return (
            f"no plan meets {time_text(bound.most)}{where}: the fastest one is predicted to take {time_text(least)}"
            f" ({share}); raise the budget or unlock more layers"
        )
    needs = "needs" if bound.slack else "has"  # a limit with a margin for noise
    return (
        f"no plan meets {_limit_text(bound)}: the smallest one {needs} {amount_text(bound.figure.name, least)}"
        f" ({share}); raise the limit or unlock more layers"
    )
