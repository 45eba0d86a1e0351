"""Everything edgeprune raises on purpose; one exit code a branch.

    EdgepruneError                    never raised itself
    ├── UsageError               2    a bad file, key, option, model or data set: the user can mend it
    │   └── RuntimeMissing       2    a runtime or extra is not installed
    ├── VerdictError             1    refused or undone, since a check failed
    ├── InfeasibleError          3    no plan meets the budget; carries the fastest one
    ├── InconclusiveError        4    too noisy, throttled: measured, but nothing can be said
    ├── DeviceError              5    the device, the link or the agent failed
    │   └── LinkError            5    the connection broke or went silent; connecting again may heal it
    ├── SecurityError            6    refused: a pickle, a changed host key, a foreign path
    ├── BusyError                7    another run holds the folder or the device
    ├── CutError                70    a cut failed its proof where the survey had passed it: our bug
    └── SolverError             70    the solver's answer does not add up, or came without a proof: our bug

`0` is a pass and `1` a verdict that failed, which is an exception only for what builds on it. An exception that is not ours
is a bug and exits with 70; an interrupt exits with 130.
"""

from __future__ import annotations

from typing import Any

EXIT_PASS = 0
EXIT_FAIL = 1
EXIT_BUG = 70
EXIT_INTERRUPTED = 130


class EdgepruneError(Exception):
    """Base of all errors that edgeprune raises; `exit_code` is what the command line exits with."""

    exit_code: int = EXIT_BUG


class UsageError(EdgepruneError):
    """The user's file, option, model or data is wrong; the message names it and the next step."""

    exit_code = 2


class RuntimeMissing(UsageError):
    """A runtime is not installed; the message names the extra that brings it."""


class VerdictError(EdgepruneError):
    """A check failed, so what builds on it was not done, or undone."""

    exit_code = EXIT_FAIL


class InfeasibleError(EdgepruneError):
    """No plan meets the budget; the message gives the fastest plan there is."""

    exit_code = 3


class InconclusiveError(EdgepruneError):
    """The measurement was too disturbed to decide anything."""

    exit_code = 4


class DeviceError(EdgepruneError):
    """The device, the link to it or the agent on it failed."""

    exit_code = 5


class LinkError(DeviceError):
    """The way to the device broke or went silent: nothing is known of the device itself."""


class SecurityError(EdgepruneError):
    """Refused for safety: nothing was run or loaded."""

    exit_code = 6


class BusyError(EdgepruneError):
    """Another run holds the run folder or the device."""

    exit_code = 7


class CutError(EdgepruneError):
    """A cut network does not agree with the masked original."""


class SolverError(EdgepruneError):
    """A plan that does not add up to its latency, or whose optimality was not proved in time."""


QUOTED_CHARS = 80  # of a user's value or key in a message


def quoted(value: Any, chars: int = QUOTED_CHARS) -> str:
    """A value from a file, short enough for a message."""
    if isinstance(value, dict):
        return "a section of keys"
    text = repr(value[:chars] if isinstance(value, str | list) else value)
    return text if len(text) <= chars else text[:chars] + "…"


def usage_error(text: str) -> UsageError:
    """A `UsageError` of one line: control characters from the user's file become spaces."""
    return UsageError("".join(c if c.isprintable() else " " for c in text))


def first_line(error: BaseException, chars: int = 200) -> str:
    """The first line of an error's message, cut to `chars` characters."""
    lines = str(error).strip().splitlines()
    return lines[0][:chars] if lines else ""
