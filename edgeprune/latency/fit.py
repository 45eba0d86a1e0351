"""Fit the latency model to a profile; pure.

Node times from the runtime's profiler give the shape of the surfaces. Whole-network latencies, measured without the
profiler, give the scale. Both are observations of one Gaussian process (Rasmussen & Williams 2006, ch. 2), which also knows
where it is uncertain.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import nnls
from scipy.stats import siegelslopes

from edgeprune.errors import InconclusiveError
from edgeprune.latency.model import COVERAGE, LatencyModel
from edgeprune.latency.observations import VARIED, Observations, anchor_ns, measured_ns, reference_ns
from edgeprune.latency.posterior import Points, Posterior, SurfacePosterior, base_ns, fixed_ns
from edgeprune.latency.surface import LayerCost, Surface, features
from edgeprune.latency.threads import single_threaded
from edgeprune.records import Groups, Layer, Profile

FOLDS = 5
EXPONENTS = (0.9, 1.5)  # smallest and largest
RESOLUTION = 5e-4  # of node times, relative to the network's latency
GAP = 1.1  # layers of one geometry that differ by more in their node times have surfaces of their own
EQUALS = 5  # what the noise of other families counts for, in differences between layers of equal sizes


@single_threaded
def fit(groups: Groups, profile: Profile) -> LatencyModel:
    """Fit the latency model to all experiments of a profile, and check it on configurations left out.

    Args:
        groups: The channel groups and layers of the network.
        profile: Experiments with this network.

    Returns:
        The model, with calibrated intervals and its error on the configurations left out.

    Raises:
        InconclusiveError: The profile has fewer than `FOLDS` configurations.

    Example:
        >>> model = fit(groups, profile)
        >>> model.ns(groups.full()) / 1e6  # milliseconds
    """
    if profile.experiments and not groups.free:  # no width varies
        latency = reference_ns(profile)
        return LatencyModel((), latency, middle_ns=latency, median_error=0.0, error=0.0)
    if len({tuple(e.widths.items()) for e in profile.experiments}) < FOLDS:
        raise InconclusiveError(
            f"{len(profile.experiments)} experiments are too few for a latency model; profile again"
        )
    data = Observations.of(groups, profile)
    alike = _alike(groups, data)
    everything = np.arange(len(data.total))
    errors, variances = np.empty(len(everything)), np.empty(len(everything))
    for part in np.array_split(np.random.default_rng(0).permutation(everything), FOLDS):
        model = _model(groups, data.only(np.setdiff1d(everything, part)), alike)
        widths = [data.widths[row] for row in part]
        errors[part] = np.abs(data.total[part] / [model.ns(w) for w in widths] - 1)
        variances[part] = np.diag(model.covariance(widths))
    return _calibrated(_model(groups, data, alike), errors, variances)


def _calibrated(model: LatencyModel, errors: np.ndarray, variances: np.ndarray) -> LatencyModel:
    """Calibrate a model by its relative errors on configurations left out, and their predicted variances."""
    assert model.posterior is not None
    # Error beyond the predicted variance counts as noise, the same at all widths.
    unexplained = max(0.0, (1.4826 * float(np.median(errors))) ** 2 - float(np.median(variances)))
    noise = math.hypot(model.posterior.total_noise, math.sqrt(unexplained))
    rank = min(len(errors), math.ceil(COVERAGE * (len(errors) + 1))) - 1
    return replace(
        model,
        posterior=replace(model.posterior, total_noise=noise),
        stretch=float(np.sort(errors / np.sqrt(variances + unexplained))[rank]),
        median_error=float(np.median(errors)),
        error=float(np.quantile(errors, COVERAGE)),
    )


@single_threaded
def draft(groups: Groups, profile: Profile) -> LatencyModel:
    """Fit the latency model without checking it. Its intervals are not calibrated."""
    data = Observations.of(groups, profile)
    return _model(groups, data, _alike(groups, data))


def last_error(groups: Groups, profile: Profile, count: int) -> float | None:
    """The error on the last `count` variants of a model fitted to the batches before them.

    Returns:
        The median relative error, or None if fewer than `FOLDS` variants were measured before.
    """
    last = [e for e in profile.experiments if e.role == "fit"][-count:]
    first = min((e.batch for e in last), default=0)
    before = replace(profile, experiments=tuple(e for e in profile.experiments if e.batch < first))
    if sum(e.role == "fit" for e in before.experiments) < FOLDS:
        return None
    model = draft(groups, before)
    scale = anchor_ns(before) / anchor_ns(profile)
    return float(np.median([abs(measured_ns(profile, e) * scale / model.ns(e.widths) - 1) for e in last]))


# ----------------------------------------------------------------------------------------------- Gaussian process


class _Family:
    """Layers with the same geometry, which share a surface, and the points at which they were measured."""

    def __init__(self, groups: Groups, rows: list[int], data: Observations) -> None:
        self.rows = rows
        self.layers = tuple(groups.layers[row] for row in rows)
        self.points = Points.of(self.layers, data.widths)

    def terms(self, data: Observations) -> tuple[np.ndarray, np.ndarray, Surface]:
        """The node time and the network's latency at every point, and the surface without correction."""
        times, totals = data.nodes[:, self.rows].T.reshape(-1), np.tile(data.total, len(self.rows))
        coefficients = _coefficients(self.layers[0], self.points.each, times, totals)
        return times, totals, Surface(self.layers[0], coefficients, self.points.distinct, np.zeros(0), 0.0)


