"""How Resize interpolates: torch's options for it, or a table that says what each place of the result reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

MODES = "nearest", "linear", "cubic"
NAMES = {("linear", 3): "linear", ("linear", 4): "bilinear", ("linear", 5): "trilinear", ("cubic", 4): "bicubic"}
PLACES = (
    "half_pixel",
    "pytorch_half_pixel",
    "half_pixel_symmetric",
    "asymmetric",
    "align_corners",
    "tf_half_pixel_for_nn",
)
ROUNDINGS = "round_prefer_floor", "round_prefer_ceil", "floor", "ceil"
CUBIC = -0.75  # torch's coefficient
CLOSE = 1e-6  # relative


@dataclass(frozen=True)
class Scaled:
    """A dimension with a new size. `factor` is not exactly `after / size` if the file gives scales."""

    dim: int
    size: int
    after: int
    factor: float

    @staticmethod
    def of(dim: int, size: int, number: float, by_size: bool) -> Scaled:
        """`number` is the new size, or the scale. The size is computed in float32, as runtimes do."""
        after = int(number if by_size else np.float32(number) * np.float32(size))
        return Scaled(dim, size, after, after / size if by_size else number)

    @property
    def changes(self) -> bool:
        """Whether the result differs from the input."""
        return self.after != self.size or self.factor != 1

    @property
    def is_exact(self) -> bool:
        """Whether the scale is that of the sizes, which is torch's."""
        return abs(self.after / self.size - self.factor) <= CLOSE * self.factor


@dataclass(frozen=True)
class How:
    """The attributes of a Resize.

    Attributes:
        mode: "nearest", "linear" or "cubic".
        places: where the places of the result lie in the input.
        rounding: of "nearest".
        cubic: the coefficient of "cubic".
        inside: whether "cubic" reads no border.
    """

    mode: str
    places: str
    rounding: str
    cubic: float
    inside: bool

    def __str__(self) -> str:
        return f"{self.mode}, {self.places}" + (f" and {self.rounding}" if self.mode == "nearest" else "")

    @property
    def is_known(self) -> bool:
        """Whether there is a table for it."""
        return self.mode in MODES and self.places in PLACES and self.rounding in ROUNDINGS

    def of_torch(self, scaled: Sequence[Scaled], rank: int) -> dict[str, Any] | None:
        """Keywords of `F.interpolate` that compute the same; None if it cannot."""
        if self.mode == "nearest":
            same = all(np.array_equal(self._nearest(one), _of_torch(one)) for one in scaled)
            return {"mode": "nearest"} if same and rank in (3, 4, 5) else None
        name, shrinks = NAMES.get((self.mode, rank)), any(one.after == 1 for one in scaled)
        plain = self.places == "half_pixel" or (self.places == "pytorch_half_pixel" and not shrinks)
        usual = self.mode == "linear" or (abs(self.cubic - CUBIC) <= CLOSE and not self.inside)
        if name is None or not usual or not all(one.is_exact for one in scaled):
            return None
        corners = self.places == "align_corners"
        return {"mode": name, "align_corners": corners} if corners or plain else None

    def table(self, one: Scaled) -> Tensor:
        """For "nearest" the place in the input that each place of the result reads; else weights, (size, after)."""
        if self.mode == "nearest":
            return torch.from_numpy(self._nearest(one))
        exact = self._exact(one)
        if self.mode == "linear":
            exact = exact.clip(0, one.size - 1)
        low = np.floor(exact)
        part = exact - low
        taps = (1 - part, part) if self.mode == "linear" else _cubic(part, self.cubic)
        first = low.astype(np.int64) - (len(taps) // 2 - 1)
        weights = np.zeros((one.size, one.after))
        for place, tap in enumerate(taps):
            read = first + place
            outside = (read < 0) | (read >= one.size)
            np.add.at(weights, (read.clip(0, one.size - 1), range(one.after)), np.where(outside & self.inside, 0, tap))
        return torch.from_numpy((weights / weights.sum(0)).astype(np.float32))

    def _exact(self, one: Scaled) -> Any:
        """Where each place of the result lies in the input. In float32, as runtimes compute it."""
        place, factor = np.arange(one.after, dtype=np.float32), np.float32(one.factor)
        if self.places == "asymmetric":
            return place / factor
        if self.places == "tf_half_pixel_for_nn":
            return (place + np.float32(0.5)) / factor
        if self.places == "align_corners":
            return place * np.float32((one.size - 1) / max(one.after - 1, 1))
        if self.places == "pytorch_half_pixel" and one.after == 1:
            return place
        shift = one.size / 2 * (1 - one.after / (one.factor * one.size)) if self.places == "half_pixel_symmetric" else 0
        return (place + np.float32(0.5)) / factor - np.float32(0.5) + np.float32(shift)

    def _nearest(self, one: Scaled) -> Any:
        exact, half = self._exact(one), np.float32(0.5)
        rounded = {
            "floor": np.floor(exact),
            "ceil": np.ceil(exact),
            "round_prefer_floor": np.ceil(exact - half),
            "round_prefer_ceil": np.floor(exact + half),
        }[self.rounding]
        return rounded.clip(0, one.size - 1).astype(np.int64)


def _of_torch(one: Scaled) -> Any:
    """The places that `F.interpolate` reads in the mode "nearest"."""
    step = np.float32(one.size / one.after)
    return np.floor(np.arange(one.after, dtype=np.float32) * step).clip(0, one.size - 1).astype(np.int64)


def _cubic(part: np.ndarray, a: float) -> tuple[np.ndarray, ...]:
    """The weights of the four neighbours (Keys 1981)."""

    def near(x: np.ndarray) -> Any:
        return ((a + 2) * x - (a + 3)) * x * x + 1

    def far(x: np.ndarray) -> Any:
        return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a

    return far(part + 1), near(part), near(1 - part), far(2 - part)
