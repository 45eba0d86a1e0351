"""`edgeprune bench`: how fast model files run on targets. It needs no project and no torch."""

from __future__ import annotations

import os
import shutil
import struct
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from edgeprune import runtimes
from edgeprune.devices import transports
from edgeprune.devices.bench import PROFILED_S, SETTLED, Bench, Measured
from edgeprune.devices.boards import Boards
from edgeprune.devices.energy import CYCLES, WINDOW_S
from edgeprune.devices.patience import Patience
from edgeprune.devices.rounds import until
from edgeprune.devices.transports.base import Refusal
from edgeprune.devices.validate import printable
from edgeprune.errors import quoted, usage_error
from edgeprune.frontends import feeds, toml
from edgeprune.latency import stats
from edgeprune.limits import LIMITS
from edgeprune.pipeline.request import Watch
from edgeprune.records import (
    Benchmark,
    Device,
    Energy,
    FileComparison,
    FileFigures,
    Interval,
    ModelFile,
    Outcome,
    Run,
    Samples,
    Target,
)
from edgeprune.records.budget import time_text
from edgeprune.runtimes import files
from edgeprune.stages.verdicts import operators

SCHEMA = 1  # of the record; changes when a key changes its meaning
QUANTILES = {"p90": 0.9, "p99": 0.99}
TAIL = 0.975  # confidence of each bound of a quantile's interval, which is then one of 95 %
NARROW = 0.01  # half of an interval, relative: the measurement is then decided
LEAST_ROUNDS = 6  # the fewest processes whose order statistics bound a median with 95 % confidence
WARM_UP_S = LIMITS.warmup_s / 4  # it mostly ends long before its limit
LABEL_CHARS = 200
ODD = (struct.error, LookupError, ValueError, TypeError, AttributeError)  # what a damaged flatbuffer raises
UNUSABLE = ("load", "run", "killed", "memory")  # failures of a device that are the file's fault


@dataclass(frozen=True)
class Asked:
    """What to measure.

    Attributes:
        files: model files.
        targets: names; if there are none, each file is measured by its own runtime on this machine.
        given: shapes and arrays of inputs.
        streams: how many calls run at the same time, for the throughput.
        layers: whether operators are timed, too.
        seconds: no further round begins after this time.
    """

    files: tuple[Path, ...]
    targets: tuple[str, ...] = ()
    given: feeds.Given = feeds.NOTHING
    streams: int = 1
    layers: bool = False
    seconds: float = LIMITS.bench_s

    @property
    def batch(self) -> int:
        """The samples of a call."""
        return self.given.batch or 1


@dataclass(frozen=True)
class Subject:
    """One file on one target, with its inputs."""

    label: str
    file: ModelFile
    target: Target
    inputs: tuple[np.ndarray, ...]


def subjects(asked: Asked) -> list[Subject]:
    """Each file on each target that takes it. No device is opened.

    Raises:
        UsageError: a file or a target is wrong, or no target takes a file.
        SecurityError: a file names another one outside its folder.
    """
    targets = {name: toml.read_target(toml.find_target(name, Path.cwd())) for name in _names(asked)}
    known = {path: files.read(path) for path in dict.fromkeys(asked.files)}
    feeds.require_known(asked.given, list(known.values()))
    pairs = [(path, targets[name]) for path in asked.files for name in _targets_of(path, asked, targets)]
    for name in asked.targets:
        if all(target is not targets[name] for _, target in pairs):
            runtime = targets[name].runtime
            raise usage_error(f"--target {name}: {runtime} takes none of the files; it takes {_loads(runtime)}")
    inputs = {path: tuple(feeds.make(file, asked.given)) for path, file in known.items()}
    for path, target in pairs if asked.layers else ():
        _require_parts(known[path], target)
    labels = _labels([(path, target.name) for path, target in pairs])
    return [
        Subject(label, known[path], target, inputs[path]) for label, (path, target) in zip(labels, pairs, strict=True)
    ]


def _require_parts(file: ModelFile, target: Target) -> None:
    """Raises `UsageError` where the runtime's operators are timed apart, and the file leaves their shapes open."""
    is_open = any(isinstance(size, str) for one in file.inputs for size in one.shape or ())
    if is_open and runtimes.host(target.runtime).separate_profile:
        reason = f"{target.runtime} has no profiler, and operators of open shapes cannot be timed alone"
        raise usage_error(
            f"{file.path}: --layers: {reason}; leave out --layers, or convert the model with fixed shapes"
        )


def _names(asked: Asked) -> list[str]:
    return list(dict.fromkeys(asked.targets or map(_native, asked.files)))