@dataclass(frozen=True)
class _Rough:
    """A family's surface without correction, and how far its node times are from it.

    Attributes:
        family: the layers.
        surface: of the terms.
        base: what they give, in nanoseconds, (points,).
        error: of the node times, relative, (points,). Zero where none was observed.
        seen: where one was observed, (points,).
        rounding: the variance of the error that is the clock's, (points,).
    """

    family: _Family
    surface: Surface
    base: np.ndarray
    error: np.ndarray
    seen: np.ndarray
    rounding: np.ndarray

    @staticmethod
    def of(family: _Family, data: Observations) -> _Rough:
        """Fit the terms of a family."""
        times, totals, surface = family.terms(data)
        floor = RESOLUTION * totals
        base = base_ns(surface, family.points.each, floor)
        there, seen = np.maximum(base, 1.0), np.isfinite(times)
        return _Rough(family, surface, base, np.where(seen, times / there - 1, 0.0), seen, (floor / there) ** 2)


@dataclass(frozen=True)
class _Fitted:
    """A family's surface given its node times.

    `weights` (n,), `factor` and `tie` are as in `Surface` and `SurfacePosterior`. `mean` (experiments,) and `covariance`
    (experiments, experiments) are of the family's share of the networks' latencies.
    """

    family: _Family
    surface: Surface
    weights: np.ndarray
    factor: tuple[np.ndarray, bool]
    tie: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray


