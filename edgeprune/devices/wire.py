"""The wire between host and agent: one table of jobs and their replies, checked on both sides.

A job goes out as {"id", "mode", its fields}. Its reply comes back as {"id", the reply's fields}, or as {"id", "error",
"message"} where the agent cannot do it. The types of the fields say what is accepted; see `validate`.

It travels to devices: standard library only, Python 3.8 and up. So the annotations of fields are types that Python 3.8 can
evaluate.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Dict, Mapping, Optional, Tuple, Type

from ..runtimes.cores import Cluster
from ..runtimes.device import ErrorKind, Fact
from ..runtimes.timing import Timed
from .jobs import MODES as MODES
from .jobs import Job as Job
from .jobs import Reply
from .jobs import Work as Work
from .release_messages import Activate as Activate
from .release_messages import Activated as Activated
from .release_messages import AuditLog as AuditLog
from .release_messages import ChangeKeys as ChangeKeys
from .release_messages import Check as Check
from .release_messages import KeyEntry as KeyEntry
from .release_messages import Keys as Keys
from .release_messages import ListReleases as ListReleases
from .release_messages import Metrics as Metrics
from .release_messages import Publish as Publish
from .release_messages import Published as Published
from .release_messages import ReadAudit as ReadAudit
from .release_messages import ReadMetrics as ReadMetrics
from .release_messages import ReleaseEntry as ReleaseEntry
from .release_messages import Releases as Releases
from .release_messages import Withdraw as Withdraw
from .release_messages import Withdrawn as Withdrawn
from .validate import MESSAGE, PATH, WireError, read, shown

# -------------------------------------------------------------------------------------------------------- replies


@dataclass(frozen=True)
class Hello:
    """The host's first line. A host with a token takes the lease of the board."""

    nonce: str
    who: str = ""
    token: str = ""
    silence_s: Optional[float] = None


@dataclass(frozen=True)
class Welcome:
    """The answer to `Hello`; `left` lists commands that could not restore the device."""

    pid: int
    boot_id: str
    left: Tuple[str, ...] = field(default=(), metadata=MESSAGE)


@dataclass(frozen=True)
class Failure:
    """The agent cannot do a job."""

    error: ErrorKind
    message: str = field(metadata=MESSAGE)


@dataclass(frozen=True)
class Done:
    """The job is done."""


@dataclass(frozen=True)
class Reserved:
    """Whether an upload is complete already; else the bytes of each of its files that are there."""

    present: bool
    partial: Dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Platform:
    """What the device is, as far as an installation needs it."""

    python: str
    machine: str
    glibc: str
    free_bytes: int
    clock_s: float
    cores: int
    pip: bool
    bits: int = 64  # of its programs: a 64-bit kernel may have 32-bit ones
    noexec: bool = False  # whether no library can be loaded from the home
    symlinks: bool = True  # whether the home can hold symbolic links
    clusters: Tuple[Cluster, ...] = ()


@dataclass(frozen=True)
class Identity:
    """The device and its runtime; see `records.Device`."""

    machine: str
    cpu: str
    cores: int
    system: str
    runtime: str
    runtime_version: str
    boot_id: str
    serial: str
    emulated: bool
    simulated: bool
    pinned: str = ""


@dataclass(frozen=True)
class State:
    """The conditions of the device now."""

    conditions: Dict[str, Fact]


@dataclass(frozen=True)
class Measurement:
    """The runs of every model of a job, and the conditions around them."""

    models: Tuple[Timed, ...]
    peak_memory_bytes: int
    before: Dict[str, Fact]
    after: Dict[str, Fact]


@dataclass(frozen=True)
class Outputs:
    """Files on the device with the stacked outputs of `count` samples; `spent_s` is the time of the last call."""

    count: int
    files: Tuple[str, ...] = field(metadata=PATH)
    spent_s: float


@dataclass(frozen=True)
class Throughput:
    """The inferences that were completed in a time, and the conditions around them."""

    runs: int
    spent_ns: int
    before: Dict[str, Fact]
    after: Dict[str, Fact]


@dataclass(frozen=True)
class Cycle:
    """The energy of the device while it was idle, and then while it ran a model so many times; microjoules and nanoseconds."""

    idle_uj: float
    idle_ns: int
    busy_uj: float
    busy_ns: int
    runs: int


@dataclass(frozen=True)
class Energy:
    """What a device draws. Without rails that this user can read, `source` is empty and there are no cycles."""

    source: str
    cycles: Tuple[Cycle, ...]
    before: Dict[str, Fact]
    after: Dict[str, Fact]


# ----------------------------------------------------------------------------------------------------------- jobs


@dataclass(frozen=True)
class Reserve(Job[Reserved]):
    """Make space for an upload, unless it is complete already. The least recently used uploads are dropped."""

    folder: str
    bytes: int


