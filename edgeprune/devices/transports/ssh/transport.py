"""The transport over SSH: it connects at the first use, and again when the link breaks."""

from __future__ import annotations

import hashlib
import logging
import secrets
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from edgeprune.devices import wire
from edgeprune.devices.transports.base import Document, Refusal, Transport, slowness
from edgeprune.devices.transports.ssh.connection import Connection
from edgeprune.devices.transports.ssh.remote import files_folder, typed
from edgeprune.errors import BusyError, DeviceError, LinkError
from edgeprune.limits import LIMITS
from edgeprune.records import Target
from edgeprune.storage.store import file_sha256

BUSY_POLL_S = 2.0
UPLOADS = 2  # tries until a file arrives as it was sent
BACK_OFF_S = (0.5, 1.0, 2.0, 4.0, 8.0)  # between tries to connect again; the last one repeats

log = logging.getLogger("edgeprune")
Value = TypeVar("Value")


class Ssh(Transport):
    """The device of a target over SSH.

    Args:
        target: must have a host.
        wait_s: how long to wait for the lease while another host holds the device, in seconds.
    """

    def __init__(self, target: Target, wait_s: float = 0.0) -> None:
        assert target.host is not None
        self._target, self._host, self._wait_s = target, target.host, wait_s
        self.slowness = slowness(target)
        self._token = secrets.token_hex(16)
        self._connection: Connection | None = None
        self._reached = False  # only a device that has answered before is waited for
        self._uploaded: dict[str, str] = {}  # digest of files -> the path there of the first

    def open(self) -> None:
        """Connect and take the lease. Without it, the first use does."""
        self._retried(self._connected)

    def put(self, files: Sequence[Path]) -> str:
        """Upload files to a folder that is named after their content. Files that are there already are not sent again."""
        hashes = {file.name: file_sha256(file) for file in files}
        digest = hashlib.sha256(repr(sorted(hashes.items())).encode()).hexdigest()[:32]
        if digest not in self._uploaded:
            self._retried(lambda: self._upload(digest, files, hashes))
            self._uploaded[digest] = f"{self._connected().home}/{files_folder(digest)}/{files[0].name}"
        return self._uploaded[digest]

    def get(self, remote: str, path: Path) -> None:
        """Download one file of at most `LIMITS.output_bytes`."""
        self._retried(lambda: self._connected().download(remote, path))

    def call(self, jobs: Sequence[Document], deadline_s: float) -> Iterator[Document]:
        """See `Transport.call`. Jobs that have no reply when the link breaks are sent again."""
        unanswered, faults, done = list(jobs), 0, False
        until = time.monotonic() + deadline_s
        try:
            while unanswered:
                try:
                    for reply in self._connected().ask(unanswered, until - time.monotonic()):
                        unanswered.pop(0)
                        yield reply
                except LinkError as error:
                    faults = self._reconnect(error, faults)
                    until += LIMITS.heal_s
            done = True
        finally:
            if not done:
                self.close()

    def close(self) -> None:
        """End the agent, which returns the lease, and the connection."""
        if self._connection is not None:
            self._connection.leave()
        self._disconnect()

    # ----------------------------------------------------------------------------------------------------- connecting

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = self._leased()
        return self._connection

    def _leased(self) -> Connection:
        """A connection that holds the lease."""
        until, logged = time.monotonic() + self._wait_s, False
        while True:
            try:
                connection = Connection(self._target, self._host)
                self._reached = True
                connection.greet(self._token)
                return connection
            except BusyError as error:
                if time.monotonic() >= until:
                    raise BusyError(f"{self._target.name}: {error}. Wait, or pass --wait.") from error
                if not logged:
                    log.warning("%s: %s; waiting", self._target.name, error)
                logged = True
                time.sleep(BUSY_POLL_S)

    def _retried(self, work: Callable[[], Value]) -> Value:
        """Do the work; connect and begin again when the link breaks."""
        faults = 0
        while True:
            try:
                return work()
            except LinkError as error:
                faults = self._reconnect(error, faults)

    def _reconnect(self, fault: LinkError, faults: int) -> int:
        """Connect again after a fault.

        Args:
            faults: faults before this one in the same operation.

        Returns:
            The faults so far.

        Raises:
            DeviceError: the device never answered, the link broke too often, or it does not come back in time.
        """
        self._disconnect()
        if not self._reached:
            raise DeviceError(f"{self._target.name}: {fault}. Try: {typed(self._host)}") from fault
        faults += 1
        if faults > LIMITS.reconnects:
            raise DeviceError(f"{self._target.name}: the link broke {faults} times: {fault}") from fault
        log.warning("%s: %s; connecting again", self._target.name, fault)
        until, attempt = time.monotonic() + LIMITS.heal_s, 0
        while True:
            try:
                self._connected()
                return faults
            # A board that starts again has no name yet, or refuses logins for a while.
            except DeviceError as error:
                pause_s = BACK_OFF_S[min(attempt, len(BACK_OFF_S) - 1)]
                if time.monotonic() + pause_s > until:
                    raise DeviceError(
                        f"{self._target.name}: {fault}; not back within {LIMITS.heal_s:g} s: {error}. Measurements so far"
                        " are kept: run the same command again when the device is back."
                    ) from error
                time.sleep(pause_s)
                attempt += 1

    # ------------------------------------------------------------------------------------------------------ uploading

    def _upload(self, digest: str, files: Sequence[Path], hashes: Mapping[str, str]) -> None:
        """Send files compressed, under a temporary name. The agent unpacks, checks and renames them."""
        packed = {file.name: zlib.compress(file.read_bytes(), 1) for file in files}
        stored = {file.name: wire.Stored(file.stat().st_size, hashes[file.name]) for file in files}
        size = sum(file.bytes for file in stored.values()) + sum(map(len, packed.values()))
        for _ in range(UPLOADS):
            connection = self._connected()
            reserved = connection.order(wire.Reserve(LIMITS.job_s, digest, size))
            if reserved.present:
                return
            self._send(connection, digest, packed, reserved.partial)
            try:
                connection.order(wire.Store(LIMITS.job_s, digest, stored))
                return
            except Refusal as error:
                if error.kind != "damaged":
                    raise
        raise DeviceError(
            f"{files[0].name} arrives damaged at {self._target.name}. Check the device's disk and the link."
        )

    def _send(
        self, connection: Connection, digest: str, packed: Mapping[str, bytes], partial: Mapping[str, int]
    ) -> None:
        """Send what is missing of the packed files; `partial` are the bytes of each that are there."""
        try:
            for name, data in packed.items():
                connection.upload(data, f"{files_folder(digest)}.part/{name}.z", partial.get(f"{name}.z", 0))
        except LinkError:
            raise  # the next try continues the upload
        except DeviceError:
            connection.order(wire.Discard(LIMITS.job_s, digest))  # a full disk: leave no partial file behind
            raise
