"""The command line. It prints one table or one JSON document. An error is one line and an exit code."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeprune import errors
from edgeprune.cli import fleet, logs, report, sweep
from edgeprune.cli.answers import one_line, only_answer_on_stdout, opened, put
from edgeprune.cli.commands import called, command, discard_output
from edgeprune.cli.options import (
    HERE,
    BoardAction,
    Figure,
    OfBench,
    OfBoard,
    OfCheck,
    OfDemo,
    OfDoctor,
    OfHistory,
    OfInit,
    OfProfile,
    OfProject,
    OfReport,
    OfRun,
    OfSetup,
    OfTargets,
    OfTensorboard,
    OfTrained,
    OfWhole,
)

if TYPE_CHECKING:
    from edgeprune.pipeline.run import Run

app = typer.Typer(
    name="edgeprune",
    help="From a PyTorch model, a device and a latency budget to a verified, faster artifact.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
FIGURES = {
    Figure.p50: "p50_ns",
    Figure.p90: "p90_ns",
    Figure.memory: "peak_memory_bytes",
    Figure.size: "size_bytes",
    Figure.metric: "metric",
}


def _print_version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        print(f"edgeprune {version('edgeprune')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    """Options of the program itself."""
    if context.invoked_subcommand is None:
        print(context.get_help(), file=sys.stderr)
        raise typer.Exit(errors.UsageError.exit_code)


# ------------------------------------------------------------------------------------------------------- the stages


def _result(run: Run) -> Any:
    from edgeprune.stages.result import result
    from edgeprune.stages.together import together

    return together(run) if run.members else result(run)


def _verdict(run: Run) -> Path:
    from edgeprune.stages import verify

    return run.entry(verify.STAGE)


def _cut(run: Run) -> Any:
    from edgeprune.records import Cut

    start = run.value("prune").start
    return Cut(run.value("confirm"), start)


def _record(name: str) -> Callable[[Run], Any]:
    return lambda run: run.value(name)


VERBS: Mapping[str, tuple[str, Callable[[Run], Any]]] = {
    "run": ("Run all stages. They are profile, plan, prune, finetune, compile and verify.", _result),
    "plan": ("Choose the channels to keep, with a proof.", _record("plan")),
    "prune": ("Confirm the plan on the device, and cut the network.", _cut),
    "finetune": (
        "Fine-tune the pruned network. It is distilled from the original network.",
        lambda run: run.value("finetune").network,
    ),
    "compile": ("Compile the network for the target's runtime.", _record("compile")),
    "verify": ("Check the artifact on the device.", _record("verify")),
}
TRAINED = "run", "compile", "verify"  # verbs that use the trained network


def _verb(name: str, options: OfRun, after: Callable[[Path], str] | None = None) -> None:
    """Run a verb, print its answer, and exit. `after` gives a last line, from the folder of the run's verdict."""
    if options.dry_run:
        for target in [options.target] if isinstance(options.target, str) else options.target or ["local"]:
            _print_forecast(options.project, target, whole=True)
        return
    if "TORCHELASTIC_RUN_ID" in os.environ:  # only then torchrun may have started this process; the import loads torch
        from edgeprune.stages import parallel

        if parallel.started_by_torchrun():
            _in_parallel(name, options)
            return
    weights = options.weights if isinstance(options, OfTrained) else None
    if name == "run":
        options = _with_goal(options)
    with opened(options, budget=options.budget, fresh=options.fresh, weights=weights) as (run, answer):
        value = VERBS[name][1](run)
        answer(value)
        verdict = _verdict(run) if after and not run.members else None
    if after and verdict and not options.as_json:
        print(one_line(after(verdict)))
    from edgeprune.records import Outcome

    outcome = getattr(value, "status", None) or getattr(value, "outcome", "pass")
    raise typer.Exit(Outcome(str(outcome)).exit_code)


def _with_goal(options: OfRun) -> OfRun:
    """The options with the latency budget that `[budget] goal` asks for. Finding it trains several networks."""
    from edgeprune.api import verbs
    from edgeprune.pipeline.request import read_project

    if options.budget is not None or read_project(options.project).budget.goal is None:
        return options
    with only_answer_on_stdout(options.as_json):
        found = verbs.fastest_budget(
            options.project,
            options.target or "local",
            wait=options.wait,
            patience=options.patience,
            precision=options.precision.value if options.precision else None,
            fresh=options.fresh,
            progress=not options.quiet and not options.as_json,
        )
    return replace(options, budget=found, fresh=False)


