"""From the experiments of a profile to observations: latencies without drift, node times without profiler cost; pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import siegelslopes

from edgeprune.errors import InconclusiveError, UsageError
from edgeprune.latency import stats
from edgeprune.records import Experiment, Groups, Profile, Widths

FIT_QUANTILE = 0.25  # of a process's times, that the model is fitted to; other work disturbs the upper ones more
NODE_NOISE, TOTAL_NOISE = (0.02, 0.08), (0.001, 0.01)  # relative: least, and where repeats are too few to estimate it
REPEATS = 4  # fewest measurements that noise is estimated from
PROFILING = 0.95  # of a node time may be the profiler's cost
OUTSIDE = 0.5  # of a latency may be in no layer
VARIED = 0.2  # range of ln(latency), below which no growth of latency is estimated


def anchor_ns(profile: Profile) -> float:
    """The anchor's usual latency in nanoseconds. It is the scale of all latencies of a profile."""
    runs = [np.median(stats.per_process(e.samples)) for e in profile.experiments if e.role == "anchor"]
    return float(np.median(runs))


def measured_ns(profile: Profile, experiment: Experiment) -> float:
    """The whole-network latency of an experiment in nanoseconds, corrected for drift by the anchor of its batch."""
    return _relative(profile, experiment) * anchor_ns(profile)


def _relative(profile: Profile, experiment: Experiment) -> float:
    """Latency relative to the anchor, from the processes that interleaved the two."""
    anchors = [e.samples for e in profile.experiments if e.role == "anchor" and e.batch == experiment.batch]
    return float(np.mean([np.median(stats.ratios(experiment.samples, anchor, FIT_QUANTILE)) for anchor in anchors]))


def reference_ns(profile: Profile) -> float:
    """The latency of the original network in fp32, in nanoseconds.

    Raises:
        InconclusiveError: The profile holds no measurement of it.
    """
    times = [measured_ns(profile, e) for e in profile.experiments if e.role == profile.original_role]
    if not times:
        raise InconclusiveError(
            f"the profile of {profile.model} on {profile.target} has no measurement of the original network;"
            " profile it again"
        )
    return float(np.median(times))


def by_layer(times: Sequence[tuple[str, int]], owners: Mapping[str, str]) -> tuple[dict[str, int], int]:
    """Sum node times by layer.

    A node without an owner, such as a change of layout that a runtime adds, counts with the layer before it.

    Args:
        times: (node, nanoseconds) in order of execution.
        owners: `{node: layer}`.

    Returns:
        `{layer: nanoseconds}`, and the nanoseconds of nodes before the first layer.
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


@dataclass(frozen=True)
class Observations:
    """Experiments as arrays. Experiments at the same widths are merged.

    Attributes:
        widths: The widths of each experiment.
        nodes: Nanoseconds of each layer, (experiments, layers). NaN where a layer was not observed.
        total: Nanoseconds of the network, (experiments,).
        repeats: How many experiments were merged, (experiments,).
        batch: The batch of each experiment, (experiments,). A merged one has a separate negative number.
        overhead_ns: Latency that is in no layer.
        node_noise: Relative standard deviation of one node time, (layers,).
        total_noise: Relative standard deviation of one latency.
    """

    widths: tuple[Widths, ...]
    nodes: np.ndarray
    total: np.ndarray
    repeats: np.ndarray
    batch: np.ndarray
    overhead_ns: float
    node_noise: np.ndarray
    total_noise: float

    @staticmethod
    def of(groups: Groups, profile: Profile) -> Observations:
        """All experiments in the profile's precision."""
        taken = profile.variants
        total = anchor_ns(profile) * np.array([_relative(profile, e) for e in taken])
        nodes, profiled, overhead = _node_times(groups, taken, total)
        keys = [tuple(e.widths.items()) for e in taken]
        alike = [[i for i, other in enumerate(keys) if other == key] for key in dict.fromkeys(keys)]
        merged = [np.median(nodes[rows], axis=0) if profiled[rows].all() else nodes[rows[-1]] for rows in alike]
        return Observations(
            tuple(taken[rows[0]].widths for rows in alike),
            np.array(merged),
            np.array([np.median(total[rows]) for rows in alike]),
            np.array([len(rows) for rows in alike]),
            np.array([taken[rows[0]].batch if len(rows) == 1 else -1 - i for i, rows in enumerate(alike)]),
            overhead,
            _node_noise(nodes, profiled, alike),
            _total_noise(taken, total, alike),
        )

    def flattened(self, exponent: float, middle_ns: float) -> Observations:
        """The observations as if every layer were as fast as in a network that takes `middle_ns`."""
        total = middle_ns * (self.total / middle_ns) ** (1 / exponent)
        inside = (total - self.overhead_ns) / (self.total - self.overhead_ns)
        return replace(self, total=total, nodes=self.nodes * inside[:, None])

    def only(self, rows: np.ndarray) -> Observations:
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


