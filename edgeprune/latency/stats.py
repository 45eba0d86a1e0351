"""Estimates, comparisons and decisions from samples; pure.

Each process gives one number. Iterations inside a process share its memory layout and its core. If they were pooled, most
A/A comparisons would show a difference. Medians of separate processes rarely do (pyperf; MLPerf Inference rules).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import bdtr

from edgeprune.records import Interval, Outcome, Samples

GOLDEN = (math.sqrt(5) - 1) / 2
RESAMPLES = 2000


def per_process(samples: Samples, q: float = 0.5) -> np.ndarray:
    """The q-quantile of every process in nanoseconds, (processes,)."""
    return np.array([np.quantile(run.times_ns, q) for run in samples.runs])


def latency(samples: Samples, q: float = 0.5, confidence: float = 0.95) -> Interval:
    """The median over processes of their q-quantiles, with its confidence interval, in nanoseconds.

    The interval is a bootstrap of the median (Efron 1979), which works from two processes on. An order-statistic interval
    would need six for 95 %. With a single process, low, mid and high are the same.

    Args:
        samples: Times of several processes.
        q: The quantile within each process.
        confidence: The level of the interval.

    Raises:
        ValueError: A time is not finite.

    Example:
        >>> latency(Samples((Run((900, 1000), 1), Run((1100, 1200), 1)))).mid
        1050.0
    """
    return median_interval(per_process(samples, q), confidence)


def needed(q: float, confidence: float = 0.95) -> int:
    """How many independent times are needed for the largest to bound the q-quantile.

    It is the least n with 1 − qⁿ ≥ confidence. At 95 % a p90 needs 29 and a p99 needs 299.
    """
    return math.ceil(math.log(1 - confidence) / math.log(q))


def quantile(samples: Samples, q: float, confidence: float = 0.95) -> Interval | None:
    """The q-quantile of all times of all processes in nanoseconds, with a bound at this confidence on either side.

    The bounds are order statistics. Their ranks are binomial for any distribution (David and Nagaraja, Order Statistics,
    2003, 7.1). The sample size is the number of `independent` times.

    Returns:
        The interval, or None if there are fewer independent times than `needed`.
    """
    pooled = np.sort(np.concatenate([run.times_ns for run in samples.runs]))
    count = independent(samples, q)
    if count < needed(q, confidence):
        return None
    below = bdtr(np.arange(count + 1), count, q)  # [k]: probability that at most k times are below the quantile
    upper = int(np.searchsorted(below, confidence)) + 1
    lower = int(np.searchsorted(below, 1 - confidence, side="right"))
    each = len(pooled) / count  # times for each independent one
    mid = float(np.quantile(pooled, q))
    return Interval(
        min(float(pooled[max(math.floor(lower * each), 1) - 1]), mid),
        mid,
        max(float(pooled[min(math.ceil(upper * each), len(pooled)) - 1]), mid),
    )


def independent(samples: Samples, q: float) -> int:
    """The effective sample size for the q-quantile: times within a process are correlated.

    It is the number of times divided by the design effect (Kish, Survey Sampling, 1965). That is the variance, between
    processes, of the share of times up to the quantile, relative to the variance if all times were independent. With a
    single process the design effect is one.
    """
    level = np.quantile(np.concatenate([run.times_ns for run in samples.runs]), q)
    sizes = np.array([len(run.times_ns) for run in samples.runs])
    shares = np.array([np.mean(np.asarray(run.times_ns) <= level) for run in samples.runs])
    effect = float(sizes.mean() * shares.var(ddof=1) / (q * (1 - q))) if len(shares) > 1 else 1.0
    return int(sizes.sum() / max(1.0, effect))


def ratio(first: Samples, second: Samples, q: float = 0.5, confidence: float = 0.95) -> Interval:
    """The ratio `first` / `second` of processes that were interleaved in pairs, with its confidence interval.

    The processes of a pair run in the same state of the machine, so drift cancels.

    Args:
        first: Times of processes.
        second: Times of equally many processes, in the same order.
        q: The quantile within each process.
        confidence: The level of the interval.

    Raises:
        ValueError: The numbers of processes differ.
    """
    return median_interval(ratios(first, second, q), confidence)


def ratios(first: Samples, second: Samples, q: float = 0.5) -> np.ndarray:
    """The ratio `first` / `second` of every pair of processes, (processes,). See `ratio`."""
    a, b = per_process(first, q), per_process(second, q)
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} processes do not pair up")
    result: np.ndarray = a / b
    return result


def ratio_of_medians(first: np.ndarray, second: np.ndarray, confidence: float = 0.95) -> Interval:
    """The ratio of two medians of numbers that do not pair up, one of each process, with its confidence interval.

    It is a bootstrap: processes are drawn from each independently. See `latency`.

    Args:
        first: (processes,)
        second: (processes,)
        confidence: The level of the interval.
    """
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("a figure must be a finite number")
    mid, tail = float(np.median(first) / np.median(second)), (1 - confidence) / 2
    medians = [np.median(v[_drawn(len(v), seed)], axis=1) for seed, v in enumerate((first, second))]
    low, high = np.quantile(medians[0] / medians[1], [tail, 1 - tail])
    return Interval(min(float(low), mid), mid, max(float(high), mid))


def thinned(times: Sequence[int], most: int) -> tuple[int, ...]:
    """At most so many of the times, in their order: one from each of equal parts.

    Its place in the part is that of a golden-ratio sequence. At even distances, all could be the first of a window of runs,
    which is slow.

    Example:
        >>> thinned(range(100), 5)
        (0, 32, 44, 77, 89)
    """
    if len(times) <= most:
        return tuple(times)
    part = len(times) / most
    return tuple(times[int((i + i * GOLDEN % 1) * part)] for i in range(most))


def decide(interval: Interval, limit: float) -> Outcome:
    """Pass if the entire interval is at most the limit, fail if all of it is above, otherwise inconclusive."""
    if math.isnan(limit):
        raise ValueError("a limit must be a number")
    if interval.high <= limit:
        return Outcome.PASS
    return Outcome.FAIL if interval.low > limit else Outcome.INCONCLUSIVE


def spread(samples: Samples) -> float:
    """The interquartile range of the processes' medians, relative to their median."""
    low, mid, high = np.quantile(per_process(samples), [0.25, 0.5, 0.75])
    return float((high - low) / mid)


def relative_spread(values: np.ndarray) -> float:
    """A robust relative standard deviation: 1.4826 times the median absolute deviation."""
    middle = np.maximum(np.median(values), 1e-9)
    return float(1.4826 * np.median(np.abs(values / middle - 1)))


def full_range(samples: Samples) -> float:
    """The range of the processes' medians, relative to their median. Infinite for a single process."""
    medians = per_process(samples)
    return float(np.ptp(medians) / np.median(medians)) if len(medians) > 1 else math.inf


def median_interval(values: np.ndarray, confidence: float = 0.95) -> Interval:
    """The median of numbers, one of each process, with its confidence interval; see `latency`."""
    if not np.isfinite(values).all():
        raise ValueError("a figure must be a finite number")
    mid = float(np.median(values))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.median(values[_drawn(len(values))], axis=1), [tail, 1 - tail])
    return Interval(min(float(low), mid), mid, max(float(high), mid))


def _drawn(count: int, seed: int = 0) -> np.ndarray:
    """Indices of processes drawn with replacement, (RESAMPLES, count). The seed is fixed, so results are reproducible."""
    return np.random.default_rng(seed).integers(0, count, (RESAMPLES, count))
