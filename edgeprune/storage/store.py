"""The run folder: content-addressed, atomic, locked, resumable. No other module writes it.

    runs/TARGET/               runs/shared/ for stages that read nothing of a target
      lock                     held by the run that works here
      STAGE-KEY/               a finished stage: its files, and `entry.json` with their digests and what the stage read
      partial/STAGE-KEY/       what an interrupted stage resumes from
      aside/STAGE-KEY-N/       a finished stage that was found damaged

A finished stage appears by one rename, after its files are on the disk. A kill or a power cut at any moment leaves the
stage complete or absent.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from edgeprune.errors import BusyError, UsageError
from edgeprune.limits import LIMITS

MANIFEST = "entry.json"
KEY = re.compile(r"[0-9a-f]{12,}")
POLL_S = 0.1  # between two looks at a lock that another run holds
KEY_CHARS = 12  # of a key in a folder's name; the manifest holds all of it
FULL = "the disk is full: free some space and run the same command again"
NO_PERMISSION = "no permission to write: make the folder writable or copy the project elsewhere"
HINTS = {
    errno.ENOSPC: FULL,
    errno.EDQUOT: "the disk quota is used up: free some space and run the same command again",
    errno.EROFS: "the file system is read-only: copy the project to a folder you can write",
    errno.EACCES: NO_PERMISSION,
    errno.EPERM: NO_PERMISSION,
    errno.ENOTDIR: "a file stands where a folder must be: move it away",
    errno.EEXIST: "a file stands where a folder must be: move it away",
    errno.ENOLCK: "the file system has no locks: copy the project to a local disk",
    errno.ENOTSUP: "the file system has no locks: copy the project to a local disk",
}

log = logging.getLogger("edgeprune")


@dataclass(frozen=True)
class Entry:
    """A finished stage, every file of which was checked."""

    folder: Path

    def path(self, name: str | Path) -> Path:
        """The path of one of its files."""
        return self.folder / name


class Draft:
    """A stage in the making: files are written into `folder`; `entry` is there once it is finished."""

    def __init__(self, folder: Path, final: Path) -> None:
        self.folder = folder
        self.entry = Entry(final)

    def path(self, name: str) -> Path:
        """Where to write a file of this stage; the folders above it are made."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def relative(self, path: Path) -> Path:
        """A file's path as the stage's own: below its folder."""
        return path.relative_to(self.folder)

    def write_text(self, name: str, text: str) -> None:
        """Write a small file of this stage, in UTF-8."""
        self.path(name).write_text(text, encoding="utf-8")


class Store:
    """A run folder, held by one process at a time for as long as the context lasts.

    The lock is the kernel's: it ends with the process, however that ends.

    Args:
        folder: the run folder; it is made where it is missing.
        wait_s: how long to wait for another run that holds it, in seconds.

    Raises:
        UsageError: on entering, for a folder that cannot be written.
        BusyError: on entering, where another run still holds it after `wait_s`.
    """

    def __init__(self, folder: Path, wait_s: float = 0.0) -> None:
        self.folder = folder
        self._wait_s = wait_s
        self._lock: int | None = None

    def __enter__(self) -> Self:
        with _explained(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            with _explained(self.folder):
                self._acquire(self._lock)
                for leftover in self.folder.glob(".draft-*"):  # of a run that was killed: the lock says none is alive
                    shutil.rmtree(leftover)
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()

    def _acquire(self, lock: int) -> None:
        until, waited = time.monotonic() + self._wait_s, False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                holder = " ".join(os.pread(lock, 100, 0).decode(errors="replace").split()) or "another process"
                if time.monotonic() >= until:
                    raise BusyError(f"{self.folder} is in use by {holder}; wait for it to end, or end it") from None
            if not waited:
                log.warning("%s is in use by %s: waiting", self.folder, holder)
            waited = True
            time.sleep(POLL_S)
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"process {os.getpid()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode(), 0)

    def _release(self) -> None:
        if self._lock is not None:
            fcntl.flock(self._lock, fcntl.LOCK_UN)  # a forked child may still hold the descriptor
            os.close(self._lock)
            self._lock = None

    def find(self, name: str, key: str) -> Entry | None:
        """The finished stage, every file checked against its size and digest, or None.

        A damaged one is moved to `aside/`, with one warning, so that it is made again.
        """
        folder = self._place(name, key)
        if not os.path.lexists(folder):
            return None
        damage = _damage(folder, key)
        if damage is None:
            return Entry(folder)
        aside = self.folder / "aside"
        with _explained(aside):
            aside.mkdir(exist_ok=True)
            number = 1 + sum(1 for _ in aside.glob(f"{folder.name}-*"))
            while os.path.lexists(aside / f"{folder.name}-{number}"):
                number += 1
            os.replace(folder, aside / f"{folder.name}-{number}")
        log.warning(
            "%s is damaged (%s): set aside as %s-%d, to be made again",
            folder,
            damage,
            aside / folder.name,
            number,
        )
        return None

    def newest(self, name: str, holds: Callable[[Mapping[str, Any]], bool]) -> Entry | None:
        """The undamaged stage of this name that was finished last, of those whose manifest `holds`, whatever their keys."""
        for place, manifest in self._manifests(name):
            key = str(manifest.get("key"))
            if KEY.fullmatch(key) and self._place(name, key) == place and holds(manifest):
                entry = self.find(name, key)
                if entry is not None:
                    return entry
        return None

    def last_read(self, name: str) -> Mapping[str, object] | None:
        """What the stage of this name that was finished last had read, by label; None where there is none."""
        return next((reads for _, m in self._manifests(name) if isinstance(reads := m.get("reads"), dict)), None)

    def _manifests(self, name: str) -> Iterator[tuple[Path, Mapping[str, Any]]]:
        """The manifests of a stage's entries, the last one finished first; what cannot be read is passed over."""
        places = [path for path in self.folder.glob(f"{name}-*") if (path / MANIFEST).is_file()]
        for place in sorted(places, key=lambda path: (path / MANIFEST).stat().st_mtime_ns, reverse=True):
            try:
                manifest = json.loads(read_capped(place / MANIFEST, LIMITS.json_bytes))
            except (ValueError, UsageError, RecursionError):
                continue
            if isinstance(manifest, dict):
                yield place, manifest

    @contextmanager
    def create(self, name: str, key: str, told: Mapping[str, object] | None = None) -> Iterator[Draft]:
        """Make a stage, or make it again: it appears when the block ends well, and leaves nothing when it does not.

        `told` is added to its manifest. Its scratch folder is removed when it is finished. Raises `UsageError` for a full or
        read-only disk.
        """
        final = self._place(name, key)
        with _explained(self.folder):
            temporary = Path(tempfile.mkdtemp(prefix=".draft-", dir=self.folder))
            try:
                temporary.chmod(0o755)  # mkdtemp makes it private
                yield Draft(temporary, final)
                _write_manifest(temporary, {"key": key, **(told or {})})
                former = temporary.with_name(f"{temporary.name}-former")
                if final.exists():
                    os.replace(final, former)  # out of the way in one step: never half deleted
                os.replace(temporary, final)
                _sync(self.folder)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
        for done_with in (former, self._partial(name, key)):
            shutil.rmtree(done_with, ignore_errors=True)

    def scratch(self, name: str, key: str) -> Path:
        """A folder that outlives a killed stage; it goes when the stage is finished."""
        folder = self._partial(name, key)
        with _explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def save(self, path: Path, write: Callable[[Path], None]) -> None:
        """Replace one file in one step: `write` is given the path to write to, on the same file system.

        What was there stays whole when this fails or is killed. Raises `UsageError` for a full or read-only
        disk.
        """
        _replace(path, write)

    def _place(self, name: str, key: str) -> Path:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or not KEY.fullmatch(key):
            raise ValueError(f"{name!r} and {key!r} are no stage and no digest")  # they name a folder
        return self.folder / f"{name}-{key[:KEY_CHARS]}"

    def _partial(self, name: str, key: str) -> Path:
        return self.folder / "partial" / self._place(name, key).name


def write_atomic(path: Path, data: bytes) -> None:
    """Replace a file in one step, making the folders above it; what was there stays whole when this fails.

    One writer at a time: the run folder's lock sees to that. Raises `UsageError` naming path and next step.
    """
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)

    def write(temporary: Path) -> None:
        temporary.write_bytes(data)

    _replace(path, write)


