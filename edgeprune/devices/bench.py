"""Target -> a leased, identified device that measures; a context manager that leaves it as it was."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune import runtimes
from edgeprune.devices import transports
from edgeprune.devices.transports.base import Transport, ask, printable
from edgeprune.errors import DeviceError, InconclusiveError, RuntimeMissing, UsageError
from edgeprune.latency import stats
from edgeprune.limits import LIMITS
from edgeprune.records import Device, Run, Samples, Target
from edgeprune.runtimes.base import NodeTimes

PROFILED_S = 0.1  # of profiled runs a process: node times rank, they need no more
SETTLED = 3  # processes of each model after which a device that repeats itself needs no more
REPEATS = 0.002  # spread of their medians, relative, below which a device repeats itself
RETRIES = 3  # of a disturbed process
RESETS = 1  # of the device that a session lives through

REMEDIES = {
    "power_mode": "sudo nvpmodel -m ID there, with the ID that /etc/nvpmodel.conf has for {}",
    "clocks_pinned": "sudo jetson_clocks there",
}

log = logging.getLogger("edgeprune")


@dataclass(frozen=True)
class Measured:
    """One model in one process: its run and, where asked for, its times by node."""

    run: Run
    nodes: NodeTimes


@contextmanager
def open_bench(target: Target, scratch: Path, wait_s: float = 0.0) -> Iterator[Bench]:
    """The device of `target`, identified; `scratch` is a folder of this machine for what passes through.

    Raises `RuntimeMissing` where the device has no such runtime, `DeviceError` where it does not answer, and `BusyError`
    where somebody else holds it for longer than `wait_s`.
    """
    transport = transports.connect(target, wait_s)
    try:
        yield Bench(target, transport, scratch)
    finally:
        transport.close()


def identified(transport: Transport, target: Target) -> Device:
    """What the device says it is. Raises `RuntimeMissing` where it has not the target's runtime."""
    runtime = runtimes.RUNTIMES[target.runtime]
    job = {"mode": "identify", "runtime": target.runtime, **parts(transport, target)}
    reply = ask(transport, job, refused=("runtime-missing",))
    if "error" in reply:
        said = printable(str(reply.get("message")))
        fix = f"edgeprune setup {target.name}" if target.host and runtime.packages else runtime.install
        raise RuntimeMissing(f"{target.path}: the device has no {runtime.name} ({said}); {fix}")
    try:
        return Device(**{name: reply[name] for name in Device.__dataclass_fields__})
    except KeyError as error:
        raise DeviceError(f"the device does not say its {error}") from error


def parts(transport: Transport, target: Target) -> dict[str, list[str]]:
    """What a job must name where the runtime's half on the device is a file of its own."""
    part = runtimes.RUNTIMES[target.runtime].part
    return {"parts": [transport.put(part)]} if part else {}


