"""A bundle in a .tar file or a folder. Files are read by their names; nothing is extracted by the archive's own paths."""

from __future__ import annotations

import os
from typing import Protocol

from ...runtimes.device import Failed
from .trust import plain

BLOCK = 512
MEMBERS = 200
FILE = (b"0", b"\0")  # types of plain files; links, folders and extensions are refused


class Readable(Protocol):
    """An open file of a bundle."""

    def read(self, size: int, /) -> bytes: ...

    def close(self) -> None: ...


class Source:
    """Where a bundle's files are."""

    def open(self, name: str) -> Readable:
        """Open a file. Raises `Failed` where the bundle lacks it."""
        raise NotImplementedError


class Folder(Source):
    """A folder with the files."""

    def __init__(self, path: str) -> None:
        self._path = path

    def open(self, name: str) -> Readable:
        """Open a file, and follow no link."""
        try:
            return os.fdopen(os.open(os.path.join(self._path, plain(name)), os.O_RDONLY | os.O_NOFOLLOW), "rb")
        except OSError as error:
            raise Failed("refused", f"the bundle lacks {name}") from error


class Tar(Source):
    """A .tar file of plain files (POSIX ustar, which GNU tar writes too for short names). Raises `Failed` for any other."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._members: dict[str, tuple[int, int]] = {}
        size, at = os.path.getsize(path), 0
        with open(path, "rb") as file:
            while at + BLOCK <= size:
                file.seek(at)
                header = file.read(BLOCK)
                if not any(header):
                    return
                name, length = _member(header)
                at += BLOCK
                if name in self._members or len(self._members) == MEMBERS:
                    raise Failed("refused", f"the archive has {name} twice, or over {MEMBERS} files")
                if at + length > size:
                    break
                self._members[name] = at, length
                at += -(-length // BLOCK) * BLOCK
        raise Failed("refused", "the archive is truncated; copy it again")

    def open(self, name: str) -> Readable:
        """Open a member."""
        if name not in self._members:
            raise Failed("refused", f"the bundle lacks {name}")
        return _Part(self._path, *self._members[name])


class _Part:
    """A part of a file."""

    def __init__(self, path: str, at: int, length: int) -> None:
        self._file, self._left = open(path, "rb"), length  # noqa: SIM115 - it is a context manager
        self._file.seek(at)

    def read(self, size: int, /) -> bytes:
        data = self._file.read(min(size, self._left))
        self._left -= len(data)
        return data

    def close(self) -> None:
        self._file.close()


def _member(header: bytes) -> tuple[str, int]:
    """The name and the size of a member."""
    try:
        wanted = int(header[148:156].strip(b"\0 "), 8)
        name, length = header[:100].rstrip(b"\0").decode("ascii"), int(header[124:136].strip(b"\0 "), 8)
    except ValueError as error:
        raise Failed(
            "refused", "this is not a .tar file of a bundle: edgeprune bundle -o FILE.tar writes one"
        ) from error
    if sum(header[:148]) + 8 * ord(" ") + sum(header[156:]) != wanted:
        raise Failed("refused", "the archive is damaged; copy it again")
    if header[156:157] not in FILE or header[345:500].strip(b"\0") or length < 0:
        raise Failed("refused", f"the archive holds {name!r}, which is not a plain file")
    return plain(name), length


def source(path: str) -> Source:
    """The bundle at a path. Raises `Failed` where there is none."""
    if os.path.isdir(path):
        return Folder(path)
    if not os.path.isfile(path):
        raise Failed("refused", f"there is no file {path}")
    return Tar(path)
