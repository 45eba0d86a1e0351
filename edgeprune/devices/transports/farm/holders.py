"""The names under which edgeprune holds places. From a name, a later process sees whether its process still runs."""

from __future__ import annotations

import getpass
import os
import re
import socket
from contextlib import suppress
from pathlib import Path

NAME = re.compile(r"(.+)\.edgeprune-(\d{1,10})-(\d{1,20})-(\d{1,20})")


def own() -> str:
    """The name of this process, HOST/USER.edgeprune-PID-START-NAMESPACE. HOST and USER are those of labgrid-client."""
    return f"{_user()}.edgeprune-{os.getpid()}-{_start(os.getpid())}-{_namespace()}"


def has_ended(holder: str) -> bool:
    """Whether it is the name of a process of this user on this machine, and the process has ended.

    A process of another container is never judged: its number means nothing here.
    """
    found = NAME.fullmatch(holder)
    if found is None or found[1] != _user() or int(found[4]) != _namespace():
        return False
    return _start(int(found[2])) != int(found[3])


def _user() -> str:
    host = os.environ.get("LG_HOSTNAME", socket.gethostname())
    try:
        return f"{host}/{os.environ.get('LG_USERNAME') or getpass.getuser()}"
    except (KeyError, OSError):  # a container may have no name for its user
        return f"{host}/{os.getuid()}"


def _start(pid: int) -> int | None:
    """When a process began, in ticks since the boot; None if there is no such process."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    return None


def _namespace() -> int:
    """The namespace of process numbers: containers have their own."""
    return os.stat("/proc/self/ns/pid").st_ino
