"""The port to a device: files there and back, and requests to the agent. The agent is talked to here, whatever the link."""

from __future__ import annotations

import json
import logging
import math
import re
import secrets
import shutil
import time
import zlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from edgeprune.errors import BusyError, DeviceError, LinkError
from edgeprune.limits import LIMITS

HEADER = re.compile(rb"edgeprune ([0-9a-f]{32}) (\d{1,10}) ([0-9a-f]{8})\n")
log = logging.getLogger("edgeprune")
LONGEST_HEADER = 80  # bytes: how much of an unfinished line may turn out to be a header


class Transport(ABC):
    """A way to a device. What a link raises comes out as `DeviceError`."""

    @abstractmethod
    def put(self, files: Sequence[Path]) -> str:
        """Bring files that belong together to the device; the path there of the first."""

    @abstractmethod
    def get(self, remote: str, path: Path) -> None:
        """Bring one file back."""

    @abstractmethod
    def call(self, jobs: Sequence[Mapping[str, Any]], deadline_s: float) -> Iterator[Mapping[str, Any]]:
        """Have the agent do jobs; yields one reply a job, in order, as they come.

        Raises `DeviceError` when the agent ends early, says something else, or takes over `deadline_s` in all, and `BusyError`
        when somebody else holds the device. Closing the iterator ends the agent.
        """

    @abstractmethod
    def close(self) -> None:
        """Leave the device as it was found."""


def ask(transport: Transport, job: Mapping[str, Any], refused: Sequence[str] = ()) -> Mapping[str, Any]:
    """The agent's reply to one job; an error of a kind in `refused` is an answer too."""
    deadline_s = float(job.get("deadline_s", LIMITS.identify_s))
    (reply,) = transport.call([{"id": 0, "deadline_s": deadline_s, **job}], deadline_s + LIMITS.identify_s)
    if "error" in reply and reply["error"] not in refused:
        raise DeviceError(f"{job['mode']}: {printable(str(reply['error']))}: {printable(str(reply.get('message')))}")
    return reply


class Stream(Protocol):
    """Two-way bytes to an agent. What a link raises comes out as `LinkError`."""

    def send(self, data: bytes) -> None:
        """Send all of it."""

    def receive(self, timeout_s: float) -> bytes | None:
        """What came, b"" at the end, None when nothing came in time."""

    def said(self) -> str:
        """Printable: the last that the agent said on its standard error, and how it ended."""


class Conversation:
    """One agent, from its hello to its end: requests go out, framed replies come in."""

    def __init__(self, stream: Stream, hello: Mapping[str, Any], silence_s: float | None) -> None:
        """Say hello. Raises `BusyError` when somebody else holds the device."""
        nonce = secrets.token_hex(16)
        self._stream, self._silence_s = stream, silence_s
        self._frames = Frames(nonce)
        self._ready: deque[Mapping[str, Any]] = deque()
        self._say({**hello, "nonce": nonce})
        (reply,) = self._replies(1, LIMITS.identify_s)
        if reply.get("error") == "busy":
            raise BusyError(f"the device is {printable(str(reply.get('message')))}")
        if "error" in reply:
            raise DeviceError(f"the agent does not start: {printable(str(reply.get('message')))}")
        if reply.get("left"):
            log.warning("the device is left changed; put it back by hand: %s", printable(str(reply["left"])))

    def ask(self, jobs: Sequence[Mapping[str, Any]], deadline_s: float) -> Iterator[Mapping[str, Any]]:
        """Send jobs; yields their replies in order."""
        self._say({"jobs": list(jobs)})
        yield from self._replies(len(jobs), deadline_s)

    def _say(self, document: Mapping[str, Any]) -> None:
        self._stream.send(json.dumps(document).encode() + b"\n")

    def _replies(self, count: int, deadline_s: float) -> Iterator[Mapping[str, Any]]:
        until, noise = time.monotonic() + deadline_s, 0
        for done in range(count):
            while not self._ready:
                left = until - time.monotonic()
                silence = self._silence_s if self._silence_s is not None else left
                data = self._stream.receive(max(0.0, min(left, silence)))
                if data is None and left <= silence:
                    raise DeviceError(
                        f"the device did not answer before the deadline of {deadline_s:g} s; is it overloaded?"
                    )
                if data is None:
                    raise LinkError(f"the device has said nothing for {silence:g} s")
                if not data:
                    raise LinkError(f"the agent ended after {done} of {count} jobs: {self._stream.said()}")
                noise += len(data)
                for reply in self._frames.feed(data):
                    self._ready.append(reply)
                    noise = 0
                if noise > LIMITS.noise_bytes + LIMITS.reply_bytes:
                    raise DeviceError(f"the device sends over {LIMITS.noise_bytes >> 20} MB that are no answer")
            yield self._ready.popleft()


class Frames:
    """Bytes in, verified payloads out; noise around frames is passed over, and memory stays bounded."""

    def __init__(self, nonce: str, cap: int = LIMITS.reply_bytes) -> None:
        self._nonce = nonce.encode()
        self._cap = cap
        self._buffer = bytearray()
        self._wanted: tuple[int, int] | None = None  # bytes and checksum of the frame being read

    def feed(self, data: bytes) -> Iterator[Mapping[str, Any]]:
        """Take what came from the device; yields the payloads that are complete. Raises `DeviceError` for a false one."""
        self._buffer += data
        while True:
            if self._wanted is None and not self._seek():
                return
            assert self._wanted is not None
            size, checksum = self._wanted
            if len(self._buffer) < size:
                return
            payload = bytes(self._buffer[:size])
            del self._buffer[:size]
            self._wanted = None
            if zlib.crc32(payload) != checksum:
                raise DeviceError("the device's reply is damaged; check the link and run again")
            yield _document(payload)

    def _seek(self) -> bool:
        """Drop noise up to the next frame of ours."""
        for match in HEADER.finditer(bytes(self._buffer)):
            if match[1] == self._nonce:
                size = int(match[2])
                if size > self._cap:
                    raise DeviceError(f"the device announces a reply of {size} bytes, over the cap of {self._cap}")
                self._wanted = size, int(match[3], 16)
                del self._buffer[: match.end()]
                return True
        del self._buffer[:-LONGEST_HEADER]
        return False


def _document(payload: bytes) -> Mapping[str, Any]:
    def number(text: str) -> float:
        if not math.isfinite(value := float(text)):  # JSON has no NaN, but 1e999 is written like any number
            raise ValueError(f"{text} is no number")
        return value

    try:
        document = json.loads(payload, parse_constant=number, parse_float=number)
    except (ValueError, RecursionError) as error:
        raise DeviceError(f"the device's reply is not valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise DeviceError("the device's reply is no JSON object")
    return document


def copy_back(source: str, path: Path) -> None:
    """Copy a file that this machine can see. Raises `DeviceError` naming it."""
    try:
        shutil.copyfile(source, path)
    except OSError as error:
        raise DeviceError(f"{source}: {error.strerror}") from error


def printable(text: str, most: int = LIMITS.message_chars) -> str:
    """Text from a device, safe to print: escaped, on one line, of bounded length."""
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: 4 * most])
    return safe if len(safe) <= most else safe[:most] + "…"
