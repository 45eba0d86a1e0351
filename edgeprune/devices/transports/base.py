"""The port to a device: files there and back, and jobs for the agent. All links use the same conversation with the agent."""

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
from typing import Any, Protocol, TypeVar

from edgeprune.devices import wire
from edgeprune.devices.validate import WireError, printable, read
from edgeprune.errors import BusyError, DeviceError, LinkError
from edgeprune.limits import LIMITS
from edgeprune.records import Target

HEADER = re.compile(rb"edgeprune ([0-9a-f]{32}) (\d{1,10}) ([0-9a-f]{8})\n")
LONGEST_HEADER = 80  # bytes: a header that has not fully arrived may take this much of the buffer
log = logging.getLogger("edgeprune")
Reply = TypeVar("Reply")
Document = Mapping[str, Any]  # a JSON object


class Transport(ABC):
    """A way to a device. Faults of the link are raised as `DeviceError`.

    `slowness` is how many seconds of this machine a second of the device's clock may take.
    """

    slowness: float = 1.0

    @abstractmethod
    def put(self, files: Sequence[Path]) -> str:
        """Bring files that belong together to the device. Returns the path of the first one there."""

    @abstractmethod
    def get(self, remote: str, path: Path) -> None:
        """Bring one file back."""

    @abstractmethod
    def call(self, jobs: Sequence[Document], deadline_s: float) -> Iterator[Document]:
        """Have the agent do jobs.

        Args:
            jobs: what `wire.job_document` makes, with different ids.
            deadline_s: the most that all jobs together may take.

        Returns:
            One reply a job, in order, as they arrive. Replies are not checked yet. Closing the iterator ends the agent.

        Raises:
            DeviceError: the agent ends early, sends something else, or takes too long.
            BusyError: another host holds the device.
        """

    @abstractmethod
    def close(self) -> None:
        """Leave the device as it was found."""


class Refusal(DeviceError):
    """The agent cannot do a job; `kind` says why, see `runtimes.device.ErrorKind`."""

    def __init__(self, device: str, job: wire.Job[Any], failure: wire.Failure) -> None:
        super().__init__(f"{device}: {job.label}: {failure.error}: {failure.message}")
        self.kind, self.message = failure.error, failure.message


def slowness(target: Target) -> float:
    """See `Transport`. The clock of an emulated device is slow."""
    return LIMITS.emulated_slowness if target.emulated else 1.0


def ask(transport: Transport, device: str, job: wire.Job[Reply]) -> Reply:
    """Have the agent do one job.

    Args:
        device: the name of the target, for errors.

    Raises:
        Refusal: the agent cannot do it.
        DeviceError: the reply does not fit the job, or there is none in time.
    """
    (reply,) = ask_all(transport, device, [job], job.deadline_s + LIMITS.identify_s)
    return reply


def ask_all(transport: Transport, device: str, jobs: Sequence[wire.Job[Reply]], deadline_s: float) -> Iterator[Reply]:
    """Have the agent do jobs within a deadline for all of them, by the device's clock; yields their replies in order.

    Raises as `ask` does.
    """
    documents = [wire.job_document(i, job) for i, job in enumerate(jobs)]
    replies = transport.call(documents, deadline_s * transport.slowness)
    for i, (job, document) in enumerate(zip(jobs, replies, strict=True)):
        yield understood(device, job, i, document)


def understood(device: str, job: wire.Job[Reply], number: int, document: Document) -> Reply:
    """The reply to a job that was sent with this number, if it fits the job. Raises as `ask` does."""
    try:
        reply = wire.read_reply(job, number, document)
    except WireError as error:
        raise DeviceError(f"{device}: the device's reply to {job.label} cannot be used: {error}") from error
    if isinstance(reply, wire.Failure):
        raise Refusal(device, job, reply)
    return reply


class Stream(Protocol):
    """Two-way bytes to an agent. Faults of the link are raised as `LinkError`."""

    def send(self, data: bytes) -> None:
        """Send all of the data."""

    def receive(self, timeout_s: float) -> bytes | None:
        """Received data, b"" at the end of the stream, None when nothing came in time."""

    def said(self) -> str:
        """The end of the agent's standard error, printable, and how the agent ended."""


