"""How long a bench repeats disturbed measurements, and what it reports meanwhile."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from edgeprune.errors import InconclusiveError, UsageError
from edgeprune.limits import LIMITS
from edgeprune.records import Discarded, Run

ATTEMPTS = 4  # at a measurement, at least
REMEDY = "stop other work on the device, cool and power it well, or wait longer: --patience 30m"

log = logging.getLogger("edgeprune")
Notice = Callable[[str], None]


def parse(text: str, option: str = "--patience") -> float:
    """A duration in seconds, from a text such as "90s", "15m" or "2h". Raises `UsageError` for another text."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|min|m|h)\s*", text)
    if found is None:
        raise UsageError(f"{option} {text!r} is not a duration; write 90s, 15m or 2h")
    return float(found[1]) * {"s": 1, "m": 60, "min": 60, "h": 3600}[found[2]]


def duration(seconds: float) -> str:
    """A time for people: "45 s", "10 min"."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


@dataclass(frozen=True)
class Patience:
    """How long disturbed measurements are repeated, in seconds of a run. `notice` gets what disturbs, meanwhile.

    `accepting` says what comes after that time: the disturbed measurements are used, or it is an error.
    """

    seconds: float = 0.0
    notice: Notice = log.warning
    accepting: bool = False


FEW_ATTEMPTS = Patience()


class Disturbances:
    """The disturbed processes of a bench: which there were, and how much of the patience they took."""

    def __init__(self, target: str, patience: Patience) -> None:
        self._target, self._patience = target, patience
        self.lost: list[Discarded] = []
        self.kept = 0  # processes
        self._spent_s = 0.0

    @property
    def discarded(self) -> int:
        """How many processes were discarded."""
        return len(self.lost)

    def attempt(self, number: int, bad: Sequence[Run], good: int, seconds: float) -> bool:
        """Count an attempt, and pause before the next one if all its processes were disturbed.

        Args:
            number: the number of the attempt at this measurement, from 0.
            bad: its disturbed runs, at least one; one for each process.
            good: how many processes were not disturbed.
            seconds: how long it took.

        Returns:
            Whether to repeat the disturbed processes, or to use them.

        Raises:
            InconclusiveError: the patience is used up, and it accepts no disturbed measurements.
        """
        self.kept += good
        self._spent_s += seconds * len(bad) / (len(bad) + good)
        if self._patience.accepting and self._spent_s >= self._patience.seconds:
            self.kept += len(bad)
            return False
        self.lost += [_discarded(run) for run in bad]
        reasons = ", ".join(sorted({run.disturbed for run in bad if run.disturbed}))
        facts = "; ".join(bad[-1].competition)
        text = f"{reasons} ({facts})" if facts else reasons
        lost = f"{self.discarded} of {self.discarded + self.kept} processes discarded"
        if number + 1 >= ATTEMPTS and self._spent_s >= self._patience.seconds:
            raise InconclusiveError(
                f"{self._target}: too disturbed to measure: {text}; {lost}, {duration(self._spent_s)} lost; {REMEDY};"
                " the same command again goes on from what was measured"
            )
        left = max(0.0, self._patience.seconds - self._spent_s)
        rest = f"waits up to {duration(left)} more" if left >= 1 else "waits no longer"
        self._patience.notice(f"{self._target}: {lost}: {text}; {rest}")
        if not good and number + 1 >= ATTEMPTS:
            pause = min(LIMITS.pause_s, 2.0**number, left)
            time.sleep(pause)
            self._spent_s += pause
        return True


def _discarded(run: Run) -> Discarded:
    return Discarded(run.disturbed or "", "; ".join(run.competition), round(median(run.times_ns)))
