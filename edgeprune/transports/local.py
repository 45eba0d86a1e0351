"""This machine as the device: the agent is a child process."""

from __future__ import annotations

import json
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from edgeprune.agent import AGENT
from edgeprune.errors import DeviceError
from edgeprune.limits import LIMITS
from edgeprune.transports.base import Frames, Transport, copy_back, printable

PASSED = (
    "PATH",
    "HOME",
    "LANG",
    "TMPDIR",
    "LD_LIBRARY_PATH",
)  # of the environment; the rest could change what is measured


class Local(Transport):
    """Runs the agent with this Python; files stay where they are."""

    def put(self, files: Sequence[Path]) -> str:
        """Nothing to copy."""
        return str(files[0].absolute())

    def get(self, remote: str, path: Path) -> None:
        """Copy a file that the agent wrote."""
        copy_back(remote, path)

    def call(self, jobs: Sequence[Mapping[str, Any]], deadline_s: float) -> Iterator[Mapping[str, Any]]:
        """Start the agent for these jobs; see `Transport.call`."""
        nonce = secrets.token_hex(16)
        with tempfile.TemporaryFile() as errors:
            agent = subprocess.Popen(
                [sys.executable, "-I", str(AGENT), "serve"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={name: os.environ[name] for name in PASSED if name in os.environ},
                start_new_session=True,
            )
            try:
                assert agent.stdin is not None and agent.stdout is not None
                agent.stdin.write(json.dumps({"nonce": nonce, "jobs": list(jobs)}).encode() + b"\n")
                agent.stdin.flush()
                done = 0
                for reply in self._replies(agent.stdout, Frames(nonce), time.monotonic() + deadline_s):
                    yield reply
                    done += 1
                    if done == len(jobs):
                        return
                raise DeviceError(f"the agent ended after {done} of {len(jobs)} jobs: {_tail(errors)}")
            except BrokenPipeError as error:
                raise DeviceError(f"the agent ended before it read its jobs: {_tail(errors)}") from error
            finally:
                _end(agent)

    def close(self) -> None:
        """Nothing is left to close: every call ends its agent."""

    @staticmethod
    def _replies(stdout: IO[bytes], frames: Frames, deadline: float) -> Iterator[Mapping[str, Any]]:
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            while True:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise DeviceError("the device did not answer before the deadline; is it overloaded?")
                data = os.read(stdout.fileno(), 1 << 20)
                if not data:
                    return
                yield from frames.feed(data)


def _end(agent: subprocess.Popen[bytes]) -> None:
    """Close its standard input, at which the agent ends its worker and itself; then make sure."""
    assert agent.stdin is not None and agent.stdout is not None
    with suppress(BrokenPipeError):
        agent.stdin.close()
    try:
        agent.wait(LIMITS.end_s)
    except subprocess.TimeoutExpired:
        os.killpg(agent.pid, signal.SIGKILL)
        agent.wait()
    agent.stdout.close()


def _tail(errors: IO[bytes]) -> str:
    size = errors.seek(0, os.SEEK_END)
    errors.seek(max(0, size - LIMITS.stderr_bytes))
    return printable(errors.read().decode("utf-8", "backslashreplace").strip()) or "it said nothing"
