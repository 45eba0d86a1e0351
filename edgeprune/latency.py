"""Profile -> latency model; pure.

Per layer, a sum of non-negative terms in input and output channels: rounded up to the steps that kernels work in, and
counted again where they are not aligned; the fit chooses. Node times from the runtime's profiler shape the layers,
whole-network times taken without a profiler set the scale: both stand in one least-squares problem. Among
multiples of 16, wider is never faster.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from edgeprune import stats
from edgeprune.errors import InconclusiveError
from edgeprune.types import Experiment, Groups, Interval, Layer, Profile, Widths

# Channels that kernels round up to: scalar, SSE and NEON, AVX2, AVX-512 and NCHWc blocks, and sets of four of those.
STEPS = (1, 4, 8, 16, 32, 64)
# A count that is no multiple of these may fall back to a slower kernel: 30 depthwise channels were measured at four times
# the latency of 32 (ONNX Runtime, AVX-512). So wider can be faster, and the model may say so.
ALIGNED = (4, 8, 16)
COVERAGE = 0.9  # share of unseen configurations that an interval should hold
NODE_WEIGHT = 0.5  # of a layer's node time beside a whole-network time: nodes rank, whole networks scale
FOLDS = 6


def _up(channels: np.ndarray, step: int) -> np.ndarray:
    return np.ceil(channels / step) * step


def _features(layer: Layer, inputs: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """Terms of a layer's latency, (points, terms), none of them negative; the last is a constant."""
    ones = np.ones(len(inputs))
    outs = [_up(outputs, s) for s in STEPS]
    if layer.per_group is not None:  # inputs and outputs shrink together
        return np.stack([*outs, *(outputs * (outputs % s > 0) for s in ALIGNED), ones], axis=1)
    ins = [_up(inputs, s) for s in STEPS]
    work = inputs * outputs
    slow = [work * (channels % s > 0) for channels in (inputs, outputs) for s in ALIGNED]
    return np.stack([*(i * o for i in ins for o in outs), *slow, *ins, *outs, ones], axis=1)


@dataclass(frozen=True)
class LayerCost:
    """The fitted latency of one layer: ns = Σ coefficient·term."""

    layer: Layer
    coefficients: tuple[float, ...]

    def ns(self, inputs: Sequence[int] | np.ndarray, outputs: Sequence[int] | np.ndarray) -> np.ndarray:
        """Nanoseconds at these channel counts, (points,), elementwise."""
        terms = _features(self.layer, np.asarray(inputs, float), np.asarray(outputs, float))
        result: np.ndarray = terms @ np.array(self.coefficients)
        return result


@dataclass(frozen=True)
class LatencyModel:
    """Widths -> predicted nanoseconds of the whole network.

    `error` is the relative half-width that held `COVERAGE` of the configurations left out of the fit (split conformal,
    Vovk et al. 2005, over folds); `median_error` is the median of the same residuals.
    """

    layers: tuple[LayerCost, ...]
    overhead_ns: float
    error: float
    median_error: float
    points: int

    def ns(self, widths: Widths) -> float:
        """The expected latency of one inference at these widths."""
        costs = (c.ns([c.layer.inputs.size(widths)], [c.layer.outputs.size(widths)])[0] for c in self.layers)
        return float(sum(costs) + self.overhead_ns)

    def predict(self, widths: Widths) -> Interval:
        """The expected latency with its interval."""
        mid = self.ns(widths)
        return Interval(mid * (1 - self.error), mid, mid * (1 + self.error))

    def shares(self, widths: Widths) -> dict[str, float]:
        """The share of each layer in the network's latency; the rest is overhead."""
        total = self.ns(widths)
        return {
            c.layer.name: float(c.ns([c.layer.inputs.size(widths)], [c.layer.outputs.size(widths)])[0]) / total
            for c in self.layers
        }


def measured_ns(experiment: Experiment) -> float:
    """The whole-network latency of an experiment with the machine's drift taken out."""
    return stats.latency(experiment.samples).mid * experiment.scale


def baseline(profile: Profile) -> float:
    """The unpruned network's latency in nanoseconds. Raises `InconclusiveError` when it was never measured."""
    times = [measured_ns(e) for e in profile.experiments if e.role == "baseline"]
    if not times:
        raise InconclusiveError(f"the profile of {profile.model} on {profile.target} has no baseline; profile it again")
    return float(np.median(times))


