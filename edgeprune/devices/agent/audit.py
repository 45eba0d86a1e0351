"""The audit log of a device: who put which release there, and when. It is only ever appended to.

Each line of `audit.jsonl` is a JSON object. Its key `before` is the SHA-256 of the line before it, so a line that is changed
or removed breaks the chain. The SHA-256 of the last line is the head: an earlier head must still be in the chain, or lines
were cut off.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from dataclasses import asdict, dataclass
from typing import Literal

from ...runtimes import machine
from ..wire import AuditLog, ReadAudit

NAME = "audit.jsonl"
MOST_BYTES = 16 << 20  # then the file becomes audit.1.jsonl, and the chain goes on in a new one
TAIL_BYTES = 1 << 16
Deed = Literal["publish", "activate", "go-back", "withdraw", "key-add", "key-retire", "key-revoke"]


@dataclass(frozen=True)
class Entry:
    """What was done here. `digest` is the release's, which the key with the fingerprint `signer` has signed."""

    at_s: int
    who: str
    did: Deed
    service: str
    digest: str
    signer: str = ""


def path() -> str:
    """The log's file."""
    return os.path.join(machine.root(), NAME)


def append(entry: Entry) -> None:
    """Add an entry, down to the disk. An incomplete line, after a power cut, stays and is ended first."""
    descriptor = os.open(path(), os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TAIL_BYTES))
        tail = file.read()
        last = tail.rstrip(b"\n").rpartition(b"\n")[2]
        ended = b"" if not tail or tail.endswith(b"\n") else b"\n"
        text = json.dumps({**asdict(entry), "before": _sha(last) if last else ""})
        if size > MOST_BYTES:
            os.replace(path(), path().replace(".jsonl", ".1.jsonl"))
            machine.write(path(), text.encode() + b"\n")
            return
        file.write(ended + text.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read(job: ReadAudit) -> AuditLog:
    """The last lines, as they are in the file. The host checks their chain."""
    try:
        with open(path(), "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - job.most_bytes))
            content = file.read(job.most_bytes)
            whole = file.tell() <= job.most_bytes
    except FileNotFoundError:
        return AuditLog(())
    lines = content.decode("utf-8", "backslashreplace").split("\n")
    return AuditLog(tuple(line for line in (lines if whole else lines[1:]) if line))


def _sha(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()
