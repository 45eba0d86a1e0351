"""The run folder: content-addressed, atomic, locked, resumable. No other module writes it.

    runs/TARGET/               or runs/shared/ for stages that do not depend on the target
      lock.N                   the run that works here holds it; see `storage/lock.py`
      locks/STAGE-KEY/         the lock of a stage that is made while other runs may work here, such as a training
      STAGE-KEY/               a finished stage: its files, and `entry.json` with their digests and what the stage read
      partial/STAGE-KEY/       files that an interrupted stage resumes from
      aside/STAGE-KEY-N/       a finished stage that was found damaged

A finished stage appears by one rename, after its files are on the disk. So the stage is complete or absent, whenever the
process is killed or the power fails.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from edgeprune.errors import UsageError
from edgeprune.limits import LIMITS
from edgeprune.storage.lock import Lock, is_held

MANIFEST = "entry.json"
KEY = re.compile(r"[0-9a-f]{12,}")
KEY_CHARS = 12  # of a key in a folder's name; the manifest holds the whole key
FULL = "the disk is full: free some space and run the same command again"
NO_PERMISSION = "no permission to write: make the folder writable or copy the project elsewhere"
HINTS = {
    errno.ENOSPC: FULL,
    errno.EDQUOT: "the disk quota is used up: free some space and run the same command again",
    errno.EROFS: "the file system is read-only: copy the project to a folder you can write",
    errno.EACCES: NO_PERMISSION,
    errno.EPERM: NO_PERMISSION,
    errno.ENOTDIR: "there is a file in place of a folder: move it away",
    errno.EISDIR: "there is a folder in place of a link: move it away",
    errno.EEXIST: "there is a file in place of a folder: move it away",
    errno.ENOTSUP: "the file system has no hard links: copy the project to another disk",
}

log = logging.getLogger("edgeprune")


@dataclass(frozen=True)
class Entry:
    """A finished stage. All its files were checked."""

    folder: Path

    def path(self, name: str | Path) -> Path:
        """The path of a file of the stage."""
        return self.folder / name


class Draft:
    """A stage that is being made. Files are written into `folder`. `entry` exists once the stage is finished.

    If `settled` is set to false, the stage will be made again, and its scratch folder stays.
    """

    def __init__(self, folder: Path, final: Path) -> None:
        self.folder, self.settled = folder, True
        self.entry = Entry(final)

    def path(self, name: str) -> Path:
        """The path to write a file of this stage to. The folders above it are made."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def relative(self, path: Path) -> Path:
        """A file's path relative to the stage's folder."""
        return path.relative_to(self.folder)

    def write_text(self, name: str, text: str) -> None:
        """Write a small file of this stage, in UTF-8."""
        self.path(name).write_text(text, encoding="utf-8")


