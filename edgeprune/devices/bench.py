"""Target -> an identified device, leased where it is remote, that measures. A context manager restores it at the end."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from edgeprune import runtimes
from edgeprune.devices import energy, transports, wire
from edgeprune.devices.patience import FEW_ATTEMPTS, Disturbances, Patience
from edgeprune.devices.rounds import interleaved
from edgeprune.devices.sending import portions, with_siblings
from edgeprune.devices.transports.base import Refusal, Transport, ask, ask_all
from edgeprune.devices.validate import printable
from edgeprune.errors import DeviceError, RuntimeMissing, UsageError
from edgeprune.latency import stats
from edgeprune.limits import LIMITS
from edgeprune.records import Device, Discarded, Energy, Run, Samples, Target
from edgeprune.runtimes.base import NodeTimes
from edgeprune.runtimes.timing import NodeTime

PROFILED_S = 0.05  # of profiled runs in a process: times by node only rank the nodes
ESTIMATED_S = 0.05  # of timed runs for a first figure
SETTLED = 3  # processes of each model after which a device that repeats itself needs no more
REPEATS = 0.002  # spread of their medians, relative, below which a device repeats itself
RESETS = 1  # of the device that a bench accepts

REMEDIES = {
    "power_mode": "sudo nvpmodel -m ID there, with the ID that /etc/nvpmodel.conf has for {}",
    "clocks_pinned": "sudo jetson_clocks there",
}

_INSTRUMENTING = threading.Lock()  # the boards of a pool share files
Reply = TypeVar("Reply")
log = logging.getLogger("edgeprune")


@dataclass(frozen=True)
class Measured:
    """One model in one process: its run, and its times by node where they were requested.

    `nodes` has the names of the exported file. `operators` are the same nodes as the runtime reports them. `load_ns` is how
    long the runtime took to load the model; None where it cannot be known.
    """

    run: Run
    nodes: NodeTimes
    operators: tuple[NodeTime, ...] = ()
    load_ns: int | None = None


@dataclass(frozen=True)
class _Effort:
    """How long a process times each of its models, and whether it then profiles them; see `Bench.measure`."""

    timed_s: float
    runs_min: int
    profiled: bool = False


@contextmanager
def open_bench(
    target: Target, scratch: Path, wait_s: float = 0.0, patience: Patience = FEW_ATTEMPTS
) -> Iterator[Bench]:
    """The device of a target, identified.

    Args:
        target: names the device.
        scratch: a folder on this machine for temporary files.
        wait_s: how long to wait for a device that another host holds.
        patience: how long to repeat disturbed measurements; by default a few attempts.

    Raises:
        RuntimeMissing: the device does not have the target's runtime.
        DeviceError: the device does not answer.
        BusyError: another host holds the device for longer than `wait_s`.

    Example:
        >>> with open_bench(target, scratch) as bench:
        ...     inputs = bench.save_inputs([np.zeros((1, 3, 224, 224), "float32")], scratch)
        ...     (samples,) = bench.time([Path("model.onnx")], inputs, processes=5)
    """
    transport = transports.connect(target, wait_s, patience.notice)
    try:
        yield Bench(target, transport, scratch, patience)
    finally:
        transport.close()


def identified(transport: Transport, target: Target) -> Device:
    """What the device is. Raises `RuntimeMissing` where it does not have the target's runtime."""
    runtime = runtimes.host(target.runtime)
    try:
        identity = ask(transport, target.name, wire.Identify(LIMITS.identify_s, target.runtime, target.cores))
    except Refusal as error:
        if error.kind != "runtime-missing":
            raise
        fix = f"edgeprune setup {target.name}" if target.host and runtime.packages else runtime.install
        text = f"{target.path}: the device has no {runtime.name} ({error.message}); {fix}"
        raise RuntimeMissing(text) from error
    return Device(**asdict(identity))


