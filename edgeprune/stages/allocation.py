"""Width allocation: the plan with the least expected loss within a latency budget, exact and with a proof; pure.

Each group gets one width, and zero if its block is removed. This is a mixed-integer linear program over widths and pairs
of widths, since a layer's latency depends on two groups at once. HiGHS solves it through `scipy.optimize.milp` and returns a
bound. The plan's latency is added up again by plain arithmetic before the plan is accepted.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from edgeprune.errors import InfeasibleError, SolverError
from edgeprune.graph.groups import candidate_widths
from edgeprune.latency.model import LatencyModel
from edgeprune.latency.surface import LayerCost
from edgeprune.limits import LIMITS
from edgeprune.records import Block, Group, Groups, Layer, Plan, Scores, Span, Widths
from edgeprune.records.budget import time_text

GAP = 1e-3  # largest proven gap of a plan, relative to its loss
ROUGH = 1e-2  # of the largest loss of a choice; a plan with a smaller loss is solved again at a finer scale
SUM_LEVELS = 64  # distinct channel counts of a layer that reads several groups; more are rounded up


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
    """Plan the widths with the least expected loss within a latency budget.

    If the original network meets the budget, its plan keeps all units.

    Args:
        groups: The channel groups, layers and blocks.
        model: The latency model.
        scores: The importance scores.
        budget_ns: The latency budget in nanoseconds.
        profile: The digest of the profile that `model` was fitted to.
        aims: Factors on the budget: a margin, or a correction from an earlier round. One plan is made for each. If none is
            feasible and the first is below one, the budget itself is tried.

    Returns:
        Different plans, in the order of `aims`, at least one.

    Raises:
        InfeasibleError: No widths are predicted to meet the budget. The message holds the fastest plan.
        SolverError: The solution does not add up, or is not proved to `GAP`.

    Example:
        >>> (plan,) = plans(groups, fit(groups, profile), scores, 12e6, digest)
        >>> plan.widths
    """
    full = groups.full()
    original = model.predict(full)
    if original.mid <= max(aims[0], 1.0) * budget_ns:
        return [Plan.whole(groups, original, original, budget_ns, profile)]
    if not groups.free:
        reasons = "; ".join(f"{group.name}: {group.locked}" for group in groups.groups[:3])
        raise InfeasibleError(f"nothing in the model can be cut, so {time_text(budget_ns)} cannot be met ({reasons})")
    program = _Program.build(groups, model, scores)

    def planned(aim: float) -> Plan | None:
        limit = aim * budget_ns
        solved = program.solve(model.sum_ns(limit))
        if solved is None:
            return None
        widths, bound = _widened(groups, model, scores, full | solved[0], limit), solved[1]
        _check(model, widths, limit)
        keep, loss, gap = _proved(groups, scores, widths, bound)
        return Plan(keep, model.predict(widths), original, budget_ns, loss, min(bound, loss), gap, profile)

    made = [planned(aim) for aim in aims]
    if not any(made) and aims[0] < 1:
        made = [planned(1.0)]
    if not any(made):
        raise InfeasibleError(_fastest(program, model, groups, budget_ns))
    return list({tuple(plan.widths.values()): plan for plan in made if plan is not None}.values())


def _widened(
    groups: Groups, model: LatencyModel, scores: Scores, widths: dict[str, int], limit: float
) -> dict[str, int]:
    """Widen groups within the limit while that does not raise the expected loss.

    The solver is indifferent to units with a score of zero, so it may leave budget unused. Restoring a block at its
    narrowest widths may raise the loss.
    """
    loss = loss_of(groups, scores)
    while True:
        fitting = [w for w in wider(groups, widths) if loss(w) <= loss(widths) and model.ns(w) <= limit]
        if not fitting:
            return widths
        widths = min(fitting, key=lambda wide: (loss(wide), model.ns(wide)))


def _proved(
    groups: Groups, scores: Scores, widths: Widths, bound: float
) -> tuple[dict[str, tuple[int, ...]], float, float]:
    """The units kept at these widths, their loss, and its gap to the bound. Raises `SolverError` if it is above `GAP`."""
    free = groups.free
    loss_at = loss_of(groups, scores)
    loss, total = loss_at(widths), loss_at({group.name: 1 for group in free})
    gap = max(0.0, (loss - bound) / max(abs(loss), 1e-9 * total, 1e-300))
    if not gap <= GAP:
        raise SolverError(f"the solver proved the plan only to a gap of {gap:.2g} in {LIMITS.solver_s:g} s")
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


def _check(model: LatencyModel, widths: Widths, limit: float) -> None:
    """Add up the plan's latency again: solvers have reported solutions that violate their constraints."""
    again = model.ns(widths)
    if not again <= limit * (1 + 1e-6):
        raise SolverError(f"the solver's plan adds up to {again / 1e6:.4f} ms, over its limit of {limit / 1e6:.4f} ms")


