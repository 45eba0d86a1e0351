"""Latency budgets."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from edgeprune.errors import UsageError


@dataclass(frozen=True)
class Budget:
    """A latency budget: a time, or a share of the original network's latency on the same target.

    Attributes:
        ns: the time in nanoseconds; None if it is a share.
        fraction: the share, such as 0.5; None if it is a time.
        quantile: the quantile of the artifact's times that must be within it: 0.5 is the median.

    Example:
        >>> Budget.parse("12 ms").ns
        12000000
    """

    ns: int | None = None
    fraction: float | None = None
    quantile: float = 0.5

    def __post_init__(self) -> None:
        if (self.ns is None) == (self.fraction is None):
            raise UsageError("a budget must be either a time or a share of the original network's latency")
        value = self.ns if self.ns is not None else self.fraction
        if value is None or not math.isfinite(value) or value <= 0:
            raise UsageError(f'a budget must be above zero, not {self}; write "12 ms" or "50%"')

    @staticmethod
    def parse(text: str) -> Budget:
        """Read "12 ms", "800 us", "1.5 s", "50%" or "p99 12 ms". Raises `UsageError` for anything else."""
        match = re.fullmatch(r"\s*(?:p(50|90|99)\s+)?(\d+(?:\.\d+)?)\s*(%|ns|us|µs|ms|s)\s*", text)
        if match is None:
            raise UsageError(f'cannot read the budget {text!r}; write a time such as "12 ms" or a share such as "50%"')
        quantile, value, unit = int(match[1] or 50) / 100, float(match[2]), match[3]
        if value == 0:
            raise UsageError(f"a budget of {text!r} can never be met; write a time above zero")
        if unit == "%":
            return Budget(fraction=value / 100, quantile=quantile)
        scale = {"ns": 1, "us": 1e3, "µs": 1e3, "ms": 1e6, "s": 1e9}[unit]
        return Budget(max(1, round(value * scale)), quantile=quantile)

    def resolve(self, reference_ns: float) -> float:
        """The budget in nanoseconds, given the original network's latency in nanoseconds."""
        return float(self.ns) if self.ns is not None else float(self.fraction or 0) * reference_ns

    def __str__(self) -> str:
        text = f"{self.ns / 1e6:g} ms" if self.ns is not None else f"{100 * (self.fraction or 0):g}%"
        return text if self.quantile == 0.5 else f"p{100 * self.quantile:.0f} {text}"


FINE_NS = 1e5  # a shorter latency is shown in microseconds


def time_text(ns: float, like_ns: float | None = None) -> str:
    """A latency as text: "1.449 ms" or "45.12 µs". `like_ns` chooses the unit, so that several latencies have the same."""
    return f"{ns / 1e6:.3f} ms" if (ns if like_ns is None else like_ns) >= FINE_NS else f"{ns / 1e3:.2f} µs"