class Conversation:
    """One agent, from its hello to its end: requests go out, framed replies come in."""

    def __init__(self, stream: Stream, hello: wire.Hello, silence_s: float | None) -> None:
        """Send the hello. Raises `BusyError` when another host holds the device."""
        self._stream, self._silence_s = stream, silence_s
        self._frames = Frames(hello.nonce)
        self._ready: deque[Document] = deque()
        self._send(wire.document(hello))
        (reply,) = self._replies(1, LIMITS.identify_s)
        try:
            kind: type[wire.Failure | wire.Welcome] = wire.Failure if "error" in reply else wire.Welcome
            answer = read(kind, reply)
        except WireError as error:
            raise DeviceError(f"the agent's answer to the hello cannot be used: {error}") from error
        if isinstance(answer, wire.Failure):
            if answer.error == "busy":
                raise BusyError(f"the device is {answer.message}")
            raise DeviceError(f"the agent does not start: {answer.message}")
        if answer.left:
            log.warning("the device is still changed; restore it by hand: %s", "; ".join(answer.left))

    def ask(self, jobs: Sequence[Document], deadline_s: float) -> Iterator[Document]:
        """Send jobs; yields their replies in order."""
        self._send({"jobs": list(jobs)})
        yield from self._replies(len(jobs), deadline_s)

    def _send(self, document: Document) -> None:
        self._stream.send(json.dumps(document).encode() + b"\n")

    def _replies(self, count: int, deadline_s: float) -> Iterator[Document]:
        until, noise = time.monotonic() + deadline_s, 0
        for done in range(count):
            while not self._ready:
                data = self._received(until, deadline_s)
                if not data:
                    raise LinkError(f"the agent ended after {done} of {count} jobs: {self._stream.said()}")
                noise += len(data)
                for reply in self._frames.feed(data):
                    self._ready.append(reply)
                    noise = 0
                if noise > LIMITS.noise_bytes + LIMITS.reply_bytes:
                    raise DeviceError(f"the device sends over {LIMITS.noise_bytes >> 20} MB that are no reply")
            yield self._ready.popleft()

    def _received(self, until: float, deadline_s: float) -> bytes:
        """Data from the agent, b"" at its end."""
        left = until - time.monotonic()
        silence = self._silence_s if self._silence_s is not None else left
        data = self._stream.receive(max(0.0, min(left, silence)))
        if data is None and left <= silence:
            raise DeviceError(f"the device did not answer before the deadline of {deadline_s:g} s; is it overloaded?")
        if data is None:
            raise LinkError(f"the device has sent nothing for {silence:g} s")
        return data


def hello(who: str = "", token: str = "", silence_s: float | None = None) -> wire.Hello:
    """A hello with a new nonce; see `wire.Hello`."""
    return wire.Hello(secrets.token_hex(16), who, token, silence_s)


class Frames:
    """Bytes in, verified payloads out. Noise around frames is skipped, and memory stays bounded."""

    def __init__(self, nonce: str, cap: int = LIMITS.reply_bytes) -> None:
        self._nonce = nonce.encode()
        self._cap = cap
        self._buffer = bytearray()
        self._wanted: tuple[int, int] | None = None  # bytes and checksum of the frame that is arriving

    def feed(self, data: bytes) -> Iterator[Document]:
        """Add received data; yields the complete payloads. Raises `DeviceError` for a damaged or oversized one."""
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
        """Drop noise up to the next frame with our nonce."""
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


def _document(payload: bytes) -> Document:
    def number(text: str) -> float:
        if not math.isfinite(value := float(text)):  # JSON has no NaN, but 1e999 looks like any number
            raise ValueError(f"{text} is not a number")
        return value

    try:
        document = json.loads(payload, parse_constant=number, parse_float=number)
    except (ValueError, RecursionError) as error:
        raise DeviceError(f"the device's reply is not valid JSON: {printable(str(error))}") from error
    if not isinstance(document, dict):
        raise DeviceError("the device's reply is not a JSON object")
    return document


def copy_back(source: str, path: Path) -> None:
    """Copy a file that this machine can see. Raises `DeviceError` naming it."""
    try:
        shutil.copyfile(source, path)
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise DeviceError(f"{printable(source)}: {printable(str(error))}") from error
