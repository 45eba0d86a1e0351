"""The state of a Jetson: its power mode, its clocks, and what limits them; and how to set it.

It travels to devices: standard library only, Python 3.8 and up.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import subprocess

from .. import machine
from ..device import Conditions, Failed, Undo
from ..power import TOTALS

MODES_FILE = "/etc/nvpmodel.conf"
SUDO = "it needs sudo without a password for {}"
ANSWER_BYTES = 1 << 16  # of a tool
GPU = re.compile(
    r"gpu|g[a-z]\d+b|gpu-gpc-\d+"
)  # the device-tree node by generation; Thor: gpu-gpc-0. gpu-nvd is the decoder
COOLED = re.compile(  # cooling devices that lower a clock; "devfreq-" and the GPU's node
    rf".*throttle-alert|hot-surface-alert|.*cpufreq.*|devfreq-(.*\.)?({GPU.pattern})|.*-balanced", re.IGNORECASE
)
THROTTLED = 4  # the bit of a Raspberry Pi for it


def power_mode_of(text: str) -> tuple[str, int] | None:
    """The power mode's name and number from `nvpmodel -q`, or None. Warnings may come before and after."""
    name = None
    for line in text.splitlines():
        if "NV Power Mode:" in line:
            name = line.partition("NV Power Mode:")[2].strip()
        elif name and line.strip().isdigit():
            return name, int(line)
    return None


