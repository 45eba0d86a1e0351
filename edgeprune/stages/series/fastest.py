"""The fastest network that loses at most a given metric: a search over latency budgets, with training in the loop; pure."""

from __future__ import annotations

import math
from collections.abc import Callable

from edgeprune.errors import InfeasibleError

TRAININGS = 4  # networks that are trained at most
FIRST = 0.5  # the first budget, as a share of the original network's latency
FASTER = 0.5  # the next one is this share of it while every network loses little
NEAR = 1.05  # the search ends once the least share that is met is within 5 % of one that is not


def fastest(loses_little: Callable[[float], bool]) -> float:
    """The least share of the original network's latency at which a trained network loses at most what is allowed.

    It is found by bisection of the logarithm. The metric is assumed to fall with the latency.

    Args:
        loses_little: trains a network within this share, and tells whether its metric falls by at most what is allowed.

    Returns:
        A share for which `loses_little` was true.

    Raises:
        InfeasibleError: it was true for none of `TRAININGS` shares.
    """
    met, missed, share = 1.0, 0.0, FIRST
    for _ in range(TRAININGS):
        if loses_little(share):
            met = share
        else:
            missed = share
        if missed and met / missed <= NEAR:
            break
        share = math.sqrt(met * missed) if missed else met * FASTER
    if met == 1.0:
        raise InfeasibleError(
            f"no network within {100 * missed:.3g}% of the original latency loses at most [budget] max_metric_drop, after"
            f" {TRAININGS} trainings; train longer, or raise max_metric_drop"
        )
    return met
