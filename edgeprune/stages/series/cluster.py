"""Cells of a sweep as jobs: processes of this machine, or jobs of Slurm. submitit starts them. Nothing is pickled.

    runs/jobs/CELL/N/        the Nth job of a cell
      command.txt            what it runs
      ID_submission.sh       what sbatch got
      ID_0_log.out           its answer: the JSON of a sweep of one cell
      ID_0_log.err           its progress and its errors

A job is `edgeprune sweep` of one cell. The locks of the run folders make sure that jobs make each record once.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edgeprune.devices.validate import printable
from edgeprune.errors import DeviceError, EdgepruneError, RuntimeMissing, UsageError, of_code, usage_error
from edgeprune.limits import LIMITS
from edgeprune.pipeline.request import Watch
from edgeprune.records import Sweep, UnprunedNetworks
from edgeprune.records.sweep import SweepCell
from edgeprune.stages.series.sweep import Cell, failed
from edgeprune.storage import codec
from edgeprune.storage.store import read_capped, write_atomic

Executor = Literal["local", "slurm"]
POLL_S: Mapping[str, float] = {"local": 0.2, "slurm": 2.0}
SACCT_S = 30  # between two questions to Slurm, at most
ANSWER_S: Mapping[str, float] = {"local": 0.0, "slurm": 20.0}  # until a file of another machine is seen here
PROGRAMS = "sbatch", "srun", "sacct", "scancel"
OWN = {"array", "error", "job-name", "open-mode", "output", "signal"}  # options of sbatch that submitit sets
LINE_BYTES = 4096  # of the end of a log, for its last line


@dataclass(frozen=True)
class Place:
    """Where jobs run.

    Attributes:
        executor: "local" or "slurm".
        most: how many jobs there are at the same time.
        slurm: long options of sbatch, without the dashes: {"partition": "gpu", "time": "4:00:00"}.
        processes: how many processes train the network of a job.
    """

    executor: Executor
    most: int
    slurm: Mapping[str, str] = field(default_factory=dict)
    processes: int = 1

    def __post_init__(self) -> None:
        if self.executor not in POLL_S:
            raise usage_error(f"executor {self.executor!r} is unknown; write local or slurm")
        if not 1 <= self.most <= LIMITS.sweep_cells:
            raise UsageError(f"--jobs {self.most} is not between 1 and {LIMITS.sweep_cells}")
        if not 1 <= self.processes <= LIMITS.sweep_cells:
            raise UsageError(f"--nproc-per-node {self.processes} is not between 1 and {LIMITS.sweep_cells}")
        if self.slurm and self.executor != "slurm":
            raise UsageError("--slurm is for --executor slurm; leave it out, or add --executor slurm")
        for name, value in self.slurm.items():
            if not re.fullmatch(r"[a-z][a-z-]*", name) or name in OWN:
                raise usage_error(
                    f"--slurm {name}={value}: {name!r} is no option of sbatch that you can set; give a long option"
                    " without its dashes, such as partition=gpu"
                )
            if not value or not value.isprintable():  # a second line would be a command of the script
                raise usage_error(f"--slurm {name}={value!r} is not one line of text")


@dataclass(frozen=True)
class Ended:
    """What a job gave: the result of its cell, the unpruned network on its target if it was measured, and notes."""

    cell: SweepCell
    unpruned: UnprunedNetworks | None = None
    notes: tuple[str, ...] = ()


@dataclass
class _Job:
    """A job that was started."""

    cell: Cell
    handle: Any  # of submitit
    watch: Watch
    shown: str = ""  # the last line of its log that was seen, or its state
    ended_s: float | None = None


class Jobs:
    """Runs commands as jobs.

    Args:
        place: where.
        folder: keeps the logs of all jobs.
        watch_of: gives the progress of a cell.

    Raises:
        RuntimeMissing: submitit is not installed, or Slurm is not.
    """

    def __init__(self, place: Place, folder: Path, watch_of: Callable[[Cell], Watch]) -> None:
        self._place, self._folder, self._watch_of = place, folder, watch_of
        self._submitit = _loaded()
        missing = [name for name in PROGRAMS if shutil.which(name) is None] if place.executor == "slurm" else []
        if missing:
            raise RuntimeMissing(f"{', '.join(missing)}: no such program; run this on a machine that submits to Slurm")

    def run(self, commands: Mapping[Cell, Sequence[str]], names: Mapping[Cell, str]) -> Iterator[tuple[Cell, Ended]]:
        """Run the command of each cell, and yield what it gave, in the order in which the jobs end.

        If the caller stops, for instance at an interrupt, the jobs are cancelled. `names` are those of the cells' targets.

        Raises:
            UsageError: a job cannot be submitted.
        """
        waiting, running = list(commands), list[_Job]()
        try:
            while waiting or running:
                while waiting and len(running) < self._place.most:
                    cell = waiting.pop(0)
                    running.append(self._started(cell, names[cell], commands[cell]))
                for job in list(running):
                    if (found := self._ended(job, names[job.cell])) is not None:
                        running.remove(job)
                        yield job.cell, found
                time.sleep(POLL_S[self._place.executor])
        finally:
            for job in running:
                self._cancel(job)

    def _started(self, cell: Cell, name: str, command: Sequence[str]) -> _Job:
        precision = [cell.precision] if cell.precision else []
        own = self._folder / re.sub(r"[^\w.]+", "-", "-".join([name, *precision, cell.budget.replace("%", "pct")]))
        number = 1 + max((int(path.name) for path in own.glob("*") if path.name.isdecimal()), default=0)
        write_atomic(own / str(number) / "command.txt", shlex.join(command).encode() + b"\n")
        executor = self._executor(own / str(number), f"edgeprune {own.name}")
        words = [*_same_gpus(), *command] if self._place.executor == "local" else command
        try:
            with _interrupts_ignored():
                handle = executor._submit_command(shlex.join(words))  # `submit` would pickle a function
        except (self._submitit.core.utils.FailedJobError, self._submitit.core.utils.FailedSubmissionError) as error:
            lines = [line.strip() for line in str(error).splitlines() if "error:" in line] or [str(error)]
            raise usage_error(f"Slurm refused the job of {cell.name}: {lines[-1]}; see --slurm") from error
        watch = self._watch_of(cell)
        watch.start(f"job {handle.job_id}")
        return _Job(cell, handle, watch)

    def _executor(self, folder: Path, name: str) -> Any:
        """submitit's executor with the settings of a job."""
        if self._place.executor == "local":
            executor = self._submitit.LocalExecutor(folder)
            executor.update_parameters(timeout_min=LIMITS.lease_wait_s / 60)
            return executor
        slurm = self._submitit.slurm.slurm
        executor = self._submitit.SlurmExecutor(folder)
        executor.job_class = _watched(slurm.SlurmJob, slurm.SlurmInfoWatcher)
        time_min = int(LIMITS.lease_wait_s / 60)
        executor.update_parameters(job_name=name, time=time_min, additional_parameters=dict(self._place.slurm))
        return executor

    def _ended(self, job: _Job, target: str) -> Ended | None:
        """What a job gave; None while it runs. A job that ends without an answer is a failed cell."""
        paths, is_over = job.handle.paths, job.handle.done()
        line = _last_line(paths.stderr)
        shown = line or str(job.handle.state).lower()
        if shown != job.shown:
            job.shown = shown
            job.watch.note(shown)
        answer = _answer(paths.stdout)
        if answer is not None and (is_over or self._place.executor == "slurm"):  # Slurm is late with its states
            return read(answer, job.cell, target, str(paths.stdout))
        if not is_over:
            return None
        job.ended_s = job.ended_s or time.monotonic()
        if time.monotonic() - job.ended_s < ANSWER_S[self._place.executor]:
            return None
        state = str(job.handle.state).lower()
        reason = f"job {job.handle.job_id} ended without a result ({state}): {line or 'it printed nothing'}"
        return Ended(failed(job.cell, target, DeviceError(f"{printable(reason)}; see {paths.stderr}")))

    def _cancel(self, job: _Job) -> None:
        if self._place.executor == "slurm":
            job.handle.cancel(check=False)
            return
        with suppress(ProcessLookupError):
            os.kill(int(job.handle.job_id), signal.SIGTERM)  # submitit passes it on
        until = time.monotonic() + LIMITS.end_s
        while not job.handle.done() and time.monotonic() < until:
            time.sleep(POLL_S["local"])