def _native(path: Path) -> str:
    """The target of a file without --target."""
    runtime = runtimes.reading(path.suffix)
    return "local" if runtime is None or runtime.name == "onnxruntime" else f"local-{runtime.name}"


def _loads(runtime: str) -> str:
    return " or ".join(runtimes.host(runtime).loads) or "no files of users"


def _targets_of(path: Path, asked: Asked, targets: dict[str, Target]) -> list[str]:
    names = dict.fromkeys(asked.targets) or [_native(path)]
    found = [name for name in names if path.suffix in runtimes.host(targets[name].runtime).loads]
    if not found:
        takes = "; ".join(f"{name} ({targets[name].runtime}) takes {_loads(targets[name].runtime)}" for name in names)
        raise usage_error(f"{path}: no target takes this file; {takes}; for this file: --target {_native(path)}")
    return found


def _labels(pairs: Sequence[tuple[Path, str]]) -> list[str]:
    """Short names of the rows: the file's name, its path where two share a name, and the target where there are several."""
    names = Counter(path.name for path in dict.fromkeys(path for path, _ in pairs))
    several = len({target for _, target in pairs}) > 1
    found: list[str] = []
    for path, target in pairs:
        name = path.name if names[path.name] == 1 else str(path)
        label = printable(f"{name} on {target}" if several else name, LABEL_CHARS)
        again = sum(one == label or one.startswith(f"{label} (") for one in found)
        found.append(f"{label} ({again + 1})" if again else label)
    return found


def measure(
    asked: Asked, found: Sequence[Subject], patience: Patience, watch: Watch, wait_s: float = 0.0
) -> tuple[Benchmark, list[Samples]]:
    """Measure subjects interleaved, in fresh processes, until their intervals are narrow or the time is over.

    Returns:
        The figures, and the raw times of each subject.

    Raises:
        UsageError: a runtime cannot load or run a file.
        DeviceError: a device fails.
    """
    watch.start("bench")
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as name, Boards(Path(name), wait_s, patience) as boards:
        rounds = _Rounds(
            asked, [_staged(one, Path(name) / str(i), asked) for i, one in enumerate(found)], boards, watch
        )
        rounds.estimate()
        samples = until(rounds.take, rounds.decided, LIMITS.bench_processes, seconds=asked.seconds)
        rows = tuple(rounds.figures(i, samples[i]) for i in range(len(found)))
        compared = tuple(_comparison(found, rows, i, rounds.ratio(i, samples)) for i in range(1, len(rows)))
    watch.done("bench", f"{sum(row.processes for row in rows)} processes")
    status = Outcome.INCONCLUSIVE if any(row.disturbed for row in rows) else Outcome.PASS
    return Benchmark(SCHEMA, status, rows, compared), samples


@dataclass(frozen=True)
class _Staged:
    """A subject with its files in a separate folder. A transport sends everything beside a model."""

    subject: Subject
    model: Path
    inputs: tuple[Path, ...]


def _staged(subject: Subject, folder: Path, asked: Asked) -> _Staged:
    place = folder / "model"
    place.mkdir(parents=True)
    for path in subject.file.files:
        _link(path.resolve(), place / path.name)
    runtime = runtimes.host(subject.target.runtime)
    shapes = [array.shape for array in subject.inputs]
    model = runtime.complete(place / subject.file.path.name, subject.file, shapes)
    if asked.layers:
        try:
            runtime.instrument(model)
        except ODD as error:
            raise usage_error(
                f"{subject.file.path}: cannot be taken apart: {quoted(str(error))}; leave out --layers"
            ) from error
    paths = []
    for i, array in enumerate(subject.inputs):
        paths.append(folder / f"input_{i}.npy")
        np.save(paths[-1], array, allow_pickle=False)
    return _Staged(subject, model, tuple(paths))


def _link(source: Path, place: Path) -> None:
    """The file at another place: a copy where a link is impossible, as on another disk."""
    try:
        os.link(source, place)
    except OSError:
        shutil.copyfile(source, place)


