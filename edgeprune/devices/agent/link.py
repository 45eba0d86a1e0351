"""The link to the host: lines come in on standard input, frames go out on standard output.

    edgeprune <nonce> <bytes> <crc32, 8 hex digits>\\n<JSON of that many bytes>

The host chooses the nonce, so that no banner or print can pass for an answer. An empty line means that the host lives. The
agent answers it with an empty line: the host's clock counts, since the device's clock may run slower.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

GONE = 1  # the exit status where the host has gone


class Link:
    """Requests, replies and signs of life. The agent exits where the host closes the link, or is silent for `silence_s`."""

    def __init__(self) -> None:
        self.nonce = ""
        self.silence_s: float | None = None
        self._heard = time.monotonic()
        self._buffer = b""
        self._lines: list[bytes] = []

    def wait(self, others: Sequence[int], until: float) -> list[int]:
        """Wait for one of the descriptors `others`, for the host, or until a time. Returns the ready ones of `others`."""
        stops = [until, self._heard + self.silence_s] if self.silence_s else [until]
        ready = select.select([0, *others], [], [], max(0, min(stops) - time.monotonic()))[0]
        if 0 in ready:
            self._read()
        elif self.silence_s and time.monotonic() - self._heard > self.silence_s:
            sys.exit(GONE)
        return [other for other in others if other in ready]

    def _read(self) -> None:
        data = os.read(0, 1 << 20)
        if not data:
            sys.exit(GONE)
        self._heard = time.monotonic()
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        self._lines += [line for line in lines if line]
        if b"" in lines:
            self._send(b"\n")

    def next_request(self) -> Any:
        """The next line of the host, as JSON."""
        while not self._lines:
            self.wait([], time.monotonic() + 3600)
        return json.loads(self._lines.pop(0))

    def reply(self, document: Mapping[str, Any]) -> None:
        """Send one frame."""
        payload = json.dumps(document, allow_nan=False).encode()
        self._send(b"\nedgeprune %s %d %08x\n" % (self.nonce.encode(), len(payload), zlib.crc32(payload)) + payload)

    def _send(self, data: bytes) -> None:
        try:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python would fail again at its end
            sys.exit(GONE)
