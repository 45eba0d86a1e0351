"""Set up a device: install a runtime into a private folder there, without root."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from edgeprune import runtimes
from edgeprune.devices import transports, wire
from edgeprune.devices.bench import identified
from edgeprune.devices.bundle import LEAST_PYTHON
from edgeprune.devices.transports.base import Refusal, Transport, ask
from edgeprune.devices.validate import printable
from edgeprune.errors import DeviceError, RuntimeMissing, UsageError
from edgeprune.limits import LIMITS
from edgeprune.records import Target
from edgeprune.runtimes.base import Runtime

LEAST_MANYLINUX = 17  # the minor version of glibc of manylinux2014; older wheels are not requested
Reporter = Callable[[str], None]
Version = tuple[int, int]


@dataclass(frozen=True)
class WheelPlatform:
    """What decides which wheels a device can use; the versions are those of its Python and its glibc."""

    machine: str
    python: Version
    glibc: Version


def setup(target: Target, report: Reporter, wait_s: float = 0.0) -> str:
    """Install a target's runtime on its device, unless it is there already.

    The device's own pip is tried first. It may be missing, or fail without internet. Then this machine's pip fetches wheels
    for the device, and the agent unpacks them there.

    Args:
        target: a target with a host.
        report: is called with a line for each step.
        wait_s: how long to wait for a device that another host holds.

    Returns:
        The runtime's version on the device.

    Raises:
        UsageError: the target is this machine, or pip has no package for the runtime.
        DeviceError: neither way works.
    """
    runtime = runtimes.host(target.runtime)
    if target.host is None:
        raise UsageError(f"{target.path}: this machine is the device. {runtime.install}")
    with closing(transports.connect(target, wait_s)) as transport:
        facts = ask(transport, target.name, wire.Examine(LIMITS.identify_s))
        platform = platform_of(target, facts)
        for what, fix in obstacles(facts):
            raise DeviceError(f"{target.name}: {what}. {fix}")
        versions = f"Python {dotted(platform.python)}, glibc {dotted(platform.glibc)}"
        report(f"{target.name} answers: {platform.machine}, {versions}")
        present = installed_version(transport, target)
        if present is not None:
            report(f"{runtime.name} {present} is installed already")
            return present
        if not runtime.packages:
            raise UsageError(f"{target.name} has no {runtime.name}, and pip has no package for it. {runtime.install}")
        if not facts.pip or not _by_pip(transport, target, runtime, report):
            _by_wheels(transport, target, platform, facts.free_bytes, report)
        version = installed_version(transport, target)
    if version is None:
        raise DeviceError(
            f"{target.name}: {runtime.name} was installed but cannot be imported. Run: edgeprune doctor {target.name}"
        )
    report(f"{runtime.name} {version} is ready")
    return version


def forecast(target: Target) -> list[str]:
    """The steps of `setup`, for `--dry-run`. It does not connect to the device."""
    runtime = runtimes.host(target.runtime)
    packages = shlex.join(runtime.packages)
    lines = [*transports.commands(target), "  agent: examine, identify"]
    if not runtime.packages:
        return [*lines, f"nothing is installed: {runtime.install}"]
    site = f"~/.edgeprune/site/{runtime.name}"
    return [
        *lines,
        f"  agent: python -I -m pip install --only-binary=:all: --target {site}.part -- {packages}",
        f"  or, without pip or network there: sftp put the wheels of {packages}, and unpack them into that folder",
        f"  mv {site}.part {site}",
        "expected: tens of megabytes, 1 to 3 minutes",
    ]


def installed_version(transport: Transport, target: Target) -> str | None:
    """The version of the target's runtime on the device; None where it is not installed."""
    try:
        device = identified(transport, target)
    except RuntimeMissing:
        return None
    return printable(device.runtime_version, 40) + (" (a stand-in)" if device.simulated else "")


def _by_pip(transport: Transport, target: Target, runtime: Runtime, report: Reporter) -> bool:
    """Install by the device's own pip. Returns whether the runtime can be imported then."""
    report(f"the device's pip installs {' '.join(runtime.packages)}")
    try:
        job = wire.Install(LIMITS.install_s, runtime.name, (), runtime.packages, not runtime.complete_packages)
        ask(transport, target.name, job)
    except Refusal as error:
        if error.kind != "pip":
            raise
        report(f"the device's pip: {printable(error.message, 200)}")
        report("the device's pip fails; this machine fetches the wheels")
        return False
    return installed_version(transport, target) is not None