@dataclass(frozen=True)
class Stored:
    """The size of a file and its SHA-256 in hex."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Store(Job[Done]):
    """Unpack and check uploaded files, then give them their final name."""

    folder: str
    files: Dict[str, Stored]


@dataclass(frozen=True)
class Discard(Job[Done]):
    """Remove a partial upload."""

    folder: str


@dataclass(frozen=True)
class Examine(Job[Platform]):
    """Report what an installation needs to know."""


@dataclass(frozen=True)
class Install(Work[Done]):
    """Install a runtime from wheels on the device, or by its own pip from requirements."""

    wheels: Tuple[str, ...] = field(default=(), metadata=PATH)
    requirements: Tuple[str, ...] = ()
    dependencies: bool = True  # of the requirements


@dataclass(frozen=True)
class Identify(Work[Identity]):
    """Report what the device is, and that it has these cores."""

    cores: Optional[str] = None


@dataclass(frozen=True)
class GetState(Work[State]):
    """Report the conditions."""


@dataclass(frozen=True)
class Prepare:
    """The state that the device is brought into while it measures."""

    power_mode: Optional[str]
    jetson_clocks: bool


def _of(mode: str, models: Tuple[str, ...]) -> str:
    """What is done to which model files."""
    return f"{mode} of {', '.join(sorted({model.rpartition('/')[2] for model in models}))}"


@dataclass(frozen=True)
class Time(Work[Measurement]):
    """Time models interleaved in one process, then the nodes of each of the `profiled` files."""

    threads: int
    models: Tuple[str, ...] = field(metadata=PATH)
    inputs: Tuple[str, ...] = field(metadata=PATH)
    warmup_s: float
    timed_s: float
    runs_min: int
    runs_max: int
    dla: Optional[int] = None
    cores: Optional[str] = None
    prepare: Optional[Prepare] = None
    profiled: Tuple[str, ...] = field(default=(), metadata=PATH)
    profiled_s: float = 0.0

    @property
    def label(self) -> str:
        """The mode and the models."""
        return _of("time", self.models)


@dataclass(frozen=True)
class GetOutputs(Work[Outputs]):
    """Run a model on stacked samples from `start` on, until `most_s` or `most_bytes` is reached.

    `outputs` is how many of the model's outputs are kept, from the first on.
    """

    threads: int
    model: str = field(metadata=PATH)
    inputs: Tuple[str, ...] = field(metadata=PATH)
    outputs: int
    start: int
    most_s: float
    most_bytes: int
    dla: Optional[int] = None
    cores: Optional[str] = None

    @property
    def label(self) -> str:
        """The mode and the model."""
        return _of("outputs", (self.model,))


@dataclass(frozen=True)
class GetThroughput(Work[Throughput]):
    """Keep `streams` inferences of a model running at the same time, for `timed_s` after a warm-up."""

    threads: int
    streams: int
    model: str = field(metadata=PATH)
    inputs: Tuple[str, ...] = field(metadata=PATH)
    warmup_s: float
    timed_s: float
    dla: Optional[int] = None
    cores: Optional[str] = None

    @property
    def label(self) -> str:
        """The mode and the model."""
        return _of("throughput", (self.model,))


@dataclass(frozen=True)
class GetEnergy(Work[Energy]):
    """Let the device be idle and run a model in turn, for `window_s` each, and read its rails meanwhile."""

    threads: int
    model: str = field(metadata=PATH)
    inputs: Tuple[str, ...] = field(metadata=PATH)
    warmup_s: float
    window_s: float
    cycles: int
    dla: Optional[int] = None
    cores: Optional[str] = None

    @property
    def label(self) -> str:
        """The mode and the model."""
        return _of("energy", (self.model,))


TABLE: Dict[str, Tuple[Type[Job[Any]], Type[Any]]] = {
    "reserve": (Reserve, Reserved),
    "store": (Store, Done),
    "discard": (Discard, Done),
    "examine": (Examine, Platform),
    "install": (Install, Done),
    "identify": (Identify, Identity),
    "state": (GetState, State),
    "time": (Time, Measurement),
    "outputs": (GetOutputs, Outputs),
    "throughput": (GetThroughput, Throughput),
    "energy": (GetEnergy, Energy),
    "publish": (Publish, Published),
    "activate": (Activate, Activated),
    "releases": (ListReleases, Releases),
    "withdraw": (Withdraw, Withdrawn),
    "keys": (ChangeKeys, Keys),
    "audit": (ReadAudit, AuditLog),
    "metrics": (ReadMetrics, Metrics),
}
MODES.update({job: mode for mode, (job, _) in TABLE.items()})


# ------------------------------------------------------------------------------------------------ to and from JSON


def document(message: Any, **extra: Any) -> Dict[str, Any]:
    """A message as a JSON object, with more keys in front."""
    return {**extra, **asdict(message)}


def job_document(number: int, job: Job[Any]) -> Dict[str, Any]:
    """A job as the JSON object that the agent reads."""
    return document(job, id=number, mode=MODES[type(job)])


def read_job(content: Any) -> Tuple[int, Job[Any]]:
    """The number of a job and the job. Raises `WireError`."""
    if not isinstance(content, dict):
        raise WireError(f"the job must be an object, and is {shown(content)}")
    rest = dict(content)
    number, mode = rest.pop("id", None), rest.pop("mode", None)
    if not isinstance(number, int) or mode not in TABLE:
        raise WireError(f"the job needs an id and a known mode, and has {shown(number)} and {shown(mode)}")
    return number, read(TABLE[mode][0], rest)


def read_reply(job: Job[Reply], number: int, content: Mapping[str, Any]) -> Reply | Failure:
    """The reply to a job that was sent with this number. Raises `WireError`."""
    rest = dict(content)
    if rest.pop("id", None) != number:
        raise WireError("the replies are out of order")
    kind: Any = Failure if "error" in rest else TABLE[MODES[type(job)]][1]
    reply: Reply | Failure = read(kind, rest)
    return reply
