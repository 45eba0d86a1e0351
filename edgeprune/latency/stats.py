"""Samples -> estimate, comparison, decision; pure.

One number a process: iterations inside a process share its memory layout and its core, so pooling them calls most A/A
comparisons a difference, while medians of separate processes rarely do (pyperf; MLPerf Inference rules).
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import bdtr

from edgeprune.records import Interval, Outcome, Samples

RESAMPLES = 2000


def per_process(samples: Samples, q: float = 0.5) -> np.ndarray:
    """The q-quantile of every process, (processes,), in nanoseconds."""
    return np.array([np.quantile(run.times_ns, q) for run in samples.runs])


def latency(samples: Samples, q: float = 0.5, confidence: float = 0.95) -> Interval:
    """The median over processes of each one's q-quantile, with its interval, in nanoseconds.

    A bias-free order-statistic interval needs six processes for 95 %; the bootstrap of the median (Efron 1979) works
    from two on and is as wide as the spread asks. A single process has no interval: low, mid and high are the same.
    """
    return _median_interval(per_process(samples, q), confidence)


def needed(q: float, confidence: float = 0.95) -> int:
    """How many independent times it takes until the largest bounds the q-quantile: the least n with 1 − qⁿ ≥ confidence.

    29 for p90 and 299 for p99 at 95 %.
    """
    return math.ceil(math.log(1 - confidence) / math.log(q))


def quantile(samples: Samples, q: float, confidence: float = 0.95) -> Interval | None:
    """The q-quantile of all times of all processes, with a bound at this confidence on either side, in nanoseconds.

    The bounds are order statistics, whose ranks are binomial whatever the distribution (David and Nagaraja, Order Statistics,
    2003, 7.1), of as many times as there are `independent` ones. None where those are fewer than `needed`.
    """
    pooled = np.sort(np.concatenate([run.times_ns for run in samples.runs]))
    count = independent(samples, q)
    if count < needed(q, confidence):
        return None
    below = bdtr(np.arange(count + 1), count, q)  # [k]: the probability that at most k times are below the quantile
    upper = int(np.searchsorted(below, confidence)) + 1
    lower = int(np.searchsorted(below, 1 - confidence, side="right"))
    each = len(pooled) / count  # times that stand for an independent one
    mid = float(np.quantile(pooled, q))
    return Interval(
        min(float(pooled[max(math.floor(lower * each), 1) - 1]), mid),
        mid,
        max(float(pooled[min(math.ceil(upper * each), len(pooled)) - 1]), mid),
    )


def independent(samples: Samples, q: float) -> int:
    """How many independent times tell as much of the q-quantile as these, whose processes each have a level of their own.

    Their number over the design effect (Kish, Survey Sampling, 1965): the variance between processes of the share of
    times up to the quantile, over what it would be were all times independent. One process is taken as it is.
    """
    level = np.quantile(np.concatenate([run.times_ns for run in samples.runs]), q)
    sizes = np.array([len(run.times_ns) for run in samples.runs])
    shares = np.array([np.mean(np.asarray(run.times_ns) <= level) for run in samples.runs])
    effect = float(sizes.mean() * shares.var(ddof=1) / (q * (1 - q))) if len(shares) > 1 else 1.0
    return int(sizes.sum() / max(1.0, effect))


def ratio(first: Samples, second: Samples, q: float = 0.5, confidence: float = 0.95) -> Interval:
    """`first` ÷ `second`, dimensionless, for processes that were interleaved in pairs (i with i).

    A pair sees the same state of the machine, so its drift cancels. Raises `ValueError` when the pairs do not match.
    """
    return _median_interval(ratios(first, second, q), confidence)


def ratios(first: Samples, second: Samples, q: float = 0.5) -> np.ndarray:
    """`first` ÷ `second` of every pair of processes, (processes,). Raises `ValueError` when the pairs do not match."""
    a, b = per_process(first, q), per_process(second, q)
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} processes do not pair up")
    result: np.ndarray = a / b
    return result


def decide(interval: Interval, limit: float) -> Outcome:
    """Pass when the whole interval is at most the limit, fail when all of it is above, else inconclusive."""
    if math.isnan(limit):
        raise ValueError("a limit must be a number")
    if interval.high <= limit:
        return Outcome.PASS
    return Outcome.FAIL if interval.low > limit else Outcome.INCONCLUSIVE


def spread(samples: Samples) -> float:
    """The interquartile range of the processes' medians, relative to their median."""
    low, mid, high = np.quantile(per_process(samples), [0.25, 0.5, 0.75])
    return float((high - low) / mid)


def full_range(samples: Samples) -> float:
    """The largest distance between the processes' medians, relative to their median; infinite for a single process."""
    medians = per_process(samples)
    return float(np.ptp(medians) / np.median(medians)) if len(medians) > 1 else math.inf


def _median_interval(values: np.ndarray, confidence: float) -> Interval:
    if not np.isfinite(values).all():
        raise ValueError("a latency must be a finite number")
    mid = float(np.median(values))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.median(values[_drawn(len(values))], axis=1), [tail, 1 - tail])
    return Interval(min(float(low), mid), mid, max(float(high), mid))


def _drawn(count: int) -> np.ndarray:
    """Indices of processes drawn with replacement, (RESAMPLES, count); a fixed seed: the same samples give the same answer."""
    return np.random.default_rng(0).integers(0, count, (RESAMPLES, count))
