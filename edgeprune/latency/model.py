"""Profile -> latency model; pure.

Layers of the same geometry share one surface, ns = f(input channels, output channels): a sum of non-negative terms, rounded
up to the steps that kernels work in and counted again where channels are not aligned, times one plus a smooth correction.
Node times from the runtime's profiler shape the surfaces, whole-network times taken without a profiler set the scale: both
are observations of one Gaussian process (Rasmussen & Williams 2006, ch. 2), which therefore also knows where it is unsure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import nnls
from scipy.stats import siegelslopes

from edgeprune.errors import InconclusiveError
from edgeprune.latency import stats
from edgeprune.records import Experiment, Groups, Interval, Layer, Profile, Widths

# Channels that kernels round up to: scalar, SSE and NEON, AVX2, AVX-512 and NCHWc blocks, and sets of four of those.
STEPS = (1, 4, 8, 16, 32, 64)
# Of these, kernels of half the size may take over where a layer has no more outputs than that: 33 to 64 channels of a 3×3
# convolution were measured at one latency, 17 to 32 at half of it, and 16 at a quarter (TFLite, AVX-512).
HALVED = (32, 64)
# A count that is no multiple of these may fall back to a slower kernel: 30 depthwise channels were measured at four times
# the latency of 32 (ONNX Runtime, AVX-512). So wider can be faster, and the model may say so.
ALIGNED = (4, 8, 16)
COVERAGE = 0.9  # share of unseen configurations that an interval should hold
QUIET = 0.25  # the quantile of a process's times that the model is fitted to: the upper ones are often others' work
FOLDS = 5
REACH = 0.7  # of the correction, in ln(channels): what is known at one width says little of one twice as wide
UNALIKE = 0.5  # correlation left between widths that differ in one of `ALIGNED`
COMMON = 0.05  # of the correction: an error that a whole surface shares
NODE_NOISE, TOTAL_NOISE = (0.02, 0.08), (0.001, 0.01)  # least, and where too few repeats tell; relative
EXPONENTS = (0.9, 1.5)  # least and most
RESOLUTION = 5e-4  # of the network's latency: node times are no finer
VARIED = 0.2  # range of ln(latency) below which nothing is said of how latency grows
REPEATS = 4  # of the anchor that tell the noise


def _up(channels: np.ndarray, step: int) -> np.ndarray:
    return np.ceil(channels / step) * step


def _features(layer: Layer, inputs: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """Terms of a layer's latency, (points, terms), none of them negative; the last is a constant."""
    ones = np.ones(len(inputs))
    outs = [_up(outputs, s) for s in STEPS]
    outs += [np.where(outputs <= s / 2, s / 2, _up(outputs, s)) for s in HALVED]
    if layer.per_group is not None:  # inputs and outputs shrink together
        return np.stack([*outs, *(outputs * (outputs % s > 0) for s in ALIGNED), ones], axis=1)
    ins = [_up(inputs, s) for s in STEPS]
    work = inputs * outputs
    slow = [work * (channels % s > 0) for channels in (inputs, outputs) for s in ALIGNED]
    odd = [size * (inputs % ALIGNED[0] > 0) for size in (inputs, outputs)]  # a change of layout on the way in or out
    return np.stack([*(i * o for i in ins for o in outs), *slow, *odd, *ins, *outs, ones], axis=1)


