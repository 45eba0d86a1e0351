"""The errors that edgeprune raises on purpose. Each branch has an exit code.

    EdgepruneError                    the base; never raised itself
    ├── UsageError               2    a bad file, key, option, model or data set: the user can fix it
    │   └── RuntimeMissing       2    a runtime or extra is not installed
    ├── VerdictError             1    a check failed, so the next step was refused or undone
    ├── InfeasibleError          3    no plan meets the budget; the message gives the fastest plan
    ├── InconclusiveError        4    the measurement was too noisy or throttled to decide
    ├── DeviceError              5    the device, the link or the agent failed
    │   └── LinkError            5    the connection broke or went silent; it may be connected again
    ├── SecurityError            6    refused: a pickle, a changed host key, a path outside the folder
    ├── BusyError                7    another run holds the folder or the device
    ├── CutError                70    a cut network is wrong though the survey had proved it: a bug of edgeprune
    └── SolverError             70    the solver's plan is not consistent, or has no proof: a bug of edgeprune

Exit code 0 is a pass, and 1 is a failed verdict. A failed verdict is an exception only for a stage that needs a pass. Any
other exception is a bug, and exits with 70. An interrupt exits with 130, and a closed pipe with 141.
"""

from __future__ import annotations

from typing import Any

EXIT_PASS = 0
EXIT_FAIL = 1
EXIT_BUG = 70
EXIT_INTERRUPTED = 130
EXIT_CLOSED = 141  # as a shell reports a program that a closed pipe ended


class EdgepruneError(Exception):
    """Base of all errors that edgeprune raises on purpose. The command line exits with `exit_code`."""

    exit_code: int = EXIT_BUG


class UsageError(EdgepruneError):
    """The user's file, option, model or data is wrong. The message names it and what to do."""

    exit_code = 2


class RuntimeMissing(UsageError):
    """A runtime or an extra is not installed. The message names what to install."""


class VerdictError(EdgepruneError):
    """A check failed, so the next step was refused or undone."""

    exit_code = EXIT_FAIL


class InfeasibleError(EdgepruneError):
    """No plan meets the budget. The message gives the fastest plan."""

    exit_code = 3


class InconclusiveError(EdgepruneError):
    """The measurement was too disturbed to decide."""

    exit_code = 4


class DeviceError(EdgepruneError):
    """The device, the link to it or the agent on it failed."""

    exit_code = 5


class LinkError(DeviceError):
    """The link broke or went silent. The state of the device is not known."""


class SecurityError(EdgepruneError):
    """Refused for safety, before anything was run or loaded."""

    exit_code = 6


class BusyError(EdgepruneError):
    """Another run holds the run folder or the device."""

    exit_code = 7


class CutError(EdgepruneError):
    """The outputs of a cut network differ from those of the masked original."""


class SolverError(EdgepruneError):
    """A plan does not add up to its latency, or nothing was proved about its loss."""


def of_code(exit_code: int, text: str) -> BaseException:
    """The error that exits with this code, for one that was kept as its code and its text."""
    if exit_code == EXIT_INTERRUPTED:
        return KeyboardInterrupt(text)
    kinds = (UsageError, VerdictError, InfeasibleError, InconclusiveError, DeviceError, SecurityError, BusyError)
    return next((kind for kind in kinds if kind.exit_code == exit_code), EdgepruneError)(text)


QUOTED_CHARS = 80  # of a user's value or key in a message


def quoted(value: Any, chars: int = QUOTED_CHARS) -> str:
    """A value from a file as a message shows it, cut to `chars` characters."""
    if isinstance(value, dict):
        return "a section of keys"
    text = repr(value[:chars] if isinstance(value, str | list) else value)
    return text if len(text) <= chars else text[:chars] + "…"


def usage_error(text: str) -> UsageError:
    """A `UsageError` of one line. Control characters from the user's file become spaces."""
    return UsageError("".join(c if c.isprintable() else " " for c in text))


def first_line(error: BaseException, chars: int = 200) -> str:
    """The first line of an error's message, cut to `chars` characters."""
    lines = str(error).strip().splitlines()
    return lines[0][:chars] if lines else ""
