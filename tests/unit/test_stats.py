"""One number for each process, and decisions with three outcomes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune.latency import stats
from edgeprune.records import Interval, Outcome, Run, Samples


def samples(medians: list[float], runs: int = 5) -> Samples:
    return Samples(tuple(Run((round(m),) * runs, 1) for m in medians))


def simulated(random: np.random.Generator, mean: float, processes: int, between: float) -> Samples:
    """Processes differ by `between`. Iterations inside a process differ by another 1 %."""
    levels = mean * (1 + between * random.standard_normal(processes))
    return Samples(
        tuple(Run(tuple((m * (1 + 0.01 * random.standard_normal(20))).astype(int).tolist()), 1) for m in levels)
    )


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.lists(st.integers(1_000, 10_000_000), min_size=1, max_size=12))
def test_the_estimate_is_inside_its_interval_and_its_samples(medians: list[int]) -> None:
    interval = stats.latency(samples([float(m) for m in medians]))
    assert min(medians) <= interval.low <= interval.mid <= interval.high <= max(medians)


def test_one_slow_iteration_or_process_does_not_move_the_estimate() -> None:
    calm = Samples(tuple(Run((100,) * 9 + (10_000,), 1) for _ in range(7)))
    assert stats.latency(calm).mid == 100
    one = samples([100.0] * 6 + [900.0])
    assert stats.latency(one).mid == 100


def test_intervals_cover_the_true_latency() -> None:
    random = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        interval = stats.latency(simulated(random, 1e6, 10, 0.02))
        held += interval.low <= 1e6 <= interval.high
    assert held / 200 >= 0.9


def test_equal_latencies_rarely_fail_and_a_large_difference_always_does() -> None:
    random = np.random.default_rng(2)
    verdicts = [
        stats.decide(stats.ratio(simulated(random, 1e6, 10, 0.02), simulated(random, 1e6, 10, 0.02)), 1.03)
        for _ in range(100)
    ]
    assert verdicts.count(Outcome.FAIL) <= 2
    slow = [
        stats.decide(stats.ratio(simulated(random, 1.2e6, 10, 0.02), simulated(random, 1e6, 10, 0.02)), 1.03)
        for _ in range(50)
    ]
    assert slow.count(Outcome.FAIL) >= 49


def test_drift_cancels_in_pairs() -> None:
    drift = [1.0, 1.1, 1.3, 1.6, 2.0, 2.5]
    interval = stats.ratio(samples([500 * d for d in drift]), samples([1000 * d for d in drift]))
    assert (interval.low, interval.mid, interval.high) == pytest.approx((0.5, 0.5, 0.5), rel=0.01)


def test_pairs_must_match() -> None:
    with pytest.raises(ValueError, match="pair up"):
        stats.ratio(samples([1.0]), samples([1.0, 2.0]))


@pytest.mark.parametrize(
    ("limit", "outcome"), [(12, Outcome.PASS), (11, Outcome.PASS), (10, Outcome.INCONCLUSIVE), (8, Outcome.FAIL)]
)
def test_a_decision_has_three_outcomes(limit: float, outcome: Outcome) -> None:
    assert stats.decide(Interval(9, 10, 11), limit) is outcome


def test_a_limit_that_is_not_a_number_is_an_error() -> None:
    with pytest.raises(ValueError, match="number"):
        stats.decide(Interval(1, 2, 3), float("nan"))


def test_the_same_samples_give_the_same_interval() -> None:
    taken = simulated(np.random.default_rng(5), 1e6, 8, 0.05)
    assert stats.latency(taken) == stats.latency(taken)


@pytest.mark.parametrize("times", [(), (0,), (-5, 3)])
def test_invalid_times_are_refused(times: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must be > 0"):
        Run(times, 1)


@pytest.mark.parametrize(("count", "most"), [(1000, 500), (1000, 100), (1000, 50), (997, 31), (10_000, 40)])
def test_times_that_are_left_show_windows_as_they_are(count: int, most: int) -> None:
    """The first run of each window of ten is slow: a tenth of the times, and about a tenth of those that are left."""
    times = [200 if i % 10 == 0 else 100 for i in range(count)]
    kept = stats.thinned(times, most)
    assert len(kept) == most and sum(ns == 200 for ns in kept) / most == pytest.approx(0.1, abs=0.08)
    places = stats.thinned(range(count), most)
    assert list(places) == sorted(set(places))


def test_few_times_all_stay() -> None:
    assert stats.thinned([3, 1, 2], 3) == (3, 1, 2)