def power_modes_of(text: str) -> dict[str, int]:
    """The numbers of the power modes by name, from /etc/nvpmodel.conf."""
    return {name: int(number) for number, name in re.findall(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", text)}


def tegrastats_of(line: str) -> dict[str, int]:
    """Clocks (MHz) and power (mW) from a line of tegrastats. Board and user decide which of them are there."""
    found = {}
    emc = re.search(r"\bEMC_FREQ \d+%@(\d+)", line)
    gpu = re.search(r"\bGR3D_FREQ (?:\d+%)?@(?:\[([\d,]+)\]|(\d+))", line)
    power = re.search(rf"\b(?:{'|'.join(TOTALS)}) (\d+)(?:mW)?/", line)
    if emc:
        found["emc_mhz"] = int(emc.group(1))
    if gpu:
        found["gpu_mhz"] = max(int(value) for value in (gpu.group(1) or gpu.group(2)).split(","))
    if power:
        found["power_mw"] = int(power.group(1))
    return found


def board() -> list[str]:
    """The kind of board by its device tree, and its system. An engine is built for both."""
    release = machine.first_line("/etc/nv_tegra_release")
    try:
        with open("/proc/device-tree/compatible", "rb") as file:
            return [file.read(1000).decode("ascii", "replace").strip("\0").replace("\0", " "), release]
    except OSError:
        return ["unknown", release]


def conditions() -> Conditions:
    """The state that a user without root can read."""
    found: Conditions = {}
    mode = power_mode_of(printed(["nvpmodel", "-q"]))
    if mode:
        found["power_mode"] = mode[0]
    found.update(tegrastats_of(_first_printed(["tegrastats", "--interval", "200"])))
    found.update(gpu_clocks())
    found.update(memory_clock())
    found.update(limits())
    return found


def printed(argv: list[str], deadline_s: float = 5.0) -> str:
    """What a tool prints, or an empty string where it is missing or fails."""
    if shutil.which(argv[0]) is None:
        return ""
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=deadline_s
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout[:ANSWER_BYTES].decode("utf-8", "backslashreplace")


def _first_printed(argv: list[str], deadline_s: float = 3.0) -> str:
    """The first output of a tool that runs until it is killed."""
    if shutil.which(argv[0]) is None:
        return ""
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        try:
            ready = select.select([process.stdout], [], [], deadline_s)[0]
            return os.read(process.stdout.fileno(), 1 << 12).decode("utf-8", "backslashreplace") if ready else ""
        finally:
            process.kill()


def gpu_clocks(folder: str = "/sys/class/devfreq") -> dict[str, int]:
    """The GPU's clock, and whether jetson_clocks pinned it: its lowest frequency is its highest. A GPU may have several."""
    found = []
    for entry in machine.listed(folder):
        place = os.path.join(folder, entry)
        node = machine.first_line(place + "/device/of_node/name") or entry.rpartition(".")[2]
        clocks = [machine.first_line(f"{place}/{name}_freq") for name in ("cur", "min", "max")]
        if GPU.fullmatch(entry.rpartition(".")[2]) or GPU.fullmatch(node):
            found.append([int(clock) for clock in clocks if clock.isdigit()])
    known = [clocks for clocks in found if len(clocks) == 3]
    if not known:
        return {}
    pinned = all(least == most for _, least, most in known)
    return {
        "gpu_hz": max(now for now, _, _ in known),
        "gpu_max_hz": max(most for _, _, most in known),
        "clocks_pinned": int(pinned),
    }


def memory_clock(
    clock: str = "/sys/kernel/debug/bpmp/debug/clk/emc", caps: str = "/sys/kernel/nvpmodel_clk_cap"
) -> dict[str, int]:
    """The memory's clock, which only root can read, and the power mode's cap on it, which is 0 where there is none."""
    found = {"emc_hz": machine.first_line(f"{clock}/rate"), "emc_cap_hz": machine.first_line(f"{caps}/emc")}
    return {name: int(text) for name, text in found.items() if text.isdigit() and int(text) > 0}


def limits(thermal: str = "/sys/class/thermal", monitors: str = "/sys/class/hwmon") -> dict[str, int]:
    """Whether heat lowers a clock now, and how often the power supply did since the board started."""
    found = {}
    kinds = [os.path.join(thermal, name) for name in machine.listed(thermal) if name.startswith("cooling_device")]
    states = [
        machine.first_line(kind + "/cur_state")
        for kind in kinds
        if COOLED.fullmatch(machine.first_line(kind + "/type"))
    ]
    if states:
        found["throttled"] = THROTTLED if any(state.isdigit() and int(state) > 0 for state in states) else 0
    counts = []
    for name in machine.listed(monitors):
        place = os.path.join(monitors, name)
        if machine.first_line(place + "/name") == "soctherm_oc":
            files = [file for file in machine.listed(place) if re.fullmatch(r"oc\d_(event|irq)_cnt", file)]
            counts += [machine.first_line(os.path.join(place, file)) for file in files]
    if counts:
        found["over_current_events"] = sum(int(count) for count in counts if count.isdigit())
    return found


def prepare(power_mode: str | None, jetson_clocks: bool, undo: Undo) -> None:
    """Set the power mode and pin the clocks where they are not yet so.

    `undo` records how to restore them before anything changes. The clocks are stored before the power mode changes and
    restored after it: they belong to the user's own mode.
    """
    pinning = jetson_clocks and not gpu_clocks().get("clocks_pinned")
    if pinning:
        _store_clocks(undo)
    if power_mode:
        _set_power_mode(power_mode, undo)
    if pinning:
        printed(["sudo", "-n", "jetson_clocks"], 30.0)
        if not gpu_clocks().get("clocks_pinned"):
            raise Failed("prepare", f"jetson_clocks does not pin the clocks: {SUDO.format('jetson_clocks')}")


def _store_clocks(undo: Undo) -> None:
    os.makedirs(machine.root(), mode=0o700, exist_ok=True)
    kept = os.path.join(machine.root(), f"clocks-{os.getpid()}.conf")
    printed(["sudo", "-n", "jetson_clocks", "--store", kept], 30.0)
    if not os.path.exists(kept):
        raise Failed("prepare", f"jetson_clocks does not store the clocks: {SUDO.format('jetson_clocks')}")
    undo([["sh", "-c", 'sudo -n jetson_clocks --restore "$0" && rm -f "$0"', kept]])


def _set_power_mode(name: str, undo: Undo) -> None:
    now = power_mode_of(printed(["nvpmodel", "-q"]))
    if now is None:
        raise Failed(
            "prepare", "nvpmodel does not print its power mode: is this a Jetson? remove [prepare] from the target"
        )
    modes = _power_modes()
    if name not in modes:
        raise Failed("prepare", f"no power mode {name!r}; known: {', '.join(sorted(modes)) or 'none'}")
    if now[0] == name:
        return
    undo([["sudo", "-n", "nvpmodel", "-m", str(now[1])]])
    printed(["sudo", "-n", "nvpmodel", "-m", str(modes[name])], 30.0)
    after = power_mode_of(printed(["nvpmodel", "-q"]))
    if after is None or after[0] != name:  # its exit status is no evidence
        raise Failed(
            "prepare", f"the power mode stays {now[0]}: {SUDO.format('nvpmodel')}, and some modes need a reboot"
        )


def _power_modes() -> dict[str, int]:
    if not os.path.exists(MODES_FILE):
        return {}
    with open(MODES_FILE) as file:
        return power_modes_of(file.read())
