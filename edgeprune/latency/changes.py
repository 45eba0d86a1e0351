"""Change points: where a series of measurements changes its level; pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

FEWEST = 3  # values on either side of a change
PENALTY = 3.0  # of a change, in standard deviations of the noise


def changes(values: Sequence[float], floor: float) -> list[int]:
    """Find the indices at which a series changes its level.

    This is optimal partitioning (Jackson et al. 2005) of the logarithms. It minimises their absolute distances from the
    median of each segment, plus a penalty for every segment. The penalty grows with the length of the series and with the
    noise between neighbours. A single outlier is not reported.

    Args:
        values: Positive measurements, in order of time.
        floor: Smallest change to report, relative. Smaller changes are merged, so a creeping level is still reported.

    Returns:
        Ascending indices at which a new level starts.
    """
    count = len(values)
    if count < 2 * FEWEST:
        return []
    logs = np.log(np.asarray(values, dtype=float))
    # The upper quartile of normal values is 0.6745 standard deviations from the middle.
    noise = float(np.median(np.abs(np.diff(logs)))) / (0.6745 * math.sqrt(2))
    penalty = max(PENALTY * noise, floor) * math.sqrt(math.log(count))
    best, start = [-penalty] + [math.inf] * count, [0] * (count + 1)
    for end in range(FEWEST, count + 1):
        for begin in range(end - FEWEST + 1):
            if math.isinf(best[begin]):
                continue
            part = logs[begin:end]
            cost = best[begin] + penalty + float(np.abs(part - np.median(part)).sum())
            if cost < best[end]:
                best[end], start[end] = cost, begin
    found, end = [], count
    while start[end]:
        end = start[end]
        found.append(end)
    return _merged(logs, sorted(found), floor)


def _merged(logs: np.ndarray, at: list[int], floor: float) -> list[int]:
    """Drop the smallest change and merge its levels, until every change is above `floor`."""
    while at:
        levels = [float(np.median(logs[a:b])) for a, b in pairwise([0, *at, len(logs)])]
        steps = [abs(after - before) for before, after in pairwise(levels)]
        if min(steps) > floor:
            break
        at = [place for i, place in enumerate(at) if i != steps.index(min(steps))]
    return at
