"""Sweeps: a project over several targets, precisions and budgets. `sweep` is public, as the functions of `verbs`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypedDict, TypeVar, Unpack

from edgeprune.api import verbs
from edgeprune.errors import EdgepruneError, UsageError
from edgeprune.pipeline.request import Given, Quiet, Watch, read_project, request, require_known, target_names
from edgeprune.records import Sweep, SweepCell, TargetPrecision, UnprunedNetworks

if TYPE_CHECKING:
    from edgeprune.pipeline.run import Run
    from edgeprune.pipeline.stage import Rules
    from edgeprune.reports.pictures import Picture
    from edgeprune.stages.series.cluster import Place
    from edgeprune.stages.series.sweep import Cell

Made = TypeVar("Made")


class Board(Protocol):
    """Follows a sweep: it is called as the cells proceed."""

    def begin(self, cells: Sequence[Cell]) -> None:
        """The sweep begins."""

    def enter(self, name: str) -> Watch:
        """A cell begins, or what cells share. The result is called with its progress; see `Watch`."""

    def end(self, cell: Cell, ended: SweepCell) -> None:
        """The cell ended."""


class Silent:
    """A board that does nothing."""

    def begin(self, cells: Sequence[Cell]) -> None: ...

    def enter(self, name: str) -> Watch:
        return Quiet()

    def end(self, cell: Cell, ended: SweepCell) -> None: ...


@dataclass(frozen=True, repr=False)
class MeasuredSweep(Sweep):
    """A sweep that draws itself."""

    def plot(self) -> Picture:
        """A picture of the metric against the measured latency: a line for each target. It needs the extra `report`.

        Raises:
            UsageError: no cell was measured.
        """
        from edgeprune.reports.sweep import picture

        return picture(self)

    def report(self, path: Path | str) -> Path:
        """Write the report of all runs with a verdict: one HTML file. It needs the extra `report`. Returns its path.

        Raises:
            UsageError: no run has a verdict.
        """
        from edgeprune.reports import report
        from edgeprune.stages.series import finished

        verdicts = [cell.verdict for cell in self.cells if cell.verdict is not None]
        if not verdicts:
            raise UsageError("no run of this sweep has a verdict, so there is nothing to report; see its errors")
        return report.write([finished.read(verdict) for verdict in verdicts], Path(path))


class SweepOptions(TypedDict, total=False):
    """Options of all runs of a sweep.

    Attributes:
        wait: wait for a device that somebody else holds.
        patience: how long each run repeats measurements that other programs disturb: "90s", "15m" or "2h".
        fresh: redo everything, once. What several runs share is redone by the first one.
        progress: show the progress; by default only in a notebook or another interactive session. A `board` replaces it.
        executor: "local" or "slurm": each run is a job of its own, on this machine or of Slurm. It needs the extra `cluster`.
        jobs: how many jobs there are at the same time; by default one on this machine, and all of Slurm's.
        slurm: long options of sbatch for each job: {"partition": "gpu", "time": "4:00:00"}.
        nproc_per_node: how many processes train each job's network, started by torchrun: one for each GPU. By default one.
    """

    wait: bool
    patience: str | None
    fresh: bool
    progress: bool | None
    executor: Literal["local", "slurm"] | None
    jobs: int | None
    slurm: Mapping[str, str]
    nproc_per_node: int | None


def sweep(
    project: Given,
    budgets: str | Sequence[str],
    targets: str | Sequence[str] = "local",
    precisions: TargetPrecision | Sequence[TargetPrecision] = (),
    board: Board | None = None,
    **options: Unpack[SweepOptions],
) -> MeasuredSweep:
    """Run a project over targets, precisions and budgets. The survey and the scores run once, a profile once for a target.

    A run that fails does not stop the others. The same call again reuses what is finished.

    Args:
        project: an `edgeprune.Project`, or the path of an `edgeprune.toml` or of its folder.
        budgets: such as "50%" or "12 ms".
        targets: names, or paths of target files.
        precisions: "fp32", "fp16", "int8" or "auto"; by default each target file's.
        board: follows the sweep; see `Board`.
        **options: see `SweepOptions`.

    Returns:
        The runs, and for each target its measured networks beside the unpruned one in every precision. `plot()` draws them.

    Raises:
        UsageError: a file, the model or the data is wrong, so that every run would fail.

    Example:
        >>> found = edgeprune.sweep("examples/digits", ["80%", "50%"], ["local", "local-openvino"])
        >>> found.fronts["local"][0].metric
    """
    from edgeprune.stages.series import sweep as stage

    require_known(options, SweepOptions)
    limits = [budgets] if isinstance(budgets, str) else budgets
    kinds = [precisions] if isinstance(precisions, str) else precisions
    names = {cell: _name(project, cell) for cell in stage.cells(limits, target_names(targets), kinds)}
    with nullcontext(board) if board is not None else _board(options.get("progress")) as shown:
        sweeper = _Sweeper(project, shown, options, names)
        if (place := _place(options, len(names))) is None:
            sweeper.run_here()
        else:
            sweeper.run_jobs(place)
    found = [sweeper.found[cell] for cell in names]
    name = read_project(project).name
    return MeasuredSweep(**vars(stage.summed(name, found, sweeper.unpruned, sweeper.notes)))


def _board(progress: bool | None) -> AbstractContextManager[Board]:
    if not (hasattr(sys, "ps1") if progress is None else progress):  # an interactive session has the prompt ps1
        return nullcontext(Silent())
    from rich.console import Console

    from edgeprune.reports.sweep import SweepBoard

    return SweepBoard(Console(emoji=False))


def _place(options: SweepOptions, cells: int) -> Place | None:
    """Where jobs run; None if there are none."""
    executor, jobs, slurm = options.get("executor"), options.get("jobs"), options.get("slurm") or {}
    processes = options.get("nproc_per_node")
    if executor is None:
        if jobs is not None or slurm or processes is not None:
            raise UsageError(
                "--jobs, --slurm and --nproc-per-node need --executor; write: --executor local, or --executor slurm"
            )
        return None
    if options.get("fresh"):
        raise UsageError("--fresh and --executor exclude each other: jobs reuse what others made; remove runs/ instead")
    from edgeprune.stages.series.cluster import Place

    most = jobs if jobs is not None else 1 if executor == "local" else cells
    return Place(executor, most, slurm, processes if processes is not None else 1)


def _name(project: Given, cell: Cell) -> str:
    """The name of a cell's target. A wrong file or name is found here, before anything runs."""
    return request(project, cell.target, budget=cell.budget, precision=cell.precision).target.name