def _in_parallel(name: str, options: OfRun) -> None:
    """Work as one of torchrun's processes. The first one runs the pipeline, and the others train with it."""
    if name != "finetune":
        raise errors.UsageError(
            f"torchrun is for edgeprune finetune; run edgeprune {name} without torchrun: it uses the trained network"
        )
    from edgeprune.pipeline.request import request
    from edgeprune.stages import finetune, parallel

    with parallel.joined():
        if parallel.rank():
            finetune.follow(request(options.project, options.target, budget=options.budget).project)
            return
        with opened(options, budget=options.budget, fresh=options.fresh) as (run, answer):
            answer(VERBS["finetune"][1](run))
            parallel.end_others()


def _register(name: str, text: str) -> None:
    options = OfWhole if name == "run" else OfTrained if name in TRAINED else OfRun
    after = report.offer if name == "run" else None
    command(app, name, options, text)(lambda options: _verb(name, options, after))


for _name, (_text, _) in VERBS.items():
    _register(_name, _text)


@command(app, "profile", OfProfile)
def _profile(options: OfProfile) -> None:
    """Measure the network's variants on the device."""
    if options.dry_run:
        _print_forecast(options.project, options.target, whole=False)
        return
    from edgeprune.stages import profile

    with opened(options, fresh=options.fresh) as (run, answer):
        answer(profile.explanation(run) if options.explain else run.record(profile.STAGE).profile)


def _print_forecast(project: Path, target: str, whole: bool) -> None:
    from edgeprune.pipeline.request import request
    from edgeprune.stages import forecast

    asked = request(project, target)
    print("\n".join(forecast.forecast(asked.project, asked.target, whole)))


# ------------------------------------------------------------------------------------------------ checks and releases


@command(app, "check", OfCheck)
def _check(options: OfCheck) -> None:
    """Compare the artifact with its budgets. If there is a baseline, compare it with that, too."""
    if options.deployed or options.from_metrics:
        fleet.check(options)
        return
    if options.junit is not None:
        _clear(options.junit)
    reason = one_line(options.reason.strip())
    if options.update != bool(reason):
        raise errors.UsageError('--update and --reason need each other; write: --update --reason "why it is good"')
    from edgeprune.frontends import sections
    from edgeprune.records import Reports
    from edgeprune.reports import ci
    from edgeprune.stages import check
    from edgeprune.storage.store import write_atomic

    budgets = [sections.read_budget("--budget", text) for text in options.budget or []]
    with opened(options, weights=options.weights) as (run, answer):
        found = check.checked(run, check.Options(budgets, options.baseline, reason))
        answer(found)
    reports = found.reports if isinstance(found, Reports) else (found,)
    if options.junit is not None:
        write_atomic(options.junit, ci.junit(reports).encode())
    for line in ci.announce(reports, os.environ):
        print(one_line(line), file=sys.stderr if options.as_json else sys.stdout)
    raise typer.Exit(found.outcome.exit_code)


def _clear(junit: Path) -> None:
    """Remove an old report, so that it cannot be mistaken for the new one. Raises `UsageError` if it cannot be removed."""
    if junit.is_dir():
        raise errors.UsageError(f"--junit {str(junit)!r} is a folder; give the path of a file")
    try:
        junit.unlink(missing_ok=True)
    except OSError as error:
        raise errors.UsageError(f"--junit {str(junit)!r}: {error.strerror}; give the path of a file") from error


@command(app, "bench", OfBench)
def _bench(options: OfBench) -> None:
    """Measure how fast model files run: .onnx, OpenVINO's .xml, .tflite, ncnn's .param, .pte. It needs no project."""
    from edgeprune.cli.bench import bench

    bench(options)


sweep.register(app)
fleet.register(app)


@command(app, "groups", OfProject)
def _groups(options: OfProject) -> None:
    """List the channel groups. It shows their layers, and why some are locked. It contacts no device."""
    from edgeprune.api import verbs
    from edgeprune.reports import console

    put(verbs.groups(options.project), options.as_json, console.show_survey)


@command(app, "report", OfReport)
def _report(options: OfReport) -> None:
    """Write a report of finished runs: one HTML file, with pictures, which needs no network."""
    report.report(options)


@command(app, "history", OfHistory)
def _history(options: OfHistory) -> None:
    """Show one figure across past checks, and mark where its level changed."""
    from edgeprune.api import verbs
    from edgeprune.reports import console

    found = verbs.history(options.project, options.target, FIGURES[options.figure])
    put(found, options.as_json, lambda history, screen: screen.print(console.history_table(history)))


# ------------------------------------------------------------------------------------------------- other commands


@command(app, "init", OfInit)
def _init(options: OfInit) -> None:
    """Write an edgeprune.toml for a model file, or with what the Python files of a folder define. It runs none of them."""
    from edgeprune.cli import scaffold

    found = scaffold.find(options.file, Path.cwd())
    path = scaffold.write(found)
    if not options.quiet:
        print("\n".join(map(one_line, scaffold.report(found, path))))


