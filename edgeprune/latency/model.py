"""The latency model: predicts the latency of a network from the widths of its groups; pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from edgeprune.latency.posterior import Posterior
from edgeprune.latency.surface import LayerCost
from edgeprune.records import Interval, Widths

COVERAGE = 0.9  # share of unseen configurations that an interval should cover


@dataclass(frozen=True)
class LatencyModel:
    """Predicts nanoseconds of a network at given widths: a power of the sum of its layers and `overhead_ns`.

    `fit.fit` makes it from a profile.

    Attributes:
        layers: The fitted latency of every layer.
        overhead_ns: Latency that is in no layer.
        exponent: The power. It is above one if layers slow each other down.
        middle_ns: The latency at which the network takes exactly the sum.
        posterior: The uncertainty of the prediction.
        stretch: How many standard deviations cover `COVERAGE` of the configurations left out of the fit (split conformal
            prediction, Vovk et al. 2005, over folds).
        median_error: Median relative error on the configurations left out.
        error: The `COVERAGE` quantile of these errors.

    Example:
        >>> model = fit(groups, profile)
        >>> model.predict(groups.full() | {"conv1": 24}).mid
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
        """The expected latency of one inference at these widths, in nanoseconds."""
        total = sum(self.layer_ns(widths).values()) + self.overhead_ns
        return float(self.middle_ns * (total / self.middle_ns) ** self.exponent)

    def sum_ns(self, ns: float) -> float:
        """The sum of layers and overhead in a network that takes `ns`: the inverse of the power in `ns()`."""
        return float(self.middle_ns * (ns / self.middle_ns) ** (1 / self.exponent))

    def layer_ns(self, widths: Widths) -> dict[str, float]:
        """The expected nanoseconds of every layer, as in a network that takes `middle_ns`."""
        result = {}
        for cost in self.layers:
            inputs, outputs = cost.layer.sizes(widths)
            key = id(cost.surface), inputs, outputs
            if key not in self.known:  # a search repeats most points, since it changes one width at a time
                self.known[key] = float(cost.ns([inputs], [outputs])[0])
            result[cost.layer.name] = self.known[key]
        return result

    def predict(self, widths: Widths) -> Interval:
        """The expected latency, with the interval that should cover a measurement, in nanoseconds."""
        mid = self.ns(widths)
        half = self.stretch * math.sqrt(self.covariance([widths])[0, 0]) * mid
        return Interval(max(0.0, mid - half), mid, mid + half)

    def covariance(self, configurations: Sequence[Widths]) -> np.ndarray:
        """The covariance of the relative errors of a measurement of each configuration, (n, n)."""
        if self.posterior is None:
            return np.zeros((len(configurations),) * 2)
        return self.posterior.covariance(configurations)