def read_capped(path: Path, cap: int) -> bytes:
    """A regular file's bytes. Raises `UsageError` where it cannot be read or is over `cap` bytes."""
    try:
        if path.exists() and not path.is_file():
            raise UsageError(f"{path}: is not a file; give the path of a file")
        with path.open("rb") as stream:
            data = stream.read(cap + 1)
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte in it
        raise UsageError(
            f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}; "
            "give the path of a file that you can read"
        ) from error
    if len(data) > cap:
        raise UsageError(f"{path}: over {cap} bytes; is it the right file?")
    return data


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_of(files: Sequence[Path]) -> str:
    """SHA-256, in hex, over the files of an artifact in order."""
    sha = hashlib.sha256()
    for file in files:
        sha.update(file.read_bytes())
    return sha.hexdigest()


def _write_manifest(folder: Path, told: Mapping[str, object]) -> None:
    """Write `told` and the digests of all files into the manifest, and sync everything to the disk."""
    paths = sorted(folder.rglob("*"))
    files = {
        path.relative_to(folder).as_posix(): {"sha256": file_sha256(path), "size": path.stat().st_size}
        for path in paths
        if path.is_file()
    }
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({**told, "files": files}, indent=1), encoding="utf-8")
    for path in (*paths, manifest, folder):
        _sync(path)


def _damage(folder: Path, key: str) -> str | None:
    """What is wrong with a finished stage, or None."""
    name = MANIFEST
    try:
        manifest = json.loads(read_capped(folder / MANIFEST, LIMITS.json_bytes))
        if manifest["key"] != key:
            return "it belongs to another key"
        for name, wanted in manifest["files"].items():
            path = folder / name
            if path.is_symlink() or not path.resolve().is_relative_to(folder.resolve()):
                return f"{name} leads out of it"
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != wanted["size"] or file_sha256(path) != wanted["sha256"]:
                return f"{name} has changed"
    except (OSError, UsageError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{name} cannot be read"
    return None


def _replace(path: Path, write: Callable[[Path], None]) -> None:
    temporary = path.with_name(f".{path.name}.new")  # always the same: a kill leaves one at most
    with _explained(path):
        try:
            write(temporary)
            _sync(temporary)
            os.replace(temporary, path)
            _sync(path.parent)
        finally:
            with suppress(OSError):
                temporary.unlink()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what the file system refuses at `path` into an error that names it and the next step."""
    try:
        yield
    except OSError as error:
        refused = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else path
        near = refused.is_relative_to(path) or path.is_relative_to(refused) or refused.parent == path.parent
        hint = HINTS.get(error.errno or 0)
        if hint is None or not near:  # not ours: somebody else's file, met while a stage was made
            raise
        raise UsageError(f"{path}: {hint}") from error
    except Exception as error:
        # Native writers (safetensors) say that the disk is full in words only, and in errors of their own.
        if os.strerror(errno.ENOSPC) in str(error) and not isinstance(error, UsageError):
            raise UsageError(f"{path}: {FULL}") from error
        raise