def fit(groups: Groups, profile: Profile) -> LatencyModel:
    """Fit the latency model of a network's layers to all experiments of a profile.

    Raises `InconclusiveError` when there are too few experiments to fit and to check (at least `FOLDS`).
    """
    experiments = profile.experiments
    if len(experiments) < FOLDS:
        raise InconclusiveError(f"{len(experiments)} experiments are too few for a latency model; profile again")
    data = _Data.of(groups, experiments)
    everything = np.arange(len(experiments))
    residuals = np.empty(len(experiments))
    order = np.random.default_rng(0).permutation(everything)
    for part in np.array_split(order, FOLDS):
        coefficients, overhead = _solve(data, np.setdiff1d(everything, part))
        residuals[part] = data.total[part] / data.predict(coefficients, overhead)[part] - 1
    coefficients, overhead = _solve(data, everything)
    costs = tuple(LayerCost(layer, tuple(c.tolist())) for layer, c in zip(groups.layers, coefficients, strict=True))
    size = np.sort(np.abs(residuals))
    rank = min(len(size), math.ceil(COVERAGE * (len(size) + 1))) - 1
    return LatencyModel(costs, overhead, float(size[rank]), float(np.median(size)), len(experiments))


@dataclass(frozen=True)
class _Data:
    """Experiments as arrays: `terms[layer]` is (experiments, terms), `nodes` (experiments, layers), `total` (experiments,)."""

    terms: tuple[np.ndarray, ...]
    nodes: np.ndarray
    total: np.ndarray

    @staticmethod
    def of(groups: Groups, experiments: Sequence[Experiment]) -> _Data:
        total = np.array([measured_ns(e) for e in experiments])
        terms, nodes = [], np.full((len(experiments), len(groups.layers)), np.nan)
        for layer in groups.layers:
            ins = np.array([layer.inputs.size(e.widths) for e in experiments], float)
            outs = np.array([layer.outputs.size(e.widths) for e in experiments], float)
            terms.append(_features(layer, ins, outs))
        for row, experiment in enumerate(experiments):
            seen = experiment.layer_ns
            if not seen:
                continue
            # The profiler slows inference: scale its times so that they add up to the whole network's.
            scale = total[row] / (sum(seen.values()) + experiment.other_ns)
            nodes[row] = [seen.get(layer.name, 0) * scale for layer in groups.layers]
        return _Data(tuple(terms), nodes, total)

    def predict(self, coefficients: Sequence[np.ndarray], overhead: float) -> np.ndarray:
        result: np.ndarray = overhead + sum(t @ c for t, c in zip(self.terms, coefficients, strict=True))
        return result


def _solve(data: _Data, rows: np.ndarray) -> tuple[list[np.ndarray], float]:
    """Two non-negative fits: each layer on its node times picks its terms; all of them together set their size."""
    picked = [_pick(terms[rows], data.nodes[rows, i], data.total[rows]) for i, terms in enumerate(data.terms)]
    sizes = [len(p) for p in picked]
    total = data.total[rows]
    whole = np.concatenate(
        [t[rows][:, p] for t, p in zip(data.terms, picked, strict=True)] + [np.ones((len(rows), 1))], 1
    )
    blocks = [whole / total[:, None]]
    wanted = [np.ones(len(rows))]
    start = 0
    for i, (terms, chosen) in enumerate(zip(data.terms, picked, strict=True)):
        known = np.isfinite(data.nodes[rows, i])
        weight = NODE_WEIGHT / total[known]
        block = np.zeros((int(known.sum()), whole.shape[1]))
        block[:, start : start + sizes[i]] = terms[rows][known][:, chosen] * weight[:, None]
        blocks.append(block)
        wanted.append(data.nodes[rows, i][known] * weight)
        start += sizes[i]
    solution = _nnls(np.concatenate(blocks), np.concatenate(wanted))
    result, start = [], 0
    for terms, chosen in zip(data.terms, picked, strict=True):
        full = np.zeros(terms.shape[1])
        full[chosen] = solution[start : start + len(chosen)]
        result.append(full)
        start += len(chosen)
    return result, float(solution[-1])


def _pick(terms: np.ndarray, times: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Terms that a layer's node times ask for; without node times, all of them."""
    known = np.isfinite(times)
    if not known.any():
        return np.arange(terms.shape[1])
    # Relative error, floored at 1 % of the network: a layer of a few microseconds is mostly the profiler's resolution.
    weight = 1 / np.maximum(times[known], 0.01 * total[known])
    chosen = np.flatnonzero(_nnls(terms[known] * weight[:, None], times[known] * weight))
    return np.union1d(chosen, [terms.shape[1] - 1])


def _nnls(matrix: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Non-negative least squares with columns scaled to one (Lawson and Hanson 1974)."""
    scale = np.linalg.norm(matrix, axis=0)
    scale[scale == 0] = 1
    solution, _ = nnls(matrix / scale, wanted, maxiter=50 * matrix.shape[1])
    result: np.ndarray = solution / scale
    return result


def by_layer(times: Mapping[str, int], owners: Mapping[str, str]) -> tuple[dict[str, int], int]:
    """Sum node times a layer; `owners` maps node names to layers. Returns the sums and what belongs to no layer."""
    layers: dict[str, int] = {}
    other = 0
    for name, ns in times.items():
        if name in owners:
            layers[owners[name]] = layers.get(owners[name], 0) + ns
        else:
            other += ns
    return layers, other
