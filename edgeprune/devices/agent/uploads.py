"""Uploaded files: a folder for each set of files, named by the digest of their content."""

from __future__ import annotations

import hashlib
import os
import shutil
import zlib

from ...runtimes import machine
from ...runtimes.device import Failed
from ..wire import Discard, Done, Reserve, Reserved, Store, Stored

STORE_BYTES = 1 << 30  # of uploads that are kept; the least recently used are dropped first
SPARE_BYTES = 64 << 20  # of the disk that stay free
KEPT: dict[str, int] = {}  # folder -> bytes, the least recently used first; filled at the first use


def reserve(job: Reserve) -> Reserved:
    """Whether the files are here already. If not, drop old uploads until they fit, and report what is partly here."""
    files = os.path.join(machine.home(), "files")
    folder = os.path.join(files, job.folder)
    if os.path.isdir(folder):
        os.utime(folder)
        KEPT[folder] = KEPT.pop(folder, 0)
        return Reserved(True)
    if not KEPT:
        for entry in sorted(os.scandir(files), key=lambda entry: entry.stat().st_mtime):
            KEPT[entry.path] = sum(file.stat().st_size for file in os.scandir(entry.path))
    part = folder + ".part"
    KEPT.pop(part, None)
    _drop_until(job.bytes)
    if machine.free_bytes() < job.bytes + SPARE_BYTES:
        shutil.rmtree(part, ignore_errors=True)
        needed, free = job.bytes + SPARE_BYTES >> 20, machine.free_bytes() >> 20
        raise Failed("disk-full", f"{machine.home()} needs {needed} MB, and {free} MB are free")
    os.makedirs(part, mode=0o700, exist_ok=True)
    return Reserved(False, {entry.name: entry.stat().st_size for entry in os.scandir(part)})


def _drop_until(size: int) -> None:
    """Drop the least recently used uploads until so many bytes fit."""
    for path in list(KEPT):
        if sum(KEPT.values()) + size <= STORE_BYTES and machine.free_bytes() >= size + SPARE_BYTES:
            return
        shutil.rmtree(path, ignore_errors=True)
        del KEPT[path]


def store(job: Store) -> Done:
    """Unpack uploaded files. They get their final name once every file is as it was sent; else all are dropped."""
    folder = os.path.join(machine.home(), "files", job.folder)
    part = folder + ".part"
    try:
        for name, wanted in job.files.items():
            _inflate(os.path.join(part, name), wanted)
        os.rename(part, folder)
        machine.sync(os.path.dirname(folder))
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    KEPT[folder] = sum(file.bytes for file in job.files.values())
    return Done()


def _inflate(path: str, wanted: Stored) -> None:
    """Unpack path.z to path, down to the disk, and check size and SHA-256."""
    sha, unpacker = hashlib.sha256(), zlib.decompressobj()
    try:
        with open(path + ".z", "rb") as source, open(path, "wb") as target:
            data = source.read(1 << 20)
            while data and target.tell() <= wanted.bytes:
                plain = unpacker.decompress(data, 1 << 20)
                sha.update(plain)
                target.write(plain)
                data = unpacker.unconsumed_tail or source.read(1 << 20)
            target.flush()
            os.fsync(target.fileno())
            right = target.tell() == wanted.bytes and sha.hexdigest() == wanted.sha256
    except zlib.error:
        right = False
    if not right:
        raise Failed("damaged", f"{os.path.basename(path)} arrived damaged")
    os.unlink(path + ".z")


def discard(job: Discard) -> Done:
    """Remove an upload that failed."""
    shutil.rmtree(os.path.join(machine.home(), "files", job.folder + ".part"), ignore_errors=True)
    return Done()
