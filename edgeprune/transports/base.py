"""The port to a device: files there and back, and requests to the agent. Frames are read here, whatever the link."""

from __future__ import annotations

import json
import re
import shutil
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeprune.errors import DeviceError
from edgeprune.limits import LIMITS

HEADER = re.compile(rb"edgeprune ([0-9a-f]{32}) (\d{1,10}) ([0-9a-f]{8})\n")
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

        Raises `DeviceError` when the agent ends early, says something else, or takes over `deadline_s` in all. Closing the
        iterator ends the agent.
        """

    @abstractmethod
    def close(self) -> None:
        """Leave the device as it was found."""


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
    def refuse(text: str) -> None:
        raise ValueError(f"{text} is no number")

    try:
        document = json.loads(payload, parse_constant=refuse)
    except ValueError as error:
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