class Bench:
    """A device that runs models in fresh processes and returns raw samples."""

    def __init__(self, target: Target, transport: Transport, scratch: Path, patience: Patience = FEW_ATTEMPTS) -> None:
        self._target, self._transport, self._scratch = target, transport, scratch
        self._runtime = runtimes.host(target.runtime)
        self._options: Any = {
            key: getattr(target, key) for key in ("runtime", "threads", "dla", "cores")
        }  # of every job
        self._disturbances = Disturbances(target.name, patience)
        self.device = identified(transport, target)
        self._boots = {self.device.boot_id}
        self._require_real()

    @property
    def discarded(self) -> int:
        """Processes whose times were discarded as disturbed."""
        return self._disturbances.discarded

    @property
    def lost(self) -> tuple[Discarded, ...]:
        """These processes, each with the reason."""
        return tuple(self._disturbances.lost)

    def _require_real(self) -> None:
        if self.device.emulated and not self._target.emulated:
            raise UsageError(
                f"{self._target.path}: this device is emulated, so its times say nothing about a board; use a physical one, or"
                " write [expect] emulated = true"
            )
        if self.device.simulated and not self._target.simulated:
            raise UsageError(
                f"{self._target.path}: the runtime of this device is a stand-in, so its times say nothing about the real one;"
                " install the real one, or write [expect] simulated = true"
            )

    def save_inputs(self, arrays: Sequence[np.ndarray], folder: Path) -> list[Path]:
        """Write input arrays as files for `time`, `compare` and `measure`."""
        paths = []
        for i, array in enumerate(arrays):
            paths.append(folder / f"input_{i}.npy")
            np.save(paths[-1], array, allow_pickle=False)
        return paths

    def _save_stacked(self, arrays: Sequence[np.ndarray]) -> list[Path]:
        """The same for many samples, in a folder apart from the example inputs."""
        folder = self._scratch / "stacked"
        folder.mkdir(exist_ok=True)
        return self.save_inputs(arrays, folder)

    def time(
        self,
        models: Sequence[Path],
        inputs: Sequence[Path],
        processes: int,
        runs: int = LIMITS.timed_runs_min,
        timed_s: float = LIMITS.timed_s,
    ) -> list[Samples]:
        """Time whole networks without a profiler, each model in its own processes, interleaved.

        A device whose medians agree within `REPEATS` is measured in only `SETTLED` processes a model.

        Args:
            processes: fresh processes of each model.
            runs: at least so many runs in a process.
            timed_s: of each process.

        Returns:
            The samples of each model, in nanoseconds.
        """
        order = [[i] for i in interleaved(len(models), processes)]
        return self._settled(order, models, inputs, _Effort(timed_s, runs))

    def compare(
        self, models: Sequence[Path], inputs: Sequence[Path], processes: int, timed_s: float = LIMITS.timed_s
    ) -> list[Samples]:
        """Time models that share processes, interleaved: for ratios of latencies, but not for memory.

        Every disturbance of the machine affects all models. Run i of each model is from process i. Every second process loads
        the models in the opposite order, since the first one may have an advantage.

        Args:
            processes: fresh processes.
            timed_s: of each model in a process.
        """
        order = list(range(len(models)))
        orders = [order if process % 2 == 0 else order[::-1] for process in range(processes)]
        return self._settled(orders, models, inputs, _Effort(timed_s, LIMITS.timed_runs_min))

    def _settled(
        self, order: list[list[int]], models: Sequence[Path], inputs: Sequence[Path], effort: _Effort
    ) -> list[Samples]:
        runs: list[list[Run]] = [[] for _ in models]
        first = min(len(order), SETTLED * len(models) // len(order[0]))
        for part in (order[:first], order[first:]):
            batches = [[models[i] for i in batch] for batch in part]
            found = self.measure(batches, inputs, effort.timed_s, runs_min=effort.runs_min)
            for batch, measured in zip(part, found, strict=True):
                for i, one in zip(batch, measured, strict=True):
                    runs[i].append(one.run)
            samples = [Samples(tuple(own)) for own in runs]
            if all(stats.full_range(s) <= REPEATS for s in samples):
                break
        return samples

    def measure(
        self,
        batches: Sequence[Sequence[Path]],
        inputs: Sequence[Path],
        timed_s: float = LIMITS.timed_s,
        profiled: bool = False,
        runs_min: int = LIMITS.timed_runs_min,
        on_done: Callable[[int, list[Measured]], None] = lambda place, measured: None,
    ) -> list[list[Measured]]:
        """Measure in one fresh process a batch, in this order; the models of a batch are interleaved.

        Disturbed processes are discarded and repeated at the end. With a patience that accepts them, they are used after its
        time; their `run.disturbed` says why.

        Args:
            timed_s: for each model, after warm-up.
            profiled: whether to time nodes too.
            runs_min: at least so many runs of each model in a process.
            on_done: gets every good result as it arrives, with its place in `batches`.

        Raises:
            InconclusiveError: processes stay disturbed for longer than the bench's patience.
        """
        effort = _Effort(timed_s, runs_min, profiled)
        results: dict[int, list[Measured]] = {}
        todo = list(range(len(batches)))
        for number in itertools.count():
            known_boots, began = len(self._boots), time.monotonic()
            bad: dict[int, list[Measured]] = {}
            for i, reply in zip(todo, self._timed([batches[i] for i in todo], inputs, effort), strict=True):
                measured = self._measured(reply, len(batches[i]), profiled)
                self._count_reset(measured[0].run)
                if any(one.run.disturbed for one in measured):
                    bad[i] = measured
                else:
                    results[i] = measured
                    on_done(i, measured)
            if len(self._boots) > known_boots:
                self._identify_again()
            if not bad:
                break
            spent_s = time.monotonic() - began
            runs = [one.run for measured in bad.values() for one in measured if one.run.disturbed]
            if not self._disturbances.attempt(number, runs, len(todo) - len(bad), spent_s):
                for i, measured in bad.items():
                    results[i] = measured
                    on_done(i, measured)
                break
            todo = list(bad)
        return [results[i] for i in range(len(batches))]

    def estimate(self, model: Path, inputs: Sequence[Path]) -> Run:
        """One short process, disturbed or not: for a first figure."""
        (reply,) = self._timed([[model]], inputs, _Effort(ESTIMATED_S, 1))
        (measured,) = self._measured(reply, 1, profiled=False)
        return measured.run

    def outputs(
        self, model: Path, stacked: Sequence[np.ndarray], count: int = 1, seconds: float = LIMITS.job_s / 4
    ) -> list[np.ndarray]:
        """Run a model on many samples.

        The samples are sent in parts. A job takes at most about `seconds` of the device's time and `LIMITS.output_bytes`.

        Args:
            stacked: the inputs, each of shape (samples, *input shape).
            count: how many of the model's outputs to return, from the first on.

        Returns:
            The outputs, each of shape (samples, *output shape).
        """
        parts: list[list[np.ndarray]] = []
        at = 0
        most = max(1, LIMITS.call_bytes // max(1, sum(array[:1].nbytes for array in stacked)))
        while at < len(stacked[0]):
            files = self._save_stacked([array[at : at + most] for array in stacked])
            start, wanted = 0, min(most, len(stacked[0]) - at)
            while start < wanted:
                reply = self._outputs(model, files, count, start, seconds)
                if not 0 < reply.count <= wanted - start or len(reply.files) < count:
                    raise DeviceError(f"{self._target.name}: the device ran {reply.count} of {wanted - start} samples")
                parts.append([self._fetched(place, reply.count) for place in reply.files[:count]])
                start += reply.count
            at += wanted
        return [np.concatenate([part[i] for part in parts]) for i in range(count)]

    def call_ns(self, model: Path, stacked: Sequence[np.ndarray], latency_ns: float) -> float:
        """The time of one call in `outputs`, in nanoseconds.

        It is the latency, or a measured time where a call of the runtime may start a process.
        """
        if not self._runtime.slow_calls:
            return latency_ns
        files = self._save_stacked([array[:2] for array in stacked])
        spent_s = self._outputs(model, files, 1, 0, LIMITS.job_s / 4).spent_s
        if spent_s <= 0:
            raise DeviceError(f"{self._target.name}: the device reports that a call took {spent_s} s")
        return max(1e9 * spent_s, latency_ns)

    def throughput(self, model: Path, inputs: Sequence[Path], streams: int, timed_s: float) -> float:
        """Inferences in a second, while so many of them always run at the same time."""
        job = wire.GetThroughput(
            deadline_s=self._runtime.deadline_s,
            **self._options,
            streams=streams,
            model=self._put(model),
            inputs=self._put_each(inputs),
            warmup_s=LIMITS.warmup_s,
            timed_s=timed_s,
        )
        (reply,) = self._ask([job])
        if reply.runs < 1 or reply.spent_ns < 1:
            raise DeviceError(f"{self._target.name}: the device reports {reply.runs} runs in {reply.spent_ns} ns")
        return 1e9 * reply.runs / reply.spent_ns

    def state(self) -> Mapping[str, object]:
        """The conditions that a measurement would have now."""
        return ask(
            self._transport, self._target.name, wire.GetState(LIMITS.identify_s, self._target.runtime)
        ).conditions

    def energy(self, model: Path, inputs: Sequence[Path]) -> Energy | None:
        """The energy of an inference beyond that of the idle device; None where no rail can be read."""
        sent, files = self._put(model), self._put_each(inputs)
        (reply,) = self._ask([energy.job(self._runtime.deadline_s, self._options, sent, files)])
        return energy.beyond_idle(reply, self._target.name)

    def _outputs(self, model: Path, files: Sequence[Path], count: int, start: int, seconds: float) -> wire.Outputs:
        job = wire.GetOutputs(
            deadline_s=self._runtime.deadline_s,
            **self._options,
            model=self._put(model),
            inputs=self._put_each(files),
            outputs=count,
            start=start,
            most_s=seconds,
            most_bytes=LIMITS.output_bytes // 2,
        )
        (reply,) = self._ask([job])
        return reply

    def _fetched(self, place: str, count: int) -> np.ndarray:
        local = self._scratch / "fetched.npy"
        self._transport.get(place, local)
        try:
            array: np.ndarray = np.load(local, allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            text = f"{self._target.name}: the device's outputs cannot be read: {printable(str(error))}"
            raise DeviceError(text) from error
        if array.shape[:1] != (count,):
            text = f"{self._target.name}: the device's outputs have the shape {array.shape}, not {count} samples"
            raise DeviceError(text)
        return array

    def _measured(self, reply: wire.Measurement, count: int, profiled: bool) -> list[Measured]:
        self._require_state(reply.before)
        try:
            found = []
            for own in reply.models:
                run = Run(
                    own.times_ns, reply.peak_memory_bytes, own.waited_ns, own.waits, dict(reply.before), dict(reply.after),
                    own.copies_ns, own.fallbacks,
                )  # fmt: skip
                nodes = self._runtime.node_times(own.nodes) if profiled else ()
                found.append(Measured(run, nodes, own.nodes, own.load_ns))
            if len(found) != count:
                raise ValueError(f"times of {len(found)} models instead of {count}")
            return found
        except ValueError as error:
            raise DeviceError(f"{self._target.name}: the device's samples cannot be used: {error}") from error

    def _require_state(self, state: Mapping[str, object]) -> None:
        """The device has to be in the state that the target expects."""
        to = self._target
        if to.cores and state.get("cores") != to.cores:
            used = printable(str(state.get("cores", "unknown cores")), 40)
            raise DeviceError(f"{to.path}: [runtime] cores = {to.cores}, and the device measured on {used}. Run again.")
        for key, wanted in (("power_mode", to.power_mode), ("clocks_pinned", to.clocks_pinned)):
            found = state.get(key, "not reported")
            if wanted is not None and found != wanted:
                text = f"{to.path}: [expect] {key} = {wanted}, and the device's is {found}"
                raise DeviceError(f"{text}; {REMEDIES[key].format(wanted)}; or have edgeprune do it: [prepare]")

    def _count_reset(self, run: Run) -> None:
        """Note a new boot. One reset may be bad luck; more are a fault of the board."""
        self._boots.add(str(run.after.get("boot_id", self.device.boot_id)))
        if len(self._boots) > 1 + RESETS:
            resets = len(self._boots) - 1
            raise DeviceError(f"{self._target.name}: the device was reset {resets} times; check its power supply")

    def _identify_again(self) -> None:
        """After a reset, check that it is still the same device."""
        known, self.device = self.device, identified(self._transport, self._target)
        self._boots.add(self.device.boot_id)
        if (known.identity, known.serial) != (self.device.identity, self.device.serial):
            raise DeviceError(f"{self._target.name}: another device answers at this address; run again")
        log.warning("%s: the device was reset; continuing", self._target.name)

    def _timed(
        self, batches: Sequence[Sequence[Path]], inputs: Sequence[Path], effort: _Effort
    ) -> Iterator[wire.Measurement]:
        """One job a batch, in order. At any time the device holds at most `LIMITS.call_bytes` of models."""
        files = self._put_each(inputs)
        for portion in portions(batches):
            yield from self._ask([self._time_job(batch, files, effort) for batch in portion])

    def _time_job(self, batch: Sequence[Path], inputs: tuple[str, ...], effort: _Effort) -> wire.Time:
        to = self._target
        with _INSTRUMENTING:
            instrumented = [self._runtime.instrument(model) for model in batch] if effort.profiled else []
        return wire.Time(
            deadline_s=self._runtime.deadline_s * len(batch),
            **self._options,
            models=tuple(map(self._put, batch)),
            inputs=inputs,
            prepare=wire.Prepare(to.prepare.power_mode, to.prepare.jetson_clocks) if to.prepare else None,
            warmup_s=LIMITS.warmup_s,
            timed_s=effort.timed_s,
            runs_min=effort.runs_min,
            runs_max=LIMITS.timed_runs_max,
            profiled=tuple(map(self._put, instrumented)),
            profiled_s=PROFILED_S,
        )

    def _ask(self, jobs: Sequence[wire.Job[Reply]]) -> Iterator[Reply]:
        return ask_all(self._transport, self._target.name, jobs, sum(job.deadline_s for job in jobs))

    def _put(self, model: Path) -> str:
        return self._transport.put(with_siblings(model))

    def _put_each(self, files: Sequence[Path]) -> tuple[str, ...]:
        return tuple(self._transport.put([path]) for path in files)