class _Rounds:
    """Measures every subject once a round, in alternating order, and keeps what is no time."""

    def __init__(self, asked: Asked, staged: Sequence[_Staged], boards: Boards, watch: Watch) -> None:
        self._asked, self._staged, self._boards, self._watch = asked, staged, boards, watch
        self._taken: list[list[Measured]] = [[] for _ in staged]
        self._rates: list[list[float]] = [[] for _ in staged]
        self._energies: dict[int, Energy | None] = {}
        self._discarded = [0 for _ in staged]
        self._devices: dict[int, Device] = {}
        self._pairs: dict[int, list[tuple[Run, Run]]] = {
            i: [] for i, one in enumerate(staged) if i and _share_a_process(staged[0].subject, one.subject)
        }
        self._number, self._began = 0, time.monotonic()

    def estimate(self) -> None:
        """Report a first figure of each subject. A file that cannot be run is found before anything is measured."""
        for one in self._staged:
            with _blamed(one.subject):
                run = self._boards.bench(one.subject.target).estimate(one.model, one.inputs)
            disturbed = f", disturbed: {run.disturbed}" if run.disturbed else ""
            self._watch.note(f"{one.subject.label}: first estimate {time_text(median(run.times_ns))}{disturbed}")

    def take(self, so_far: list[Samples]) -> list[Samples]:
        """One process of each subject."""
        order = range(len(self._staged))
        for i in order if self._number % 2 == 0 else reversed(order):
            self._take(i)
        for i in self._pairs:
            self._take_pair(i)
        self._number += 1
        return [Samples((own[-1].run,)) for own in self._taken]

    def _take_pair(self, i: int) -> None:
        """Subject `i` and the first one, interleaved in one process. Each is loaded first in every second one."""
        first, second = self._staged[0], self._staged[i]
        batch = [first.model, second.model]
        turned = self._number % 2
        bench = self._boards.bench(first.subject.target)
        with _blamed(second.subject):
            (measured,) = bench.measure([batch[::-1] if turned else batch], first.inputs, timed_s=LIMITS.timed_s / 2)
        runs = [one.run for one in measured]
        self._pairs[i].append((runs[turned], runs[1 - turned]))

    def ratio(self, i: int, samples: Sequence[Samples]) -> Interval:
        """The latency of subject `i` / that of the first one. Processes that hold both are best: disturbances affect both."""
        if i in self._pairs:
            first, second = (Samples(runs) for runs in zip(*self._pairs[i], strict=True))
            return stats.ratio(second, first)
        return stats.ratio(samples[i], samples[0])

    def _take(self, i: int) -> None:
        one = self._staged[i]
        bench = self._boards.bench(one.subject.target)
        before = bench.discarded
        with _blamed(one.subject):
            ((measured,),) = bench.measure([[one.model]], one.inputs, profiled=self._asked.layers)
            self._rates[i].append(self._rate(bench, one, measured))
            if i not in self._energies:
                self._energies[i] = bench.energy(one.model, one.inputs) if "rails" in measured.run.after else None
        self._taken[i].append(measured)
        self._devices[i] = bench.device
        self._discarded[i] += bench.discarded - before
        spent_s = round(time.monotonic() - self._began)
        self._watch.step(min(spent_s, round(self._asked.seconds)), round(self._asked.seconds), "")

    def _rate(self, bench: Bench, one: _Staged, measured: Measured) -> float:
        """Samples in a second."""
        times = measured.run.times_ns
        calls = (
            1e9 * len(times) / sum(times)
            if self._asked.streams == 1
            else bench.throughput(one.model, one.inputs, self._asked.streams, LIMITS.timed_s)
        )
        return self._asked.batch * calls

    def decided(self, samples: list[Samples]) -> bool:
        """Whether all intervals are narrow. A device that repeats itself needs few processes."""
        count = len(samples[0].runs)
        if any(self._lacks(one, q) for one in samples for q in QUANTILES.values()):
            return False
        if len(samples) == 1 and count >= SETTLED and stats.full_range(samples[0]) <= NARROW / 2:
            return True  # a difference between two files needs more
        intervals = [*map(stats.latency, samples), *(self.ratio(i, samples) for i in range(1, len(samples)))]
        return count >= LEAST_ROUNDS and all(one.high - one.low <= 2 * NARROW * one.mid for one in intervals)

    def _lacks(self, samples: Samples, q: float) -> bool:
        """Whether a quantile has too few timings, and the rest of the time would give enough."""
        timings = sum(len(run.times_ns) for run in samples.runs)
        share = (time.monotonic() - self._began) / self._asked.seconds
        return _quantile(samples, q) is None and timings / share >= stats.needed(q, TAIL)

    def figures(self, i: int, samples: Samples) -> FileFigures:
        """The row of a subject."""
        one, asked = self._staged[i].subject, self._asked
        taken = self._taken[i]
        device = self._devices[i]
        tails = {name: _quantile(samples, q) for name, q in QUANTILES.items()}
        energy = self._energies[i]
        loads = [measured.load_ns for measured in taken if measured.load_ns is not None]
        return FileFigures(
            label=one.label,
            file=one.file.path,
            target=one.target.name,
            runtime=one.target.runtime,
            runtime_version=device.runtime_version,
            cpu=device.cpu,
            emulated=device.emulated,
            simulated=device.simulated,
            threads=one.target.threads,
            batch=asked.batch,
            streams=asked.streams,
            inputs={spec.name: _described(array) for spec, array in zip(one.file.inputs, one.inputs, strict=True)},
            latency_ms={
                "p50": _scaled(stats.latency(samples), 1e-6),
                **{name: _scaled(tail, 1e-6) for name, tail in tails.items() if tail is not None},
            },
            too_few={name: _too_few(samples, QUANTILES[name]) for name, tail in tails.items() if tail is None},
            load_ms=stats.median_interval(np.array(loads) / 1e6) if loads else None,
            throughput_per_s=stats.median_interval(np.array(self._rates[i])),
            peak_memory_bytes=samples.peak_memory_bytes,
            size_bytes=one.file.size_bytes,
            processes=len(samples.runs),
            timings=sum(len(run.times_ns) for run in samples.runs),
            discarded=self._discarded[i],
            disturbed=tuple(run.disturbed for run in samples.runs if run.disturbed),
            operators=operators.timed(one.target.runtime, [measured.operators for measured in taken])
            if asked.layers
            else (),
            energy_mj=stats.median_interval(np.array(energy.each_uj) / 1e3) if energy else None,
            rails=energy.source if energy else "",
        )


