"""The kinds of cores of a processor (big.LITTLE), and pinning to some of them.

It travels to devices: standard library only, Python 3.8 and up.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Iterable, Optional, Sequence

from . import machine
from .device import Failed

CPUS = "/sys/devices/system/cpu"
HYBRID = tuple(  # of Intel
    (f"/sys/devices/cpu_{name}/cpus", kind)
    for name, kind in (("core", "performance"), ("atom", "efficient"), ("lowpower", "low-power"))
)
ARM = {  # the part numbers of /proc/cpuinfo
    "0xc07": "Cortex-A7", "0xc09": "Cortex-A9", "0xc0e": "Cortex-A17", "0xc0f": "Cortex-A15", "0xd01": "Cortex-A32",
    "0xd03": "Cortex-A53", "0xd04": "Cortex-A35", "0xd05": "Cortex-A55", "0xd07": "Cortex-A57", "0xd08": "Cortex-A72",
    "0xd09": "Cortex-A73", "0xd0a": "Cortex-A75", "0xd0b": "Cortex-A76", "0xd0d": "Cortex-A77", "0xd41": "Cortex-A78",
    "0xd42": "Cortex-A78AE", "0xd44": "Cortex-X1", "0xd46": "Cortex-A510", "0xd47": "Cortex-A710", "0xd48": "Cortex-X2",
    "0xd4d": "Cortex-A715", "0xd4e": "Cortex-X3", "0xd80": "Cortex-A520", "0xd81": "Cortex-A720", "0xd82": "Cortex-X4",
    "0xd83": "Neoverse-V3AE", "0xd85": "Cortex-X925", "0xd87": "Cortex-A725", "0xd0c": "Neoverse-N1", "0xd49": "Neoverse-N2",
}  # fmt: skip
SMALL = (
    "Cortex-A7",
    "Cortex-A32",
    "Cortex-A35",
    "Cortex-A53",
    "Cortex-A55",
    "Cortex-A510",
    "Cortex-A520",
    "efficient",
    "low-power",
)


@dataclass(frozen=True)
class Cluster:
    """Cores of one kind, such as "4-7". `max_khz` and `capacity` are None where the device does not report them.

    Capacity is the speed of a core where the fastest one has 1024. A small core may have the higher clock.
    """

    cores: str
    kind: str
    max_khz: Optional[int] = None
    capacity: Optional[int] = None

    @property
    def count(self) -> int:
        """How many cores; 0 if `cores` is no list, since devices may send anything."""
        try:
            return len(listed(self.cores))
        except ValueError:
            return 0


def listed(text: str) -> list[int]:
    """The cores of a list as Linux writes it: "0-2,5" is 0, 1, 2, 5. Raises `ValueError` for another text."""
    found = set()
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", part.strip())
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise ValueError(f"{text!r} is no list of cores")
        found |= set(range(int(match[1]), int(match[2] or match[1]) + 1))
    return sorted(found)


def written(cores: Iterable[int]) -> str:
    """Cores as Linux writes them."""
    parts: list[list[int]] = []
    for core in sorted(set(cores)):
        if parts and core == parts[-1][-1] + 1:
            parts[-1].append(core)
        else:
            parts.append([core])
    return ",".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)


def own() -> list[int]:
    """The cores that this process may use."""
    return sorted(os.sched_getaffinity(0))


def clusters(cpus: str = CPUS, proc: str = "/proc", hybrid: Iterable[tuple[str, str]] = HYBRID) -> tuple[Cluster, ...]:
    """The kinds of the cores that this process may use; one where all are equal.

    They differ in part number or capacity. Some Arm processors have equal cores, and a slower clock for half of them. On Intel
    and AMD, the clocks of equal cores differ a little: the best ones may go higher.
    """
    parts = _parts(proc)
    for path, name in hybrid:
        text = machine.first_line(path)
        parts.update(dict.fromkeys(listed(text), name) if text else {})
    kinds: dict[tuple[str, str, str], list[int]] = {}
    for core in own():
        capacity = machine.first_line(f"{cpus}/cpu{core}/cpu_capacity")
        part = parts.get(core, "")
        highest = machine.first_line(f"{cpus}/cpu{core}/cpufreq/cpuinfo_max_freq") if part.startswith("0x") else ""
        kinds.setdefault((part, capacity, highest), []).append(core)
    found = []
    for (part, capacity, _), cores in kinds.items():
        highest = machine.first_line(f"{cpus}/cpu{cores[0]}/cpufreq/cpuinfo_max_freq")
        figures = [int(text) if text.isdigit() else None for text in (highest, capacity)]
        found.append(Cluster(written(cores), ARM.get(part, part)[:60], *figures))
    return tuple(found)


def fastest(clusters: Sequence[Cluster], threads: int) -> Cluster:
    """The fastest cluster that has a core for each thread; the fastest of all if none has."""
    enough = [one for one in clusters if one.count >= threads]
    return max(enough or clusters, key=lambda one: (one.capacity or 0, one.kind not in SMALL, one.max_khz or 0))


def _parts(proc: str) -> dict[int, str]:
    """The part number of each core of an Arm processor. Old kernels write it once for all, in a separate block."""
    found: dict[int, str] = {}
    block: list[int] = []
    every: list[int] = []
    for line in machine.lines(f"{proc}/cpuinfo", 20_000):
        name, _, value = line.partition(":")
        if not line.strip():
            block = []
        elif name.strip() == "processor" and value.strip().isdigit():
            block = [int(value)]
            every += block
        elif name.strip() == "CPU part":
            found.update(dict.fromkeys(block or every, value.strip()))
    return found


def pin(text: str) -> None:
    """Run this process, and all that it starts, on these cores only. Raises `Failed` where the device has not all of them."""
    wanted = set(listed(text))
    try:
        os.sched_setaffinity(0, wanted)
        missing = wanted - set(own())
    except OSError:
        missing = wanted - set(own())
    if missing:
        there = "; ".join(f"{one.cores} {one.kind}".strip() for one in clusters())
        raise Failed(
            "prepare", f"[runtime] cores = {text}: this process cannot have {written(missing)}; it may use {there}"
        )


def require_pinned(text: str, tasks: str = "/proc/self/task") -> None:
    """Raises `Failed` where a thread of this process left its cores: a runtime may pin its threads itself."""
    wanted = set(listed(text))
    for task in machine.listed(tasks):
        for line in machine.lines(f"{tasks}/{task}/status"):
            if line.startswith("Cpus_allowed_list:"):
                outside = set(listed(line.partition(":")[2].strip())) - wanted
                if outside:
                    raise Failed(
                        "prepare", f"a thread of the runtime may also use {written(outside)}, outside of {text}"
                    )