def forecast(project: Given, cells: Sequence[Cell]) -> list[str]:
    """What a sweep would send to each device and run there at most. It contacts no device."""
    from edgeprune.stages import forecast as stage

    lines = [f"{len(cells)} runs"]
    for target, own in groupby(cells, key=lambda cell: cell.target):
        first, *rest = own
        asked = request(project, target, budget=first.budget, precision=first.precision)
        budgets = ", ".join(" ".join(filter(None, (cell.precision, cell.budget))) for cell in (first, *rest))
        lines.append(f"{asked.target.name}: {budgets}, and the unpruned network in every precision")
        lines += [f"  {line}" for line in stage.forecast(asked.project, asked.target, True, 1 + len(rest))]
    return lines


class _Sweeper:
    """Runs all cells, and collects what they give."""

    def __init__(self, project: Given, board: Board, options: SweepOptions, names: Mapping[Cell, str]) -> None:
        self._project, self._board, self._options, self._names = project, board, options, names
        self.found: dict[Cell, SweepCell] = {}
        self.unpruned: dict[str, UnprunedNetworks] = {}
        self.notes: list[str] = []
        board.begin(list(names))

    def _end(self, cell: Cell, ended: SweepCell) -> None:
        self.found[cell] = ended
        self._board.end(cell, ended)

    # ------------------------------------------------------------------------------------------------ in this process

    def run_here(self) -> None:
        """Run the cells one after the other. What those of one profile measure alike is measured once, before each goes on.

        First come the stages of all targets: if one fails, every cell would.
        """
        from edgeprune.stages import survey, trial
        from edgeprune.stages.registry import RULES
        from edgeprune.stages.sharing import shared

        rules = shared(RULES)
        with self._opened(next(iter(self._names)), "all runs", rules) as run:
            run.record(trial.STAGE)
            run.record(survey.STAGE)
        for _, own in groupby(self._names, key=lambda cell: cell.target):
            cells = [*own]
            self._measure_unpruned(cells[0], rules)
            for _, alike in groupby(cells, key=lambda cell: cell.precision):
                self._run([*alike], rules)

    def _opened(self, cell: Cell, name: str, rules: Rules) -> AbstractContextManager[Run]:
        return verbs.opened(
            self._project,
            cell.target,
            progress=False,
            rules=rules,
            budget=cell.budget,
            precision=cell.precision,
            watch=self._board.enter(name),
            wait=self._options.get("wait", False),
            patience=self._options.get("patience"),
            fresh=self._options.get("fresh", False),
        )

    def _measure_unpruned(self, cell: Cell, rules: Rules) -> None:
        """Measure the original network in every precision on the target of a cell. An error is a note."""
        from edgeprune.stages import unpruned

        name = self._names[cell]
        try:
            with self._opened(cell, f"{name} unpruned", rules) as run:
                self.unpruned[name] = run.record(unpruned.STAGE)
        except EdgepruneError as error:
            self.notes.append(f"{name}: the unpruned network was not measured in every precision: {error}")

    def _run(self, cells: Sequence[Cell], rules: Rules) -> None:
        """Run the cells of one profile. An error of edgeprune ends only its cell."""
        from edgeprune.stages import confirm
        from edgeprune.stages.series import ahead
        from edgeprune.stages.series import sweep as stage

        plans = dict(self._each(cells, rules, lambda cell, run: ahead.planned(run)))
        self._together(plans, rules, ahead.confirm_plans)
        for _ in self._each(plans, rules, lambda cell, run: run.record(confirm.STAGE)):
            pass  # it is kept before any network is trained
        artifacts = dict(self._each(cells, rules, lambda cell, run: ahead.compiled(run)))
        self._together(artifacts, rules, ahead.time_artifacts)
        for cell, ended in self._each(cells, rules, stage.finished):
            self._end(cell, ended)

    def _each(
        self, cells: Iterable[Cell], rules: Rules, make: Callable[[Cell, Run], Made | None]
    ) -> Iterator[tuple[Cell, Made]]:
        """What the run of each cell makes. A cell that fails ends, and is left out, as is one that makes nothing."""
        from edgeprune.stages.series import sweep as stage

        for cell in cells:
            if cell in self.found:  # it has failed before
                continue
            try:
                with self._opened(cell, cell.name, rules) as run:
                    found = make(cell, run)
            except EdgepruneError as error:
                self._end(cell, stage.failed(cell, self._names[cell], error))
                continue
            if found is not None:
                yield cell, found

    def _together(
        self, given: Mapping[Cell, Made], rules: Rules, measure: Callable[[Run, Sequence[Made]], None]
    ) -> None:
        """Measure for several cells, in the run of one. After an error each measures alone."""
        if len(given) < 2:
            return
        first = next(iter(given))
        name = " ".join(filter(None, (self._names[first], first.precision, "together")))
        try:
            with self._opened(first, name, rules) as run:
                measure(run, [*given.values()])
        except EdgepruneError as error:
            self._board.enter(name).note(f"each is measured alone: {error}")

    # --------------------------------------------------------------------------------------------------------- as jobs

    def run_jobs(self, place: Place) -> None:
        """Run each cell as a job. A job that fails, is cancelled or dies ends only its cell."""
        from edgeprune.stages.series.cluster import Jobs

        project = read_project(self._project)
        if project.objects:
            raise UsageError("a project of objects has no file that a job could read; write an edgeprune.toml")
        jobs = Jobs(place, project.folder / "runs" / "jobs", lambda cell: self._board.enter(cell.name))
        commands = {cell: self._command(cell, project.path, place.processes) for cell in self._names}
        for cell, ended in jobs.run(commands, self._names):
            self._end(cell, ended.cell)
            if ended.unpruned is not None:
                self.unpruned[ended.cell.target] = ended.unpruned
            self.notes += [note for note in ended.notes if note not in self.notes]

    def _command(self, cell: Cell, project: Path, processes: int) -> list[str]:
        """The command of a cell: a sweep of one run. Several processes train its network before, and the sweep reuses it."""
        words = ["--wait", "--project", str(project.absolute()), "--budget", cell.budget, "--target", cell.target]
        words += ["--precision", cell.precision] if cell.precision else []
        patience = self._options.get("patience")
        words += ["--patience", patience] if patience else []
        sweep = [sys.executable, "-m", "edgeprune", "sweep", "--json", *words]
        if processes == 1:
            return sweep
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        finetune = [*torchrun, "-m", "edgeprune", "finetune", *words]
        # Only the sweep answers on stdout. If the training fails, the sweep meets the same error and answers with it.
        return ["sh", "-c", f"{shlex.join(finetune)} >&2; exec {shlex.join(sweep)}"]


__all__ = ["sweep"]
