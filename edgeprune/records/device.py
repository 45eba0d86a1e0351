"""Facts and measurements that devices report."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from statistics import median

from edgeprune.records.digests import digest

REVISION = re.compile(r" Rev \d+(\.\d+)*$")


@dataclass(frozen=True)
class Device:
    """Facts that a device reports about itself. `identity` is the digest of the facts that make measurements comparable."""

    machine: str
    cpu: str
    cores: int
    system: str
    runtime: str
    runtime_version: str
    boot_id: str
    serial: str = "unknown"  # a digest: two boards of the same kind differ in it
    emulated: bool = False
    simulated: bool = False  # the runtime is a stand-in
    pinned: str = ""  # the cores that measurements use; empty if all

    @property
    def identity(self) -> str:
        """A digest of the hardware, the operating system and the runtime: devices with the same one are comparable."""
        facts = {**asdict(self), "cpu": REVISION.sub("", self.cpu)}  # earlier versions kept the board's revision
        del facts["boot_id"], facts["serial"]
        if not self.simulated:  # profiles from before this fact existed keep their digest
            del facts["simulated"]
        if not self.pinned:
            del facts["pinned"]
        return digest(facts)


Conditions = dict[str, int | float | str]  # the state of a device; facts that it does not report are left out
THROTTLED_NOW = 0xF  # under-voltage, frequency capped, throttled, soft temperature limit (vcgencmd get_throttled)
CROWDED = 0.2  # a process that waits for a processor in more than this share of its time and of its runs is disturbed


@dataclass(frozen=True)
class Run:
    """The measurements of one fresh process.

    Attributes:
        times_ns: raw times in the order in which they were taken, after warm-up. On a GPU they are the GPU's own times.
        peak_memory_bytes: the process's peak memory.
        waited_ns: how long it waited for a processor that other processes used.
        waits: how often it waited.
        before: the state of the device before the first time.
        after: the state of the device after the last time.
        copies_ns: the copies to the GPU and back for one inference. They are not in `times_ns`.
        fallbacks: layers that the GPU runs since the deep-learning accelerator cannot.
    """

    times_ns: tuple[int, ...]
    peak_memory_bytes: int
    waited_ns: int = 0
    waits: int = 0
    before: Conditions = field(default_factory=dict)
    after: Conditions = field(default_factory=dict)
    copies_ns: int = 0
    fallbacks: int = 0

    def __post_init__(self) -> None:
        if not self.times_ns or any(t <= 0 for t in self.times_ns) or self.peak_memory_bytes <= 0:
            raise ValueError("a run must hold at least one time; times_ns and peak_memory_bytes must be > 0")
        if min(self.waited_ns, self.waits, self.copies_ns, self.fallbacks) < 0:
            raise ValueError("waited_ns, waits, copies_ns and fallbacks must be ≥ 0")

    @property
    def disturbed(self) -> str | None:
        """Why these times must be discarded; None if they are good."""
        if any(int(state.get("throttled", 0)) & THROTTLED_NOW for state in (self.before, self.after)):
            return "the processor was throttled"
        if self.before.get("boot_id") != self.after.get("boot_id"):
            return "the device was reset"
        if self.before.get("power_mode") != self.after.get("power_mode"):
            return "the power mode was changed"
        # A few long waits among many runs do not change the median.
        if self.waited_ns > CROWDED * sum(self.times_ns) and self.waits > CROWDED * len(self.times_ns):
            stopped = float(self.after.get("stopped", 0)) > CROWDED
            return "a quota stopped the process" if stopped else "other processes used the processor"
        return None

    @property
    def competition(self) -> tuple[str, ...]:
        """What competed for the processor, as far as the device reports it."""
        state, found = self.after, []
        if "others" in state:
            most = f", the most by {state['busiest']}" if "busiest" in state else ""
            found.append(f"other processes used {state['others']} processors{most}")
        if "load" in state:
            found.append(f"load {float(state['load']):.1f}")
        if "quota" in state:
            stopped = (
                f", which stopped it for {100 * float(state['stopped']):.0f}% of the time" if "stopped" in state else ""
            )
            found.append(f"quota {state['quota']} processors{stopped}")
        if "capped" in state:
            found.append(f"the clock is capped at {100 * float(state['capped']):.0f}%")
        return tuple(found)


@dataclass(frozen=True)
class Samples:
    """Raw times of one artifact: a `Run` for each fresh process. All latencies are computed from these."""

    runs: tuple[Run, ...]

    def __post_init__(self) -> None:
        if not self.runs:
            raise ValueError("samples must hold at least one run")

    @property
    def peak_memory_bytes(self) -> int:
        """The median of the processes' peak memory."""
        return int(median(run.peak_memory_bytes for run in self.runs))


@dataclass(frozen=True)
class Energy:
    """The energy of an inference beyond that of the idle device, in microjoules: a value of each cycle of idle and busy.

    `source` says which rails were read.
    """

    source: str
    each_uj: tuple[float, ...]


@dataclass(frozen=True)
class Interval:
    """An estimate and its interval: nanoseconds, or a ratio."""

    low: float
    mid: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.mid <= self.high:
            raise ValueError(f"not an interval: {self.low}, {self.mid}, {self.high}")
