"""The Gaussian process behind a latency model: how certain its predictions are (Rasmussen & Williams 2006, ch. 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_solve

from edgeprune.latency.surface import LayerCost, Surface
from edgeprune.latency.threads import single_threaded
from edgeprune.records import Layer, Widths


@dataclass(frozen=True)
class SurfacePosterior:
    """The posterior of one surface, shared by `layers`.

    `factor` is the Cholesky factor of the covariance of its measured points, (n, n). `tie` (n, experiments) links its points
    to the latencies of entire networks, given the node times.
    """

    surface: Surface
    layers: tuple[Layer, ...]
    factor: tuple[np.ndarray, bool]
    tie: np.ndarray


@dataclass(frozen=True)
class Posterior:
    """The posterior of all surfaces.

    `factor` is the Cholesky factor of the covariance of the measured networks, (experiments, experiments). `fixed` are layers
    of constant size, which at most a block's removal can remove. `total_noise` is the relative noise of one measurement.
    """

    parts: tuple[SurfacePosterior, ...]
    factor: tuple[np.ndarray, bool]
    overhead_ns: float
    fixed: tuple[LayerCost, ...]
    total_noise: float

    @single_threaded
    def covariance(self, configurations: Sequence[Widths]) -> np.ndarray:
        """The covariance of the relative errors of a measurement of each configuration, (n, n)."""
        count = len(configurations)
        mean = self.overhead_ns + fixed_ns(self.fixed, configurations)
        given_nodes = np.zeros((count, count))  # the covariance once the node times are known
        cross = np.zeros((count, len(self.factor[0])))
        for part in self.parts:
            points = Points.of(part.layers, configurations)
            base = points.per_network(base_ns(part.surface, points.each, np.zeros(1)))
            near = part.surface.kernel(points.distinct, part.surface.points)
            inner = part.surface.kernel(points.distinct, points.distinct) - near @ cho_solve(part.factor, near.T)
            given_nodes += base.T @ inner @ base
            cross += base.T @ near @ part.tie
            mean += base.T @ (1 + near @ part.surface.weights)
        remaining = given_nodes - cross @ cho_solve(self.factor, cross.T)
        result: np.ndarray = remaining / np.outer(mean, mean) + self.total_noise**2 * np.eye(count)
        return result


@dataclass(frozen=True)
class Points:
    """The sizes of every layer at every configuration. Many of them are equal.

    Attributes:
        each: layer by layer, (layers · configurations, 2); see `points_of`.
        distinct: each pair of sizes once, (n, 2).
        place: the row in `distinct` of each one, (layers · configurations,).
        count: of the configurations.
    """

    each: np.ndarray
    distinct: np.ndarray
    place: np.ndarray
    count: int

    @staticmethod
    def of(layers: Sequence[Layer], configurations: Sequence[Widths]) -> Points:
        """The points of layers."""
        each = points_of(layers, configurations)
        distinct, place = np.unique(each, axis=0, return_inverse=True)
        return Points(each, distinct, place.reshape(-1), len(configurations))  # NumPy 2.0 has another shape

    def summed(self, values: np.ndarray) -> np.ndarray:
        """Sum one value for each point over those that are equal, (n,)."""
        return np.bincount(self.place, values, len(self.distinct))

    def per_network(self, values: np.ndarray) -> np.ndarray:
        """Sum one value for each point over those that are equal and in one network, (n, configurations)."""
        result = np.zeros((len(self.distinct), self.count))
        np.add.at(result, (self.place, np.arange(len(self.place)) % self.count), values)
        return result


def points_of(layers: Sequence[Layer], configurations: Sequence[Widths]) -> np.ndarray:
    """Sizes (see `Layer.sizes`) of every layer at every configuration, layer by layer: (n, 2)."""
    return np.array([x.sizes(w) for x in layers for w in configurations], float)


def base_ns(surface: Surface, points: np.ndarray, floor: np.ndarray) -> np.ndarray:
    """Nanoseconds by the surface's terms at these points, at least `floor` and 1: (n,). Zero for a removed layer."""
    there = points.min(axis=1) > 0
    result: np.ndarray = there * np.maximum(np.maximum(surface.terms_ns(points[:, 0], points[:, 1]), floor), 1.0)
    return result


def fixed_ns(costs: Sequence[LayerCost], configurations: Sequence[Widths]) -> np.ndarray:
    """Summed nanoseconds of layers of constant size at every configuration, (configurations,)."""
    total = np.zeros(len(configurations))
    for cost in costs:
        total += cost.ns(*points_of([cost.layer], configurations).T)
    return total
