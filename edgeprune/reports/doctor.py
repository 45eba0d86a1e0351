"""Is this machine, this target and this project ready? Each finding comes with its fix."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from edgeprune import runtimes
from edgeprune.devices import install as installing
from edgeprune.devices import transports, wire
from edgeprune.devices.bench import REMEDIES
from edgeprune.devices.transports.base import ask
from edgeprune.devices.validate import printable
from edgeprune.errors import EdgepruneError
from edgeprune.frontends import toml
from edgeprune.limits import LIMITS
from edgeprune.records import THROTTLED_NOW, Finding, Target

LEAST_FREE_BYTES = 1 << 30
HOT_MC = 75_000  # millidegrees; a Raspberry Pi lowers its clock from 80 °C on
SKEW_S = 60.0


def examine(target: str, project: Path | None) -> Iterator[Finding]:
    """Look at the host, the target's device and, where given, the project file; yields findings as they come."""
    yield Finding("ok", "Python " + ".".join(map(str, sys.version_info[:3])))
    yield from (_package(name) for name in ("torch", "onnx", "onnxruntime", "scipy"))
    folder = project.parent if project else Path.cwd()
    yield _free("here", shutil.disk_usage(folder).free)
    if project is not None:
        yield from _project(project)
    try:
        known = toml.read_target(toml.find_target(target, folder))
        yield Finding("ok", f"target {known.name}: {known.path}")
        yield Finding("ok", f"{known.runtime} artifacts are made by {_converter(known)}")
        for name, one in known.all_hosts:
            if len(known.all_hosts) > 1:
                yield Finding("ok", f"host {name}:")
            yield from _device(one)
    except EdgepruneError as error:
        yield Finding("fail", str(error), "as it says, then run doctor again")


def _converter(target: Target) -> str:
    return runtimes.host(target.runtime).require(target.precision)


def _package(name: str) -> Finding:
    try:
        return Finding("ok", f"{name} {version(name)}")
    except PackageNotFoundError:
        return Finding("fail", f"{name} is not installed", f"pip install {name}")


def _project(path: Path) -> Iterator[Finding]:
    try:
        known = toml.read_project(path)
        yield Finding("ok", f"project {known.name}: budget {known.budget}")
        from edgeprune.frontends import dataset

        yield from dataset.examine(known)
    except EdgepruneError as error:
        yield Finding("fail", str(error), "mend the project")


def _device(target: Target) -> Iterator[Finding]:
    """What the agent on the device says: who it is, what it has, and in what state it is."""
    with closing(transports.connect(target)) as transport:
        facts = ask(transport, target.name, wire.Examine(LIMITS.identify_s))
        if target.host is not None:
            yield Finding("ok", "the device answers, and its host key is known")
            platform = installing.platform_of(target, facts)
            yield Finding("ok", f"device: {platform.machine}, Python {installing.dotted(platform.python)}")
        there = installing.installed_version(transport, target)
        state = ask(transport, target.name, wire.GetState(LIMITS.identify_s, target.runtime))
    if there is not None:
        yield Finding("ok", f"{target.runtime} {there} on the device")
    else:
        fix = f"edgeprune setup {target.name}" if target.host else runtimes.host(target.runtime).install
        yield Finding("fail", f"no {target.runtime} on the device", fix)
    yield _free("on the device", facts.free_bytes)
    skew = facts.clock_s - time.time()
    if abs(skew) > SKEW_S:
        yield Finding("warn", f"the device's clock is off by {skew:.0f} s", "sudo timedatectl set-ntp true")
    yield from _state(target, state.conditions, facts.cores)


def _free(where: str, free: int) -> Finding:
    text = f"{free / 1e9:.1f} GB free {where}"
    return Finding("ok", text) if free >= LEAST_FREE_BYTES else Finding("warn", text, "free at least 1 GB")


def _state(target: Target, state: Mapping[str, Any], cores: int) -> Iterator[Finding]:
    """What makes times waver."""
    if target.threads > cores:
        what = f"{target.threads} threads on {cores} core{'s' * (cores != 1)}"
        yield Finding("warn", what, f"set [runtime] threads = {cores} in {target.path}")
    load = float(state["load"])
    calm = load <= cores / 2
    yield Finding(
        "ok" if calm else "warn", f"load average {load:.1f} on {cores} cores", "" if calm else "stop other work on it"
    )
    if "governor" in state:
        name = printable(str(state["governor"]), 40)
        fix = "" if name == "performance" else "sudo cpupower frequency-set -g performance"
        yield Finding("warn" if fix else "ok", f"frequency governor {name}", fix)
    if "temperature_mc" in state:
        hot = int(state["temperature_mc"]) > HOT_MC
        fix = "give it a heat sink or a fan: it slows down when hot" if hot else ""
        yield Finding("warn" if hot else "ok", f"{int(state['temperature_mc']) / 1000:.0f} °C", fix)
    if "power_mode" in state:
        name = printable(str(state["power_mode"]), 40)
        wanted = None if target.prepare and target.prepare.power_mode else target.power_mode
        fix = REMEDIES["power_mode"].format(wanted) if wanted not in (None, name) else ""
        yield Finding("fail" if fix else "ok", f"power mode {name}" + (f", {wanted} is expected" if fix else ""), fix)
    if "clocks_pinned" in state:
        pinned = bool(state["clocks_pinned"])
        fix = "" if pinned or (target.prepare and target.prepare.jetson_clocks) else REMEDIES["clocks_pinned"]
        level = "fail" if target.clocks_pinned else "warn"
        yield Finding(level if fix else "ok", "clocks are pinned" if pinned else "the GPU's clock may vary", fix)
    if "throttled" in state:
        flags = int(state["throttled"])
        fix = "use the power supply made for it, and cool it; then restart it" if flags else ""
        level = "fail" if flags & THROTTLED_NOW else "warn" if flags else "ok"
        yield Finding(level, f"throttling flags {flags:#x}", fix)
