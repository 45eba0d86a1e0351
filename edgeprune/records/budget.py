"""Latency budgets, and limits on other figures."""

from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass
from typing import Literal, get_args

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


Limited = Literal["size", "parameters", "macs", "activations", "memory", "throughput", "energy"]
LIMITED: tuple[Limited, ...] = get_args(Limited)
ON_DEVICE: tuple[Limited, ...] = ("memory", "throughput", "energy")  # what only a measurement can tell
BYTES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
COUNTS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}
JOULES = {"uJ": 1, "mJ": 10**3, "J": 10**6}  # in microjoules
RATES = {"/s": 1}  # a limit on a rate is one on the nanoseconds of each
UNITS = {
    "size": BYTES,
    "activations": BYTES,
    "parameters": COUNTS,
    "macs": COUNTS,
    "memory": BYTES,
    "throughput": RATES,
    "energy": JOULES,
}
_EXAMPLES = {
    "activations": "256 kB",
    "parameters": "200k",
    "macs": "40M",
    "throughput": "4 streams 200/s",
    "energy": "5 mJ",
}


@dataclass(frozen=True)
class Limit:
    """A limit on a figure of the network: bytes, a count or a rate, or a share of the original network's.

    Attributes:
        figure: what is limited. "size" is the artifact's bytes, "activations" the peak bytes of the tensors between layers,
            "memory" the peak of the process on the device, "throughput" the nanoseconds a sample, "energy" the microjoules of
            a call beyond those of the idle device.
        most: the largest value; None if it is a share.
        fraction: the share, such as 0.5; None if it is a value.
        text: as the user wrote it.
        streams: of a throughput: how many calls run at the same time.
    """

    figure: Limited
    most: float | None
    fraction: float | None
    text: str
    streams: int = 1

    @staticmethod
    def parse(figure: Limited, text: str) -> Limit:
        """Read "4 MB", "200k", "4 streams 200/s" or "50%". Raises `UsageError` for anything else."""
        units, rate = UNITS[figure], UNITS[figure] is RATES
        before = r"(?:(?P<streams>[1-9]\d{0,2}) streams? )?" if rate else ""
        match = re.fullmatch(
            rf"\s*{before}(?P<value>\d{{1,15}}(?:\.\d{{1,15}})?)\s*(?P<unit>%|/s|[A-Za-z]{{0,3}})\s*", text, re.ASCII
        )
        if match is None or (match["unit"] != "%" and match["unit"] not in units):
            known, example = ", ".join(filter(None, units)), "150%" if rate else "50%"
            raise UsageError(
                f"cannot read the limit {text[:40]!r}; write a value such as {_EXAMPLES.get(figure, '4 MB')!r} ({known}),"
                f" or a share such as '{example}'"
            )
        value, unit = float(match["value"]), match["unit"]
        if value == 0:
            raise UsageError(f"a limit of {text!r} can never be met; write a value above zero")
        shown = f"{match['value']}{' ' * (units in (BYTES, JOULES) and unit != '%')}{unit}"
        if rate:
            given, streams = match["streams"], int(match["streams"] or 1)
            shown = f"{given} stream{'s' * (streams > 1)} {shown}" if given else shown
            share = 100 / value if unit == "%" else None
            return Limit(figure, None if share else 1e9 / value, share, shown, streams)
        if unit == "%":
            return Limit(figure, None, value / 100, shown)
        return Limit(figure, math.floor(value * units[unit]), None, shown)

    def resolve(self, original: float) -> float:
        """The largest value, given the original network's."""
        return float(self.most) if self.most is not None else float(self.fraction or 0) * original

    def __str__(self) -> str:
        return f"{self.figure} {self.text}"


def amount_text(figure: str, value: float) -> str:
    """A value of a figure as text: "1.4 MB", "45.1 kB", "182,346", "120.5/s"; of any other figure as a latency."""
    if UNITS.get(figure) is RATES:
        return f"{1e9 / value:,.1f}/s"
    if UNITS.get(figure) is COUNTS:
        return f"{value:,.0f}"
    if figure not in UNITS:
        return time_text(value)
    units, names = UNITS[figure], ("J", "mJ", "uJ") if figure == "energy" else ("GB", "MB", "kB", "B")
    return next(f"{value / units[unit]:.4g} {unit}" for unit in names if value >= units[unit] or unit == names[-1])


FINE_NS = 1e5  # a shorter latency is shown in microseconds


def time_text(ns: float, like_ns: float | None = None) -> str:
    """A latency as text: "1.449 ms" or "45.12 µs". `like_ns` chooses the unit, so that several latencies have the same."""
    return f"{ns / 1e6:.3f} ms" if (ns if like_ns is None else like_ns) >= FINE_NS else f"{ns / 1e3:.2f} µs"


def date_text(seconds: int, form: str = "%Y-%m-%d %H:%M UTC") -> str:
    """A moment in seconds since 1970 as a date. A damaged file may hold one that no calendar has."""
    try:
        return time.strftime(form, time.gmtime(seconds))
    except (OverflowError, ValueError, OSError):
        return "an unknown day"
