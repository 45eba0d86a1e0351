"""The machine that the agent runs on: its folder, small files, and facts.

It travels to devices: standard library only, Python 3.8 and up.
"""

from __future__ import annotations

import contextlib
import errno
import getpass
import hashlib
import itertools
import os
import re
import resource
import shutil
import socket
import sys

COLDEST_MC, HOTTEST_MC = (
    -60_000,
    127_000,
)  # others are the values of sensors that are switched off; 127 is a full byte's
LEAST_MC = 1000  # of a processor at work; old kernels report degrees or percents, which are lower
PROCESSOR = re.compile(r"cpu|gpu|mpu|soc|pkg|package|core|tj|big|little")  # types of thermal zones
WHOLE = re.compile(r"-?[0-9]{1,18}")  # what a sensor reports
MONITORS = "k10temp", "zenpower", "coretemp"  # drivers of sensors in a processor, for systems without such a zone
CAPS = re.compile(
    r"cpufreq|^Processor$|powerclamp|thermal-idle|^idle-cpu"
)  # cooling devices that slow the processor down


def home() -> str:
    """The folder of the agent's file."""
    return os.path.dirname(os.path.abspath(sys.argv[0]))


def root() -> str:
    """The folder that keeps files on a device: the agent's own, or ~/.edgeprune where this machine is the device."""
    here = home()
    return here if os.path.basename(here) == ".edgeprune" else os.path.expanduser("~/.edgeprune")


def whoami() -> str:
    """The user and the name of this machine, for locks and logs on devices."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # as in some containers
        user = "somebody"
    return f"{user}@{socket.gethostname()}"


def free_bytes() -> int:
    """The free space where files are kept."""
    return shutil.disk_usage(_existing(root())).free


def _existing(place: str) -> str:
    """A folder, or the nearest one above it that exists."""
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    return place


def write(path: str, content: bytes) -> None:
    """Write a small file in one step, down to the disk."""
    with open(path + ".new", "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(path + ".new", path)
    sync(os.path.dirname(path))


def sync(path: str) -> None:
    """Bring a file or folder to the disk. A rename is on the disk only once its folder is."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: str) -> None:
    """Remove a file that may be missing."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def sha256(path: str) -> str:
    """The SHA-256 of a file, in hex."""
    sha = hashlib.sha256()
    with open(path, "rb") as file:
        for part in iter(lambda: file.read(1 << 20), b""):
            sha.update(part)
    return sha.hexdigest()


def listed(folder: str) -> list[str]:
    """The sorted names in a folder; none where the folder cannot be read."""
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def first_line(path: str) -> str:
    """The first line of a small file, or an empty string."""
    try:
        with open(path, encoding="utf-8", errors="backslashreplace") as file:
            return file.readline(1000).strip("\0\n ")
    except OSError:
        return ""


def lines(path: str, most: int = 1000) -> list[str]:
    """The first lines of a small file; none where it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="backslashreplace") as file:
            return [line.strip("\0\n ") for line in itertools.islice(file, most)]
    except OSError:
        return []


def temperature_mc(thermal: str = "/sys/class/thermal", monitors: str = "/sys/class/hwmon") -> int | None:
    """The temperature of the processor's hottest zone, in millidegrees; None where the device does not report any.

    Without such a zone, the processor's own monitor counts, and then all zones. A power controller (PMIC) reports a constant.
    """
    zones = {name: first_line(f"{thermal}/{name}/type").lower() for name in listed(thermal)}
    others = [f"{thermal}/{name}/temp" for name, kind in zones.items() if "pmic" not in kind]
    own = [f"{thermal}/{name}/temp" for name, kind in zones.items() if "pmic" not in kind and PROCESSOR.search(kind)]
    chips = [name for name in listed(monitors) if first_line(f"{monitors}/{name}/name") in MONITORS]
    for files in (own, [f"{monitors}/{name}/temp1_input" for name in chips], others):
        values = [int(text) for text in map(first_line, files) if WHOLE.fullmatch(text)]
        known = [value for value in values if COLDEST_MC < value < HOTTEST_MC and abs(value) >= LEAST_MC]
        if known:
            return max(known)
    return None


def heat_caps(thermal: str = "/sys/class/thermal") -> bool | None:
    """Whether heat lowers the processor's clock now; None where the kernel cannot lower it."""
    states = [
        first_line(f"{thermal}/{name}/cur_state")
        for name in listed(thermal)
        if CAPS.search(first_line(f"{thermal}/{name}/type"))
    ]
    known = [int(state) for state in states if state.isdigit()]
    return any(known) if known else None


def is_noexec() -> bool:
    """Whether no program and no library can be loaded from where files are kept."""
    return bool(os.statvfs(_existing(root())).f_flag & os.ST_NOEXEC)


def has_symlinks() -> bool:
    """Whether the file system there has symbolic links: exFAT has none. A disk that is full or read-only says nothing."""
    place = os.path.join(_existing(root()), f".edgeprune-link-{os.getpid()}")
    try:
        os.symlink("nothing", place)
    except OSError as error:
        return error.errno not in (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP)
    os.unlink(place)
    return True


def boot_id() -> str:
    """Changes at every boot."""
    return first_line("/proc/sys/kernel/random/boot_id") or "unknown"


def peak_memory() -> int:
    """The most memory that this process ever held, in bytes."""
    with contextlib.suppress(OSError), open("/proc/self/status") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
