"""What competes with a measurement for the processor: other processes, the quota of a container, a capped clock."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Iterator

from ...runtimes import machine
from ...runtimes.cores import own
from ...runtimes.device import Conditions
from ..validate import printable

NAME_CHARS = 40
PROCESSES = 10_000  # that are read, at most
WORTH_NAMING = 0.05  # of a processor
FIRST = 1  # the process that started all others

CGROUP = "/sys/fs/cgroup"


@dataclass(frozen=True)
class Snapshot:
    """The processor time of every process, {pid: (name, ticks)}, and how long the quota has stopped this one, at a moment."""

    at_s: float
    ticks: dict[int, tuple[str, int]]
    stopped_ns: int


def snapshot(proc: str = "/proc", cgroup: str = CGROUP) -> Snapshot:
    """The state now."""
    found: dict[int, tuple[str, int]] = {}
    for pid in [name for name in machine.listed(proc) if name.isdigit()][:PROCESSES]:
        # The name is in parentheses and may hold any character. Fields 14 and 15 are user and system time (proc(5)).
        name, _, rest = machine.first_line(f"{proc}/{pid}/stat").partition("(")[2].rpartition(")")
        fields = rest.split()
        if len(fields) > 12:
            found[int(pid)] = (name, int(fields[11]) + int(fields[12]))
    return Snapshot(time.monotonic(), found, _stopped_ns(proc, cgroup))


def between(before: Snapshot, after: Snapshot, own: int) -> Conditions:
    """What competed in the time between two snapshots.

    Args:
        before: taken before the measurement.
        after: taken after it.
        own: the process that measured.

    Returns:
        `others`: processors that other processes used, `busiest`: the one that used most and its share of a processor,
        `stopped`: the share of the time in which the quota stopped this process. Facts that are not known are left out.
    """
    seconds = max(after.at_s - before.at_s, 1e-9)
    used = {
        pid: (ticks - before.ticks.get(pid, (name, 0))[1]) / os.sysconf("SC_CLK_TCK") / seconds
        for pid, (name, ticks) in after.ticks.items()
        if pid != own
    }
    # Where /proc hides the processes of other users (hidepid), not even the first one is seen.
    found: Conditions = {"others": round(sum(used.values()), 2)} if FIRST in after.ticks else {}
    busiest = max(used, key=lambda pid: used[pid], default=own)
    if used.get(busiest, 0.0) >= WORTH_NAMING:
        found["busiest"] = f"{printable(after.ticks[busiest][0], NAME_CHARS)} {100 * used[busiest]:.0f}%"
    if after.stopped_ns > before.stopped_ns:
        found["stopped"] = round((after.stopped_ns - before.stopped_ns) / 1e9 / seconds, 2)
    return found


def limits(cgroup: str = CGROUP, proc: str = "/proc", cpus: str = "/sys/devices/system/cpu") -> Conditions:
    """What limits the processor: `quota`, in processors (CFS bandwidth control), and `capped`, a share of the full clock."""
    found: Conditions = {}
    quota = quota_cores(proc, cgroup)
    if quota is not None:
        found["quota"] = round(quota, 3)
    shares = [share for core in own() if (share := _allowed(f"{cpus}/cpu{core}/cpufreq/")) is not None]
    if shares and min(shares) < 1:
        found["capped"] = round(min(shares), 3)
    return found


def _allowed(cpufreq: str) -> float | None:
    """The share of its full clock that a core may use; None where it is not reported."""
    highest, allowed = (machine.first_line(cpufreq + name) for name in ("cpuinfo_max_freq", "scaling_max_freq"))
    known = highest.isdigit() and allowed.isdigit() and int(highest) > 0 and int(allowed) > 0
    return int(allowed) / int(highest) if known else None


def cores(proc: str = "/proc", cgroup: str = CGROUP) -> int:
    """The processors that this process may use: its affinity, and not more than its quota, rounded down; at least one."""
    quota = quota_cores(proc, cgroup)
    return len(own()) if quota is None else max(1, min(len(own()), int(quota)))


def quota_cores(proc: str = "/proc", cgroup: str = CGROUP) -> float | None:
    """The least quota of the groups around this process, in processors; None without a quota."""
    found = []
    for folder in _groups(proc, cgroup):
        quota, period = _quota(folder)
        if quota.isdigit() and period.isdigit() and int(period):
            found.append(int(quota) / int(period))
    return min(found, default=None)


def _quota(folder: str) -> tuple[str, str]:
    """The quota and the period, in microseconds: of a group of version 2 (`cpu.max`), or of version 1."""
    quota, _, period = machine.first_line(f"{folder}/cpu.max").partition(" ")
    if quota:
        return quota, period
    return machine.first_line(f"{folder}/cpu.cfs_quota_us"), machine.first_line(f"{folder}/cpu.cfs_period_us")


def _stopped_ns(proc: str, cgroup: str) -> int:
    """How long quotas have stopped the groups around this process, in nanoseconds (cpu.stat)."""
    most = 0
    for folder in _groups(proc, cgroup):
        for line in machine.lines(f"{folder}/cpu.stat"):
            name, _, value = line.partition(" ")
            if value.isdigit() and name in ("throttled_usec", "throttled_time"):
                most = max(most, int(value) * (1000 if name == "throttled_usec" else 1))
    return most


def _groups(proc: str, cgroup: str) -> Iterator[str]:
    """The folders of the control groups around this process that limit the processor, innermost first (cgroups(7)).

    In a container the group's own path may not be visible; its folder is then the mount itself.
    """
    for line in machine.lines(f"{proc}/self/cgroup"):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        # The folder of version 1 may have the controllers in another order; `cpu` is a link to it.
        mounts = [f"{cgroup}/{controllers}", f"{cgroup}/cpu"] if controllers else [cgroup]
        while True:
            yield from (mount + path.rstrip("/") for mount in mounts)
            if path in ("", "/"):
                break
            path = os.path.dirname(path)
