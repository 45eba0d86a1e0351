"""Samples -> estimate, comparison, decision; pure.

One number a process: iterations inside a process share its memory layout and its core, so pooling them calls most A/A
comparisons a difference, while medians of separate processes rarely do (pyperf; MLPerf Inference rules).
"""

from __future__ import annotations

import math

import numpy as np

from edgeprune.types import Interval, Outcome, Samples

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
    # A fixed seed: the same samples give the same answer.
    draws = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.median(values[draws], axis=1), [tail, 1 - tail])
    return Interval(min(float(low), mid), mid, max(float(high), mid))
