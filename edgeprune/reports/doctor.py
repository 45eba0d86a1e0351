"""Is this machine, this target and this project ready? Each finding comes with its fix."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from edgeprune import runtimes
from edgeprune.devices import fleet, transports, wire
from edgeprune.devices import install as installing
from edgeprune.devices.bench import REMEDIES
from edgeprune.devices.transports.base import ask
from edgeprune.devices.validate import printable
from edgeprune.errors import EdgepruneError
from edgeprune.frontends import toml
from edgeprune.limits import LIMITS
from edgeprune.records import THROTTLED_NOW, Finding, Target
from edgeprune.runtimes.cores import Cluster, fastest

LEAST_FREE_BYTES = 1 << 30
CPUFREQ = "/sys/devices/system/cpu/cpu*/cpufreq"
HOT_MC = 75_000  # millidegrees; a Raspberry Pi lowers its clock from 80 °C on
SKEW_S = 60.0


def examine(target: str, project: Path | None) -> Iterator[Finding]:
    """Examine this machine, the target's device and, if given, the project file.

    Args:
        target: a target's name, or the path of its file.
        project: the project file.

    Yields:
        Findings, each as soon as it is known. An error ends in a failed finding and is not raised.
    """
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
        yield from _hosts(known)
    except EdgepruneError as error:
        yield Finding("fail", str(error), "do what the message says, and run doctor again")


def _hosts(target: Target) -> Iterator[Finding]:
    """The findings of every host, also if some do not answer."""
    hosts = target.all_hosts
    found = fleet.each(hosts, lambda turn: list(_device(turn.target)), replace(fleet.ALL, host_s=LIMITS.job_s))
    if found.interrupted:
        raise KeyboardInterrupt
    for name, _ in hosts:
        if len(hosts) > 1:
            yield Finding("ok", f"host {name}:")
        yield from found.values.get(name, [])
        if name in found.errors:
            yield Finding("fail", str(found.errors[name]), "do what the message says, and run doctor again")


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
        shown = f"budget {known.budget}" if known.budget.prunes else "no budget, so nothing is pruned"
        yield Finding("ok", f"project {known.name}: {shown}")
        from edgeprune.frontends import dataset

        yield from dataset.examine(known)
    except EdgepruneError as error:
        yield Finding("fail", str(error), "fix the project")


def _device(target: Target) -> Iterator[Finding]:
    """What the device's agent reports: its platform, its runtime and its state."""
    with closing(transports.connect(target)) as transport:
        facts = ask(transport, target.name, wire.Examine(LIMITS.identify_s))
        if target.host is not None:
            yield Finding("ok", "the device answers, and its host key is known")
            platform = installing.platform_of(target, facts)
            yield Finding("ok", f"device: {platform.machine}, Python {installing.dotted(platform.python)}")
            yield from (Finding("fail", what, fix) for what, fix in installing.obstacles(facts))
            if not facts.symlinks:
                what = "the file system of the home there has no symbolic links, so no release can be deployed"
                yield Finding("warn", what, "use ext4, not exFAT or FAT")
        yield from _clusters(target, facts.clusters)
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
    if "rails" not in state.conditions:
        yield Finding("ok", "power: none: this user can read no rail there, so energy is not measured")


def _clusters(target: Target, clusters: Sequence[Cluster]) -> Iterator[Finding]:
    """The kinds of cores, if there are several: times on them differ."""
    if target.cores:
        yield Finding("ok", f"measurements run on cores {target.cores}")
    elif len(clusters) > 1:
        kinds = "; ".join(_cluster(one) for one in clusters)
        best = fastest(clusters, target.threads)
        fix = f'pin the measurements: [runtime] cores = "{printable(best.cores, 40)}" in {target.path}'
        if best.count < target.threads:
            fix += f", with threads = {best.count}"
        yield Finding("warn", f"{len(clusters)} kinds of cores: {kinds}", fix)


def _cluster(one: Cluster) -> str:
    clock = f", up to {one.max_khz / 1e6:.1f} GHz" if one.max_khz else ""
    return printable(f"{one.cores} {one.kind}".strip() + clock, 100)