def _model(groups: Groups, data: Observations, alike: Sequence[list[int]]) -> LatencyModel:
    """Fit the surfaces to the node times, then correct all of them by the latencies of entire networks.

    Args:
        groups: The channel groups and layers of the network.
        data: The experiments.
        alike: The layers of each surface.
    """
    families = [_Family(groups, rows, data) for rows in alike if not _is_fixed(groups.layers[rows[0]])]
    fixed = [row for rows in alike if _is_fixed(groups.layers[rows[0]]) for row in rows]
    exponent = _exponent(families, fixed, groups.layers, data)
    middle = float(np.median(data.total))
    data = data.flattened(exponent, middle)
    costs = {row: LayerCost(groups.layers[row], _constant(groups.layers[row], data.nodes[:, row])) for row in fixed}
    constants = tuple(costs.values())
    count = len(data.total)
    roughs = [_Rough.of(family, data) for family in families]
    fitted = [_fitted(rough, noise) for rough, noise in zip(roughs, _noise(roughs, data), strict=True)]
    mean, covariance = data.overhead_ns + fixed_ns(constants, data.widths), np.zeros((count, count))
    for part in fitted:
        mean += part.mean
        covariance += part.covariance
    # Half of the noise is the anchor's, which all experiments of a batch share.
    together = np.equal.outer(data.batch, data.batch) + np.eye(count)
    noise = data.total_noise**2 / 2 * together * np.outer(data.total, data.total / data.repeats)
    factor = cho_factor(covariance + noise)
    missing = cho_solve(factor, data.total - mean)
    parts = []
    for part in fitted:
        surface, family = replace(part.surface, weights=part.weights + part.tie @ missing), part.family
        parts.append(SurfacePosterior(surface, family.layers, part.factor, part.tie))
        costs |= {row: LayerCost(layer, surface) for row, layer in zip(family.rows, family.layers, strict=True)}
    posterior = Posterior(tuple(parts), factor, data.overhead_ns, constants, data.total_noise)
    return LatencyModel(tuple(costs[row] for row in sorted(costs)), data.overhead_ns, exponent, middle, posterior)


def _noise(roughs: Sequence[_Rough], data: Observations) -> list[np.ndarray]:
    """The variances of the relative errors of node times, (points,), of each family.

    A layer of the same sizes takes another time in another network, where it finds other caches. This pure error is the
    variance within points of equal sizes (Draper and Smith, Applied Regression Analysis, 1998, section 1.5). It is stated
    as a multiple of the variance between repeats of one network. Where few points are of equal sizes, the other families'
    multiple counts. In one network all layers of a family err alike, so that more layers tell no more.
    """
    repeated = [
        np.repeat(data.node_noise[rough.family.rows], len(data.total)) ** 2 + rough.rounding for rough in roughs
    ]
    found = [_pure_error(rough, noise) for rough, noise in zip(roughs, repeated, strict=True)]
    usual = (sum(one for one, _ in found) + EQUALS) / (sum(count for _, count in found) + EQUALS)
    factors = [max(1.0, (own + EQUALS * usual) / (count + EQUALS)) for own, count in found]
    return [
        noise * factor * len(rough.family.rows) / np.tile(data.repeats, len(rough.family.rows))
        for rough, noise, factor in zip(roughs, repeated, factors, strict=True)
    ]


def _pure_error(rough: _Rough, noise: np.ndarray) -> tuple[float, int]:
    """The squared errors within points of equal sizes, as multiples of `noise`: their sum, and their degrees of freedom."""
    points, seen = rough.family.points, rough.seen
    count = points.summed(seen)
    apart = seen * (rough.error - (points.summed(rough.error) / np.maximum(count, 1))[points.place])
    return float((np.minimum(apart**2, 1) / noise).sum()), int(np.maximum(count - 1, 0).sum())


def _fitted(rough: _Rough, noise: np.ndarray) -> _Fitted:
    """Fit a family's surface to its node times. Their errors have the variances `noise`, (points,).

    Several times at one point tell as much as their mean, weighed by the inverse of their variances. So the covariance is that
    of the distinct points.
    """
    points, seen = rough.family.points, rough.seen
    excess = float(np.mean(np.minimum(rough.error[seen] ** 2, 1) - noise[seen])) if seen.any() else 0.25
    surface = replace(rough.surface, amplitude=math.sqrt(min(max(excess, 0.02**2), 0.5**2)))
    precision = np.maximum(points.summed(seen / noise), 1e-6)
    error = points.summed(rough.error / noise) / precision
    kernel = surface.kernel(points.distinct, points.distinct)
    factor = cho_factor(kernel + np.diag(1 / precision))
    weights = cho_solve(factor, error)
    base = points.per_network(rough.base)
    reach = kernel @ base  # from the points to the networks that they are part of
    tie = base - cho_solve(factor, reach)
    return _Fitted(rough.family, surface, weights, factor, tie, base.T @ (1 + kernel @ weights), reach.T @ tie)