def read(text: str, cell: Cell, target: str, source: str) -> Ended:
    """What a job's answer holds: a sweep of one cell, or an error."""
    try:
        content = json.loads(text)
        if "cells" not in content:
            return Ended(failed(cell, target, _error(int(content["exit_code"]), str(content["error"]))))
        found = codec.loads(Sweep, text, source)
        (row,) = found.cells
        return Ended(row, found.unpruned.get(row.target), found.notes)
    except (ValueError, TypeError, KeyError, RecursionError, UsageError) as error:
        return Ended(failed(cell, target, UsageError(f"{source} is not the answer of a job: {printable(str(error))}")))


def _error(exit_code: int, text: str) -> EdgepruneError:
    found = of_code(exit_code, printable(text))
    return found if isinstance(found, EdgepruneError) else DeviceError("its job was interrupted")


def _answer(path: Path) -> str | None:
    """The document that a job printed; None if it is not there, or not complete."""
    if not path.is_file() or not path.stat().st_size:
        return None
    text = read_capped(path, LIMITS.json_bytes).decode("utf-8", "replace")
    with suppress(ValueError, RecursionError):
        if isinstance(json.loads(text), dict):
            return text
    return None


def _last_line(path: Path) -> str:
    """The last line of a log; empty if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LINE_BYTES))
            lines = file.read(LINE_BYTES).decode("utf-8", "replace").splitlines()
    except FileNotFoundError:
        return ""
    return next((printable(line.strip()) for line in reversed(lines) if line.strip()), "")


def _loaded() -> Any:
    try:
        import submitit
    except ImportError as error:
        raise RuntimeMissing("--executor needs submitit; run: pip install 'edgeprune[cluster]'") from error
    return submitit


def _watched(job: Any, watcher: Any) -> Any:
    """The class of a Slurm job whose state is known within `SACCT_S`; submitit asks every ten minutes."""
    return type("WatchedJob", (job,), {"watcher": watcher(delay_s=SACCT_S)})


def _same_gpus() -> list[str]:
    """A job sees the GPUs that this process sees. submitit would hide them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return ["env", *(["-u", "CUDA_VISIBLE_DEVICES"] if given is None else [f"CUDA_VISIBLE_DEVICES={given}"])]


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Processes that start here do not get the terminal's Ctrl-C. This process then ends them in order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