@command(app, "targets", OfTargets)
def _list_targets(options: OfTargets) -> None:
    """List the known targets: those of edgeprune, those beside the project, and those of this folder."""
    from edgeprune.cli import targets

    if options.farm:
        put(targets.racks(options.project.parent), options.as_json, targets.show_racks)
        return
    put(targets.known(options.project.parent), options.as_json, targets.show)


@command(app, "demo", OfDemo)
def _demo(options: OfDemo) -> None:
    """Run the digits example. It halves the latency of a residual network for handwritten digits."""
    _verb("run", OfRun(project=_digits(), **vars(options)), report.of_run)


@command(app, "doctor", OfDoctor)
def _doctor(options: OfDoctor) -> None:
    """Examine this machine, the device and the project. Each finding comes with its fix."""
    from edgeprune.reports.doctor import examine

    if None not in (options.named, options.target) and options.named != options.target:
        raise errors.UsageError(f"doctor takes one target; give {options.named} or --target {options.target}")
    project = options.project or (HERE if HERE.is_file() else None)
    failed = False
    for finding in examine(options.target or options.named or "local", project):
        failed |= finding.level == "fail"
        if not options.quiet or finding.level != "ok":
            print(f"{finding.level:<5} {one_line(finding.what)}" + (f"; fix: {finding.fix}" if finding.fix else ""))
    raise typer.Exit(errors.EXIT_FAIL if failed else errors.EXIT_PASS)


@command(app, "tensorboard", OfTensorboard)
def _tensorboard(options: OfTensorboard) -> None:
    """Show a run in TensorBoard. It shows training curves, layers, and the metric by latency. Ctrl-C ends it."""
    from edgeprune.pipeline.run import EVENTS

    folder = options.run / EVENTS
    if not folder.is_dir():
        raise errors.UsageError(f"{folder} does not exist; install tensorboard, train again, and give the run's folder")
    if importlib.util.find_spec("tensorboard") is None:
        raise errors.RuntimeMissing("tensorboard is not installed; run: pip install 'edgeprune[tensorboard]'")
    where = "--logdir", str(folder), "--host", "127.0.0.1", "--port", str(options.port)
    # This process becomes TensorBoard, so that a signal to it reaches TensorBoard.
    os.execv(sys.executable, [sys.executable, "-m", "tensorboard.main", *where])  # noqa: S606 - the argv is ours


@command(app, "setup", OfSetup)
def _setup(options: OfSetup) -> None:
    """Install the agent on the device. The agent and the runtime go into a private folder, without root."""
    from edgeprune.api import verbs
    from edgeprune.devices import install
    from edgeprune.frontends import toml

    if options.dry_run:
        known = toml.read_target(toml.find_target(options.target, Path.cwd()))
        print("\n".join(line for _, one in known.all_hosts for line in install.forecast(one)))
        return

    def report(text: str) -> None:
        if not options.quiet:
            print(one_line(text), flush=True)

    verbs.setup(options.target, report, options.wait)


@command(app, "board", OfBoard)
def _board(options: OfBoard) -> None:
    """Start or stop the virtual board. It is an aarch64 machine under qemu, and its target is virtual-pi."""
    from edgeprune.devices.virtual import board

    if options.action is BoardAction.status:
        print(board.status())
    else:
        {BoardAction.up: board.up, BoardAction.down: board.down}[options.action]()


def _digits() -> Path:
    """The example's project file: in the checkout, or in a copy of the installed example in the working directory."""
    checkout = Path(__file__).parents[2] / "examples" / "digits"
    if checkout.is_dir():
        return checkout / "edgeprune.toml"
    own = Path.cwd() / "edgeprune-demo" / "digits"
    if not own.exists():
        shutil.copytree(Path(__file__).parents[1] / "examples" / "digits", own)
    return own / "edgeprune.toml"


def main() -> None:
    """The entry point. Errors become one line on stderr and the exit codes of `edgeprune.errors`."""
    # Torch reads this once it is imported. Its threads otherwise spin while they wait, which beside other work costs three
    # times the processor time and twice the wall time.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    logs.listen()
    try:
        code = called(app)
        sys.stdout.flush()
    except errors.EdgepruneError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        code = errors.EXIT_INTERRUPTED
    except BrokenPipeError:
        discard_output()
        code = errors.EXIT_CLOSED
    except Exception:  # noqa: BLE001 - any other error is a bug, and is shown with its traceback
        traceback.print_exc()
        print("error: this is a bug in edgeprune; please report it with the lines above", file=sys.stderr)
        code = errors.EXIT_BUG
    sys.exit(code)
