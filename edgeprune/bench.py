"""Target -> an identified device that measures; a context manager that leaves it as it was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune import runtimes, transports
from edgeprune.errors import DeviceError, RuntimeMissing
from edgeprune.limits import LIMITS
from edgeprune.transports.base import Transport, printable
from edgeprune.types import Device, Run, Samples, Target

NODE_TIMED_S = 0.1  # of profiled runs a process: node times rank, they need no more


@contextmanager
def open_bench(target: Target, scratch: Path) -> Iterator[Bench]:
    """The device of `target`, identified; `scratch` is a folder of this machine for what passes through.

    Raises `RuntimeMissing` where the device has no such runtime, `DeviceError` where it does not answer.
    """
    transport = transports.connect(target)
    try:
        yield Bench(target, transport, scratch)
    finally:
        transport.close()


class Bench:
    """A device that runs models in fresh processes and answers with raw samples."""

    def __init__(self, target: Target, transport: Transport, scratch: Path) -> None:
        self._target, self._transport, self._scratch = target, transport, scratch
        self._runtime = runtimes.RUNTIMES[target.runtime]
        self.device = self._identify()

    def save_inputs(self, arrays: Sequence[np.ndarray], folder: Path) -> list[Path]:
        """Write input arrays as files that `time`, `nodes` and `outputs` take."""
        paths = []
        for i, array in enumerate(arrays):
            paths.append(folder / f"input_{i}.npy")
            np.save(paths[-1], array, allow_pickle=False)
        return paths

    def time(self, models: Sequence[Path], inputs: Sequence[Path], processes: int) -> list[Samples]:
        """`processes` fresh processes of each model, interleaved; whole-network times in nanoseconds, no profiler."""
        order = interleaved(len(models), processes)
        runs = list(self.time_each([models[i] for i in order], inputs))
        return [Samples(tuple(run for i, run in zip(order, runs, strict=True) if i == m)) for m in range(len(models))]

    def time_each(
        self, models: Sequence[Path], inputs: Sequence[Path], timed_s: float = LIMITS.timed_s
    ) -> Iterator[Run]:
        """One fresh process of each model, in this order, timed for `timed_s` after warm-up."""
        for reply in self._call("time", models, inputs, timed_s=timed_s):
            try:
                yield Run(tuple(reply["times_ns"]), reply["peak_memory_bytes"])
            except (KeyError, TypeError, ValueError) as error:
                raise DeviceError(f"the device's samples cannot be used: {printable(str(error))}") from error

    def nodes(self, models: Sequence[Path], inputs: Sequence[Path]) -> Iterator[dict[str, int]]:
        """Nanoseconds by node of each model, from the runtime's profiler: {ONNX node or output name: ns}."""
        for reply in self._call("nodes", models, inputs, timed_s=NODE_TIMED_S):
            try:
                yield self._runtime.node_times(reply["nodes"])
            except (KeyError, TypeError, ValueError) as error:
                raise DeviceError(f"the device's node times cannot be used: {printable(str(error))}") from error

    def outputs(self, model: Path, stacked: Sequence[np.ndarray], count: int = 1) -> list[np.ndarray]:
        """Run `model` on every sample: inputs (samples, *input shape); the first `count` outputs, stacked alike."""
        inputs = self.save_inputs(stacked, self._scratch)
        remote = [str(self._scratch / f"output_{i}.npy") for i in range(count)]
        for reply in self._call("outputs", [model], inputs, outputs=remote):
            if reply.get("count") != len(stacked[0]):
                raise DeviceError(f"the device ran {printable(str(reply.get('count')))} of {len(stacked[0])} samples")
        results = []
        for i, path in enumerate(remote):
            local = self._scratch / f"fetched_{i}.npy"
            self._transport.get(path, local)
            results.append(np.load(local, allow_pickle=False))
        return results

    def _identify(self) -> Device:
        job = {"id": 0, "mode": "identify", "runtime": self._target.runtime, "deadline_s": LIMITS.identify_s}
        (reply,) = self._transport.call([job], LIMITS.identify_s)
        if reply.get("error") == "runtime-missing":
            said = printable(str(reply.get("message")))
            raise RuntimeMissing(
                f"{self._target.path}: the device has no {self._runtime.name} ({said}); {self._runtime.install}"
            )
        try:
            _refuse(reply, "identify")
            return Device(**{name: reply[name] for name in Device.__dataclass_fields__})
        except KeyError as error:
            raise DeviceError(f"the device does not say its {error}") from error

    def _call(
        self, mode: str, models: Sequence[Path], inputs: Sequence[Path], **options: Any
    ) -> Iterator[Mapping[str, Any]]:
        files = [self._transport.put([path]) for path in inputs]
        places = {
            model: self._transport.put([model, *sorted(set(model.parent.iterdir()) - {model})]) for model in set(models)
        }
        jobs = [
            {
                "id": i,
                "mode": mode,
                "runtime": self._target.runtime,
                "threads": self._target.threads,
                "precision": self._target.precision,
                "model": places[model],
                "inputs": files,
                "deadline_s": LIMITS.job_s,
                "warmup_s": LIMITS.warmup_s,
                "runs_min": LIMITS.timed_runs_min,
                "runs_max": LIMITS.timed_runs_max,
                **options,
            }
            for i, model in enumerate(models)
        ]
        for job, reply in zip(jobs, self._transport.call(jobs, LIMITS.job_s * len(jobs)), strict=True):
            if reply.get("id") != job["id"]:
                raise DeviceError("the device's replies are out of order")
            _refuse(reply, f"{mode} of {Path(str(job['model'])).name}")
            yield reply


def _refuse(reply: Mapping[str, Any], what: str) -> None:
    if "error" in reply:
        raise DeviceError(f"{what}: {printable(str(reply['error']))}: {printable(str(reply.get('message')))}")


def interleaved(models: int, rounds: int) -> list[int]:
    """The order ABBA…: every model once a round, each round the other way round, so that drift cancels in pairs."""
    forward = list(range(models))
    return [i for turn in range(rounds) for i in (forward if turn % 2 == 0 else forward[::-1])]
