"""Files on the device: over SFTP, or by `cat` in its shell where its SSH server has no SFTP."""

from __future__ import annotations

import shlex
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import paramiko

from edgeprune.devices.transports.ssh.faults import described
from edgeprune.devices.validate import printable
from edgeprune.errors import DeviceError, LinkError
from edgeprune.limits import LIMITS

CHUNK = 1 << 15  # bytes of one SFTP write


class Files(Protocol):
    """The files of the user on the device. Relative paths begin at the home."""

    home: str

    def size(self, path: str) -> int | None:
        """The bytes of a file; None where there is none."""

    def make_folder(self, path: str) -> None:
        """Make a private folder, unless it is there."""

    def write(self, path: str, data: bytes, start: int = 0) -> None:
        """Write a file, of which the first `start` bytes are there."""

    def read(self, path: str, most: int) -> bytes:
        """The first `most` bytes of a file."""

    def rename(self, path: str, to: str) -> None:
        """Give a file its final name. It replaces what was there."""

    def remove(self, path: str) -> None:
        """Remove a file that may be missing."""


class Sftp:
    """Over SFTP."""

    def __init__(self, client: paramiko.SFTPClient) -> None:
        self._client = client
        client.get_channel().settimeout(LIMITS.silence_s)
        self.home = str(client.normalize("."))

    def size(self, path: str) -> int | None:
        """See `Files`."""
        try:
            return int(self._client.stat(path).st_size or 0)
        except FileNotFoundError:
            return None

    def make_folder(self, path: str) -> None:
        """See `Files`. Where it cannot be made, writing into it fails."""
        with suppress(OSError):
            self._client.mkdir(path, 0o700)

    def write(self, path: str, data: bytes, start: int = 0) -> None:
        """See `Files`."""
        with self._client.open(path, "r+b" if start else "wb") as target:
            target.seek(start)
            target.set_pipelined(True)
            for at in range(start, len(data), CHUNK):
                target.write(data[at : at + CHUNK])

    def read(self, path: str, most: int) -> bytes:
        """See `Files`."""
        with self._client.open(path, "rb") as source:
            source.prefetch(min(source.stat().st_size or 0, most))
            return bytes(source.read(most))

    def rename(self, path: str, to: str) -> None:
        """See `Files`."""
        self.remove(to)
        self._client.rename(path, to)

    def remove(self, path: str) -> None:
        """See `Files`."""
        with suppress(OSError):
            self._client.remove(path)


@dataclass(frozen=True)
class Ended:
    """How a command ended. `status` is -1 where a signal ended it."""

    status: int
    output: bytes
    errors: bytes

    @property
    def reason(self) -> str:
        """The last line of its standard error, printable; of its output where it has none."""
        lines = (self.errors.strip() or self.output.strip() or b"it gives no reason").splitlines()
        return printable(lines[-1].decode("utf-8", "backslashreplace").strip(), 200)


class Shell:
    """By commands in the shell of the user there."""

    def __init__(self, client: paramiko.SSHClient) -> None:
        self._client = client
        self.home = self._done("pwd").output.decode("utf-8", "surrogateescape").strip()

    def size(self, path: str) -> int | None:
        """See `Files`."""
        found = run(self._client, _in_sh(f"wc -c < {shlex.quote(path)}"))
        return int(found.output) if found.status == 0 and found.output.strip().isdigit() else None

    def make_folder(self, path: str) -> None:
        """See `Files`."""
        self._done(f"test -d {shlex.quote(path)} || mkdir -m 700 {shlex.quote(path)}")

    def write(self, path: str, data: bytes, start: int = 0) -> None:
        """See `Files`."""
        self._done(f"cat {'>>' if start else '>'} {shlex.quote(path)}", data[start:])

    def read(self, path: str, most: int) -> bytes:
        """See `Files`."""
        return self._done(f"head -c {most} {shlex.quote(path)}", most=most).output

    def rename(self, path: str, to: str) -> None:
        """See `Files`."""
        self._done(f"mv -f {shlex.quote(path)} {shlex.quote(to)}")

    def remove(self, path: str) -> None:
        """See `Files`."""
        self._done(f"rm -f {shlex.quote(path)}")

    def _done(self, command: str, data: bytes = b"", most: int = LIMITS.stderr_bytes) -> Ended:
        found = run(self._client, _in_sh(command), data, most)
        if found.status != 0:
            raise DeviceError(f"the device cannot do {printable(command, 200)}: {found.reason}")
        return found


def _in_sh(command: str) -> str:
    """For a login shell of any kind: the command runs in sh."""
    return shlex.join(["sh", "-c", command])


def run(client: paramiko.SSHClient, command: str, data: bytes = b"", most: int = LIMITS.stderr_bytes) -> Ended:
    """Run a command on a new channel, with `data` as its standard input.

    Raises:
        LinkError: it is silent for `LIMITS.silence_s`, or the link breaks.
        DeviceError: it writes over `most` bytes.
    """
    transport = client.get_transport()
    assert transport is not None
    channel = transport.open_session(timeout=LIMITS.connect_s)
    channel.settimeout(LIMITS.silence_s)
    output, errors = bytearray(), bytearray()
    try:
        channel.exec_command(command)
        with suppress(OSError):  # it ends before it has read all: its errors say why
            channel.sendall(data)
            channel.shutdown_write()
        while part := channel.recv(1 << 16):
            output += part
            if len(output) > most:
                raise DeviceError(f"the device sends over {most} bytes for {printable(command, 80)}")
        while part := channel.recv_stderr(1 << 16):
            errors += part
            del errors[: -LIMITS.stderr_bytes]
        if not channel.status_event.wait(LIMITS.end_s):
            raise LinkError("a command there ended without a status")
        status = int(channel.recv_exit_status())
    except TimeoutError as error:
        raise LinkError(f"the device has sent nothing for {LIMITS.silence_s:g} s") from error
    except (paramiko.SSHException, OSError, EOFError) as error:
        raise LinkError(f"the link broke: {described(error)}") from error
    finally:
        channel.close()
    return Ended(status, bytes(output), bytes(errors))