class Store:
    """A run folder. One process at a time holds it, until the context ends.

    The lock ends with the process, also after a kill; see `storage/lock.py`.

    Args:
        folder: the run folder. It is made if it is missing.
        wait_s: how long to wait for another run that holds it, in seconds.

    Raises:
        UsageError: on entering: the folder cannot be written.
        BusyError: on entering: another run still holds it after `wait_s`.
    """

    def __init__(self, folder: Path, wait_s: float = 0.0) -> None:
        self.folder = folder
        self._wait_s = wait_s
        self._lock = Lock(folder)

    def __enter__(self) -> Self:
        _make(self.folder)
        with _explained(self.folder):
            self._lock.acquire(self._wait_s)
            try:
                self._remove_drafts()
            except BaseException:
                self._lock.release()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def _remove_drafts(self) -> None:
        """Remove what killed runs left. Stages that are made apart have their own locks."""
        for draft in self.folder.glob(".draft-*"):
            stage = draft.name.removeprefix(".draft-").rpartition("-")[0]
            if not stage or not is_held(self.folder / "locks" / stage):
                shutil.rmtree(draft)

    @contextmanager
    def apart(self, name: str, key: str) -> Iterator[None]:
        """Let other runs work in the folder while a long stage is made. Nobody else makes this stage meanwhile.

        Look for the stage inside the context: another run may just have finished it.
        """
        own = self.folder / "locks" / self._place(name, key).name
        _make(own)
        lock = Lock(own)
        self._lock.release()
        lock.acquire(LIMITS.lease_wait_s)
        try:
            yield
        finally:
            lock.release()
        self._lock.acquire(LIMITS.lease_wait_s)  # not after an error: the run ends then

    def find(self, name: str, key: str) -> Entry | None:
        """A finished stage with all its files checked by size and digest; None if there is none.

        A damaged stage is moved to `aside/` with a warning. It is then made again.
        """
        folder = self._place(name, key)
        if not os.path.lexists(folder):
            return None
        found = damage(folder, key)
        if found is None:
            return Entry(folder)
        aside = self.folder / "aside"
        with _explained(aside):
            aside.mkdir(exist_ok=True)
            number = 1 + sum(1 for _ in aside.glob(f"{folder.name}-*"))
            while os.path.lexists(aside / f"{folder.name}-{number}"):
                number += 1
            os.replace(folder, aside / f"{folder.name}-{number}")
        log.warning(
            "%s is damaged (%s): it is set aside as %s-%d, and made again",
            folder,
            found,
            aside / folder.name,
            number,
        )
        return None

    def newest(self, name: str, holds: Callable[[Mapping[str, Any]], bool]) -> Entry | None:
        """The last finished, undamaged stage of this name. It may have any key, but `holds` must be true of its manifest."""
        for place, manifest in self._manifests(name):
            key = str(manifest.get("key"))
            if KEY.fullmatch(key) and self._place(name, key) == place and holds(manifest):
                entry = self.find(name, key)
                if entry is not None:
                    return entry
        return None

    def last_read(self, name: str) -> Mapping[str, object] | None:
        """What the last finished stage of this name has read: {label: value}; None if there is none."""
        return next((reads for _, m in self._manifests(name) if isinstance(reads := m.get("reads"), dict)), None)

    def _manifests(self, name: str) -> Iterator[tuple[Path, Mapping[str, Any]]]:
        """The manifests of a stage's entries, the last finished one first. Unreadable ones are skipped."""
        for place in entries(self.folder, name):
            try:
                manifest = json.loads(read_capped(place / MANIFEST, LIMITS.json_bytes))
            except (ValueError, UsageError, RecursionError):
                continue
            if isinstance(manifest, dict):
                yield place, manifest

    @contextmanager
    def create(self, name: str, key: str, facts: Mapping[str, object] | None = None) -> Iterator[Draft]:
        """Make a stage, or make it again. It appears when the block ends. If the block raises, nothing is left.

        The stage's scratch folder is removed when it is finished.

        Args:
            name: the stage.
            key: the digest of what it reads.
            facts: are added to its manifest.

        Raises:
            UsageError: the disk is full or read-only.
        """
        final = self._place(name, key)
        with _explained(self.folder):
            temporary = Path(tempfile.mkdtemp(prefix=f".draft-{final.name}-", dir=self.folder))
            try:
                temporary.chmod(0o755)  # mkdtemp makes it private
                draft = Draft(temporary, final)
                yield draft
                _write_manifest(temporary, {"key": key, **(facts or {})})
                former = temporary.with_name(f"{temporary.name}-former")
                if final.exists():
                    os.replace(final, former)  # in one step, so that it is never half deleted
                os.replace(temporary, final)
                _sync(self.folder)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
        for done_with in (former, *([self._partial(name, key)] if draft.settled else [])):
            shutil.rmtree(done_with, ignore_errors=True)

    def scratch(self, name: str, key: str) -> Path:
        """A folder that stays if the stage is killed. It is removed when the stage is finished."""
        folder = self._partial(name, key)
        _make(folder)
        return folder

    def save(self, path: Path, write: Callable[[Path], None]) -> None:
        """Replace a file in one step. After a failure or a kill, the earlier file is unchanged.

        Args:
            path: the file.
            write: writes the new content to the path that it is called with, on the same file system.

        Raises:
            UsageError: the disk is full or read-only.
        """
        _replace(path, write)

    def link(self, name: str, folder: Path) -> None:
        """Let the link `name` of the run folder lead to `folder`, which is in the run folder, too. It changes in one step.

        Raises:
            UsageError: the disk is full or read-only, or something else has the name.
        """
        link, there = self.folder / name, str(folder.relative_to(self.folder))
        with _explained(link):
            if link.is_symlink() and os.readlink(link) == there:
                return
            new = self.folder / f".{name}.new"
            new.unlink(missing_ok=True)  # of a killed run
            new.symlink_to(there, target_is_directory=True)
            os.replace(new, link)
            _sync(self.folder)

    def _place(self, name: str, key: str) -> Path:
        return self.folder / folder_name(name, key)

    def _partial(self, name: str, key: str) -> Path:
        return self.folder / "partial" / self._place(name, key).name


