"""Find and run what a device has of TensorRT: NVIDIA's trtexec, its Python module, or both.

It travels to devices: standard library only, Python 3.8 and up.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from .. import machine
from ..device import ErrorKind, Failed
from .log import Keeper, ended, errors_of, remedy
from .trtexec import Version, passed, version_of

TRTEXEC = "/usr/src/tensorrt/bin/trtexec"  # JetPack installs it there
HELP_S = 30.0
RUN_S = 900.0  # of one trtexec, which may build an engine
LINE_BYTES = 4096  # of a log, at most
KEPT_BYTES = 4 << 20  # of a log
KNOWN: dict[str, tuple[Version, bool]] = {}  # the version, asked for once


def trtexec() -> str | None:
    """The path of trtexec: in PATH, or where JetPack installs it."""
    return shutil.which("trtexec") or (TRTEXEC if os.access(TRTEXEC, os.X_OK) else None)


def module(version: Version | None = None) -> Any | None:
    """TensorRT's Python module, or None. A module of another version cannot load the engines of `version`."""
    try:
        import tensorrt
    except ImportError:
        return None
    return tensorrt if version is None or module_version(tensorrt) == version else None


def module_version(found: Any) -> Version:
    """The version of the Python module."""
    return parsed(found.__version__)


def parsed(text: str) -> Version:
    """ "10.3.0" as numbers; also "10.0.0b6", which is a preview."""
    found = re.match(r"(\d{1,4})\.(\d{1,4})\.(\d{1,4})", text)
    if found is None:
        raise Failed("runtime-missing", f"TensorRT's Python module has no known version: {text[:40]!r}")
    return int(found[1]), int(found[2]), int(found[3])


def known_version() -> tuple[Version, bool]:
    """TensorRT's version, and whether it is a stand-in."""
    if "version" not in KNOWN:
        KNOWN["version"] = _asked_version()
    return KNOWN["version"]


def _asked_version() -> tuple[Version, bool]:
    tool = trtexec()
    if tool is None:
        found = module()
        if found is None:
            text = f"there is no trtexec, neither in PATH nor at {TRTEXEC}, and no Python module tensorrt"
            raise Failed("runtime-missing", text)
        return module_version(found), False
    try:
        done = subprocess.run(
            [tool, "--help"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=HELP_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Failed("runtime-missing", f"trtexec does not run: {error}") from error
    return version_of(done.stdout.decode("utf-8", "backslashreplace"))


def run(arguments: Sequence[str], doing: str, folder: str, deadline_s: float = RUN_S) -> tuple[str, int]:
    """Run trtexec in a folder.

    Args:
        doing: "build", "time", "profile" or "run", for the error's text.

    Returns:
        The log's last line, errors and lines about the DLA; and the most memory that the process held, in bytes.

    Raises:
        Failed: trtexec did not pass. The kind is "load" for a build and "run" otherwise.
    """
    tool = trtexec()
    if tool is None:
        raise Failed("runtime-missing", "there is no trtexec any more")
    for argument in arguments:
        if argument.startswith("--export"):  # so that a file of an earlier run cannot pass for this run's
            machine.remove(os.path.join(folder, argument.partition("=")[2]))
    with open(os.path.join(folder, "trtexec.log"), "w+b") as log:
        process = subprocess.Popen([tool, *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder)
        late = threading.Event()

        def stop() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(deadline_s, stop)
        timer.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
        finally:
            timer.cancel()
        process.returncode = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)
        log.seek(0)
        text = _kept(log)
    if not passed(text, process.returncode):
        kind: ErrorKind = "load" if doing == "build" else "run"
        if late.is_set():
            raise Failed(kind, f"trtexec took over {deadline_s:g} s to {doing} the model: {errors_of(text)}")
        why = f"{errors_of(text)}{remedy(text, process.returncode)}"
        raise Failed(kind, f"trtexec cannot {doing} the model ({ended(text, process.returncode)}): {why}")
    return text, usage.ru_maxrss * 1024


def _kept(log: BinaryIO) -> str:
    """The lines that matter of a log of any length."""
    found, size, keeper = [], 0, Keeper()
    for data in iter(lambda: log.readline(LINE_BYTES), b""):
        line = data.decode("utf-8", "backslashreplace")
        if keeper.wants(line.rstrip("\n")) and (size < KEPT_BYTES or line.startswith("&&&&")):
            found.append(line)
            size += len(data)
    return "".join(found)


def read(path: str) -> str:
    """A text file."""
    with open(path) as file:
        return file.read()


@contextlib.contextmanager
def understood(what: str) -> Iterator[None]:
    """Turn what trtexec wrote wrongly, or TensorRT raised, into `Failed`."""
    try:
        yield
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise Failed("run", f"{what}: {error}") from error
