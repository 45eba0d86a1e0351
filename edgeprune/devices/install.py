"""The setup verb: the agent and a runtime into a private folder on a device, without root."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from edgeprune import runtimes
from edgeprune.devices import transports
from edgeprune.devices.bench import identified
from edgeprune.devices.transports.base import Transport, ask, printable
from edgeprune.errors import DeviceError, RuntimeMissing, UsageError
from edgeprune.limits import LIMITS
from edgeprune.records import Target
from edgeprune.runtimes.base import Runtime

LEAST_PYTHON = (3, 8)


def setup(target: Target, say: Callable[[str], None], wait_s: float = 0.0) -> str:
    """Make a device ready for its target: the runtime's version there. Does nothing where it is there already.

    The device's own pip is asked first; where there is none, or it cannot (a board without internet), this host's pip fetches
    wheels for the device's platform, and they are pushed and unpacked there. Raises `UsageError` for a local target and
    `DeviceError` where neither way works.
    """
    runtime = runtimes.RUNTIMES[target.runtime]
    if target.host is None:
        raise UsageError(f"{target.path}: this machine is the device; {runtime.install}")
    with closing(transports.connect(target, wait_s)) as transport:
        facts = ask(transport, {"mode": "examine"})
        machine, python, glibc = platform_of(target, facts)
        say(f"{target.name} answers: {machine}, Python {_dotted(python)}, glibc {_dotted(glibc)}")
        present = version_there(transport, target)
        if present is None and not runtime.packages:
            raise UsageError(f"{target.name} has no {runtime.name}, and pip has none for it; {runtime.install}")
        if present is None and facts.get("pip") and not _by_pip(transport, runtime, say):
            say("the device's own pip cannot; fetching wheels here")
        if present is None and version_there(transport, target) is None:
            _by_wheels(transport, target, runtime, (machine, python, glibc), say)
        version = version_there(transport, target)
    if version is None:
        raise DeviceError(
            f"{target.name}: {runtime.name} was installed but cannot be imported; edgeprune doctor {target.name}"
        )
    say(f"{runtime.name} {version} {'was there already' if present else 'is ready'}")
    return version


def forecast(target: Target) -> list[str]:
    """What `setup` would do on the device, without touching it."""
    runtime = runtimes.RUNTIMES[target.runtime]
    packages = " ".join(runtime.packages)
    lines = [*transports.commands(target), "  agent: examine, identify"]
    if not runtime.packages:
        return [*lines, f"nothing is installed: {runtime.install}"]
    return [
        *lines,
        f"  agent: python -I -m pip install --only-binary=:all: --target ~/.edgeprune/site/{runtime.name}.part -- {packages}",
        f"  or, without pip or network there: sftp put the wheels of {packages}, and unpack them into that folder",
        f"  mv ~/.edgeprune/site/{runtime.name}.part ~/.edgeprune/site/{runtime.name}",
        "expected: tens of megabytes, 1 to 3 minutes",
    ]


def version_there(transport: Transport, target: Target) -> str | None:
    """The runtime's version on the device, None where there is none."""
    try:
        device = identified(transport, target)
        return printable(device.runtime_version, 40) + (" (a stand-in)" if device.simulated else "")
    except RuntimeMissing:
        return None


def platform_of(target: Target, facts: Mapping[str, Any]) -> tuple[str, tuple[int, int], tuple[int, int]]:
    """Machine, Python and glibc of a device, as it says. Raises `DeviceError` for what edgeprune cannot serve."""
    machine = str(facts.get("machine"))
    python, glibc = (re.fullmatch(r"(\d{1,2})\.(\d{1,3})", str(facts.get(key))) for key in ("python", "glibc"))
    if not re.fullmatch(r"\w{1,20}", machine) or python is None:
        raise DeviceError(f"{target.name} does not say what it is: {printable(str(dict(facts)))}")
    if glibc is None:
        raise DeviceError(
            f"{target.name} has no glibc: no wheels fit; install a system with glibc, such as Raspberry Pi OS"
        )
    found = (int(python[1]), int(python[2]))
    if found < LEAST_PYTHON:
        raise DeviceError(
            f"{target.name} has Python {_dotted(found)}, and {_dotted(LEAST_PYTHON)} is needed; install a newer one and"
            f" name it: [connect] python in {target.path}"
        )
    return machine, found, (int(glibc[1]), int(glibc[2]))


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def _by_pip(transport: Transport, runtime: Runtime, say: Callable[[str], None]) -> bool:
    say(f"the device's pip installs {' '.join(runtime.packages)}")
    job = {"mode": "install", "runtime": runtime.name, "wheels": [], "requirements": list(runtime.packages)}
    reply = ask(transport, {**job, "deadline_s": LIMITS.install_s}, refused=("pip",))
    if "error" in reply:
        say(f"pip there: {printable(str(reply.get('message')), 200)}")
    return "error" not in reply


def _by_wheels(
    transport: Transport,
    target: Target,
    runtime: Runtime,
    platform: tuple[str, tuple[int, int], tuple[int, int]],
    say: Callable[[str], None],
) -> None:
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
        wheels = fetch(runtime.packages, platform, Path(folder))
        size = sum(wheel.stat().st_size for wheel in wheels)
        say(f"pushing {len(wheels)} wheels, {size / 1e6:.1f} MB")
        places = [transport.put([wheel]) for wheel in wheels]
        say("unpacking them there")
        job = {"mode": "install", "runtime": runtime.name, "wheels": places, "requirements": []}
        ask(transport, {**job, "deadline_s": LIMITS.install_s})


def fetch(packages: Sequence[str], platform: tuple[str, tuple[int, int], tuple[int, int]], folder: Path) -> list[Path]:
    """Wheels of these packages, and of what they need, for another machine. Raises `DeviceError` with pip's reason."""
    argv = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    argv += ["--dest", str(folder), *platform_options(*platform), *packages]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=LIMITS.install_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise DeviceError(
            f"pip took over {LIMITS.install_s:g} s to fetch {' '.join(packages)}; is there a network?"
        ) from error
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["no reason given"]
        raise DeviceError(f"pip cannot fetch {' '.join(packages)} for the device: {printable(said[-1])}")
    return sorted(folder.glob("*.whl"))


def platform_options(machine: str, python: tuple[int, int], glibc: tuple[int, int]) -> list[str]:
    """pip's options for wheels of another machine: its processor, its Python, and every glibc up to its own.

    Each tag is named: without the newest that fits, pip takes an old release in silence.
    """
    tags = [f"manylinux_{glibc[0]}_{minor}_{machine}" for minor in range(glibc[1], 16, -1)] + [
        f"manylinux2014_{machine}"
    ]
    version = f"{python[0]}{python[1]}"
    options = ["--only-binary=:all:", "--implementation", "cp", "--python-version", version]
    for abi in (f"cp{version}", "abi3", "none"):
        options += ["--abi", abi]
    for tag in tags:
        options += ["--platform", tag]
    return options
