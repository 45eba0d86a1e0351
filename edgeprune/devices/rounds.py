"""The order of measurements, and when they are enough; pure but for the clock."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

from edgeprune.records import Samples


def until(
    take: Callable[[list[Samples]], list[Samples]],
    decided: Callable[[list[Samples]], bool],
    rounds: int,
    taken: Sequence[Samples] = (),
    seconds: float = math.inf,
) -> list[Samples]:
    """Measure in rounds until the samples have decided a question.

    Args:
        take: measures once more, given the samples so far (none in the first round): a `Samples` a model.
        decided: whether the samples are enough. It is asked after each round, and first if there are samples already.
        rounds: at most so many rounds.
        taken: the samples of an earlier measurement, by model.
        seconds: no round begins after this time.

    Returns:
        All samples, by model.
    """
    so_far, began = list(taken), time.monotonic()
    if so_far and decided(so_far):
        return so_far
    for _ in range(rounds):
        found = take(so_far)
        so_far = [Samples(a.runs + b.runs) for a, b in zip(so_far, found, strict=True)] if so_far else found
        if decided(so_far) or time.monotonic() > began + seconds:
            break
    return so_far


def interleaved(models: int, rounds: int) -> list[int]:
    """The order ABBA...: every model once a round, in alternating order, so that drift cancels in pairs of rounds."""
    forward = list(range(models))
    return [i for number in range(rounds) for i in (forward if number % 2 == 0 else forward[::-1])]