class Bench:
    """A device that runs models in fresh processes and answers with raw samples."""

    def __init__(self, target: Target, transport: Transport, scratch: Path) -> None:
        self._target, self._transport, self._scratch = target, transport, scratch
        self._runtime = runtimes.RUNTIMES[target.runtime]
        self.discarded = 0  # processes whose times were thrown away as disturbed
        self.device = identified(transport, target)
        self._boots = {self.device.boot_id}
        if self.device.emulated and not target.emulated:
            raise UsageError(
                f"{target.path}: this device is emulated, so its times are no measure of a board; give a physical one, or"
                " write [expect] emulated = true"
            )
        if self.device.simulated and not target.simulated:
            raise UsageError(
                f"{target.path}: the runtime of this device is a stand-in, so its times are no measure of the real one;"
                " install the real one, or write [expect] simulated = true"
            )

    def save_inputs(self, arrays: Sequence[np.ndarray], folder: Path) -> list[Path]:
        """Write input arrays as files that `time`, `measure` and `outputs` take."""
        paths = []
        for i, array in enumerate(arrays):
            paths.append(folder / f"input_{i}.npy")
            np.save(paths[-1], array, allow_pickle=False)
        return paths

    def _save_stacked(self, arrays: Sequence[np.ndarray]) -> list[Path]:
        """Likewise for many samples, out of the way of the example inputs."""
        folder = self._scratch / "stacked"
        folder.mkdir(exist_ok=True)
        return self.save_inputs(arrays, folder)

    def time(
        self, models: Sequence[Path], inputs: Sequence[Path], processes: int, runs: int = LIMITS.timed_runs_min
    ) -> list[Samples]:
        """`processes` fresh processes of each model, interleaved; whole-network times in nanoseconds, no profiler, at least
        `runs` a process.

        A device that repeats itself to `REPEATS` is left alone after `SETTLED` of them.
        """
        return self._settled([[i] for i in interleaved(len(models), processes)], models, inputs, runs)

    def compare(self, models: Sequence[Path], inputs: Sequence[Path], processes: int) -> list[Samples]:
        """Like `time`, but the models share `processes` processes in which they take turns: run i of each is of process i.

        Every other process has them the other way round, since the one that is loaded first may be better off.
        What disturbs the machine disturbs all of them: for ratios of latencies, not for memory.
        """
        order = list(range(len(models)))
        turns = [order if turn % 2 == 0 else order[::-1] for turn in range(processes)]
        return self._settled(turns, models, inputs, LIMITS.timed_runs_min)

    def _settled(
        self, order: list[list[int]], models: Sequence[Path], inputs: Sequence[Path], runs_min: int
    ) -> list[Samples]:
        runs: list[list[Run]] = [[] for _ in models]
        first = min(len(order), SETTLED * len(models) // len(order[0]))
        for part in (order[:first], order[first:]):
            batches = [[models[i] for i in batch] for batch in part]
            for batch, found in zip(part, self.measure(batches, inputs, runs_min=runs_min), strict=True):
                for i, measured in zip(batch, found, strict=True):
                    runs[i].append(measured.run)
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
        """One fresh process a batch, in this order; its models take turns in it, up to `timed_s` each after warm-up.

        Disturbed ones are thrown away and done again, at the end. Raises `InconclusiveError` when that does not help. What
        is good is told to `on_done` as it comes, with its place in `batches`.
        """
        results: dict[int, list[Measured]] = {}
        todo = list(range(len(batches)))
        for _ in range(1 + RETRIES):
            known_boots = len(self._boots)
            options = {"timed_s": timed_s, "profiled_s": PROFILED_S, "runs_min": runs_min}
            asked = [batches[i] for i in todo]
            again: dict[int, str] = {}
            for i, reply in zip(todo, self._ask("time", asked, inputs, options, profiled), strict=True):
                measured = self._measured(reply, len(batches[i]), profiled)
                self._count_reset(measured[0].run)
                reason = next((m.run.disturbed for m in measured if m.run.disturbed), None)
                if reason is None:
                    results[i] = measured
                    on_done(i, measured)
                else:
                    again[i] = reason
            if len(self._boots) > known_boots:
                self._identify_again()
            todo, reasons = list(again), ", ".join(sorted(set(again.values())))
            if not todo:
                return [results[i] for i in range(len(batches))]
            self.discarded += len(todo)
            log.warning("%s: discarded %d of %d measurements: %s", self._target.name, len(todo), len(asked), reasons)
        raise InconclusiveError(
            f"{self._target.name}: too disturbed to measure: {reasons}; cool and power the device well, stop other work on it,"
            " and run again"
        )

    def outputs(
        self, model: Path, stacked: Sequence[np.ndarray], count: int = 1, seconds: float = LIMITS.job_s / 4
    ) -> list[np.ndarray]:
        """Run `model` on every sample: inputs (samples, *input shape); the first `count` outputs, stacked alike.

        Goes in parts of at most `seconds` of the device's time and `LIMITS.output_bytes`.
        """
        parts: list[list[np.ndarray]] = []
        at = 0
        most = max(1, LIMITS.call_bytes // max(1, sum(array[:1].nbytes for array in stacked)))
        while at < len(stacked[0]):
            files = self._save_stacked([array[at : at + most] for array in stacked])
            start, wanted = 0, min(most, len(stacked[0]) - at)
            while start < wanted:
                options = {"outputs": count, "start": start, "most_s": seconds, "most_bytes": LIMITS.output_bytes // 2}
                (reply,) = self._ask("outputs", [[model]], files, options)
                done, places = reply.get("count"), reply.get("files")
                if not isinstance(done, int) or not 0 < done <= wanted - start or not isinstance(places, list):
                    raise DeviceError(f"the device ran {printable(str(done))} of {wanted - start} samples")
                parts.append([self._fetched(str(place), done) for place in places[:count]])
                start += done
            at += wanted
        return [np.concatenate([part[i] for part in parts]) for i in range(count)]

    def call_ns(self, model: Path, stacked: Sequence[np.ndarray], latency_ns: float) -> float:
        """What one call takes in `outputs`, in nanoseconds: the latency, or what is measured where it may start a process."""
        if not self._runtime.slow_calls:
            return latency_ns
        files = self._save_stacked([array[:2] for array in stacked])
        options = {"outputs": 1, "start": 0, "most_s": LIMITS.job_s / 4, "most_bytes": LIMITS.output_bytes}
        (reply,) = self._ask("outputs", [[model]], files, options)
        spent = reply.get("spent_s")
        if not isinstance(spent, float) or spent <= 0:
            raise DeviceError(f"the device does not say how long a call took: {printable(str(spent))}")
        return max(1e9 * spent, latency_ns)

    def _fetched(self, place: str, count: int) -> np.ndarray:
        local = self._scratch / "fetched.npy"
        self._transport.get(place, local)
        try:
            array: np.ndarray = np.load(local, allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise DeviceError(f"the device's outputs cannot be read: {printable(str(error))}") from error
        if array.shape[:1] != (count,):
            raise DeviceError(f"the device's outputs are of shape {array.shape}, not of {count} samples")
        return array

    def _measured(self, reply: Mapping[str, Any], count: int, profiled: bool) -> list[Measured]:
        try:
            before, after = _conditions(reply["before"]), _conditions(reply["after"])
            self._require(before)
            found = []
            for own in reply["models"]:
                times, waited = tuple(own["times_ns"]), (own["waited_ns"], own["waits"])
                copies = own.get("copies_ns", 0), own.get("fallbacks", 0)
                run = Run(times, reply["peak_memory_bytes"], *waited, before, after, *copies)
                found.append(Measured(run, self._runtime.node_times(own["nodes"]) if profiled else ()))
            if len(found) != count:
                raise ValueError(f"times of {len(found)} models instead of {count}")
            return found
        except (KeyError, TypeError, ValueError) as error:
            raise DeviceError(f"the device's samples cannot be used: {printable(str(error))}") from error

    def _require(self, state: Mapping[str, Any]) -> None:
        """The state of the device has to be the one that the target expects."""
        to = self._target
        for key, wanted in (("power_mode", to.power_mode), ("clocks_pinned", to.clocks_pinned)):
            found = state.get(key, "not told")
            if wanted is not None and found != wanted:
                text = f"{to.path}: [expect] {key} = {wanted}, and the device's is {found}"
                raise DeviceError(f"{text}; {REMEDIES[key].format(wanted)}; or have edgeprune do it: [prepare]")

    def _count_reset(self, run: Run) -> None:
        """Note a boot that was not seen before; one is bad luck, more are a fault of the board."""
        self._boots.add(str(run.after.get("boot_id", self.device.boot_id)))
        if len(self._boots) > 1 + RESETS:
            resets = len(self._boots) - 1
            raise DeviceError(f"{self._target.name}: the device was reset {resets} times; mend its power supply")

    def _identify_again(self) -> None:
        """After a reset: is it still the same device?"""
        known, self.device = self.device, identified(self._transport, self._target)
        self._boots.add(self.device.boot_id)
        if (known.identity, known.serial) != (self.device.identity, self.device.serial):
            raise DeviceError(f"{self._target.name}: another device answers at this address; run again")
        log.warning("%s: the device was reset; going on", self._target.name)

    def _ask(
        self,
        mode: str,
        batches: Sequence[Sequence[Path]],
        inputs: Sequence[Path],
        options: Mapping[str, Any],
        profiled: bool = False,
    ) -> Iterator[Mapping[str, Any]]:
        """One job a batch of models, in order; as many models on the device at a time as `LIMITS.call_bytes` holds."""
        files = [self._transport.put([path]) for path in inputs]
        own = parts(self._transport, self._target)
        for portion in _portions(batches):
            jobs = []
            for i, batch in enumerate(portion):
                job = {
                    "id": i,
                    "mode": mode,
                    "runtime": self._target.runtime,
                    "threads": self._target.threads,
                    "models": [self._transport.put(_with_siblings(model)) for model in batch],
                    "inputs": files,
                    "dla": self._target.dla,
                    "prepare": asdict(self._target.prepare) if self._target.prepare else None,
                    "deadline_s": self._runtime.deadline_s * len(batch),
                    "warmup_s": LIMITS.warmup_s,
                    "runs_max": LIMITS.timed_runs_max,
                    **own,
                    **options,
                }
                if profiled:
                    instrumented = [self._runtime.instrument(model) for model in batch]
                    job["profiled"] = [self._transport.put(_with_siblings(model)) for model in instrumented]
                jobs.append(job)
            # The device keeps the deadline of each job by its own clock; an emulated one's runs slower than ours.
            slowness = LIMITS.emulated_slowness if self._target.emulated else 1
            deadline_s = self._runtime.deadline_s * sum(map(len, portion)) * slowness
            for job, batch, reply in zip(jobs, portion, self._transport.call(jobs, deadline_s), strict=True):
                if reply.get("id") != job["id"]:
                    raise DeviceError("the device's replies are out of order")
                _refuse(reply, f"{mode} of {', '.join(sorted({model.name for model in batch}))}")
                yield reply


def _with_siblings(model: Path) -> list[Path]:
    """A model's file, and what lies beside it and belongs to it."""
    return [model, *sorted(path for path in model.parent.iterdir() if path.is_file() and path != model)]


def _portions(batches: Sequence[Sequence[Path]]) -> Iterator[list[Sequence[Path]]]:
    part: list[Sequence[Path]] = []
    for batch in batches:
        models = {model for b in [*part, batch] for model in b}
        if part and sum(file.stat().st_size for m in models for file in _with_siblings(m)) > LIMITS.call_bytes:
            yield part
            part = []
        part.append(batch)
    if part:
        yield part


def _conditions(reply: Mapping[str, Any]) -> dict[str, int | float | str]:
    """A device's conditions: numbers, and text that is safe to show."""
    if not isinstance(reply, Mapping):
        raise TypeError("conditions must be an object")
    known: dict[str, int | float | str] = {}
    for name, value in list(reply.items())[:20]:
        known[printable(str(name), 40)] = value if isinstance(value, int | float) else printable(str(value), 100)
    return known


def _refuse(reply: Mapping[str, Any], what: str) -> None:
    if "error" in reply:
        raise DeviceError(f"{what}: {printable(str(reply['error']))}: {printable(str(reply.get('message')))}")


def until(
    take: Callable[[list[Samples]], list[Samples]], decided: Callable[[list[Samples]], bool], rounds: int
) -> list[Samples]:
    """What `take` measures, a `Samples` a model, and more of it, in at most `rounds`, until that has `decided` the
    question. `take` is told what there is so far."""
    taken: list[Samples] = []
    for _ in range(rounds):
        found = take(taken)
        taken = [Samples(a.runs + b.runs) for a, b in zip(taken, found, strict=True)] if taken else found
        if decided(taken):
            break
    return taken


def interleaved(models: int, rounds: int) -> list[int]:
    """The order ABBA…: every model once a round, each round the other way round, so that drift cancels in pairs."""
    forward = list(range(models))
    return [i for turn in range(rounds) for i in (forward if turn % 2 == 0 else forward[::-1])]
