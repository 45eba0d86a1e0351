"""The SSH channel of the agent, as a stream."""

from __future__ import annotations

import threading
import time
from contextlib import suppress

import paramiko

from edgeprune.devices.transports.ssh.faults import FAULTS, described
from edgeprune.devices.validate import printable
from edgeprune.errors import LinkError
from edgeprune.limits import LIMITS

BEAT_S = 5.0  # between two signs of life to the agent


class AgentChannel:
    """The agent's standard streams. It sends an empty line every few seconds, so that the agent knows the host is there."""

    def __init__(self, channel: paramiko.Channel) -> None:
        self._channel = channel
        self._errors = bytearray()
        self._over = threading.Event()
        self._sending = threading.Lock()
        threading.Thread(target=self._beat, daemon=True).start()

    def send(self, data: bytes) -> None:
        """Send all of the data."""
        try:
            with self._sending:
                self._channel.settimeout(LIMITS.silence_s)
                self._channel.sendall(data)
        except FAULTS as error:
            raise LinkError(f"the link broke: {described(error)}; {self.said()}") from error

    def receive(self, timeout_s: float) -> bytes | None:
        """Received data, b"" at the end of the stream, None when nothing came in time. Standard error is read too."""
        until = time.monotonic() + timeout_s
        while True:
            self._drain()
            if self._channel.recv_ready() or self._channel.eof_received or self._channel.closed:
                return bytes(self._channel.recv(1 << 16)) if self._channel.recv_ready() else b""
            remaining_s = until - time.monotonic()
            if remaining_s <= 0:
                return None
            self._channel.settimeout(min(remaining_s, 0.25))  # it returns at once when data comes
            try:
                return bytes(self._channel.recv(1 << 16))
            except TimeoutError:
                continue
            except FAULTS:
                return b""

    def said(self) -> str:
        """The end of the agent's standard error, printable, and how the agent ended."""
        self._channel.status_event.wait(1)  # the exit status comes right after the end of the stream
        self._drain()
        text = printable(bytes(self._errors).decode("utf-8", "backslashreplace").strip())
        if self._channel.exit_status_ready() and self._channel.recv_exit_status() == -1:
            return f"it was killed; {text}"
        return text or "it printed nothing"

    def ended(self) -> bool:
        """Whether the agent ended by itself, and the link is there."""
        return bool(self._channel.status_event.is_set() and self._channel.recv_exit_status() != -1)

    def leave(self) -> None:
        """Close the agent's standard input, so that it ends its worker and itself. Wait a little for that."""
        self._over.set()
        with suppress(*FAULTS):
            self._channel.shutdown_write()
            self._channel.status_event.wait(LIMITS.end_s)

    def close(self) -> None:
        """Close the channel."""
        self._over.set()
        with suppress(*FAULTS):
            self._channel.close()

    def _drain(self) -> None:
        """Read standard error, and keep its end."""
        while self._channel.recv_stderr_ready():
            self._errors += self._channel.recv_stderr(1 << 16)
            del self._errors[: -LIMITS.stderr_bytes]

    def _beat(self) -> None:
        while not self._over.wait(BEAT_S):
            try:
                with self._sending:
                    self._channel.sendall(b"\n")
            except FAULTS:
                return
