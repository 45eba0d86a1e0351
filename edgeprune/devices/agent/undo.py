"""Restore what a measurement changed on the device, even after the agent was killed.

Before anything changes, the commands that restore it are written to `undo-PID-BOOT.json` in the agent's folder.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence

from ...runtimes import machine

COMMAND_S = 30
NAME = re.compile(r"undo-\d+-[^/]{1,8}\.json")


def record(commands: Sequence[Sequence[str]]) -> None:
    """Have this worker's agent run these commands when it ends. The last recorded commands run first."""
    os.makedirs(machine.root(), mode=0o700, exist_ok=True)
    path = os.path.join(machine.root(), f"undo-{os.getppid()}-{machine.boot_id()[:8]}.json")
    recorded = [list(argv) for argv in commands]
    if os.path.exists(path):
        recorded += _commands(path)
    machine.write(path, json.dumps(recorded).encode())


def restore() -> None:
    """Run the recorded commands of this agent and of agents that are gone."""
    for path in _files():
        _, pid, boot = os.path.basename(path)[: -len(".json")].split("-", 2)
        if pid == str(os.getpid()) or boot != machine.boot_id()[:8] or not os.path.exists("/proc/" + pid):
            _restore(path)


def pending() -> list[str]:
    """The commands that failed: the device is still changed."""
    found: list[str] = []
    for path in _files():
        found += [" ".join(argv) for argv in _commands(path)]
    return found


def _files() -> list[str]:
    return [os.path.join(machine.root(), name) for name in machine.listed(machine.root()) if NAME.fullmatch(name)]


def _commands(path: str) -> list[list[str]]:
    """The commands in a file; none if it is damaged, which must not keep the agent from starting."""
    try:
        with open(path) as file:
            found = json.load(file)
    except (OSError, ValueError):
        return []
    rows = found if isinstance(found, list) else []
    return [row for row in rows if isinstance(row, list) and all(isinstance(word, str) for word in row)]


def _restore(path: str) -> None:
    """Run the commands in a file. It reports a command that fails, and keeps it for the next agent."""
    failed = [argv for argv in _commands(path) if not _succeeds(argv)]
    for argv in failed:
        print(f"cannot restore what was changed: {' '.join(argv)}", file=sys.stderr)
    if failed:
        machine.write(path, json.dumps(failed).encode())
    else:
        os.unlink(path)


def _succeeds(argv: list[str]) -> bool:
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=COMMAND_S)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
