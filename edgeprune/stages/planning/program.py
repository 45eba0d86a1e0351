"""The mixed-integer program of a plan: choices of widths, pairs of them, and a row for each limit; pure.

A row is a figure of the network that is a sum over layers: the latency on a device, parameters, multiply-accumulates, bytes.
The figure of a layer depends on its input and its output channels, so on two groups at once. A pair of choices has a column
for each combination, which makes every row linear.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from typing import Any, Protocol

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from edgeprune.errors import InconclusiveError
from edgeprune.graph.groups import candidate_widths
from edgeprune.limits import LIMITS
from edgeprune.records import Group, Groups, Layer, Span
from edgeprune.runtimes.base import silenced

GAP = 1e-3  # largest proven gap of a plan, relative to its loss
LATE = 1  # SciPy's status of a solver that was stopped at its limit of time
ROUGH = 1e-2  # of the largest loss of a choice; a plan with a smaller loss is solved again at a finer scale
SUM_LEVELS = 64  # distinct channel counts of a layer that reads several groups; more are rounded up


class Cost(Protocol):
    """What a layer adds to a figure, as a function of its channel counts.

    `surface` is the same object for costs that are equal at equal counts.
    """

    @property
    def layer(self) -> Layer: ...

    @property
    def surface(self) -> object: ...

    def ns(self, inputs: Sequence[int] | np.ndarray, outputs: Sequence[int] | np.ndarray) -> np.ndarray:
        """The layer's part at these channel counts, element-wise: (points,)."""


@dataclass(frozen=True)
class Row:
    """A sum over layers that must be at most `most`."""

    layers: Sequence[Cost]
    constant: float
    most: float


_Terms = tuple[tuple[tuple[str, ...], int], ...]
_Table = dict[int, np.ndarray]  # row -> its values