def _by_wheels(
    transport: Transport, target: Target, platform: WheelPlatform, free_bytes: int, report: Reporter
) -> None:
    runtime = runtimes.host(target.runtime)
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
        options = [*platform_options(platform), *(["--no-deps"] if runtime.complete_packages else [])]
        wheels = fetch(runtime.packages, options, Path(folder))
        size = sum(wheel.stat().st_size for wheel in wheels)
        needed = size + sum(unpacked_bytes(wheel) for wheel in wheels)
        if needed > free_bytes:
            text = f"{runtime.name} needs {needed / 1e6:.0f} MB on the device, and {free_bytes / 1e6:.0f} MB are free"
            raise DeviceError(f"{target.name}: {text}. Free some space in its home.")
        report(f"sending {len(wheels)} wheels, {size / 1e6:.1f} MB")
        places = tuple(transport.put([wheel]) for wheel in wheels)
        report("unpacking them on the device")
        ask(transport, target.name, wire.Install(LIMITS.install_s, runtime.name, wheels=places))


def obstacles(facts: wire.Platform) -> list[tuple[str, str]]:
    """What keeps an installed runtime from working: pairs of the obstacle and its fix."""
    if not facts.noexec:
        return []
    text = "the home there is mounted noexec, so no library can be loaded from it"
    return [(text, "Mount it with exec, or give the user another home.")]


# ------------------------------------------------------------------------------------------------------------- wheels


def platform_of(target: Target, facts: wire.Platform) -> WheelPlatform:
    """The platform of a device, from what the device reports. It becomes arguments of pip, so it must look like one.

    Raises:
        DeviceError: edgeprune does not support the device, or its report is not a platform.
    """
    python, glibc = _version(facts.python), _version(facts.glibc)
    if not re.fullmatch(r"\w{1,20}", facts.machine) or python is None:
        raise DeviceError(f"{target.name}: the device does not report a known platform: {printable(str(facts))}")
    if facts.bits < 64:
        raise DeviceError(
            f"{target.name} has a 32-bit system (its kernel is {facts.machine}), and the runtimes have no wheels for it."
            " Install the 64-bit system. Its Python must be a 64-bit one."
        )
    if glibc is None:
        raise DeviceError(
            f"{target.name} has no glibc, so no wheels fit. Install a system with glibc, such as Raspberry Pi OS."
        )
    if python < LEAST_PYTHON:
        raise DeviceError(
            f"{target.name} has Python {dotted(python)}, and {dotted(LEAST_PYTHON)} is needed. Install a newer one, and name"
            f" it in {target.path}: [connect] python"
        )
    return WheelPlatform(facts.machine, python, glibc)


def unpacked_bytes(wheel: Path) -> int:
    """The size of a wheel's files."""
    with zipfile.ZipFile(wheel) as archive:
        return sum(entry.file_size for entry in archive.infolist())


def _version(text: str) -> Version | None:
    match = re.fullmatch(r"(\d{1,2})\.(\d{1,3})", text)
    return (int(match[1]), int(match[2])) if match else None


def dotted(version: Version) -> str:
    """A version as people write it: "3.11"."""
    return ".".join(map(str, version))


def fetch(packages: Sequence[str], options: Sequence[str], folder: Path) -> list[Path]:
    """Download wheels of packages, by options of pip such as `platform_options`.

    Raises:
        DeviceError: pip fails; the message holds its reason.
    """
    argv = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    argv += ["--dest", str(folder), *options, *packages]
    names = " ".join(packages)
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=LIMITS.install_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise DeviceError(f"pip took over {LIMITS.install_s:g} s to fetch {names}. Is there a network?") from error
    if done.returncode:
        reasons = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["no reason given"]
        raise DeviceError(f"pip cannot fetch {names} for the device: {printable(reasons[-1])}")
    return sorted(folder.glob("*.whl"))


def platform_options(platform: WheelPlatform) -> list[str]:
    """pip's options for wheels of another machine: its processor, its Python, and every glibc up to its own.

    All tags are listed. Without the newest one that fits, pip silently takes an old release.
    """
    major, newest = platform.glibc
    tags = [f"manylinux_{major}_{minor}_{platform.machine}" for minor in range(newest, LEAST_MANYLINUX - 1, -1)]
    tags.append(f"manylinux2014_{platform.machine}")
    version = "".join(map(str, platform.python))
    options = ["--only-binary=:all:", "--implementation", "cp", "--python-version", version]
    for abi in (f"cp{version}", "abi3", "none"):
        options += ["--abi", abi]
    for tag in tags:
        options += ["--platform", tag]
    return options
