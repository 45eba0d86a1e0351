"""Why trtexec failed, by its log and its exit status. Pure: nothing is run here.

It travels to devices: standard library only, Python 3.8 and up.
"""

from __future__ import annotations

import re
import signal

REASONS = 4  # that are reported
REASON_CHARS = 400
# A line of the log. Its prefix may stand after other output, and a logger of the user may have no date.
LINE = re.compile(r"(?:^|\[\d\d/\d\d/\d{4}-[\d:]+\] )\[([VIWEF])\] (.*)$")
# What libraries, the C++ runtime and CUDA print without a prefix.
STRAY = re.compile(
    r"error|fail|abort|fault|terminate called|what\(\):|out of memory|could not|cannot|killed|denied", re.IGNORECASE
)
NODE = re.compile(r"--- (Begin|End) node ---")  # a dump of an ONNX node, over many lines
SKIPPED = re.compile(r"Skipping tactic|Tactic Device request")  # one of many kernels that were tried
NO_KERNEL = re.compile(r"Could not find any implementation|no implementation")  # it may be that none had enough memory
SUMMARY = re.compile(  # that follows a reason
    r"^(Engine could not be created|Building engine failed|Failed to create engine|Engine set up failed|Parsing model failed"
    r"|Engine creation failed|Engine deserialization failed|Got invalid engine|Failed to parse onnx"
    r"|Network And Config setup failed|Inference set up failed|Failed to create inference)"
)
NO_MEMORY = re.compile(
    r"OutOfMemory|out of memory|could not be allocated|bad_alloc|NvMapMemAlloc|insufficient memory", re.I
)


class Keeper:
    """Which lines of a log say why it failed: errors with the lines that continue them, and what has no prefix."""

    def __init__(self) -> None:
        self._continues = False

    def wants(self, line: str) -> bool:
        """Whether to keep the next line."""
        match = LINE.search(line)
        if match or line.startswith("&&&&"):
            self._continues = bool(match and match.group(1) in "EF")
            return match is None or self._continues or "DLA" in line or bool(NO_MEMORY.search(line))
        return self._continues or bool(STRAY.search(line))


def errors_of(text: str) -> str:
    """The reasons that trtexec printed, in one line: first what is specific, then its summary."""
    found = [message for message in _messages(text) if not NODE.search(message)]
    ordered = sorted(
        dict.fromkeys(found), key=lambda message: bool(SUMMARY.search(message)) + 2 * bool(SKIPPED.search(message))
    )
    return "; ".join(message[:REASON_CHARS] for message in ordered[:REASONS]) or "it printed no error"


def _messages(text: str) -> list[str]:
    """The errors in their order. Lines without a prefix continue the error before them."""
    found: list[str] = []
    open_error = False
    for line in text.splitlines():
        match = LINE.search(line)
        if match:
            open_error = match.group(1) in "EF"
            if open_error:
                found.append(match.group(2).strip())
        elif line.startswith("&&&&"):
            open_error = False
        elif open_error and line.strip():
            found[-1] = f"{found[-1]} {line.strip()}"
        elif STRAY.search(line):
            found.append(line.strip())
    return found


def ended(text: str, code: int) -> str:
    """How trtexec ended, in words: `code` is its exit status, or minus the signal that ended it."""
    number = -code if code < 0 else code - 128 if code > 128 else 0
    after = ", after it had printed PASSED" if re.search(r"^&&&& PASSED", text, re.MULTILINE) else ""
    try:
        name = signal.Signals(number).name if number else ""
    except ValueError:
        name = ""
    if not name:
        return f"exit status {code}{after}"
    return f"killed by {name}{after}" if name in ("SIGKILL", "SIGTERM") else f"it crashed with {name}{after}"


def remedy(text: str, code: int) -> str:
    """What to do, where the log or the signal says enough; else an empty string."""
    if code in (-signal.SIGKILL, 128 + signal.SIGKILL) or _lacks_memory(text):
        return ". The device is out of memory: stop other programs there, add swap, or use smaller inputs"
    return ""


def _lacks_memory(text: str) -> bool:
    """Whether an error says so. Warnings about memory stand in good logs too, so they count only without another reason."""
    errors = [message for message in _messages(text) if not SUMMARY.search(message) and not SKIPPED.search(message)]
    known = [message for message in errors if not NO_KERNEL.search(message)]
    return any(NO_MEMORY.search(message) for message in known or [text])