def _fastest(program: _Program, model: LatencyModel, groups: Groups, budget_ns: float) -> str:
    """The message of an infeasible budget."""
    full = groups.full()
    widths = {**full, **program.fastest()}
    parts = [f"{name} {width}/{full[name]}" for name, width in widths.items() if 0 < width < full[name]]
    text = ", ".join([*parts, *(f"{block.name} removed" for block in groups.removed(widths))])
    return (
        f"no plan meets {time_text(budget_ns)}: the fastest one is predicted to take {time_text(model.ns(widths))}"
        f" ({100 * model.ns(widths) / model.ns(full):.0f}% of the original network; {text or 'nothing can be cut'});"
        " raise the budget or unlock more layers"
    )


_Terms = tuple[tuple[tuple[str, ...], int], ...]


@dataclass
class _Program:
    """The mixed-integer program. Columns are choices of a width and pairs of choices. Rows tie them together."""

    loss: list[float] = field(default_factory=list)
    time: list[float] = field(default_factory=list)
    integer: list[int] = field(default_factory=list)
    rows: list[tuple[list[int], list[float], float]] = field(default_factory=list)  # columns, factors, equals
    constant_ns: float = 0.0
    choice: dict[str, dict[int, int]] = field(default_factory=dict)  # group -> width -> column
    scale_loss: float = 1.0
    known: dict[tuple[int, bytes, bytes], np.ndarray] = field(default_factory=dict)  # tables of surfaces

    @staticmethod
    def build(groups: Groups, model: LatencyModel, scores: Scores) -> _Program:
        """All choices of widths, with their losses and latencies."""
        program = _Program(constant_ns=model.overhead_ns)
        inner = groups.block_of
        for group in groups.free:
            cost = losses(group, scores, inner.get(group.name))
            candidates = [*([0] if group.name in inner else []), *candidate_widths(group)]
            columns = {w: program._column(cost[w], integer=True) for w in candidates}
            program.choice[group.name] = columns
            program.rows.append((list(columns.values()), [1.0] * len(columns), 1.0))
        for block in groups.blocks:  # remove all of its groups, or none
            one, *others = (program.choice[name][0] for name in block.groups)
            program.rows += [([one, other], [1.0, -1.0], 0.0) for other in others]
        program.scale_loss = max(program.loss, default=1.0) or 1.0
        pairs: dict[tuple[_Sized, _Sized, int | None], np.ndarray] = {}
        sums: dict[_Terms, _Sized] = {}
        for cost_of in model.layers:
            program._add(cost_of, program._removal(cost_of.layer, groups), pairs, sums)
        for (first, second, removed), table in pairs.items():
            if removed is None:
                program._pair(first, second, table)
            else:
                grid = program._pair(first, second, np.zeros(table.shape))
                program._unless(removed, grid.reshape(-1).tolist(), table.reshape(-1))
        return program

    def _removal(self, layer: Layer, groups: Groups) -> int | None:
        """The column of removing a layer's block. None if there is none, or if the layer's channels say so already."""
        if layer.within is None or 0 not in self.choice.get(layer.within, ()):
            return None
        inner = set(groups.block_of[layer.within].groups)
        ends = (span.terms and not span.fixed and span.groups <= inner for span in (layer.inputs, layer.outputs))
        return None if any(ends) else self.choice[layer.within][0]

    def solve(self, limit: float) -> tuple[dict[str, int], float] | None:
        """The widths with the least loss, and the proven bound of that loss. None if no widths meet the limit."""
        scale, ceiling = self.scale_loss, np.inf
        best = None
        while True:
            found, bound = self._least(limit, scale, ceiling)
            if found is None:
                return best
            best = self._widths(found), bound
            least = float(np.array(self.loss) @ found)
            if not 0 < least < ROUGH * scale:
                return best
            # HiGHS also stops at an absolute gap of 1e-6. Solve again in units of this loss, without choices above it.
            scale, ceiling = least, least * (1 + 1e-9)

    def _least(self, limit: float, scale: float, ceiling: float) -> tuple[np.ndarray | None, float]:
        """The columns with the least loss, and its bound. Solved in units of `scale`, without choices above `ceiling`."""
        count = len(self.loss)
        # Latencies in units of the limit keep the program well conditioned on any device.
        latency = np.array(self.time) / limit
        constraints = [
            *self._ties(count),
            LinearConstraint(csr_array(latency[None, :]), -np.inf, 1 - self.constant_ns / limit - 1e-9),
        ]
        found = milp(
            np.array(self.loss) / scale,
            constraints=constraints,
            integrality=np.array(self.integer),
            bounds=Bounds(0, np.where(np.array(self.loss) > ceiling, 0, 1)),
            options={"mip_rel_gap": GAP / 10, "time_limit": LIMITS.solver_s},
        )
        return found.x, math.nan if found.x is None else float(found.mip_dual_bound) * scale

    def fastest(self) -> dict[str, int]:
        """The widths with the least predicted latency."""
        count = len(self.loss)
        scale = max(self.time, default=1.0) or 1.0
        found = milp(
            np.array(self.time) / scale,
            constraints=self._ties(count),
            integrality=np.array(self.integer),
            bounds=Bounds(0, 1),
            options={"time_limit": LIMITS.solver_s},
        )
        return self._widths(found.x) if found.x is not None else {}

    def _column(self, loss: float = 0.0, time: float = 0.0, integer: bool = False) -> int:
        self.loss.append(loss)
        self.time.append(time)
        self.integer.append(int(integer))
        return len(self.loss) - 1

    def _ties(self, count: int) -> list[LinearConstraint]:
        """All rows as one sparse constraint."""
        if not self.rows:
            return []
        data = np.concatenate([factors for _, factors, _ in self.rows])
        columns = np.concatenate([columns for columns, _, _ in self.rows])
        starts = np.cumsum([0, *(len(columns) for columns, _, _ in self.rows)])
        matrix = csr_array((data, columns, starts), shape=(len(self.rows), count))
        equals = np.array([value for *_, value in self.rows])
        return [LinearConstraint(matrix, equals, equals)]

    def _widths(self, solution: np.ndarray) -> dict[str, int]:
        return {
            group: max(columns, key=lambda width: float(solution[columns[width]]))
            for group, columns in self.choice.items()
        }

    def _add(
        self,
        cost: LayerCost,
        removed: int | None,
        pairs: dict[tuple[_Sized, _Sized, int | None], np.ndarray],
        sums: dict[_Terms, _Sized],
    ) -> None:
        """Add a layer's latency to the columns of its choice, or to the table of its pair of choices.

        A channel count may depend on no group, on one, or on sums and products of groups. `removed` is the choice that
        removes the layer.
        """
        layer = cost.layer
        ins, outs = self._sized(layer.fan_in, sums), self._sized(layer.outputs, sums)
        if ins is None or outs is None or ins.columns == outs.columns:
            sized = ins or outs
            if sized is None:
                ns = float(cost.ns([layer.fan_in.fixed], [layer.outputs.fixed])[0])
                self.constant_ns += ns
                if removed is not None:
                    self.time[removed] -= ns
                return
            i = sized.sizes(layer.fan_in) if ins else np.full(len(sized.columns), layer.fan_in.fixed)
            o = sized.sizes(layer.outputs) if outs else np.full(len(sized.columns), layer.outputs.fixed)
            if removed is not None:
                self._unless(removed, sized.columns, self._ns(cost, i, o))
                return
            for column, ns in zip(sized.columns, self._ns(cost, i, o), strict=True):
                self.time[column] += float(ns)
            return
        i, o = np.meshgrid(ins.sizes(layer.fan_in), outs.sizes(layer.outputs), indexing="ij")
        table = self._ns(cost, i.reshape(-1), o.reshape(-1)).reshape(i.shape)
        if (outs, ins, removed) in pairs:
            pairs[outs, ins, removed] = pairs[outs, ins, removed] + table.T
        else:
            pairs[ins, outs, removed] = pairs.get((ins, outs, removed), 0) + table

    def _ns(self, cost: LayerCost, inputs: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        """Nanoseconds of a layer at these channel counts, computed once for each surface."""
        key = id(cost.surface), inputs.tobytes(), outputs.tobytes()
        if key not in self.known:
            self.known[key] = cost.ns(inputs, outputs)
        return self.known[key]

    def _sized(self, span: Span, sums: dict[_Terms, _Sized]) -> _Sized | None:
        """The choice that determines a channel count, or None if the count is fixed."""
        terms = tuple(sorted(span.terms))
        if not terms:
            return None
        if terms not in sums:
            sums[terms] = reduce(partial(self._both, operator.add), [self._term(*term) for term in terms])
        return sums[terms]

    def _term(self, names: tuple[str, ...], channels: int) -> _Sized:
        """The choice of a product of widths, times `channels`."""
        parts = [_Sized(tuple(self.choice[name].values()), tuple(self.choice[name])) for name in names]
        product = reduce(partial(self._both, operator.mul), parts)
        return _Sized(product.columns, tuple(channels * total for total in product.totals))

    def _both(self, combined: Callable[[int, int], int], first: _Sized, second: _Sized) -> _Sized:
        """A choice among the sums or products of two choices, tied to both."""
        totals = sorted({combined(a, b) for a in first.totals for b in second.totals})
        if len(totals) > SUM_LEVELS:  # rounded up, so the latency is never underestimated
            totals = [totals[i] for i in np.linspace(0, len(totals) - 1, SUM_LEVELS).round().astype(int)]
        columns = {total: self._column() for total in totals}
        grid = self._pair(first, second, np.zeros((len(first.columns), len(second.columns))))
        members: dict[int, list[int]] = {total: [] for total in totals}
        for i, a in enumerate(first.totals):
            for j, b in enumerate(second.totals):
                members[next(total for total in totals if total >= combined(a, b))].append(int(grid[i, j]))
        for total, pairs in members.items():
            self.rows.append(([columns[total], *pairs], [-1.0, *[1.0] * len(pairs)], 0.0))
        return _Sized(tuple(columns.values()), tuple(totals))

    def _pair(self, first: _Sized, second: _Sized, table: np.ndarray) -> np.ndarray:
        """Columns t[i, j] ≥ 0 with row sums y_i and column sums y_j: 1 if both choices are made, else 0."""
        grid = np.array([[self._column(time=float(ns)) for ns in row] for row in table])
        for column, members in [*zip(first.columns, grid, strict=True), *zip(second.columns, grid.T, strict=True)]:
            self.rows.append(([column, *members.tolist()], [-1.0, *[1.0] * len(members)], 0.0))
        return grid

    def _unless(self, removed: int, choices: Sequence[int], ns: np.ndarray) -> None:
        """Add the latencies of exclusive choices, which cost nothing if the choice `removed` is made.

        Each choice is the sum of two columns: made and removed, or made and not. Of these, the first add up to `removed`.
        """
        with_it = [self._column() for _ in choices]
        without = [self._column(time=float(value)) for value in ns]
        self.rows.append(([removed, *with_it], [-1.0, *[1.0] * len(with_it)], 0.0))
        self.rows += [
            ([choice, *parts], [-1.0, 1.0, 1.0], 0.0) for choice, *parts in zip(choices, with_it, without, strict=True)
        ]


@dataclass(frozen=True)
class _Sized:
    """A choice among channel counts: a column for each, and the channels it stands for, without fixed ones."""

    columns: tuple[int, ...]
    totals: tuple[int, ...]

    def sizes(self, span: Span) -> np.ndarray:
        """Channels of `span` at each choice."""
        return np.array(self.totals) + span.fixed
