"""The nouns that flow down the road: made once, never edited. Standard library only.

A noun that is invalid cannot be built: every `__post_init__` checks what its type cannot say. Times are integer
nanoseconds (`_ns`); sizes are bytes. Each noun names the digest of what it was made from.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from enum import StrEnum
from pathlib import Path
from statistics import median
from typing import Any

from edgeprune.errors import UsageError

Widths = Mapping[str, int]  # group name -> units kept; none in the inner groups of a block that is removed


def digest(noun: Any) -> str:
    """SHA-256, in hex, of a noun's canonical JSON: the same content has the same digest on every machine."""

    def plain(value: Any) -> Any:
        if is_dataclass(value) and not isinstance(value, type):
            return asdict(value)
        if isinstance(value, StrEnum | Path):
            return str(value)
        if isinstance(value, bytes):
            return hashlib.sha256(value).hexdigest()
        raise TypeError(f"{type(value).__name__} has no canonical form")

    text = json.dumps(noun, default=plain, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


# --------------------------------------------------------------------------------------- what the user writes


@dataclass(frozen=True)
class Budget:
    """A latency budget: absolute (`ns`) or a share of the unpruned model on the same target (`fraction`).

    It is of the median, or of another quantile of an artifact's times.
    """

    ns: int | None = None
    fraction: float | None = None
    quantile: float = 0.5

    def __post_init__(self) -> None:
        if (self.ns is None) == (self.fraction is None):
            raise UsageError("a budget is either a time or a share of the baseline, not both or neither")
        value = self.ns if self.ns is not None else self.fraction
        if value is None or not math.isfinite(value) or value <= 0:
            raise UsageError(f'a budget must be above zero, not {self}; write "12 ms" or "50%"')

    @staticmethod
    def parse(text: str) -> Budget:
        """Read `"12 ms"`, `"800 us"`, `"1.5 s"`, `"50%"` or `"p99 12 ms"`; anything else is a `UsageError`."""
        match = re.fullmatch(r"\s*(?:p(50|90|99)\s+)?(\d+(?:\.\d+)?)\s*(%|ns|us|µs|ms|s)\s*", text)
        if match is None:
            raise UsageError(f'cannot read the budget {text!r}; write a time such as "12 ms" or a share such as "50%"')
        quantile, value, unit = int(match[1] or 50) / 100, float(match[2]), match[3]
        if value == 0:
            raise UsageError(f"a budget of {text!r} can never be met; write a time above zero")
        if unit == "%":
            return Budget(fraction=value / 100, quantile=quantile)
        scale = {"ns": 1, "us": 1e3, "µs": 1e3, "ms": 1e6, "s": 1e9}[unit]
        return Budget(max(1, round(value * scale)), quantile=quantile)

    def resolve(self, baseline_ns: float) -> float:
        """The budget in nanoseconds, given the baseline's latency in nanoseconds."""
        return float(self.ns) if self.ns is not None else float(self.fraction or 0) * baseline_ns

    def __str__(self) -> str:
        text = f"{self.ns / 1e6:g} ms" if self.ns is not None else f"{100 * (self.fraction or 0):g}%"
        return text if self.quantile == 0.5 else f"p{100 * self.quantile:.0f} {text}"


@dataclass(frozen=True)
class Preprocess:
    """What becomes of the first input inside the network: (x · scale − mean) ÷ std, by channel (dimension 1)."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not self.mean or len(self.mean) != len(self.std):
            raise UsageError(f"mean has {len(self.mean)} numbers, std {len(self.std)}; give one of each a channel")
        numbers = (*self.mean, *self.std, self.scale)
        if not all(map(math.isfinite, numbers)) or min(self.std) <= 0 or self.scale == 0:
            raise UsageError("mean, std and scale must be finite, std above zero, scale not zero")

    @property
    def factor(self) -> tuple[float, ...]:
        """What a channel is multiplied by, before `shift` is added."""
        return tuple(self.scale / std for std in self.std)

    @property
    def shift(self) -> tuple[float, ...]:
        """What is added to a channel."""
        return tuple(-mean / std for mean, std in zip(self.mean, self.std, strict=True))


@dataclass(frozen=True)
class Project:
    """`edgeprune.toml` as read: what to compress, on what data, to which budget. Functions stay names here."""

    path: Path
    name: str
    factory: str
    weights: Path | None
    inputs: str
    train: str
    valid: str
    test: str | None
    loss: str | None
    metric: str | None
    closed_loop: str | None = field(default=None, kw_only=True)
    budget: Budget
    clean: str | None = None
    augment: str | None = None
    max_metric_drop: float = 0.01
    preprocess: Preprocess | None = None
    importance: str = "loss-curves"
    lock: tuple[str, ...] = ()
    epochs: int = 20
    learning_rate: float = 0.01
    ema: float | None = None
    seed: int = 0
    budgets: tuple[Budget, ...] = ()  # that `check` holds it to; its `budget` where there are none
    slowdown: float | None = None  # against the baseline that `check` lets pass; a device's own where it is None


@dataclass(frozen=True)
class Host:
    """How to reach a device over SSH; what is None comes from `~/.ssh/config` or ssh's defaults."""

    name: str
    user: str | None = None
    port: int | None = None
    identity: Path | None = None
    known_hosts: Path | None = None
    fingerprint: str | None = None  # pinned: SHA256:…
    python: str = "python3"


@dataclass(frozen=True)
class Deployment:
    """How releases get into service: on which hosts (the target's own where none are named), signed with which Ed25519 key,
    which command tells a server of a switch, and how many releases a device keeps."""

    hosts: tuple[str, ...] = ()
    key: Path | None = None
    reload: tuple[str, ...] = ()
    keep: int = 5


@dataclass(frozen=True)
class Prepare:
    """What is changed on a device while it measures, and put back after: nvpmodel's mode by name, and pinned clocks."""

    power_mode: str | None = None
    jetson_clocks: bool = False


@dataclass(frozen=True)
class Target:
    """`targets/NAME.toml` as read: how to reach a device and what runs there.

    `precision` is "fp32", "fp16", "int8", or "auto": whatever is fastest and keeps the metric. `emulated` and `simulated` say
    that an emulated device, or one whose runtime is a stand-in, is what the user wants: its figures are no measure of a real
    one. `dla` is the core of the deep-learning accelerator to use, `power_mode` (nvpmodel's name) and `clocks_pinned` are what
    a Jetson must be in, and `prepare` is what is done to it.
    """

    path: Path
    name: str
    transport: str
    runtime: str
    threads: int = 1
    precision: str = "fp32"
    host: Host | None = None
    emulated: bool = False
    simulated: bool = False
    dla: int | None = None
    power_mode: str | None = None
    clocks_pinned: bool | None = None
    prepare: Prepare | None = None
    deploy: Deployment = Deployment()

    @property
    def each_host(self) -> list[tuple[str, Target]]:
        """Every host that releases go to, by its name, as a target of its own."""
        if self.host is None:
            return [("here", self)]
        if not self.deploy.hosts:
            return [(self.host.name, self)]
        return [(name, replace(self, host=replace(self.host, name=name))) for name in self.deploy.hosts]

    @property
    def all_hosts(self) -> list[tuple[str, Target]]:
        """The host that is measured on, and every other that releases go to."""
        if self.host is None:
            return self.each_host
        own = (self.host.name, self)
        return [own, *(host for host in self.each_host if host[0] != own[0])]


# ----------------------------------------------------------------------------------------- what a network is


@dataclass(frozen=True)
class Slot:
    """One dimension of one parameter that a group owns: `indices[unit]` are the indices that go with the unit."""

    parameter: str
    dim: int
    indices: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Group:
    """Channels that live or die together, in `width` interchangeable units.

    Unit `u` owns `slot.indices[u]` of every slot. `locked` says why nothing may be removed, or is None.
    """

    name: str
    width: int
    slots: tuple[Slot, ...]
    locked: str | None = None


@dataclass(frozen=True)
class Span:
    """The size of a channel dimension as a function of the widths: `fixed + Σ channels·Π width(group)`.

    A term has one group, or several where the channels are seen as a product, such as heads × width.
    """

    fixed: int
    terms: tuple[tuple[tuple[str, ...], int], ...] = ()

    @property
    def groups(self) -> frozenset[str]:
        """The groups that the size depends on."""
        return frozenset(name for names, _ in self.terms for name in names)

    def size(self, widths: Widths) -> int:
        """Channels at these widths (units kept a group)."""
        return self.fixed + sum(channels * math.prod(widths[name] for name in names) for names, channels in self.terms)


def output_dim(kind: str) -> int:
    """The dimension of a layer's weight in which its outputs are."""
    return 1 if kind in ("conv_transpose", "matmul") else 0


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer as the latency model sees it.

    One forward pass computes `positions` output positions (batch and space), each from `kernel` taps. `per_group` is
    None for a dense layer; for a grouped convolution it is the constant number of input channels a convolution group
    reads, and inputs and outputs shrink together. `within` is an inner group of the block that the layer goes with.
    """

    name: str
    kind: str
    weight: str
    inputs: Span
    outputs: Span
    positions: int
    kernel: int
    per_group: int | None = None
    within: str | None = None

    def channels(self, widths: Widths) -> tuple[int, int]:
        """Input and output channels at these widths; none where the layer is gone with its block."""
        if self.within is not None and not widths[self.within]:
            return 0, 0
        return self.inputs.size(widths), self.outputs.size(widths)

    def macs(self, widths: Widths) -> int:
        """Multiply-accumulates of one forward pass at these widths."""
        inputs, outputs = self.channels(widths)
        return self.positions * self.kernel * (self.per_group if self.per_group is not None else inputs) * outputs


@dataclass(frozen=True)
class Block:
    """A module that hands its input through and adds to it: it may be removed, which is to keep no unit of its inner groups.

    `groups` are those whose channels begin and end in it, at least one; `parameters` are all that go with it.
    """

    name: str
    groups: tuple[str, ...]
    parameters: tuple[str, ...]


@dataclass(frozen=True)
class Groups:
    """All channel groups, layers and removable blocks of a network. `network` is the digest of its structure (not of its
    weights), `operators` how many its traced graph has."""

    network: str
    groups: tuple[Group, ...]
    layers: tuple[Layer, ...]
    folds: tuple[tuple[str, str], ...] = ()  # (convolution or linear, the batch-norm that folds into it)
    unknown_operators: tuple[str, ...] = ()
    blocks: tuple[Block, ...] = ()
    operators: int = field(kw_only=True)

    @property
    def block_of(self) -> dict[str, Block]:
        """The inner groups of blocks: {group: its block}."""
        return {group: block for block in self.blocks for group in block.groups}

    def removed(self, widths: Widths) -> tuple[Block, ...]:
        """The blocks of which nothing is left at these widths."""
        return tuple(block for block in self.blocks if not any(widths[group] for group in block.groups))

    @property
    def free(self) -> tuple[Group, ...]:
        """The groups that may be cut."""
        return tuple(group for group in self.groups if group.locked is None)

    def full(self) -> dict[str, int]:
        """The unpruned widths of all groups."""
        return {group.name: group.width for group in self.groups}

    def least(self) -> dict[str, int]:
        """The smallest widths there are: a unit a group, no block."""
        inner = self.block_of
        return {g.name: g.width if g.locked else 0 if g.name in inner else 1 for g in self.groups}

    def macs(self, widths: Widths) -> int:
        """Multiply-accumulates of the convolutions and linear layers at these widths."""
        return sum(layer.macs(widths) for layer in self.layers)


Recipe = Mapping[
    str, Mapping[int, tuple[int, ...]]
]  # parameter -> dim -> indices kept, ascending; none of what is removed


# ------------------------------------------------------------------------------------------- what devices say


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
class Experiment:
    """One variant measured: its widths, its whole-network samples, and what the runtime's profiler saw a layer.

    Experiments with the same `batch` were timed in turns in the same processes, run i with run i; the one whose role is
    "anchor" has the same widths in every batch of a profile, and takes the machine's drift out of the others; "reference" is
    the unpruned network in fp32, where the profile's precision is another. `layer_ns`
    ranks layers; only `samples` carry the scale of the network.
    """

    role: str  # "anchor", "baseline", "reference", "fit" or "confirm"
    batch: int
    widths: dict[str, int]
    samples: Samples
    layer_ns: dict[str, int] = field(default_factory=dict)
    other_ns: int = 0


@dataclass(frozen=True)
class Profile:
    """All experiments with one network structure on one device, runtime, thread count and precision."""

    target: str
    model: str
    network: str
    device: Device
    threads: int
    precision: str
    experiments: tuple[Experiment, ...]

    def __post_init__(self) -> None:
        anchored = {experiment.batch for experiment in self.experiments if experiment.role == "anchor"}
        if not {experiment.batch for experiment in self.experiments} <= anchored:
            raise ValueError("every batch of a profile holds its anchor")

    def with_experiments(self, more: Iterable[Experiment]) -> Profile:
        """A new profile with these experiments appended."""
        return replace(self, experiments=(*self.experiments, *more))

    @property
    def variants(self) -> tuple[Experiment, ...]:
        """The experiments in the profile's own precision: all but the references."""
        return tuple(experiment for experiment in self.experiments if experiment.role != "reference")

    @property
    def unpruned_role(self) -> str:
        """The role of the unpruned network in fp32, which shares of a budget refer to."""
        return "baseline" if self.precision == "fp32" else "reference"

    @property
    def next_batch(self) -> int:
        """The number of a batch that is to be measured."""
        return 1 + max((experiment.batch for experiment in self.experiments), default=-1)


@dataclass(frozen=True)
class ExplainedLayer:
    """What was measured of a layer, and what its latency model makes of it.

    `share` is of the unpruned network's latency, `points` are (inputs, outputs, nanoseconds by the runtime's profiler); a step
    is how many channels cost as much as one, None where they stay.
    """

    name: str
    share: float
    inputs: int
    outputs: int
    points: tuple[tuple[int, int, int], ...]
    input_step: int | None
    output_step: int | None


@dataclass(frozen=True)
class SurveyedGroup:
    """A channel group: its units, the layers whose weights it cuts, their multiply-accumulates, and the reason of its lock."""

    name: str
    width: int
    layers: tuple[str, ...]
    macs: int
    locked: str | None


@dataclass(frozen=True)
class Survey:
    """What of a model can be cut: `macs` are all of its multiply-accumulates, `least_macs` those that a unit a group and no
    block would leave; `blocks` can be removed; `unknown_operators` have no rule, and lock what reaches them."""

    project: str
    macs: int
    least_macs: int
    groups: tuple[SurveyedGroup, ...]
    blocks: tuple[str, ...]
    unknown_operators: tuple[str, ...]


@dataclass(frozen=True)
class ExplainedGroup:
    """Which widths of a group pay: for each target its step, and how much dearer widths are that are no multiple of 4."""

    name: str
    width: int
    steps: dict[str, tuple[int, float]]


@dataclass(frozen=True)
class Explanation:
    """A latency model, explained. `overhead` is the share of the unpruned network's latency that is in no layer."""

    target: str
    runtime: str
    emulated: bool
    simulated: bool
    experiments: int
    median_error: float
    error: float
    exponent: float
    overhead: float
    layers: tuple[ExplainedLayer, ...]
    groups: tuple[ExplainedGroup, ...]


# -------------------------------------------------------------------------------------------------- decisions


@dataclass(frozen=True)
class Scores:
    """What a group's units are worth: `units[group][unit]` ≥ 0, the expected loss of removing that unit alone.

    `curves[group][k - 1]`, where it was measured, is the expected loss when the best k units are kept; where not, the
    scores of those that go are added up. `blocks[block]` likewise is what is lost with a whole block.
    """

    criterion: str
    units: dict[str, tuple[float, ...]]
    curves: dict[str, tuple[float, ...]] = field(default_factory=dict)
    blocks: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, values in [*self.units.items(), *self.curves.items(), ("the blocks", tuple(self.blocks.values()))]:
            if any(not math.isfinite(v) or v < 0 for v in values):
                raise ValueError(f"the scores of {name} must be finite and not negative")
        for group, curve in self.curves.items():
            if len(curve) != len(self.units[group]) or curve[-1] != 0 or sorted(curve, reverse=True) != list(curve):
                raise ValueError(f"the loss curve of {group} must fall with every unit kept, to zero when all are")


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval, all in nanoseconds."""

    low: float
    mid: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.mid <= self.high:
            raise ValueError(f"not an interval: {self.low}, {self.mid}, {self.high}")


@dataclass(frozen=True)
class Plan:
    """Which units each group keeps, what that should cost in time and loss, and the proof that nothing beats it.

    `gap` is (loss − bound) / max(|loss|, tiny): at most 1e-3 by contract.
    """

    keep: dict[str, tuple[int, ...]]
    predicted: Interval
    baseline: Interval
    budget_ns: float
    loss: float
    bound: float
    gap: float
    profile: str

    @property
    def widths(self) -> dict[str, int]:
        """Units kept a group."""
        return {group: len(units) for group, units in self.keep.items()}

    def cuts(self, groups: Groups) -> bool:
        """Whether anything goes."""
        return any(len(self.keep[group.name]) < group.width for group in groups.free)


@dataclass(frozen=True)
class Round:
    """One plan measured: what it was predicted to take, and what its network took, unpruned beside it.

    Plans of the same `turn` of the loop were measured together.
    """

    turn: int
    widths: dict[str, int]
    predicted_ns: float
    measured: Interval
    budget_ns: float

    @property
    def share(self) -> float:
        """The share of the budget that the measured latency uses."""
        return self.measured.mid / self.budget_ns

    @property
    def safe(self) -> bool:
        """Whether the whole interval is within the budget, so that measuring again is unlikely to say otherwise."""
        return self.measured.high <= self.budget_ns


@dataclass(frozen=True)
class Confirmed:
    """A plan whose latency was measured, and all plans that were on the way to it."""

    plan: Plan
    rounds: tuple[Round, ...]

    @property
    def turns(self) -> int:
        """How often plans were measured; 0 where nothing was cut."""
        return max((1 + measured.turn for measured in self.rounds), default=0)


@dataclass(frozen=True)
class Epoch:
    """One epoch of training: mean loss, validation metric after it, last learning rate. Epoch 0 is before training."""

    epoch: int
    loss: float | None
    metric: float
    learning_rate: float | None = None


# ---------------------------------------------------------------------------------------------------- results


@dataclass(frozen=True)
class Finding:
    """One thing that doctor looked at: `level` is "ok", "warn" or "fail"; `fix` says what to do about it."""

    level: str
    what: str
    fix: str = ""


@dataclass(frozen=True)
class Candidate:
    """The unpruned network in one precision, measured: its latency with all candidates taking turns, and its metric."""

    precision: str
    latency: Interval
    metric: float


@dataclass(frozen=True)
class Choice:
    """The precision that was taken, and all that were measured for it."""

    precision: str
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class Artifact:
    """A compiled model: its files (the first is the one to load), what it was built from and for.

    `operators` is how many are left of the network once it was simplified, before a runtime fuses or quantises them.
    """

    files: tuple[Path, ...]
    sha256: str
    format: str
    precision: str
    source: str
    operators: int

    @property
    def size_bytes(self) -> int:
        """Bytes on disk, all files together."""
        return sum(file.stat().st_size for file in self.files)


class Outcome(StrEnum):
    """The three answers a check can give."""

    PASS = "pass"  # noqa: S105 - an outcome, not a password
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"

    @staticmethod
    def of(checks: Iterable[Check]) -> Outcome:
        """Fail if any check failed, else inconclusive if any was, else pass."""
        outcomes = {check.outcome for check in checks}
        return next((one for one in (Outcome.FAIL, Outcome.INCONCLUSIVE) if one in outcomes), Outcome.PASS)


@dataclass(frozen=True)
class Check:
    """One question asked of the artifact: its figure, the limit it was held to, and the answer."""

    name: str
    outcome: Outcome
    value: float
    limit: float
    note: str = ""


@dataclass(frozen=True)
class Figures:
    """One column of the table."""

    p50_ms: float
    p90_ms: float
    metric: float
    parameters: int
    macs: int
    size_bytes: int
    operators: int


@dataclass(frozen=True)
class Verdict:
    """All checks of one artifact on one device."""

    artifact: str
    budget_ms: float
    baseline: Figures
    pruned: Figures
    checks: tuple[Check, ...]
    emulated: bool = False  # the device was: its times are no measure of a board
    simulated: bool = False  # the runtime was a stand-in: likewise

    @property
    def outcome(self) -> Outcome:
        """What all checks together say."""
        return Outcome.of(self.checks)


@dataclass(frozen=True)
class Measurement:
    """One artifact as measured on one device, alone: `files` are their names, the first the one to load.

    `metric` is of the first `count` samples of the split, whose content has the digest `data`; None where it, or an output, is
    no finite number.
    """

    artifact: str
    files: tuple[str, ...]
    precision: str
    threads: int
    dla: int | None
    device: Device
    samples: Samples
    size_bytes: int
    metric: float | None
    data: str
    count: int

    def __post_init__(self) -> None:
        if not self.files or any(Path(name).name != name for name in self.files):
            raise ValueError(f"the files of an artifact are names without folders, not {self.files}")

    @property
    def conditions(self) -> Conditions:
        """The state of the device when its times began to be taken."""
        return self.samples.runs[0].before


@dataclass(frozen=True)
class Baseline:
    """A measurement that somebody has declared good, and why: what `check` holds later ones against.

    `commit` is the project's, empty where it is in no repository. `layer_ns` is what the runtime's profiler saw of each of the
    artifact's operators; it ranks them, only `measured.samples` carry the scale. The artifact's files are kept beside it.
    """

    project: str
    target: str
    reason: str
    commit: str
    created_s: int
    measured: Measurement
    layer_ns: dict[str, int]

    def __post_init__(self) -> None:
        if self.measured.metric is None:
            raise ValueError("a baseline has a metric")


@dataclass(frozen=True)
class Shift:
    """An operator that takes longer than it did, in nanoseconds by the runtime's profiler; `before_ns` is 0 for a new one."""

    operator: str
    before_ns: int
    after_ns: int


@dataclass(frozen=True)
class Report:
    """What `check` found. `stale` says what has changed since the baseline was measured so that times are not compared,
    `slower` which operators take longer where the whole does."""

    project: str
    target: str
    artifact: str
    checks: tuple[Check, ...]
    baseline: str  # when and why it was made; empty where there is none
    stale: tuple[str, ...] = ()
    slower: tuple[Shift, ...] = ()
    emulated: bool = False
    simulated: bool = False

    @property
    def outcome(self) -> Outcome:
        """What all checks together say."""
        return Outcome.of(self.checks)


@dataclass(frozen=True)
class Record:
    """One check, as the history keeps it; latencies with their intervals. `note` is the reason of a baseline."""

    created_s: int
    commit: str
    artifact: str
    device: str  # its identity
    outcome: Outcome
    p50_ns: Interval
    p90_ns: Interval
    peak_memory_bytes: int
    size_bytes: int
    metric: float | None
    note: str = ""


@dataclass(frozen=True)
class History:
    """A figure over the checks of a project on a target, oldest first; a new level begins at each of `changes`."""

    project: str
    target: str
    figure: str
    records: tuple[Record, ...]
    values: tuple[float, ...]
    changes: tuple[int, ...]


@dataclass(frozen=True)
class Manifest:
    """What a bundle holds and what it was verified on: the part of it that is signed.

    `model` is the file to load, `relative_error` how far the kept output may be missed, of the largest one, `files` are {name:
    (bytes, SHA-256)}.
    """

    schema: int
    service: str
    target: str
    created_s: int
    edgeprune: str
    runtime: str
    model: str
    precision: str
    threads: int
    dla: int | None
    artifact: str
    relative_error: float
    device: Device
    verdict: Verdict
    files: dict[str, tuple[int, str]]


@dataclass(frozen=True)
class Release:
    """A bundle on a device: "current" is in service and "previous" was before, each since then; others are "kept".

    `damage` says why it would not be put into service, and then nothing is known of what it holds.
    """

    host: str
    service: str
    digest: str
    state: str
    since_s: int | None = None
    manifest: Manifest | None = None
    damage: str = ""


@dataclass(frozen=True)
class Result:
    """What a whole run answers; `--json` prints it. `schema` changes when a key changes its meaning."""

    schema: int
    status: Outcome
    target: str
    runtime: str
    precision: str
    emulated: bool
    simulated: bool
    budget_ms: float
    predicted_ms: float
    confirmed_ms: float
    rounds: int
    baseline: Figures
    pruned: Figures
    plan: dict[str, Any]
    checks: tuple[Check, ...]
    artifact: Path
    run: Path
