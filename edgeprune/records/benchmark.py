"""Model files, and how fast they run on targets: what `edgeprune bench` reads and finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeprune.records.answer import Answer
from edgeprune.records.device import Interval
from edgeprune.records.target import Precision
from edgeprune.records.verdict import Outcome

Shape = tuple[int | str, ...]  # a text is a dynamic dimension, by its name


@dataclass(frozen=True)
class TensorSpec:
    """An input of a model file.

    Attributes:
        name: its name in the file.
        dtype: by numpy's name.
        shape: None if the file does not even give the number of dimensions.
    """

    name: str
    dtype: str
    shape: Shape | None


@dataclass(frozen=True)
class ModelFile:
    """What a model file says about itself.

    Attributes:
        path: the file.
        files: the file and those that belong to it, such as weights.
        inputs: in the order in which a runtime takes them.
        outputs: their names.
        operators: {operator: how often it occurs}.
        precision: the lowest precision that its operators compute in.
    """

    path: Path
    files: tuple[Path, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]
    operators: dict[str, int]
    precision: Precision = "fp32"

    @property
    def size_bytes(self) -> int:
        """The size of all files."""
        return sum(path.stat().st_size for path in self.files)


@dataclass(frozen=True)
class OperatorTime:
    """An operator that the runtime executes, by its profiler.

    Attributes:
        name: of the node in the file, where the runtime keeps it.
        kind: as the runtime calls it; it may stand for several fused operators of the file.
        us: microseconds.
        share: of the sum over all operators.
    """

    name: str
    kind: str
    us: float
    share: float


@dataclass(frozen=True)
class FileFigures:
    """The figures of one file on one target.

    Attributes:
        label: names this row: the file, and the target if there are several.
        latency_ms: {"p50" | "p90" | "p99": the quantile with its 95 % interval}. A latency is that of one call.
        too_few: {quantile that is left out: how many independent timings there are, and how many are needed}.
        load_ms: None if the runtime cannot report it.
        throughput_per_s: samples in a second. A call computes `batch` samples, and `streams` calls run at the same time.
        peak_memory_bytes: of the process, which includes the runtime.
        size_bytes: of the file and those that belong to it.
        processes: fresh processes that were measured.
        timings: calls that were timed in them.
        discarded: processes whose times were discarded as disturbed.
        disturbed: why processes that were measured are disturbed all the same; the figures are then too high.
        operators: with --layers, in the order of execution.
        energy_mj: of a call beyond the idle device; None where no rail can be read.
        rails: what the energy was measured by; empty if it was not.
    """

    label: str
    file: Path
    target: str
    runtime: str
    runtime_version: str
    cpu: str
    emulated: bool
    simulated: bool
    threads: int
    batch: int
    streams: int
    inputs: dict[str, str]
    latency_ms: dict[str, Interval]
    too_few: dict[str, str]
    load_ms: Interval | None
    throughput_per_s: Interval
    peak_memory_bytes: int
    size_bytes: int
    processes: int
    timings: int
    discarded: int
    disturbed: tuple[str, ...] = ()
    operators: tuple[OperatorTime, ...] = ()
    energy_mj: Interval | None = None
    rails: str = ""

    @property
    def p50_ms(self) -> Interval:
        """The median, which needs no number of timings."""
        return self.latency_ms["p50"]


@dataclass(frozen=True)
class OperatorChange:
    """What differs between two rows: how often an operator occurs and, with --layers, its summed time.

    `name` is that of a kind of operator, or of a node.
    """

    name: str
    first_count: int
    second_count: int
    first_us: float | None = None
    second_us: float | None = None


@dataclass(frozen=True)
class FileComparison:
    """Two rows compared.

    Attributes:
        first: the label of the first row.
        second: the label of the second row.
        ratio: the second latency / the first, from processes that were interleaved.
        pairs: how many pairs of processes the ratio is from. With fewer than six, its interval holds less than 95 %.
        executed: whether `operators` are those that the runtimes execute, or those in the files.
        operators: kinds of operators that differ, those with the largest difference first.
        nodes: the same of nodes, if most of them have the same names in both rows.
    """

    first: str
    second: str
    ratio: Interval
    pairs: int
    executed: bool
    operators: tuple[OperatorChange, ...]
    nodes: tuple[OperatorChange, ...] = ()


@dataclass(frozen=True, repr=False)
class Benchmark(Answer):
    """What `edgeprune bench` found: a row for each file on each target that takes it.

    `status` is "inconclusive" if a row holds disturbed processes, else "pass".
    """

    schema: int
    status: Outcome
    files: tuple[FileFigures, ...]
    comparisons: tuple[FileComparison, ...] = field(default=())

    def summary(self) -> dict[str, Any]:
        """See `Answer.summary`."""
        return {row.label: row.p50_ms for row in self.files}

    def rows(self) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """See `Answer.rows`."""
        return {"files": [{"file": row.label, **row.latency_ms, "MB": row.size_bytes / 1e6} for row in self.files]}