@dataclass(frozen=True)
class Surface:
    """The latency of all layers of one geometry: ns = Σ coefficient·term · (1 + Σ weight·kernel(point)).

    `layer` is one of them; `points` are the channels (inputs, outputs) that were measured, (n, 2), and `weights` (n,) what
    they say of their neighbours.
    """

    layer: Layer
    coefficients: np.ndarray
    points: np.ndarray
    weights: np.ndarray
    amplitude: float

    def steps_ns(self, inputs: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        """Nanoseconds by the terms alone, (points,)."""
        result: np.ndarray = _features(self.layer, inputs, outputs) @ self.coefficients
        return result

    def ns(self, inputs: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        """Nanoseconds at these channel counts, (points,), elementwise; none where there are no channels: the layer is gone."""
        base: np.ndarray = self.steps_ns(inputs, outputs) * (np.minimum(inputs, outputs) > 0)
        if not len(self.weights):
            return base
        here = np.stack([inputs, outputs], axis=1)
        result: np.ndarray = base * np.maximum(0.1, 1 + self.kernel(here, self.points) @ self.weights)
        return result

    def kernel(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """The covariance of the relative correction between channels (n, 2) and (m, 2): (n, m)."""
        distance = np.zeros((len(a), len(b)))
        unalike = np.zeros((len(a), len(b)))
        for side in (1,) if self.layer.per_group is not None else (0, 1):
            distance += np.subtract.outer(*(np.log(np.maximum(points[:, side], 1)) for points in (a, b))) ** 2
            for step in ALIGNED:
                unalike += np.not_equal.outer(a[:, side] % step == 0, b[:, side] % step == 0)
        alike = np.exp(-0.5 * distance / REACH**2 + math.log(UNALIKE) * unalike)
        result: np.ndarray = self.amplitude**2 * alike + COMMON**2
        return result


@dataclass(frozen=True)
class LayerCost:
    """The fitted latency of one layer."""

    layer: Layer
    surface: Surface

    def ns(self, inputs: Sequence[int] | np.ndarray, outputs: Sequence[int] | np.ndarray) -> np.ndarray:
        """Nanoseconds at these channel counts, (points,), elementwise."""
        return self.surface.ns(np.asarray(inputs, float), np.asarray(outputs, float))


@dataclass(frozen=True)
class LatencyModel:
    """Widths -> predicted nanoseconds of the whole network: a power of the sum of its layers and `overhead_ns`.

    The sum is what a network that takes `middle_ns` would take; `exponent` is above one where layers slow each other down.
    `posterior` knows how sure it is. `stretch` is how many of its standard deviations held `COVERAGE` of the configurations
    left out of the fit (split conformal, Vovk et al. 2005, over folds); `median_error` and `error` are the median and the
    `COVERAGE` quantile of the relative errors there.
    """

    layers: tuple[LayerCost, ...]
    overhead_ns: float
    exponent: float = 1.0
    middle_ns: float = 1.0
    posterior: Posterior | None = None
    stretch: float = 1.0
    median_error: float = math.inf
    error: float = math.inf
    known: dict[tuple[int, int, int], float] = field(default_factory=dict, init=False, repr=False, compare=False)

    def ns(self, widths: Widths) -> float:
        """The expected latency of one inference at these widths."""
        total = sum(self.layer_ns(widths).values()) + self.overhead_ns
        return float(self.middle_ns * (total / self.middle_ns) ** self.exponent)

    def sum_ns(self, ns: float) -> float:
        """What the layers and the overhead add up to in a network that takes `ns`: `ns()` undone."""
        return float(self.middle_ns * (ns / self.middle_ns) ** (1 / self.exponent))

    def layer_ns(self, widths: Widths) -> dict[str, float]:
        """The expected nanoseconds of every layer in a network of middle size; the rest is overhead."""
        result = {}
        for cost in self.layers:
            inputs, outputs = cost.layer.channels(widths)
            key = id(cost.surface), inputs, outputs
            if key not in self.known:  # a search asks again and again, and changes one width at a time
                self.known[key] = float(cost.ns([inputs], [outputs])[0])
            result[cost.layer.name] = self.known[key]
        return result

    def predict(self, widths: Widths) -> Interval:
        """The expected latency with the interval that a measurement should fall into."""
        mid = self.ns(widths)
        half = self.stretch * math.sqrt(self.covariance([widths])[0, 0]) * mid
        return Interval(max(0.0, mid - half), mid, mid + half)

    def covariance(self, configurations: Sequence[Widths]) -> np.ndarray:
        """Of the relative errors of a measurement of each from its prediction, (n, n)."""
        if self.posterior is None:
            return np.zeros((len(configurations),) * 2)
        return self.posterior.covariance(configurations)


def measured_ns(profile: Profile, experiment: Experiment) -> float:
    """The whole-network latency of an experiment with the machine's drift taken out by its batch's anchor."""
    return _share(profile, experiment) * anchor_ns(profile)


def _share(profile: Profile, experiment: Experiment) -> float:
    """Of the anchor's latency, in the processes that the two took turns in."""
    anchors = [e.samples for e in profile.experiments if e.role == "anchor" and e.batch == experiment.batch]
    return float(np.mean([np.median(stats.ratios(experiment.samples, anchor, QUIET)) for anchor in anchors]))


def anchor_ns(profile: Profile) -> float:
    """What the anchor usually takes, in nanoseconds: the scale of all that is told of a profile."""
    runs = [np.median(stats.per_process(e.samples)) for e in profile.experiments if e.role == "anchor"]
    return float(np.median(runs))


def baseline(profile: Profile) -> float:
    """The unpruned network's latency in nanoseconds, in fp32. Raises `InconclusiveError` when it was never measured."""
    times = [measured_ns(profile, e) for e in profile.experiments if e.role == profile.unpruned_role]
    if not times:
        raise InconclusiveError(f"the profile of {profile.model} on {profile.target} has no baseline; profile it again")
    return float(np.median(times))


def last_error(groups: Groups, profile: Profile, count: int) -> float | None:
    """The median relative error on the last `count` variants as a model predicts them that was fitted before them; None where
    there was nothing to fit."""
    last = [e for e in profile.experiments if e.role == "fit"][-count:]
    first = min((e.batch for e in last), default=0)
    before = replace(profile, experiments=tuple(e for e in profile.experiments if e.batch < first))
    if sum(e.role == "fit" for e in before.experiments) < FOLDS:
        return None
    model = draft(groups, before)
    scale = anchor_ns(before) / anchor_ns(profile)
    return float(np.median([abs(measured_ns(profile, e) * scale / model.ns(e.widths) - 1) for e in last]))


def draft(groups: Groups, profile: Profile) -> LatencyModel:
    """Like `fit`, but not checked on configurations left out: its intervals are not to be believed."""
    return _model(groups, _Data.of(groups, profile))


def fit(groups: Groups, profile: Profile) -> LatencyModel:
    """Fit the latency model of a network's layers to all experiments of a profile.

    Raises `InconclusiveError` when there are too few experiments to fit and to check (at least `FOLDS`).
    """
    if profile.experiments and not groups.free:  # nothing to be modelled
        return LatencyModel((), baseline(profile), middle_ns=baseline(profile), median_error=0.0, error=0.0)
    if len({tuple(e.widths.items()) for e in profile.experiments}) < FOLDS:
        raise InconclusiveError(
            f"{len(profile.experiments)} experiments are too few for a latency model; profile again"
        )
    data = _Data.of(groups, profile)
    everything = np.arange(len(data.total))
    errors, variances = np.empty(len(everything)), np.empty(len(everything))
    for part in np.array_split(np.random.default_rng(0).permutation(everything), FOLDS):
        model = _model(groups, data.only(np.setdiff1d(everything, part)))
        widths = [data.widths[row] for row in part]
        errors[part] = np.abs(data.total[part] / [model.ns(w) for w in widths] - 1)
        variances[part] = np.diag(model.covariance(widths))
    model = _model(groups, data)
    assert model.posterior is not None
    # What neither repeats nor the posterior explain is the same everywhere, as far as anybody knows.
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


@dataclass(frozen=True)
class _Data:
    """Experiments as arrays, those at the same widths merged: `nodes` is (experiments, layers), NaN where nothing was seen;
    `total`, `repeats` and `batch` are (experiments,), each merged one in a batch of its own; the noises are relative standard
    deviations of one measurement."""

    widths: tuple[Widths, ...]
    nodes: np.ndarray
    total: np.ndarray
    repeats: np.ndarray
    batch: np.ndarray
    overhead_ns: float
    node_noise: np.ndarray  # (layers,)
    total_noise: float

    @staticmethod
    def of(groups: Groups, profile: Profile) -> _Data:
        names = [layer.name for layer in groups.layers]
        taken = profile.variants
        total = anchor_ns(profile) * np.array([_share(profile, e) for e in taken])
        seen = np.array([[e.layer_ns.get(name, 0) for name in names] for e in taken], float)
        other = np.array([e.other_ns for e in taken], float)
        profiled = seen.sum(1) > 0
        overhead = 0.0
        nodes = np.full(seen.shape, np.nan)
        if profiled.any():
            # The profiler slows the nodes. What a call costs beside them, or what the profiler costs a node, stays the same at
            # all widths.
            constant, slope = _constant_ns(total[profiled], (seen.sum(1) + other)[profiled])
            overhead = max(0.0, constant) + slope * float(np.median(other[profiled]))
            watching = max(0.0, -constant / slope / len(names))
            own = np.maximum(seen[profiled] - watching, 0.2 * seen[profiled])
            inside = np.maximum(total - overhead, 0.1 * total)[profiled] / own.sum(1)
            nodes[profiled] = own * inside[:, None]
        else:  # no profiler: shares of the work stand in
            work = np.array([[layer.macs(e.widths) for layer in groups.layers] for e in taken], float)
            nodes = work / work.sum(1, keepdims=True) * total[:, None]
            nodes[work == 0] = np.nan  # of a block that was removed
        keys = [tuple(e.widths.items()) for e in taken]
        alike = [[i for i, other_key in enumerate(keys) if other_key == key] for key in dict.fromkeys(keys)]
        most = max(alike, key=len)
        node_noise = np.full(len(names), NODE_NOISE[1])
        total_noise = TOTAL_NOISE[1]
        if len(most) >= REPEATS and profiled[most].all():
            # Not a robust spread: one node in five times was measured 10 % slower all through a process (TFLite).
            node_noise = np.maximum(NODE_NOISE[0], nodes[most].std(axis=0) / np.maximum(nodes[most].mean(axis=0), 1e-9))
        ratios = [total[rows] / np.median(total[rows]) for rows in alike if len(rows) > 1 and rows is not most]
        if sum(map(len, ratios)) >= REPEATS:
            total_noise = max(TOTAL_NOISE[0], float(_relative_spread(np.concatenate(ratios)[:, None])[0]))
        anchors = [np.median(stats.per_process(e.samples, QUIET)) for e in taken if e.role == "anchor"]
        if len(anchors) >= REPEATS:  # a machine that does not drift has no noise to speak of
            drift = math.sqrt(2) * float(_relative_spread(np.array(anchors)[:, None])[0])
            total_noise = min(total_noise, max(TOTAL_NOISE[0], drift))
        merged = [np.median(nodes[rows], axis=0) if profiled[rows].all() else nodes[rows[-1]] for rows in alike]
        return _Data(
            tuple(taken[rows[0]].widths for rows in alike),
            np.array(merged),
            np.array([np.median(total[rows]) for rows in alike]),
            np.array([len(rows) for rows in alike]),
            np.array([taken[rows[0]].batch if len(rows) == 1 else -1 - i for i, rows in enumerate(alike)]),
            overhead,
            node_noise,
            total_noise,
        )

    def flattened(self, exponent: float, middle_ns: float) -> _Data:
        """As if layers were as fast in any network as they are in one that takes `middle_ns`."""
        total = middle_ns * (self.total / middle_ns) ** (1 / exponent)
        inside = (total - self.overhead_ns) / (self.total - self.overhead_ns)
        return replace(self, total=total, nodes=self.nodes * inside[:, None])

    def only(self, rows: np.ndarray) -> _Data:
        """Some of the experiments."""
        widths = tuple(self.widths[row] for row in rows)
        return replace(
            self,
            widths=widths,
            nodes=self.nodes[rows],
            total=self.total[rows],
            repeats=self.repeats[rows],
            batch=self.batch[rows],
        )


@dataclass(frozen=True)
class _Part:
    """What is known of one surface: the layers it stands for, and how far the measurements at its points settle it."""

    surface: Surface
    layers: tuple[Layer, ...]
    factor: tuple[np.ndarray, bool]  # of the covariance of its measured points, (n, n)
    tie: np.ndarray  # (n, experiments): from its points to the networks' latencies, given the node times


@dataclass(frozen=True)
class Posterior:
    """How sure a model is of configurations that it never saw."""

    parts: tuple[_Part, ...]
    factor: tuple[np.ndarray, bool]  # of the covariance of the measured networks, (experiments, experiments)
    overhead_ns: float
    fixed: tuple[LayerCost, ...]  # of layers that stay as they are, or go with their block
    total_noise: float

    def covariance(self, configurations: Sequence[Widths]) -> np.ndarray:
        """See `LatencyModel.covariance`."""
        count = len(configurations)
        mean = self.overhead_ns + _fixed_ns(self.fixed, configurations)
        free = np.zeros((count, count))  # once the node times are known
        seen = np.zeros((count, len(self.factor[0])))
        for part in self.parts:
            points = _points(part.layers, configurations)
            base = _base(part.surface, points, np.zeros(1))
            near = part.surface.kernel(points, part.surface.points)
            inner = part.surface.kernel(points, points) - near @ cho_solve(part.factor, near.T)
            free += _per_network(_per_network(inner * base, count).T * base, count)
            seen += _per_network((near @ part.tie).T * base, count).T
            mean += _per_network((base * (1 + near @ part.surface.weights))[None], count)[0]
        left = free - seen @ cho_solve(self.factor, seen.T)
        result: np.ndarray = left / np.outer(mean, mean) + self.total_noise**2 * np.eye(count)
        return result


def _points(layers: Sequence[Layer], configurations: Sequence[Widths]) -> np.ndarray:
    """Channels (inputs, outputs) of every layer at every configuration, a layer after the other: (n, 2)."""
    return np.array([x.channels(w) for x in layers for w in configurations], float)


def _base(surface: Surface, points: np.ndarray, floor: np.ndarray) -> np.ndarray:
    there = points.min(axis=1) > 0  # or its block is removed
    result: np.ndarray = there * np.maximum(np.maximum(surface.steps_ns(points[:, 0], points[:, 1]), floor), 1.0)
    return result


def _per_network(values: np.ndarray, count: int) -> np.ndarray:
    """Values at a family's points, (m, layers · count), added up over the layers of each of `count` networks: (m, count)."""
    result: np.ndarray = values.reshape(len(values), -1, count).sum(axis=1)
    return result


def _model(groups: Groups, data: _Data) -> LatencyModel:
    """Surfaces from the node times, then all of them corrected by the whole networks' times."""
    alike = _alike(groups).values()
    families = [_Family(groups, rows, data) for rows in alike if not _fixed(groups.layers[rows[0]])]
    fixed = [row for rows in alike if _fixed(groups.layers[rows[0]]) for row in rows]
    exponent = _exponent(families, fixed, groups.layers, data)
    middle = float(np.median(data.total))
    data = data.flattened(exponent, middle)
    count = len(data.total)
    costs = {row: LayerCost(groups.layers[row], _flat(groups.layers[row], data.nodes[:, row])) for row in fixed}
    unfitted = tuple(costs.values())
    mean, covariance = data.overhead_ns + _fixed_ns(unfitted, data.widths), np.zeros((count, count))
    fitted = []
    for family in families:
        times, totals, surface = family.usual(data)
        floor = RESOLUTION * totals
        base = _base(surface, family.points, floor)
        seen = np.isfinite(times)
        there = np.maximum(base, 1.0)
        error = np.where(seen, times / there - 1, 0.0)
        noise = np.repeat(data.node_noise[family.rows], count) ** 2 / np.tile(data.repeats, len(family.rows))
        noise += (floor / there) ** 2
        left = float(np.mean(np.minimum(error[seen] ** 2, 1) - noise[seen])) if seen.any() else 0.25
        surface = replace(surface, amplitude=math.sqrt(min(max(left, 0.02**2), 0.5**2)))
        kernel = surface.kernel(family.points, family.points)
        factor = cho_factor(kernel + np.diag(np.where(seen, noise, 1e6)))
        weights = cho_solve(factor, error)
        reach = _per_network(kernel * base, count)  # of the points, to the networks that they are part of
        tie = _per_network(np.diag(base), count) - cho_solve(factor, reach)
        mean += _per_network((base * (1 + kernel @ weights))[None], count)[0]
        covariance += reach.T @ tie
        fitted.append((family, surface, weights, factor, tie))
    # Half of the noise is the anchor's, and all of a batch have that in common.
    together = np.equal.outer(data.batch, data.batch) + np.eye(count)
    noise = data.total_noise**2 / 2 * together * np.outer(data.total, data.total / data.repeats)
    whole = cho_factor(covariance + noise)
    missing = cho_solve(whole, data.total - mean)
    parts = []
    for family, surface, weights, factor, tie in fitted:
        surface = replace(surface, weights=weights + tie @ missing)
        parts.append(_Part(surface, family.layers, factor, tie))
        costs |= {row: LayerCost(layer, surface) for row, layer in zip(family.rows, family.layers, strict=True)}
    posterior = Posterior(tuple(parts), whole, data.overhead_ns, unfitted, data.total_noise)
    return LatencyModel(tuple(costs[row] for row in sorted(costs)), data.overhead_ns, exponent, middle, posterior)


class _Family:
    """Layers that do the same work at the same widths, and the points at which they were measured."""

    def __init__(self, groups: Groups, rows: list[int], data: _Data) -> None:
        self.rows = rows
        self.layers = tuple(groups.layers[row] for row in rows)
        self.points = _points(self.layers, data.widths)

    def usual(self, data: _Data) -> tuple[np.ndarray, np.ndarray, Surface]:
        """At every point the node time and the network's total, and the surface that the step terms alone make of them."""
        times, totals = data.nodes[:, self.rows].T.reshape(-1), np.tile(data.total, len(self.rows))
        coefficients = _steps(self.layers[0], self.points, times, totals)
        return times, totals, Surface(self.layers[0], coefficients, self.points, np.zeros(0), 0.0)


def _fixed(layer: Layer) -> bool:
    """Whether a layer stays as it is at all widths."""
    return not layer.inputs.terms and not layer.outputs.terms


def _flat(layer: Layer, times: np.ndarray) -> Surface:
    """The surface of a layer that stays as it is: the constant term alone."""
    seen = times[np.isfinite(times)]
    coefficients = np.zeros(_features(layer, np.ones(1), np.ones(1)).shape[1])
    coefficients[-1] = np.median(seen) if len(seen) else 0.0
    return Surface(layer, coefficients, np.zeros((0, 2)), np.zeros(0), 0.0)


def _fixed_ns(costs: Sequence[LayerCost], configurations: Sequence[Widths]) -> np.ndarray:
    """What layers of one size add up to at every configuration, (configurations,)."""
    total = np.zeros(len(configurations))
    for cost in costs:
        total += cost.ns(*_points([cost.layer], configurations).T)
    return total


def _exponent(families: Sequence[_Family], fixed: Sequence[int], layers: Sequence[Layer], data: _Data) -> float:
    """How the whole network's latency grows with the sum of its layers, each at its usual cost.

    The larger the network, the colder the caches that a layer finds: MobileNetV2's latency grew with the power 1.1 of that sum
    (ONNX Runtime and OpenVINO, 1 MB of second-level cache), ResNet-18's with 1.0.
    """
    count = len(data.total)
    flat = [LayerCost(layers[row], _flat(layers[row], data.nodes[:, row])) for row in fixed]
    usual = data.overhead_ns + _fixed_ns(flat, data.widths)
    for family in families:
        *_, surface = family.usual(data)
        usual += _per_network(_base(surface, family.points, np.zeros(1))[None], count)[0]
    if np.ptp(np.log(usual)) < VARIED:
        return 1.0
    slope = float(siegelslopes(np.log(usual / data.total), np.log(usual)).slope)
    return min(max(EXPONENTS[0], 1 - slope), EXPONENTS[1])


def _alike(groups: Groups) -> dict[object, list[int]]:
    """Layers that do the same work at the same widths, as the blocks of a stage do: their times tell of one surface."""
    full = groups.full()
    found: dict[object, list[int]] = {}
    for row, x in enumerate(groups.layers):
        geometry = (x.kind, x.kernel, x.positions, x.per_group, x.inputs.size(full), x.outputs.size(full))
        found.setdefault(geometry, []).append(row)
    return found


def _steps(layer: Layer, points: np.ndarray, times: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """Coefficients of a surface's terms by non-negative least squares (Lawson and Hanson 1974), columns scaled to one."""
    terms = _features(layer, points[:, 0], points[:, 1])
    seen = np.isfinite(times)
    # Relative error, floored at 1 % of the network: a layer of a few microseconds is mostly the profiler's resolution.
    weight = 1 / np.maximum(times[seen], 0.01 * totals[seen])
    matrix = terms[seen] * weight[:, None]
    scale = np.linalg.norm(matrix, axis=0)
    scale[scale == 0] = 1
    solution, _ = nnls(matrix / scale, times[seen] * weight, maxiter=100 * matrix.shape[1])
    result: np.ndarray = solution / scale
    return result


def _constant_ns(total: np.ndarray, nodes: np.ndarray) -> tuple[float, float]:
    """The constant and the slope of total = constant + slope · nodes (repeated medians, Siegel 1982).

    The totals are the regressor, since node times are the noisier of the two.
    """
    if np.ptp(np.log(total)) < VARIED:
        return 0.0, float(np.median(total / nodes))
    tilt, level = siegelslopes(nodes / total, 1 / total)
    if not level > 0:
        return 0.0, float(np.median(total / nodes))
    limit = 0.5 * float(total.min())
    return min(max(-limit, -float(tilt) / float(level)), limit), 1 / float(level)


def _relative_spread(values: np.ndarray) -> np.ndarray:
    """A robust relative standard deviation of every column, (columns,): 1.4826 times the median absolute deviation."""
    middle = np.maximum(np.median(values, axis=0), 1e-9)
    result: np.ndarray = 1.4826 * np.median(np.abs(values / middle - 1), axis=0)
    return result


def by_layer(times: Sequence[tuple[str, int]], owners: Mapping[str, str]) -> tuple[dict[str, int], int]:
    """Sum node times, given in the order of execution, a layer; `owners` maps node names to layers.

    What a runtime adds by itself (a change of layout, say) has no owner, and is counted with the layer before it. Returns
    the sums and what comes before any layer.
    """
    layers: dict[str, int] = {}
    other, layer = 0, None
    for name, ns in times:
        layer = owners.get(name, layer)
        if layer is None:
            other += ns
        else:
            layers[layer] = layers.get(layer, 0) + ns
    return layers, other