def _node_times(groups: Groups, taken: Sequence[Experiment], total: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Node times (experiments, layers) that add up to the latencies, which experiments were profiled, and the overhead."""
    names = [layer.name for layer in groups.layers]
    if not names:
        raise UsageError(
            "the network has no convolution, linear layer or matrix product with a weight, so its latency cannot be predicted;"
            " leave [budget] latency out to compile it as it is"
        )
    seen = np.array([[e.layer_ns.get(name, 0) for name in names] for e in taken], float)
    other = np.array([e.other_ns for e in taken], float)
    profiled = seen.sum(1) > 0
    work = np.array([[layer.macs(e.widths) for layer in groups.layers] for e in taken], float)
    removed = work == 0  # a layer of a removed block has no time: zero would be an observation
    if not profiled.any():  # without a profiler, MACs stand in for node times
        nodes = work / work.sum(1, keepdims=True) * total[:, None]
        nodes[removed] = np.nan
        return nodes, profiled, 0.0
    nodes = np.full(seen.shape, np.nan)
    # The profiler slows the nodes. Two costs are the same at all widths: of a call, and of profiling one node.
    sums = (seen.sum(1) + other)[profiled]
    constant, slope = _constant_ns(total[profiled], sums)
    overhead = max(0.0, constant) + slope * float(np.median(other[profiled]))
    own = np.maximum(seen[profiled] - _profiling_ns(max(0.0, -constant / slope), seen[profiled]), 0.0)
    inside = np.maximum(total - overhead, 0.1 * total)[profiled] / own.sum(1)
    nodes[profiled] = own * inside[:, None]
    nodes[removed] = np.nan
    return nodes, profiled, overhead


def _profiling_ns(cost: float, seen: np.ndarray) -> np.ndarray:
    """The profiler's cost of each layer, (layers,): equal shares, but at most `PROFILING` of the layer's least time.

    Layers of many small nodes cost more. Their times at the least widths are mostly that cost.
    """
    most = PROFILING * np.where(seen > 0, seen, np.inf).min(axis=0)
    most[np.isinf(most)] = 0.0  # never observed
    order = np.sort(most)
    shares = (cost - np.concatenate([[0.0], np.cumsum(order)[:-1]])) / np.arange(len(order), 0, -1)
    fits = shares <= order
    costs: np.ndarray = np.minimum(most, shares[np.argmax(fits)]) if fits.any() else most
    return costs


def _constant_ns(total: np.ndarray, nodes: np.ndarray) -> tuple[float, float]:
    """The constant and the slope of total = constant + slope · nodes (repeated medians, Siegel 1982).

    The totals are the regressor, since node times are noisier. The constant is negative if the profiler costs more than a
    call: with ONNX Runtime, 0.3 ms for a network of 0.1 ms.
    """
    if np.ptp(np.log(total)) < VARIED:
        return 0.0, float(np.median(total / nodes))
    tilt, level = siegelslopes(nodes / total, 1 / total)
    if not level > 0:
        return 0.0, float(np.median(total / nodes))
    constant, least = -float(tilt) / float(level), -PROFILING * float(nodes.min()) / float(level)
    return min(max(least, constant), OUTSIDE * float(total.min())), 1 / float(level)


def _node_noise(nodes: np.ndarray, profiled: np.ndarray, alike: Sequence[list[int]]) -> np.ndarray:
    """Relative standard deviation of one node time, (layers,), from the configuration measured most often."""
    most = max(alike, key=len)
    if len(most) < REPEATS or not profiled[most].all():
        return np.full(nodes.shape[1], NODE_NOISE[1])
    # Not a robust spread: with TFLite, one node in five times was 10 % slower during an entire process.
    noise: np.ndarray = nodes[most].std(axis=0) / np.maximum(nodes[most].mean(axis=0), 1e-9)
    noise = np.maximum(NODE_NOISE[0], noise)
    return np.where(np.isnan(noise), np.nanmedian(noise), noise)  # of layers that this configuration lacks


def _total_noise(taken: Sequence[Experiment], total: np.ndarray, alike: Sequence[list[int]]) -> float:
    """Relative standard deviation of one latency, from repeated configurations other than the most frequent one."""
    noise = TOTAL_NOISE[1]
    most = max(alike, key=len)
    ratios = [total[rows] / np.median(total[rows]) for rows in alike if len(rows) > 1 and rows is not most]
    if sum(map(len, ratios)) >= REPEATS:
        noise = max(TOTAL_NOISE[0], stats.relative_spread(np.concatenate(ratios)))
    anchors = [np.median(stats.per_process(e.samples, FIT_QUANTILE)) for e in taken if e.role == "anchor"]
    if len(anchors) >= REPEATS:  # the drift of the anchor bounds the noise
        noise = min(noise, max(TOTAL_NOISE[0], math.sqrt(2) * stats.relative_spread(np.array(anchors))))
    return noise
