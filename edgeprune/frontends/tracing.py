"""Which files the user's code reads. If none of them changed, the data that it made from them did not change either.

A file counts if Python opens it for reading, if its folder is listed, or if it is open or mapped after the data was read.
Modules and installed packages do not count: see `sources`. A file is not seen if a library opens and closes it
without Python, and its folder is not listed.
"""

from __future__ import annotations

import hashlib
import os
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from operator import itemgetter
from pathlib import Path
from stat import S_ISREG
from typing import Any

from edgeprune.frontends.sources import SKIPPED
from edgeprune.limits import LIMITS

LISTED = "os.listdir", "os.scandir"
ELSEWHERE = "os.fork", "socket.connect"  # data comes from another process or machine
NEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
IGNORED = (
    *{sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib")},
    *("/proc/", "/sys/", "/dev/"),
)


@dataclass
class Trace:
    """The files and folders that code read, by absolute path, with their sizes and times when they were first read.

    Attributes:
        files: were opened.
        folders: were listed.
        cwd: the working directory, if a path was relative to it; else empty.
        complete: whether they are all that the data depends on.
    """

    files: dict[str, object] = field(default_factory=dict)
    folders: dict[str, object] = field(default_factory=dict)
    cwd: str = ""
    complete: bool = True

    def add(self, path: object, look: Callable[[str], object]) -> None:
        """Add the file (`look` is `of_file`) or the folder (`of_folder`) that an event names.

        A number is an open file, which was seen when it was opened.
        """
        if isinstance(path, int):
            return
        name = os.fsdecode(path or ".")  # type: ignore[arg-type]
        absolute = os.path.abspath(name)
        known = self.files if look is of_file else self.folders
        if absolute.startswith(IGNORED) or absolute.endswith((".py", ".pyc")) or known.get(absolute):
            return
        if not os.path.isabs(name):
            self.cwd = os.getcwd()
        if len(self.files) + len(self.folders) < LIMITS.traced_files:
            known[absolute] = look(absolute)
        else:
            self.complete = False

    def settle(self) -> None:
        """Add the files that are open or mapped now, and remove files that no longer exist."""
        for path in set(_open_now()) - _open_before:
            self.add(path, of_file)
        self.files = {path: found for path, found in self.files.items() if os.path.isfile(path)}
        self.folders = {path: found for path, found in self.folders.items() if os.path.isdir(path)}


_traces: dict[Path, Trace] = {}
_active: list[Trace | None] = []
_open_before: set[str] = set()  # the files that were open before any user code ran, such as a log


def trace_of(root: Path) -> Trace:
    """What the code of a project's folder has read so far in this process."""
    return _traces.setdefault(root, Trace())


@cache
def _install() -> None:
    """Begin to watch what this process opens. Python cannot stop it again."""
    _open_before.update(_open_now())
    sys.addaudithook(_seen)


@contextmanager
def traced(root: Path) -> Iterator[None]:
    """A context in which the files that code reads are added to the trace of `root`."""
    _install()
    _active.append(trace_of(root))
    try:
        yield
    finally:
        _active.pop()


def _seen(event: str, arguments: tuple[Any, ...]) -> None:
    """Python's audit hook. An error in it would become one of the user's code."""
    trace = _active[-1] if _active else None
    if trace is None:
        return
    _active.append(None)  # what follows may list a folder itself
    try:
        if event in LISTED:
            if not _imports():
                trace.add(arguments[0], of_folder)
        elif event == "open":
            if not (isinstance(arguments[2], int) and arguments[2] & NEW) and not _imports():
                trace.add(arguments[0], of_file)
        elif event == "sqlite3.connect":
            trace.add(arguments[0], of_file)
        elif event in ELSEWHERE and (event == "os.fork" or isinstance(arguments[1], tuple)):
            trace.complete = False
    finally:
        _active.pop()


def _imports() -> bool:
    """Whether Python's import system caused the event."""
    return sys._getframe(2).f_code.co_filename.startswith("<frozen ")


def _open_now() -> Iterator[str]:
    """The files that this process has open or mapped; none if the system has no `/proc`."""
    with suppress(OSError):
        for number in os.listdir("/proc/self/fd"):
            with suppress(OSError):
                yield os.readlink(f"/proc/self/fd/{number}")
    with suppress(OSError):
        for line in Path("/proc/self/maps").read_text().splitlines():
            _, slash, path = line.partition("/")
            if slash and not path.endswith(".so") and ".so." not in path:
                yield f"/{path}"


def state(files: Mapping[str, object], folders: Mapping[str, object], variables: Iterable[str]) -> str:
    """A digest of sizes and times of files and folders, {path: what was found}, and of variables of the environment."""
    values = {name: os.environ.get(name) for name in variables}
    known = [sorted(part.items()) for part in (files, folders, values)]
    return hashlib.sha256(repr(known).encode()).hexdigest()


def of_file(path: str) -> object:
    """The size and the time of a file; None if there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return (found.st_size, found.st_mtime_ns) if S_ISREG(found.st_mode) else None


def of_folder(path: str) -> object:
    """A digest of the files in a folder, without hidden ones, runs and environments; None if there is none."""
    try:
        with os.scandir(path) as entries:
            found = [(one.name, of_file(one.path)) for one in entries]
    except OSError:
        return None
    shown = [one for one in found if not (one[0].startswith(".") or one[0] in SKIPPED)]
    return hashlib.sha256(repr(sorted(shown, key=itemgetter(0))).encode()).hexdigest()