def write_atomic(path: Path, data: bytes) -> None:
    """Replace a file in one step, and make the folders above it. After a failure, the earlier file is unchanged.

    Only one process may write it at a time; the lock of the run folder ensures it. Raises `UsageError` with the path and what
    to do.
    """
    _make(path.parent)

    def write(temporary: Path) -> None:
        temporary.write_bytes(data)

    _replace(path, write)


def read_capped(path: Path, cap: int) -> bytes:
    """The bytes of a regular file. Raises `UsageError` if it cannot be read or is larger than `cap` bytes."""
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
    """SHA-256, in hex, of the content of all files in order."""
    sha = hashlib.sha256()
    for file in files:
        sha.update(file.read_bytes())
    return sha.hexdigest()


def _write_manifest(folder: Path, facts: Mapping[str, object]) -> None:
    """Write `facts` and the digests of all files into the manifest, and sync everything to the disk."""
    paths = sorted(folder.rglob("*"))
    files = {
        path.relative_to(folder).as_posix(): {"sha256": file_sha256(path), "size": path.stat().st_size}
        for path in paths
        if path.is_file()
    }
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({**facts, "files": files}, indent=1), encoding="utf-8")
    for path in (*paths, manifest, folder):
        _sync(path)


def entries(folder: Path, name: str) -> list[Path]:
    """The folders of a stage's entries in a run folder, the last finished one first. Their content is not checked."""
    places = [path for path in folder.glob(f"{name}-*") if (path / MANIFEST).is_file()]
    return sorted(places, key=lambda path: (path / MANIFEST).stat().st_mtime_ns, reverse=True)


def folder_name(name: str, key: str) -> str:
    """The name of the folder that holds a stage's entry. Raises `ValueError` if `name` or `key` cannot be in a path."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or not KEY.fullmatch(key):
        raise ValueError(f"{name!r} is not a stage, or {key!r} is not a digest")
    return f"{name}-{key[:KEY_CHARS]}"


def damage(folder: Path, key: str) -> str | None:
    """The damage of a finished stage; None if it is undamaged."""
    name = MANIFEST
    try:
        manifest = json.loads(read_capped(folder / MANIFEST, LIMITS.json_bytes))
        if manifest["key"] != key:
            return "it belongs to another key"
        for name, wanted in manifest["files"].items():
            path = folder / name
            if path.is_symlink() or not path.resolve().is_relative_to(folder.resolve()):
                return f"{name} is outside its folder"
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != wanted["size"] or file_sha256(path) != wanted["sha256"]:
                return f"{name} has changed"
    except (OSError, UsageError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{name} cannot be read"
    return None


def _replace(path: Path, write: Callable[[Path], None]) -> None:
    temporary = path.with_name(f".{path.name}.new")  # always the same name: kills leave one file at most
    with _explained(path):
        try:
            write(temporary)
            _sync(temporary)
            os.replace(temporary, path)
            _sync(path.parent)
        finally:
            with suppress(OSError):
                temporary.unlink()


def _make(folder: Path) -> None:
    """Make a folder and those above it. Raises `UsageError` with the path and what to do."""
    with _explained(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if error.errno in HINTS:
                raise
            raise UsageError(f"{folder}: cannot be made: {error.strerror}; give another folder") from error


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn an error of the file system at `path` into a `UsageError` with the path and what to do."""
    try:
        yield
    except OSError as error:
        refused = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else path
        near = refused.is_relative_to(path) or path.is_relative_to(refused) or refused.parent == path.parent
        hint = HINTS.get(error.errno or 0)
        if hint is None or not near:  # another file that a stage opened: for instance, of the user's code
            raise
        raise UsageError(f"{path}: {hint}") from error
    except Exception as error:
        # Native writers (safetensors) raise their own errors, and report a full disk only in the message.
        if os.strerror(errno.ENOSPC) in str(error) and not isinstance(error, UsageError):
            raise UsageError(f"{path}: {FULL}") from error
        raise