def _quantile(samples: Samples, q: float) -> Interval | None:
    """The quantile with its 95 % interval; None where there are too few independent timings."""
    return stats.quantile(samples, q, TAIL)


def _too_few(samples: Samples, q: float) -> str:
    return f"{stats.independent(samples, q)} of {stats.needed(q, TAIL)} independent timings"


def _scaled(interval: Interval, factor: float) -> Interval:
    return Interval(factor * interval.low, factor * interval.mid, factor * interval.high)


def _described(array: np.ndarray) -> str:
    return f"{array.dtype.name} {'x'.join(map(str, array.shape)) or 'of a single value'}"


@contextmanager
def _blamed(subject: Subject) -> Iterator[None]:
    """A file that the runtime cannot run is a wrong file, and no fault of the device."""
    try:
        yield
    except Refusal as error:
        if error.kind not in UNUSABLE:
            raise
        last = [line for line in error.message.replace("\\n", "\n").splitlines() if line.strip()][-1:]
        text = f"{subject.file.path}: {subject.target.runtime} on {subject.target.name} cannot run it"
        raise usage_error(f"{text}: {error.kind}: {printable(''.join(last).strip(), 500)}") from error


def _share_a_process(first: Subject, second: Subject) -> bool:
    """Whether both may run in one process: on one target, with the same inputs."""
    return first.target == second.target and (
        len(first.inputs) == len(second.inputs)
        and all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(first.inputs, second.inputs, strict=True))
    )


def _comparison(found: Sequence[Subject], rows: Sequence[FileFigures], i: int, ratio: Interval) -> FileComparison:
    """Row `i` compared with the first row."""
    first, second = rows[0], rows[i]
    executed = bool(first.operators)
    if executed:
        kinds = operators.executed_changes(first.operators, second.operators)
    else:
        kinds = operators.stored_changes(found[0].file.operators, found[i].file.operators)
    nodes = operators.same_nodes(first.operators, second.operators)
    pairs = min(first.processes, second.processes)
    return FileComparison(first.label, second.label, ratio, pairs, executed, kinds, nodes)


def forecast(asked: Asked, found: Sequence[Subject]) -> list[str]:
    """What would be sent and run, and how long it takes at most."""
    lines: list[str] = []
    for target in {str(one.target.path): one.target for one in found}.values():
        lines += [*transports.commands(target), "  agent: identify"]
        for one in found:
            if one.target is target:
                inputs = ", ".join(
                    f"{spec.name} {_described(a)}" for spec, a in zip(one.file.inputs, one.inputs, strict=True)
                )
                sent = (
                    f"  sftp put {len(one.file.files)} files, {one.file.size_bytes:,} bytes"
                    if target.host
                    else "  load"
                )
                lines.append(printable(f"{sent}: {one.file.path}; inputs: {inputs or 'none'}"))
    each = LIMITS.start_s + WARM_UP_S + LIMITS.timed_s + (WARM_UP_S + PROFILED_S) * asked.layers
    each += (LIMITS.start_s + WARM_UP_S + LIMITS.timed_s) * (asked.streams > 1)
    what = "time, with times by operator" if asked.layers else "time"
    lines.append(f"  agent: {what}: {SETTLED} processes of each or more, of about {each:.1f} s")
    rails_s = len(found) * (LIMITS.start_s + WARM_UP_S + 2 * CYCLES * WINDOW_S)
    least_s = each * len(found) * SETTLED
    most_s = max(least_s, asked.seconds + each * len(found))
    lines.append(f"expected: {least_s:.0f} to {most_s:.0f} s, and {rails_s:.0f} s more where power rails can be read")
    return lines
