"""Is this machine, this target and this project ready? Each finding comes with its fix."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from edgeprune import bench, codec, runtimes
from edgeprune.errors import EdgepruneError

LEAST_FREE_BYTES = 1 << 30


@dataclass(frozen=True)
class Finding:
    """One thing looked at: `level` is "ok", "warn" or "fail"; `fix` says what to do about it."""

    level: str
    what: str
    fix: str = ""


def examine(target: str, project: Path | None) -> Iterator[Finding]:
    """Look at the host, the target and, where given, the project file; yields findings as they come."""
    yield Finding("ok", "Python " + ".".join(map(str, sys.version_info[:3])))
    yield from (_package(name) for name in ("torch", "onnx", "onnxruntime", "scipy"))
    folder = project.parent if project else Path.cwd()
    yield _disk(folder)
    if project is not None:
        yield _project(project)
    try:
        known = codec.read_target(codec.find_target(target, folder))
        yield Finding("ok", f"target {known.name}: {known.path}")
        yield Finding("ok", f"{known.runtime} {runtimes.RUNTIMES[known.runtime].require()} on this host")
        with tempfile.TemporaryDirectory() as scratch, bench.open_bench(known, Path(scratch)) as opened:
            device = opened.device
        yield Finding("ok", f"device: {device.cpu}, {device.cores} cores, {device.runtime} {device.runtime_version}")
    except EdgepruneError as error:
        yield Finding("fail", f"target {target}: {error}", "mend the target file or install what it names")
        return
    if known.transport == "local":
        yield from _quiet(known.threads)


def _package(name: str) -> Finding:
    try:
        return Finding("ok", f"{name} {version(name)}")
    except PackageNotFoundError:
        return Finding("fail", f"{name} is not installed", f"pip install {name}")


def _disk(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    text = f"{free / 1e9:.1f} GB free at {folder}"
    return Finding("ok", text) if free >= LEAST_FREE_BYTES else Finding("warn", text, "free at least 1 GB")


def _project(path: Path) -> Finding:
    try:
        known = codec.read_project(path)
    except EdgepruneError as error:
        return Finding("fail", str(error), "mend the project file")
    return Finding("ok", f"project {known.name}: budget {known.budget}")


def _quiet(threads: int) -> Iterator[Finding]:
    """What makes times on this machine waver."""
    cores = len(os.sched_getaffinity(0))
    if threads > cores:
        yield Finding("warn", f"{threads} threads on {cores} cores", "set [runtime] threads to the number of cores")
    load = os.getloadavg()[0]
    if load > cores / 2:
        yield Finding(
            "warn",
            f"load average {load:.1f} on {cores} cores",
            "stop other work: measurements take the machine's noise",
        )
    else:
        yield Finding("ok", f"load average {load:.1f} on {cores} cores")
    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    if governor.exists():
        name = governor.read_text().strip()
        fix = "sudo cpupower frequency-set -g performance"
        yield Finding(
            "ok" if name == "performance" else "warn",
            f"frequency governor {name}",
            "" if name == "performance" else fix,
        )
