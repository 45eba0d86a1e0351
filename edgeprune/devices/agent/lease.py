"""The lease of a board: one host at a time, across all users of the board."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import time
from typing import Any, TextIO

from ...runtimes.device import Failed
from ..wire import Hello
from .link import Link

LEASE = "/tmp/edgeprune-lease"
PATIENCE_S = 1.0  # for an agent of another host that is about to end
OWN_PATIENCE_S = 45.0  # for an agent of this host, which must not leave a switch of releases half done


def take(hello: Hello, link: Link) -> TextIO:
    """Lock the board for this host. The lock is held until the returned file is closed.

    An agent that this host lost to a broken link is ended. Raises `Failed` of the kind "busy" where another host holds the
    board.
    """
    try:
        lock = _opened()
    except OSError as error:
        text = f"{LEASE} there, which says who uses the device, cannot be opened: {error.strerror}. Remove it, or repair /tmp"
        raise Failed("system", text) from error
    start = time.monotonic()
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            holder = _holder(lock)
            own = holder.get("token") == hello.token
            if time.monotonic() - start > (OWN_PATIENCE_S if own else PATIENCE_S):
                raise Failed("busy", f"in use by {holder.get('who')} since {holder.get('since')}") from None
            if own:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(holder["pid"], signal.SIGTERM)
            link.wait([], time.monotonic() + 0.1)
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    os.ftruncate(lock, 0)
    holder = {"who": hello.who, "token": hello.token, "since": since, "pid": os.getpid()}
    os.pwrite(lock, json.dumps(holder).encode(), 0)
    return os.fdopen(lock)


def _opened() -> int:
    """The lock's file. It is opened before it is created: in a sticky folder, the kernel may refuse to create over a file."""
    try:
        lock = os.open(LEASE, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        lock = os.open(LEASE, os.O_RDWR | os.O_NOFOLLOW | os.O_CREAT | os.O_CLOEXEC, 0o666)
    with contextlib.suppress(PermissionError):
        os.fchmod(lock, 0o666)  # whatever the umask
    return lock


def _holder(lock: int) -> dict[str, Any]:
    try:
        found = json.loads(os.pread(lock, 4096, 0))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
