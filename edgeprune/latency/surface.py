"""The latency of a layer as a function of its channels; pure.

Layers of the same geometry share one surface, ns = f(fan-in, output channels). It is a sum of non-negative terms
times one plus a smooth correction. Some terms round channels up to the steps that kernels work in. Others count unaligned
channels again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgeprune.records import Layer

# Channels that kernels round up to: scalar, SSE and NEON, AVX2, AVX-512 and NCHWc blocks, and sets of four of those.
STEPS = (1, 4, 8, 16, 32, 64)
# Of these steps, a kernel of half the size may serve a layer with no more outputs than that. Measured with TFLite on AVX-512:
# a 3×3 convolution has one latency for 33 to 64 channels, half of it for 17 to 32, and a quarter for 16.
HALVED = (32, 64)
# A channel count that is no multiple of these may use a slower kernel. Measured with ONNX Runtime on AVX-512: 30 depthwise
# channels take four times as long as 32. So a wider layer can be faster, and the model can express that.
ALIGNED = (4, 8, 16)
LENGTH_SCALE = 0.7  # of the correction, in ln(channels): one width predicts little about another twice as wide
UNALIKE = 0.5  # factor on the correlation between widths, for each of `ALIGNED` that only one of them is a multiple of
# Share of the correction's variance that only the same widths have in common, since neighbours may run other kernels.
# Measured by others on a phone: of 12 widths of a 1×1 convolution, 8 agreed to 1 % and 4 took 6 % more (ADR 50).
OWN = 0.3
COMMON = 0.05  # standard deviation of an error that an entire surface shares


def features(layer: Layer, inputs: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """Terms of a layer's latency at these channel counts: (points, terms), non-negative. The last term is a constant."""
    ones = np.ones(len(inputs))
    outs = [_rounded_up(outputs, s) for s in STEPS]
    outs += [np.where(outputs <= s / 2, s / 2, _rounded_up(outputs, s)) for s in HALVED]
    if layer.loses_whole_groups:
        return np.stack([*outs, *(outputs * (outputs % s > 0) for s in ALIGNED), ones], axis=1)
    ins = [_rounded_up(inputs, s) for s in STEPS]
    work = inputs * outputs
    slow = [work * (channels % s > 0) for channels in (inputs, outputs) for s in ALIGNED]
    odd = [size * (inputs % ALIGNED[0] > 0) for size in (inputs, outputs)]  # a change of layout on the way in or out
    return np.stack([*(i * o for i in ins for o in outs), *slow, *odd, *ins, *outs, ones], axis=1)


def _rounded_up(channels: np.ndarray, step: int) -> np.ndarray:
    return np.ceil(channels / step) * step


@dataclass(frozen=True)
class Surface:
    """The latency of all layers of one geometry: ns = Σ coefficient·term · (1 + Σ weight·kernel(point)).

    `layer` is one of these layers. `points` (n, 2) are the measured channel counts (inputs, outputs). `weights` (n,) weigh
    their influence on other points. `amplitude` is the relative size of the correction.
    """

    layer: Layer
    coefficients: np.ndarray
    points: np.ndarray
    weights: np.ndarray
    amplitude: float

    def terms_ns(self, inputs: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        """Nanoseconds without the correction, (points,)."""
        result: np.ndarray = features(self.layer, inputs, outputs) @ self.coefficients
        return result

    def ns(self, inputs: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        """Nanoseconds at these channel counts, (points,). Zero channels, of a removed layer, take zero."""
        base: np.ndarray = self.terms_ns(inputs, outputs) * (np.minimum(inputs, outputs) > 0)
        if not len(self.weights):
            return base
        here = np.stack([inputs, outputs], axis=1)
        result: np.ndarray = base * np.maximum(0.1, 1 + self.kernel(here, self.points) @ self.weights)
        return result

    def kernel(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """The covariance of the relative correction between points (n, 2) and (m, 2): (n, m)."""
        distance = np.zeros((len(a), len(b)))
        unalike = np.zeros((len(a), len(b)))
        for side in (1,) if self.layer.loses_whole_groups else (0, 1):
            distance += np.subtract.outer(*(np.log(np.maximum(points[:, side], 1)) for points in (a, b))) ** 2
            for step in ALIGNED:
                unalike += np.not_equal.outer(a[:, side] % step == 0, b[:, side] % step == 0)
        alike = np.exp(-0.5 * distance / LENGTH_SCALE**2 + math.log(UNALIKE) * unalike)
        alike = (1 - OWN) * alike + OWN * (distance == 0)
        result: np.ndarray = self.amplitude**2 * alike + COMMON**2
        return result


@dataclass(frozen=True)
class LayerCost:
    """The fitted latency of one layer."""

    layer: Layer
    surface: Surface

    def ns(self, inputs: Sequence[int] | np.ndarray, outputs: Sequence[int] | np.ndarray) -> np.ndarray:
        """Nanoseconds at these channel counts, element-wise: (points,)."""
        return self.surface.ns(np.asarray(inputs, float), np.asarray(outputs, float))
