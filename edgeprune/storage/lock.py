"""A lock that works on a shared file system, such as NFS, where the kernel's locks may not.

    FOLDER/lock.0000000007   the newest number counts: who holds the lock; empty if nobody does

A lock is taken by `link()`, which makes the next number in one step on every file system. The newest number stays, so
numbers only grow. Two processes cannot take over the same dead lock. The holder touches its file.

A holder on this machine is gone if its process is. One on another machine is gone if it has not touched its file for
`LIMITS.lock_stale_s`.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from edgeprune.errors import BusyError
from edgeprune.limits import LIMITS

NUMBERED = re.compile(r"lock\.(\d{10})")
HOLDER_BYTES = 1000
POLL_S = 0.1  # between two attempts to take a lock

log = logging.getLogger("edgeprune")


class Lock:
    """The lock of a folder, which must exist. `acquire` and `release` are for the same process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path: Path | None = None  # while it is held
        self._end = threading.Event()

    def acquire(self, wait_s: float = 0.0) -> None:
        """Take the lock. Raises `BusyError` if another run still holds it after `wait_s`."""
        until, is_told = time.monotonic() + wait_s, False
        while not self._take():
            holder = " ".join(str(_holder(_newest(self._folder)).get("who", "another process")).split())
            if time.monotonic() >= until:
                raise BusyError(f"{self._folder} is in use by {holder}; wait for it to end, end it, or pass --wait")
            if not is_told:
                log.warning("%s is in use by %s: waiting", self._folder, holder)
            is_told = True
            time.sleep(POLL_S)
        self._end = threading.Event()
        threading.Thread(target=_touch, args=(self._path, self._end), daemon=True).start()

    def release(self) -> None:
        """Give the lock back, if it is held."""
        if self._path is not None:
            self._end.set()
            with suppress(FileNotFoundError):  # another machine took it over
                os.truncate(self._path, 0)
            self._path = None

    def _take(self) -> bool:
        """Take the lock if it is free."""
        own = self._folder / f".lock-{os.uname().nodename}-{os.getpid()}-{threading.get_ident()}"
        newest = _newest(self._folder)
        own.write_text(json.dumps(_self()))
        try:
            if newest is not None and _is_held(newest, own.stat().st_mtime):
                return False
            mine = self._folder / f"lock.{_number(newest) + 1:010}"
            with suppress(FileExistsError):
                os.link(own, mine)
            if own.stat().st_nlink != 2:  # it tells the truth even where the answer of `link` was lost
                return False
        finally:
            own.unlink(missing_ok=True)
        if _newest(self._folder) != mine:  # this process slept, and others held the lock in between
            mine.unlink(missing_ok=True)
            return False
        for path in self._folder.glob("lock.*"):
            if _number(path) < _number(mine):
                path.unlink(missing_ok=True)
        self._path = mine
        return True


def is_held(folder: Path) -> bool:
    """Whether somebody holds the lock of a folder. An unreachable machine counts until its lock is stale."""
    newest = _newest(folder)
    return newest is not None and _is_held(newest, time.time())


def _touch(path: Path, end: threading.Event) -> None:
    while not end.wait(LIMITS.lock_touch_s):
        with suppress(OSError):  # the server may be away for a while
            os.utime(path)


def _newest(folder: Path) -> Path | None:
    return max((path for path in folder.glob("lock.*") if NUMBERED.fullmatch(path.name)), default=None)


def _number(path: Path | None) -> int:
    found = None if path is None else NUMBERED.fullmatch(path.name)
    return -1 if found is None else int(found[1])


def _holder(path: Path | None) -> dict[str, Any]:
    """What a lock says about its holder; empty if it says nothing."""
    try:
        found = json.loads(path.read_bytes()[:HOLDER_BYTES]) if path else {}
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_held(path: Path, now: float) -> bool:
    """Whether the holder of a lock is still there. `now` is by the clock of the file system."""
    try:
        with path.open("rb") as file:  # opening makes NFS ask the server
            state = os.fstat(file.fileno())
    except FileNotFoundError:
        return True  # somebody is just taking the next number
    if not state.st_size:
        return False
    holder = _holder(path)
    if holder.get("machine") == _machine():
        return bool(holder.get("started") == _started(holder.get("pid")))
    return now - state.st_mtime < LIMITS.lock_stale_s


def _self() -> dict[str, Any]:
    pid = os.getpid()
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    who = f"process {pid} on {os.uname().nodename}, since {since}"
    return {"who": who, "machine": _machine(), "pid": pid, "started": _started(pid)}


@cache
def _machine() -> str:
    """Names what gives process numbers their meaning: a boot of a machine, and a container on it."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")


def _started(pid: Any) -> str | None:
    """When a process of this machine started, in ticks since boot; None if there is none, or only its exit code is left."""
    try:
        found = Path(f"/proc/{int(pid)}/stat").read_text().rpartition(")")[2].split()
        return None if found[0] in "ZX" else found[19]
    except (OSError, ValueError, TypeError, IndexError):
        return None
