"""Facts about the device: what it is, and the conditions of a measurement."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence

from ...runtimes import cores, machine, power
from ...runtimes.device import Conditions, Runtime, find_alone
from ..validate import printable
from ..wire import Examine, GetState, Identify, Identity, Platform, State
from . import contention

FACT_BYTES = 1 << 16  # that are read of a file or a program
CPUINFO_LINES = 20_000  # of all cores
FACT_CHARS = 100  # of a fact that is text
IDENTITY_CHARS = 200
NAMELESS = re.compile(r"(ARMv\d|AArch64) Processor rev ")  # what old kernels call every Arm processor
FLAGS = "/sys/devices/platform/soc*/soc*:firmware/get_throttled"  # of a Raspberry Pi, by its kernel; 5: soc@107c000000
HEAT = 4  # the flag of a Raspberry Pi that is throttled now
VCGENCMD = "/opt/vc/bin/vcgencmd"  # in systems before Raspberry Pi OS 11, and then not in PATH
# A board's revision, as firmware and device trees write it: "Rev 1.4", "rev A0", "v1.3B"; of NVIDIA's modules: "-b00".
REVISION = re.compile(
    r" ([Rr]ev\.? ?(\d+(\.\d+)*|[A-Z]\d?)|[vV]\d+\.\d+[A-Z]?)(?= \(|$)|(?<=\d{4})-[a-z]\d\d(?=[+)]|$)"
)


def examine(job: Examine) -> Platform:
    """The facts that an installation needs."""
    return Platform(
        python=f"{sys.version_info[0]}.{sys.version_info[1]}",
        machine=platform.machine(),
        glibc=_glibc(),
        free_bytes=machine.free_bytes(),
        clock_s=time.time(),
        cores=contention.cores(),
        pip=importlib.util.find_spec("pip") is not None,
        bits=64 if sys.maxsize > 1 << 32 else 32,
        noexec=machine.is_noexec(),
        symlinks=machine.has_symlinks(),
        clusters=cores.clusters(),
    )


def _glibc() -> str:
    name, version = platform.libc_ver()
    return version if name == "glibc" and version else "unknown"  # musl has a version, too


def identify(job: Identify) -> Identity:
    """The device and the runtime of the job."""
    runtime, usable = find_alone(job.runtime), contention.cores()
    if job.cores:
        cores.pin(job.cores)
    serial = machine.first_line("/etc/machine-id") + machine.first_line("/proc/device-tree/serial-number")
    serial = serial or processor().get("Serial", "")  # in a container
    return Identity(
        machine=platform.machine(),
        cpu=printable(cpu_name(), IDENTITY_CHARS),
        cores=usable,
        pinned=job.cores or "",
        # Major and minor: a patch release of the kernel does not make another device.
        system=f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        runtime=job.runtime,
        runtime_version=printable(runtime.version(), IDENTITY_CHARS),
        boot_id=machine.boot_id(),
        serial=hashlib.sha256(serial.encode()).hexdigest()[:16],
        # A machine of qemu without a model of its own: only software runs it at this clock.
        emulated="linux,dummy-virt" in machine.first_line("/proc/device-tree/compatible"),
        simulated=runtime.simulated(),
    )


def state(job: GetState) -> State:
    """The conditions that a measurement would have now."""
    return State(conditions(find_alone(job.runtime)))


def processor(proc: str = "/proc") -> dict[str, str]:
    """The fields of /proc/cpuinfo: those of the first core, and those of all."""
    fields: dict[str, str] = {}
    for line in machine.lines(f"{proc}/cpuinfo", CPUINFO_LINES):
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    return fields


def cpu_name(proc: str = "/proc") -> str:
    """The board's name by its device tree, or the processor's by /proc/cpuinfo.

    Containers see no device tree. Then a Raspberry Pi's kernel still has its model, and that of a phone its chip.
    """
    fields = processor(proc)
    if NAMELESS.match(fields.get("model name", "")):
        del fields["model name"]
    implementer, part = fields.get("CPU implementer"), fields.get("CPU part")
    return (
        board_name(f"{proc}/device-tree")
        or kind_of(fields.get("Model", ""))
        or fields.get("Hardware")
        or fields.get("model name")
        or (f"{implementer}/{part}" if implementer and part else "")
        or platform.processor()
        or "unknown"
    )


def board_name(tree: str = "/proc/device-tree") -> str:
    """The kind of a board by its device tree; empty where there is none.

    Boards of one kind are equal: a revision of the board ("Rev 1.4") is left out. Modules of one family are not: all Orins
    name the same processor, and only the module's number in `compatible` tells them, and so their GPUs, apart.
    """
    name = machine.first_line(f"{tree}/model")
    module = machine.first_line(f"{tree}/compatible").split("\0")[0]
    return kind_of(f"{name} ({module})" if name and module.startswith("nvidia,") else name)


def kind_of(name: str) -> str:
    """The name of a board without revisions, so that equal boards are equal: also in manifests of earlier versions."""
    return REVISION.sub("", name)


def conditions(runtime: Runtime) -> Conditions:
    """The conditions now. A fact that this device does not report is left out."""
    found: Conditions = {"boot_id": machine.boot_id()}
    with contextlib.suppress(OSError):  # Android lets nobody read it
        found["load"] = os.getloadavg()[0]
    temperature = machine.temperature_mc()
    if temperature is not None:
        found["temperature_mc"] = temperature
    own = cores.own()
    found["cores"] = cores.written(own)
    policies = [f"{cores.CPUS}/cpu{core}/cpufreq/" for core in own]
    governors = {machine.first_line(policy + "scaling_governor") for policy in policies} - {""}
    frequencies = [machine.first_line(policy + "scaling_cur_freq") for policy in policies]
    if governors:
        found["governor"] = " and ".join(sorted(governors))
    if any(map(str.isdigit, frequencies)):
        found["frequency_khz"] = max(int(text) for text in frequencies if text.isdigit())
    for name, value in (("os", os_name()), ("firmware", firmware()), ("throttled", throttled())):
        if value is not None:
            found[name] = value
    if is_unheard():
        found["unheard"] = 1
    found.update(contention.limits())
    found.update(power.conditions(power.meter()))
    found.update(runtime.conditions())
    return {name: printable(fact, FACT_CHARS) if isinstance(fact, str) else fact for name, fact in found.items()}


def os_name(places: Sequence[str] = ("/etc/os-release", "/usr/lib/os-release")) -> str | None:
    """The operating system and its release for people (os-release(5)), or None."""
    for place in places:
        try:
            with open(place, encoding="utf-8", errors="replace") as file:
                lines = file.read(FACT_BYTES).splitlines()
        except OSError:
            continue
        for line in lines:
            if line.startswith("PRETTY_NAME="):
                return line.partition("=")[2].strip().strip("\"'")[:FACT_CHARS] or None
    return None


def firmware(jetson: str = "/etc/nv_tegra_release") -> str | None:
    """A Raspberry Pi's firmware or a Jetson's L4T; None elsewhere."""
    lines = [line.strip() for line in (vcgencmd("version") or "").splitlines()]
    found = [line for line in lines if line.startswith("version ")] or [machine.first_line(jetson).lstrip("# ")]
    return found[0][:FACT_CHARS] or None


def throttled(sysfs: str = FLAGS) -> int | None:
    """The throttling flags of a Raspberry Pi: bits 0 to 3 mean now, bits 16 to 19 since boot.

    In a container, vcgencmd may not reach the firmware; the kernel then reports the flags. On other boards, heat that
    lowers the clock sets the flag of it. None where nothing is reported.
    """
    answers = (vcgencmd("get_throttled") or "").partition("throttled=")[2], _flags(sysfs)
    for answer in answers:
        with contextlib.suppress(ValueError):
            return int(answer.strip(), 16)
    capped = machine.heat_caps()
    return None if capped is None else HEAT * capped


def _flags(pattern: str) -> str:
    return next(filter(None, map(machine.first_line, sorted(glob.glob(pattern)))), "")


def is_unheard(sysfs: str = FLAGS) -> bool:
    """Whether a Raspberry Pi reports no flags: its user may not ask the firmware."""
    return _tool() is not None and "0x" not in (vcgencmd("get_throttled") or "") and not _flags(sysfs)


def _tool() -> str | None:
    return shutil.which("vcgencmd") or shutil.which(VCGENCMD)


def vcgencmd(question: str) -> str | None:
    """What a Raspberry Pi's firmware answers; None elsewhere."""
    tool = _tool()
    if tool is None:
        return None
    try:
        done = subprocess.run([tool, question], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=5)
    except (subprocess.TimeoutExpired, OSError):
        return None
    return done.stdout[:FACT_BYTES].decode("ascii", "replace")
