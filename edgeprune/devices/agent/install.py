"""Install a runtime into site/RUNTIME, from wheels that the host sent or by the device's own pip."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile

from ...runtimes import machine
from ...runtimes.device import Failed
from ..wire import Done, Install
from .uploads import SPARE_BYTES

UNPACKED_BYTES = 4 << 30
STDERR_CHARS = 2000
LINK = 0o12  # the type of a symbolic link, in the top four bits of a zip entry's attributes


def install(job: Install) -> Done:
    """Install into a temporary folder, then give it its final name."""
    site = os.path.join(machine.home(), "site", job.runtime)
    part = site + ".part"
    shutil.rmtree(part, ignore_errors=True)
    os.makedirs(part, mode=0o700)
    try:
        if job.wheels:
            for wheel in job.wheels:
                unpack(wheel, part)
        else:
            _by_pip(job, part)
        shutil.rmtree(site, ignore_errors=True)
        os.rename(part, site)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Done()


def unpack(wheel: str, folder: str) -> None:
    """Unpack a wheel. A file that would lie outside the folder, or is a link, is refused."""
    name = os.path.basename(wheel)
    with zipfile.ZipFile(wheel) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
        if size > UNPACKED_BYTES or size + SPARE_BYTES > machine.free_bytes():
            raise Failed("disk-full", f"{name} unpacks to {size >> 20} MB")
        for entry in archive.infolist():
            target = os.path.realpath(os.path.join(folder, entry.filename))
            if not target.startswith(os.path.realpath(folder) + os.sep) or entry.external_attr >> 28 == LINK:
                raise Failed("wheel", f"{name} holds a file outside of itself")
            archive.extract(entry, folder)
    for data in [name for name in os.listdir(folder) if name.endswith(".data")]:
        for kind in ("purelib", "platlib"):
            source = os.path.join(folder, data, kind)
            for module in os.listdir(source) if os.path.isdir(source) else ():
                shutil.move(os.path.join(source, module), os.path.join(folder, module))
        shutil.rmtree(os.path.join(folder, data))


def _by_pip(job: Install, folder: str) -> None:
    argv = [sys.executable, "-I", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    argv += [] if job.dependencies else ["--no-deps"]
    try:
        done = subprocess.run(
            [*argv, "--only-binary=:all:", "--target", folder, "--", *job.requirements],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=job.deadline_s,
        )
    except subprocess.TimeoutExpired as error:
        raise Failed("pip", f"pip took over {job.deadline_s:g} s") from error
    if done.returncode:
        raise Failed("pip", done.stderr.decode("utf-8", "backslashreplace").strip()[-STDERR_CHARS:])
