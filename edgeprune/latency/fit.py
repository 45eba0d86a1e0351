"""Fit the latency model to a profile; pure.

Node times from the runtime's profiler give the shape of the surfaces. Whole-network latencies, measured without the
profiler, give the scale. Both are observations of one Gaussian process (Rasmussen & Williams 2006, ch. 2), which also knows
where it is uncertain.
"""

from __future__ import annotations

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
from edgeprune.latency.posterior import Posterior, SurfacePosterior, base_ns, fixed_ns, per_network, points_of
from edgeprune.latency.surface import LayerCost, Surface, features
from edgeprune.records import Groups, Layer, Profile

FOLDS = 5
EXPONENTS = (0.9, 1.5)  # smallest and largest
RESOLUTION = 5e-4  # of node times, relative to the network's latency


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
    everything = np.arange(len(data.total))
    errors, variances = np.empty(len(everything)), np.empty(len(everything))
    for part in np.array_split(np.random.default_rng(0).permutation(everything), FOLDS):
        model = _model(groups, data.only(np.setdiff1d(everything, part)))
        widths = [data.widths[row] for row in part]
        errors[part] = np.abs(data.total[part] / [model.ns(w) for w in widths] - 1)
        variances[part] = np.diag(model.covariance(widths))
    return _calibrated(_model(groups, data), errors, variances)


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


def draft(groups: Groups, profile: Profile) -> LatencyModel:
    """Fit the latency model without checking it. Its intervals are not calibrated."""
    return _model(groups, Observations.of(groups, profile))


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
        self.points = points_of(self.layers, data.widths)

    def terms(self, data: Observations) -> tuple[np.ndarray, np.ndarray, Surface]:
        """The node time and the network's latency at every point, and the surface without correction."""
        times, totals = data.nodes[:, self.rows].T.reshape(-1), np.tile(data.total, len(self.rows))
        coefficients = _coefficients(self.layers[0], self.points, times, totals)
        return times, totals, Surface(self.layers[0], coefficients, self.points, np.zeros(0), 0.0)


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


def _model(groups: Groups, data: Observations) -> LatencyModel:
    """Fit the surfaces to the node times, then correct all of them by the latencies of entire networks."""
    alike = _alike(groups).values()
    families = [_Family(groups, rows, data) for rows in alike if not _is_fixed(groups.layers[rows[0]])]
    fixed = [row for rows in alike if _is_fixed(groups.layers[rows[0]]) for row in rows]
    exponent = _exponent(families, fixed, groups.layers, data)
    middle = float(np.median(data.total))
    data = data.flattened(exponent, middle)
    costs = {row: LayerCost(groups.layers[row], _constant(groups.layers[row], data.nodes[:, row])) for row in fixed}
    constants = tuple(costs.values())
    fitted = [_fitted(family, data) for family in families]
    count = len(data.total)
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


def _fitted(family: _Family, data: Observations) -> _Fitted:
    """Fit a family's surface to its node times."""
    count = len(data.total)
    times, totals, surface = family.terms(data)
    floor = RESOLUTION * totals
    base = base_ns(surface, family.points, floor)
    seen = np.isfinite(times)
    there = np.maximum(base, 1.0)
    error = np.where(seen, times / there - 1, 0.0)
    noise = np.repeat(data.node_noise[family.rows], count) ** 2 / np.tile(data.repeats, len(family.rows))
    noise += (floor / there) ** 2
    excess = float(np.mean(np.minimum(error[seen] ** 2, 1) - noise[seen])) if seen.any() else 0.25
    surface = replace(surface, amplitude=math.sqrt(min(max(excess, 0.02**2), 0.5**2)))
    kernel = surface.kernel(family.points, family.points)
    factor = cho_factor(kernel + np.diag(np.where(seen, noise, 1e6)))
    weights = cho_solve(factor, error)
    reach = per_network(kernel * base, count)  # from the points to the networks that they are part of
    tie = per_network(np.diag(base), count) - cho_solve(factor, reach)
    mean = per_network((base * (1 + kernel @ weights))[None], count)[0]
    return _Fitted(family, surface, weights, factor, tie, mean, reach.T @ tie)


def _alike(groups: Groups) -> dict[object, list[int]]:
    """Layers of the same geometry and full widths, such as the blocks of one stage: they share a surface."""
    full = groups.full()
    found: dict[object, list[int]] = {}
    for row, x in enumerate(groups.layers):
        shape = (x.inputs.size(full), *x.channels(full), *x.sizes(full))
        geometry = (x.kind, x.kernel, x.positions, x.loses_whole_groups, shape)
        found.setdefault(geometry, []).append(row)
    return found


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
    count = len(data.total)
    constants = [LayerCost(layers[row], _constant(layers[row], data.nodes[:, row])) for row in fixed]
    usual = data.overhead_ns + fixed_ns(constants, data.widths)
    for family in families:
        *_, surface = family.terms(data)
        usual += per_network(base_ns(surface, family.points, np.zeros(1))[None], count)[0]
    if np.ptp(np.log(usual)) < VARIED:
        return 1.0
    slope = float(siegelslopes(np.log(usual / data.total), np.log(usual)).slope)
    return min(max(EXPONENTS[0], 1 - slope), EXPONENTS[1])


def _coefficients(layer: Layer, points: np.ndarray, times: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """Coefficients of a surface's terms by non-negative least squares (Lawson and Hanson 1974), columns scaled to one."""
    terms = features(layer, points[:, 0], points[:, 1])
    seen = np.isfinite(times)
    # Relative error, with a floor of 1 % of the network: shorter node times are mostly the profiler's resolution.
    weight = 1 / np.maximum(times[seen], 0.01 * totals[seen])
    matrix = terms[seen] * weight[:, None]
    scale = np.linalg.norm(matrix, axis=0)
    scale[scale == 0] = 1
    solution, _ = nnls(matrix / scale, times[seen] * weight, maxiter=100 * matrix.shape[1])
    result: np.ndarray = solution / scale
    return result
