"""Facts and measurements that devices report."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from statistics import median

from edgeprune.records.digests import digest


@dataclass(frozen=True)
class Device:
    """Facts the machine answered. `identity` leaves out what changes at every boot."""

    machine: str
    cpu: str
    cores: int
    system: str
    runtime: str
    runtime_version: str
    boot_id: str
    serial: str = "unknown"  # a digest: tells two boards of one kind apart
    emulated: bool = False
    simulated: bool = False  # its runtime is a stand-in

    @property
    def identity(self) -> str:
        """Digest of what makes two measurements comparable: hardware, operating system and runtime."""
        facts = asdict(self)
        del facts["boot_id"], facts["serial"]
        if not self.simulated:  # as where the fact was not known yet: profiles are found by this
            del facts["simulated"]
        return digest(facts)


Conditions = dict[str, int | float | str]  # the state of a device; a fact that it does not tell is left out


THROTTLED_NOW = 0xF  # under-voltage, frequency capped, throttled, soft temperature limit (vcgencmd get_throttled)


CROWDED = 0.2  # share of its time and of its runs in which a process may have waited for a processor that others had


@dataclass(frozen=True)
class Run:
    """One fresh process: its raw times in the order taken, after warm-up, its peak memory and the conditions around them.

    `waited_ns` is how long it waited for a processor that other processes had, `waits` how often. On a GPU the
    times are the GPU's own, and `copies_ns` is what the copies to it and back take beside one of them; `fallbacks` is how many
    layers its deep-learning accelerator left to it.
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
            raise ValueError("a run holds at least one time, all of them above zero, and a peak memory above zero")
        if min(self.waited_ns, self.waits, self.copies_ns, self.fallbacks) < 0:
            raise ValueError("a process cannot wait less than not at all")

    @property
    def disturbed(self) -> str | None:
        """Why these times say nothing about the network, or None."""
        if any(int(state.get("throttled", 0)) & THROTTLED_NOW for state in (self.before, self.after)):
            return "the processor was throttled"
        if self.before.get("boot_id") != self.after.get("boot_id"):
            return "the device was reset"
        if self.before.get("power_mode") != self.after.get("power_mode"):
            return "the power mode was changed"
        # A few long waits among many runs leave the median alone.
        if self.waited_ns > CROWDED * sum(self.times_ns) and self.waits > CROWDED * len(self.times_ns):
            return "other processes had the processor"
        return None


@dataclass(frozen=True)
class Samples:
    """Raw times of one artifact, a `Run` a fresh process: the only home of a time."""

    runs: tuple[Run, ...]

    def __post_init__(self) -> None:
        if not self.runs:
            raise ValueError("samples hold at least one run")

    @property
    def peak_memory_bytes(self) -> int:
        """The median over processes."""
        return int(median(run.peak_memory_bytes for run in self.runs))


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval, all in nanoseconds."""

    low: float
    mid: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.mid <= self.high:
            raise ValueError(f"not an interval: {self.low}, {self.mid}, {self.high}")