def _free(where: str, free: int) -> Finding:
    text = f"{free / 1e9:.1f} GB free {where}"
    return Finding("ok", text) if free >= LEAST_FREE_BYTES else Finding("warn", text, "free at least 1 GB")


def _state(target: Target, state: Mapping[str, Any], cores: int) -> Iterator[Finding]:
    """What makes times vary. A condition that the device does not report has no finding."""
    if target.threads > cores:
        what = f"{target.threads} threads on {cores} core{'s' * (cores != 1)}"
        yield Finding("warn", what, f"set [runtime] threads = {cores} in {target.path}")
    if "load" in state:
        yield _load(float(state["load"]), cores)
    if "quota" in state:
        fix = "give the container more processors, such as docker run --cpus 2"
        yield Finding("warn", f"a quota limits this device to {float(state['quota']):g} processors", fix)
    if "capped" in state:
        fix = f"write the number in {CPUFREQ}/cpuinfo_max_freq there into scaling_max_freq beside it, of every core"
        if "power_mode" in state:
            fix = "the power mode may cap it: list others with nvpmodel -p --verbose, and set one with sudo nvpmodel -m ID"
        yield Finding("warn", f"the clock is capped at {100 * float(state['capped']):.0f}%", fix)
    if "governor" in state:
        yield _governor(printable(str(state["governor"]), 40))
    if "temperature_mc" in state:
        yield _temperature(int(state["temperature_mc"]))
    if "rails" in state:
        yield _power(state)
    if "power_mode" in state:
        yield _power_mode(target, printable(str(state["power_mode"]), 40))
    if "clocks_pinned" in state:
        yield _clocks(target, bool(state["clocks_pinned"]))
    if "unheard" in state:
        fix = "let its user ask the firmware: sudo usermod -aG video USER, then log in again; in a container, pass /dev/vcio"
        yield Finding("warn", "vcgencmd does not reach the firmware, so low voltage stays unseen", fix)
    if "throttled" in state:
        yield _throttling(int(state["throttled"]))


def _power(state: Mapping[str, Any]) -> Finding:
    """What the device draws, by which rails."""
    draws = f"{int(state['power_mw']) / 1e3:.1f} W, " if "power_mw" in state else ""
    return Finding("ok", f"power: {draws}by {printable(str(state['rails']), 80)}")


def _load(load: float, cores: int) -> Finding:
    text = f"load average {load:.1f} on {cores} core{'s' * (cores != 1)}"
    return Finding("ok", text) if load <= cores / 2 else Finding("warn", text, "stop other work on it")


def _governor(name: str) -> Finding:
    text = f"frequency governor {name}"
    if name == "performance":
        return Finding("ok", text)
    return Finding("warn", text, f"echo performance | sudo tee {CPUFREQ}/scaling_governor")


def _temperature(millidegrees: int) -> Finding:
    text = f"{millidegrees / 1000:.0f} °C"
    if millidegrees <= HOT_MC:
        return Finding("ok", text)
    return Finding("warn", text, "give it a heat sink or a fan: it slows down when hot")


def _power_mode(target: Target, name: str) -> Finding:
    wanted = None if target.prepare and target.prepare.power_mode else target.power_mode
    if wanted in (None, name):
        return Finding("ok", f"power mode {name}")
    return Finding("fail", f"power mode {name}, {wanted} is expected", REMEDIES["power_mode"].format(wanted))


def _clocks(target: Target, pinned: bool) -> Finding:
    text = "clocks are pinned" if pinned else "the GPU's clock may vary"
    if pinned or (target.prepare and target.prepare.jetson_clocks):
        return Finding("ok", text)
    return Finding("fail" if target.clocks_pinned else "warn", text, REMEDIES["clocks_pinned"])


def _throttling(flags: int) -> Finding:
    text = f"throttling flags {flags:#x}"
    if not flags:
        return Finding("ok", text)
    fix = "use the power supply made for it, and cool it; then restart it"
    return Finding("fail" if flags & THROTTLED_NOW else "warn", text, fix)