def _alike(groups: Groups, data: Observations) -> list[list[int]]:
    """The layers that share a surface: of the same geometry and full widths, such as the blocks of one stage, and as fast.

    Operators without weights count with the layer before them. So of the four projections of an attention, which have one
    geometry, one may take three times as long as another.
    """
    full = groups.full()
    found: dict[object, list[int]] = {}
    for row, x in enumerate(groups.layers):
        shape = (x.inputs.size(full), *x.channels(full), *x.sizes(full))
        geometry = (x.kind, x.kernel, x.positions, x.loses_whole_groups, shape)
        found.setdefault(geometry, []).append(row)
    whole = next((times for widths, times in zip(data.widths, data.nodes, strict=True) if widths == full), None)
    return [*found.values()] if whole is None else [part for rows in found.values() for part in _as_fast(rows, whole)]


def _as_fast(rows: Sequence[int], times: np.ndarray) -> list[list[int]]:
    """Split layers where the next slower one takes more than `GAP` times as long."""
    ordered = sorted(rows, key=lambda row: times[row])
    parts = [ordered[:1]]
    for before, row in itertools.pairwise(ordered):
        if times[row] > GAP * times[before]:
            parts.append([])
        parts[-1].append(row)
    return [sorted(part) for part in parts]


def _is_fixed(layer: Layer) -> bool:
    """Whether a layer has the same size at all widths."""
    return not layer.inputs.terms and not layer.outputs.terms


def _constant(layer: Layer, times: np.ndarray) -> Surface:
    """The surface of a layer of constant size: only the constant term."""
    seen = times[np.isfinite(times)]
    coefficients = np.zeros(features(layer, np.ones(1), np.ones(1)).shape[1])
    coefficients[-1] = np.median(seen) if len(seen) else 0.0
    return Surface(layer, coefficients, np.zeros((0, 2)), np.zeros(0), 0.0)


def _exponent(families: Sequence[_Family], fixed: Sequence[int], layers: Sequence[Layer], data: Observations) -> float:
    """The power with which the network's latency grows with the sum of its layers.

    The larger the network, the colder the caches that a layer finds. MobileNetV2's latency grew with the power 1.1 of the sum
    (ONNX Runtime and OpenVINO, 1 MB of second-level cache), ResNet-18's with 1.0.
    """
    constants = [LayerCost(layers[row], _constant(layers[row], data.nodes[:, row])) for row in fixed]
    usual = data.overhead_ns + fixed_ns(constants, data.widths)
    for family in families:
        *_, surface = family.terms(data)
        usual += family.points.per_network(base_ns(surface, family.points.each, np.zeros(1))).sum(axis=0)
    if np.ptp(np.log(usual)) < VARIED:
        return 1.0
    slope = float(siegelslopes(np.log(usual / data.total), np.log(usual)).slope)
    return min(max(EXPONENTS[0], 1 - slope), EXPONENTS[1])


def _coefficients(layer: Layer, points: np.ndarray, times: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """Coefficients of a surface's terms by non-negative least squares (Lawson and Hanson 1974), columns scaled to one.

    The errors are relative: first to the times, then to what the first fit gives. Relative to noisy times, the fit is too low:
    by up to 10 % for a transformer whose node times differ by half.
    """
    terms = features(layer, points[:, 0], points[:, 1])
    seen = np.isfinite(times)
    terms, times, floor = (
        terms[seen],
        times[seen],
        0.01 * totals[seen],
    )  # shorter times are mostly the profiler's resolution
    first = _weighted(terms, times, np.maximum(times, floor))
    return _weighted(terms, times, np.maximum(terms @ first, floor))


def _weighted(terms: np.ndarray, times: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The non-negative coefficients with the least squares of errors relative to `scale`."""
    matrix = terms / scale[:, None]
    size = np.linalg.norm(matrix, axis=0)
    size[size == 0] = 1
    solution, _ = nnls(matrix / size, times / scale, maxiter=100 * matrix.shape[1])
    result: np.ndarray = solution / size
    return result
