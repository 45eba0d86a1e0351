"""This machine as the device: the agent is a child process."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from edgeprune.devices import bundle
from edgeprune.devices.transports.base import Conversation, Document, Transport, copy_back, hello
from edgeprune.devices.validate import printable
from edgeprune.errors import LinkError
from edgeprune.limits import LIMITS

PASSED = ("PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH")  # other variables could change the measurement


class Local(Transport):
    """Runs the agent with this Python, or the given one; files stay where they are."""

    def __init__(self, python: str = sys.executable) -> None:
        self._python = python
        self._child: _Child | None = None
        self._conversation: Conversation | None = None

    def put(self, files: Sequence[Path]) -> str:
        """There is nothing to copy."""
        return str(files[0].absolute())

    def get(self, remote: str, path: Path) -> None:
        """Copy a file that the agent wrote."""
        copy_back(remote, path)

    def call(self, jobs: Sequence[Document], deadline_s: float) -> Iterator[Document]:
        """Have the agent do these jobs; see `Transport.call`. The first call starts the agent."""
        done = False
        try:
            if self._conversation is None:
                self._child = _Child(self._python)
                self._conversation = Conversation(self._child, hello(), silence_s=None)
            yield from self._conversation.ask(jobs, deadline_s)
            done = True
        finally:
            if not done:
                self.close()

    def close(self) -> None:
        """End the agent."""
        child, self._child, self._conversation = self._child, None, None
        if child is not None:
            child.end()


class _Child:
    """The agent as a child process."""

    def __init__(self, python: str) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the child
        self._folder = tempfile.TemporaryDirectory(prefix="edgeprune-agent-")
        agent = Path(self._folder.name) / "agent.py"
        agent.write_bytes(bundle.agent())
        self._process = subprocess.Popen(
            [python, "-I", str(agent), "serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={name: os.environ[name] for name in PASSED if name in os.environ},
            start_new_session=True,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout

    def send(self, data: bytes) -> None:
        """Write to its standard input."""
        try:
            self._stdin.write(data)
            self._stdin.flush()
        except BrokenPipeError as error:
            raise LinkError(f"the agent ended before it read its jobs: {self.said()}") from error

    def receive(self, timeout_s: float) -> bytes | None:
        """Read from its standard output."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._stdout, selectors.EVENT_READ)
            return os.read(self._stdout.fileno(), 1 << 20) if selector.select(timeout_s) else None

    def said(self) -> str:
        """The end of its standard error."""
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - LIMITS.stderr_bytes))
        return printable(self._errors.read().decode("utf-8", "backslashreplace").strip()) or "it printed nothing"

    def end(self) -> None:
        """Close its standard input, so that the agent ends its worker and itself; kill it where it does not."""
        with suppress(BrokenPipeError):
            self._stdin.close()
        try:
            self._process.wait(LIMITS.end_s)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._stdout.close()
        self._errors.close()
        self._folder.cleanup()