@dataclass
class Program:
    """Columns are choices of a width and pairs of choices. Ties between them are equations, and limits are rows."""

    loss: list[float] = field(default_factory=list)
    costs: list[dict[int, float]] = field(default_factory=list)  # of each row: column -> value
    integer: list[int] = field(default_factory=list)
    ties: list[tuple[list[int], list[float], float]] = field(default_factory=list)  # columns, factors, equals
    constants: list[float] = field(default_factory=list)  # of each row
    choice: dict[str, dict[int, int]] = field(default_factory=dict)  # group -> width -> column
    scale_loss: float = 1.0
    known: dict[tuple[int, bytes, bytes], np.ndarray] = field(default_factory=dict)  # tables of surfaces

    @staticmethod
    def build(groups: Groups, rows: Sequence[Row], losses: Callable[[Group], Mapping[int, float]]) -> Program:
        """All choices of widths, with their losses and what they add to each row.

        Args:
            groups: The channel groups and blocks.
            rows: The figures that have limits.
            losses: `{width: loss}` of a free group.
        """
        program = Program(costs=[{} for _ in rows], constants=[row.constant for row in rows])
        inner = groups.block_of
        for group in groups.free:
            cost = losses(group)
            candidates = [*([0] if group.name in inner else []), *candidate_widths(group)]
            columns = {w: program._column(cost[w], integer=True) for w in candidates}
            program.choice[group.name] = columns
            program.ties.append((list(columns.values()), [1.0] * len(columns), 1.0))
        for block in groups.blocks:  # remove all of its groups, or none
            one, *others = (program.choice[name][0] for name in block.groups)
            program.ties += [([one, other], [1.0, -1.0], 0.0) for other in others]
        program.scale_loss = max(program.loss, default=1.0) or 1.0
        pairs: dict[tuple[_Sized, _Sized, int | None], _Table] = {}
        sums: dict[_Terms, _Sized] = {}
        for number, row in enumerate(rows):
            for cost_of in row.layers:
                program._add(number, cost_of, program._removal(cost_of.layer, groups), pairs, sums)
        for (first, second, removed), table in pairs.items():
            grid = program._pair(first, second)
            if removed is None:
                program._count(grid.reshape(-1).tolist(), table)
            else:
                program._unless(removed, grid.reshape(-1).tolist(), table)
        return program

    def _removal(self, layer: Layer, groups: Groups) -> int | None:
        """The column of removing a layer's block. None if there is none, or if the layer's channels already imply it."""
        if layer.within is None or 0 not in self.choice.get(layer.within, ()):
            return None
        inner = set(groups.block_of[layer.within].groups)
        ends = (span.terms and not span.fixed and span.groups <= inner for span in (layer.inputs, layer.outputs))
        return None if any(ends) else self.choice[layer.within][0]

    def solve(self, limits: Sequence[float]) -> tuple[dict[str, int], float] | None:
        """The widths with the least loss, and the proven bound of that loss. None if no widths meet all limits.

        Raises:
            InconclusiveError: none were found in `LIMITS.solver_s`.
        """
        scale, ceiling = self.scale_loss, np.inf
        best = None
        while True:
            try:
                found, bound = self._least(limits, scale, ceiling)
            except InconclusiveError:
                if best is None:
                    raise
                return best
            if found is None:
                return best
            best = self._widths(found), bound
            least = float(np.array(self.loss) @ found)
            if not 0 < least < ROUGH * scale:
                return best
            # HiGHS also stops at an absolute gap of 1e-6. Solve again in units of this loss, without choices above it.
            scale, ceiling = least, least * (1 + 1e-9)

    def _least(self, limits: Sequence[float], scale: float, ceiling: float) -> tuple[np.ndarray | None, float]:
        """The columns with the least loss, and its bound. Solved in units of `scale`, without choices above `ceiling`."""
        allowed = np.array(self.loss) <= ceiling
        found = self._solved(np.array(self.loss) / scale, allowed, limits, mip_rel_gap=GAP / 10)
        return found.x, math.nan if found.x is None else float(found.mip_dual_bound) * scale

    def least(self, number: int, limits: Sequence[float] | None = None) -> dict[str, int]:
        """The widths with the least value of a row, within the limits of other rows; empty if no widths meet these."""
        values = self._row(number)
        found = self._solved(values / (max(values, default=1.0) or 1.0), np.ones(len(values)), limits or ())
        return self._widths(found.x) if found.x is not None else {}

    def _solved(self, values: np.ndarray, most: np.ndarray, limits: Sequence[float], **options: float) -> Any:
        """SciPy's result for the least sum of the values, with each column up to `most`. Raises as `solve`."""
        with silenced():  # HiGHS prints while it solves a part of the program again
            found = milp(
                values,
                constraints=[*self._tied(), *self._bounded(limits)],
                integrality=np.array(self.integer),
                bounds=Bounds(0, most),
                options={"time_limit": LIMITS.solver_s, **options},
            )
        if found.status == LATE and found.x is None:
            raise InconclusiveError(
                f"the solver found no plan in {LIMITS.solver_s:g} s; run again on a quieter machine"
            )
        return found

    def _bounded(self, limits: Sequence[float]) -> list[LinearConstraint]:
        """The rows with a finite limit. Figures in units of it keep the program well conditioned on any device."""
        return [
            LinearConstraint(csr_array(self._row(i)[None, :] / most), -np.inf, 1 - self.constants[i] / most - 1e-9)
            for i, most in enumerate(limits)
            if most < np.inf
        ]

    def _row(self, number: int) -> np.ndarray:
        """The factors of a row, (columns,)."""
        values = np.zeros(len(self.loss))
        values[list(self.costs[number])] = list(self.costs[number].values())
        return values

    def _column(self, loss: float = 0.0, integer: bool = False) -> int:
        self.loss.append(loss)
        self.integer.append(int(integer))
        return len(self.loss) - 1

    def _count(self, columns: Sequence[int], table: _Table) -> None:
        """Add values to these columns, in each row of the table."""
        for number, values in table.items():
            own = self.costs[number]
            for column, value in zip(columns, values.reshape(-1).tolist(), strict=True):
                own[column] = own.get(column, 0.0) + value

    def _tied(self) -> list[LinearConstraint]:
        """All ties as one sparse constraint."""
        if not self.ties:
            return []
        data = np.concatenate([factors for _, factors, _ in self.ties])
        columns = np.concatenate([columns for columns, _, _ in self.ties])
        starts = np.cumsum([0, *(len(columns) for columns, _, _ in self.ties)])
        matrix = csr_array((data, columns, starts), shape=(len(self.ties), len(self.loss)))
        equals = np.array([value for *_, value in self.ties])
        return [LinearConstraint(matrix, equals, equals)]

    def _widths(self, solution: np.ndarray) -> dict[str, int]:
        return {
            group: max(columns, key=lambda width: float(solution[columns[width]]))
            for group, columns in self.choice.items()
        }

    def _add(
        self,
        number: int,
        cost: Cost,
        removed: int | None,
        pairs: dict[tuple[_Sized, _Sized, int | None], _Table],
        sums: dict[_Terms, _Sized],
    ) -> None:
        """Add a layer to a row: to the columns of its choice, or to the table of its pair of choices.

        A channel count may depend on no group, on one, or on sums and products of groups. `removed` is the choice that
        removes the layer.
        """
        layer = cost.layer
        reads, makes = layer.sides
        ins, outs = self._sized(reads, sums), self._sized(makes, sums)
        if ins is None or outs is None or ins.columns == outs.columns:
            sized = ins or outs
            if sized is None:
                value = float(cost.ns([reads.fixed], [makes.fixed])[0])
                self.constants[number] += value
                if removed is not None:
                    self._count([removed], {number: np.array([-value])})
                return
            i = sized.sizes(reads) if ins else np.full(len(sized.columns), reads.fixed)
            o = sized.sizes(makes) if outs else np.full(len(sized.columns), makes.fixed)
            table = {number: self._values(cost, i, o)}
            if removed is not None:
                self._unless(removed, sized.columns, table)
            else:
                self._count(sized.columns, table)
            return
        i, o = np.meshgrid(ins.sizes(reads), outs.sizes(makes), indexing="ij")
        values = self._values(cost, i.reshape(-1), o.reshape(-1)).reshape(i.shape)
        turned = (outs, ins, removed) in pairs
        own = pairs[outs, ins, removed] if turned else pairs.setdefault((ins, outs, removed), {})
        own[number] = own.get(number, 0) + (values.T if turned else values)

    def _values(self, cost: Cost, inputs: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        """A layer's part at these channel counts, computed once for each surface."""
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
        if len(totals) > SUM_LEVELS:  # rounded up, so no figure is underestimated
            totals = [totals[i] for i in np.linspace(0, len(totals) - 1, SUM_LEVELS).round().astype(int)]
        columns = {total: self._column() for total in totals}
        grid = self._pair(first, second)
        members: dict[int, list[int]] = {total: [] for total in totals}
        for i, a in enumerate(first.totals):
            for j, b in enumerate(second.totals):
                members[next(total for total in totals if total >= combined(a, b))].append(int(grid[i, j]))
        for total, pairs in members.items():
            self.ties.append(([columns[total], *pairs], [-1.0, *[1.0] * len(pairs)], 0.0))
        return _Sized(tuple(columns.values()), tuple(totals))

    def _pair(self, first: _Sized, second: _Sized) -> np.ndarray:
        """Columns t[i, j] ≥ 0 with row sums y_i and column sums y_j: 1 if both choices are made, else 0."""
        grid = np.array([[self._column() for _ in second.columns] for _ in first.columns])
        for column, members in [*zip(first.columns, grid, strict=True), *zip(second.columns, grid.T, strict=True)]:
            self.ties.append(([column, *members.tolist()], [-1.0, *[1.0] * len(members)], 0.0))
        return grid

    def _unless(self, removed: int, choices: Sequence[int], table: _Table) -> None:
        """Add the values of exclusive choices, which count nothing if the choice `removed` is made.

        Each choice is the sum of two columns: made and removed, or made and not. Of these, the first add up to `removed`.
        """
        with_it = [self._column() for _ in choices]
        without = [self._column() for _ in choices]
        self._count(without, table)
        self.ties.append(([removed, *with_it], [-1.0, *[1.0] * len(with_it)], 0.0))
        self.ties += [
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
