"""The command line: options in, one table or one JSON document out, errors as one line and an exit code."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeprune import errors
from edgeprune.limits import LIMITS

if TYPE_CHECKING:
    from edgeprune.pipeline.road import Road
    from edgeprune.records import Release

app = typer.Typer(
    name="edgeprune",
    help="From a PyTorch model, a device and a latency budget to a verified, faster artifact.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

ProjectOption = Annotated[Path, typer.Option("--project", "-p", help="The project file, edgeprune.toml.")]
TargetOption = Annotated[str, typer.Option("--target", "-t", help="A target's name, or the path of its file.")]
BudgetOption = Annotated[
    str | None,
    typer.Option("--budget", "-b", help='Replaces the file\'s budget: "12 ms", or "50%" of the unpruned model.'),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print nothing but JSON on stdout.")]
FreshOption = Annotated[bool, typer.Option("--fresh", help="Redo everything, the measurements too.")]

WaitOption = Annotated[bool, typer.Option("--wait", help="Wait for a device that somebody else holds.")]

DryRunOption = Annotated[
    bool,
    typer.Option("--dry-run", help="Touch no device: print what would be sent and run there, and how long it takes."),
]
TargetArgument = Annotated[str, typer.Argument(help="A target's name, or the path of its file.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"edgeprune {version('edgeprune')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    """Options of the program itself."""


class BoardAction(StrEnum):
    """What can be done with the virtual board."""

    up = "up"
    down = "down"
    status = "status"


class Figure(StrEnum):
    """What the history is shown of."""

    p50 = "p50"
    p90 = "p90"
    memory = "memory"
    size = "size"
    metric = "metric"


FIGURES = {
    Figure.p50: "p50_ns",
    Figure.p90: "p90_ns",
    Figure.memory: "peak_memory_bytes",
    Figure.size: "size_bytes",
    Figure.metric: "metric",
}
HERE = Path("edgeprune.toml")
EXIT_CODES = {
    "pass": errors.EXIT_PASS,
    "fail": errors.EXIT_FAIL,
    "inconclusive": errors.InconclusiveError.exit_code,
}


def _verb(name: str, text: str, noun: Callable[[Road], Any]) -> Callable[..., None]:
    def command(
        project: ProjectOption = HERE,
        target: TargetOption = "local",
        budget: BudgetOption = None,
        as_json: JsonOption = False,
        fresh: FreshOption = False,
        wait: WaitOption = False,
        dry_run: DryRunOption = False,
    ) -> None:
        if dry_run:
            _forecast(project, target, whole=True, deploy=name == "deploy")
            return
        if "RANK" in os.environ:
            _in_parallel(name, project, target, budget, as_json, fresh, wait)
            return
        with _road(project, target, budget, as_json, fresh, wait) as (road, answer):
            value = noun(road)
            answer(value)
        outcome = getattr(value, "status", None) or getattr(value, "outcome", "pass")
        raise typer.Exit(EXIT_CODES[str(outcome)])

    app.command(name, help=text)(command)
    return command


def _in_parallel(
    verb: str, project: Path, target: str, budget: str | None, as_json: bool, fresh: bool, wait: bool
) -> None:
    """One of torchrun's processes: the first walks the road, the others train with it."""
    if verb != "finetune":
        raise errors.UsageError(
            f"torchrun is for edgeprune finetune; run {verb} without it, and it takes what was trained"
        )
    from edgeprune.pipeline import road as pipeline
    from edgeprune.stages import parallel

    with parallel.joined():
        if parallel.rank():
            pipeline.follow(project, target, budget)
            return
        with _road(project, target, budget, as_json, fresh, wait) as (road, answer):
            answer(road.tuned)


def _forecast(project: Path, target: str, whole: bool, deploy: bool = False) -> None:
    from edgeprune.pipeline.road import forecast

    print("\n".join(forecast(project, target, whole, deploy)))


run = _verb("run", "Walk the whole road: profile, plan, prune, finetune, compile, verify.", lambda road: road.result)
_verb("plan", "Choose what to keep: exact, with a proof.", lambda road: road.plan)
_verb("prune", "Confirm the plan on the device and cut the network.", lambda road: road.confirmed)
_verb("finetune", "Train the cut network, the unpruned one teaching.", lambda road: road.tuned)
_verb("compile", "Compile the network for the target's runtime.", lambda road: road.artifact)
_verb("verify", "Check the artifact on the device.", lambda road: road.verdict)
_verb("deploy", "Put the verified artifact into service on the target's hosts.", lambda road: road.deploy())


@app.command()
def profile(
    project: ProjectOption = HERE,
    target: TargetOption = "local",
    explain: Annotated[
        bool, typer.Option("--explain", help="Show what was measured of every layer, and which widths pay.")
    ] = False,
    as_json: JsonOption = False,
    fresh: FreshOption = False,
    wait: WaitOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Measure the network's variants on the device."""
    if dry_run:
        _forecast(project, target, whole=False)
        return
    with _road(project, target, None, as_json, fresh, wait) as (road, answer):
        answer(road.explanation if explain else road.profile)


@app.command()
def check(
    project: ProjectOption = HERE,
    target: TargetOption = "local",
    budget: Annotated[
        list[str] | None,
        typer.Option("--budget", "-b", help='Replaces the file\'s: "12 ms", "p99 20 ms", "50%"; may be repeated.'),
    ] = None,
    baseline: Annotated[Path | None, typer.Option("--baseline", help="A baseline.json elsewhere.")] = None,
    update: Annotated[bool, typer.Option("--update", help="Make this measurement the baseline.")] = False,
    reason: Annotated[str, typer.Option("--reason", help="Why it is good; kept with it.")] = "",
    junit: Annotated[Path | None, typer.Option("--junit", help="Write the checks as JUnit's XML.")] = None,
    as_json: JsonOption = False,
    wait: WaitOption = False,
) -> None:
    """Is the artifact still inside its budgets, and no slower than its baseline?"""
    if junit is not None:
        _clear(junit)
    if update != bool(reason.strip()):
        raise errors.UsageError('a new baseline takes both: --update --reason "why it is good"')
    from edgeprune.frontends import toml
    from edgeprune.reports import ci as reporting
    from edgeprune.storage.store import write_atomic

    asked = [toml.read_budget("--budget", text) for text in budget or []]
    with _road(project, target, None, as_json, False, wait) as (road, answer):
        report = road.check(asked, baseline, _clean(reason.strip()))
        answer(report)
    if junit is not None:
        write_atomic(junit, reporting.junit(report).encode())
    for command in reporting.announce(report, os.environ):
        print(_clean(command), file=sys.stderr if as_json else sys.stdout)
    raise typer.Exit(EXIT_CODES[str(report.outcome)])


def _clear(junit: Path) -> None:
    """See that the checks can be written there, and that those of another time are not taken for today's where none are."""
    if junit.is_dir():
        raise errors.UsageError(f"--junit {str(junit)!r} is a folder; give the path of a file")
    try:
        junit.unlink(missing_ok=True)
    except OSError as error:
        raise errors.UsageError(f"--junit {str(junit)!r}: {error.strerror}; give the path of a file") from error


@app.command()
def groups(project: ProjectOption = HERE, as_json: JsonOption = False) -> None:
    """What of the model can be cut: channel groups with their layers, and why some are locked. Asks no device."""
    from rich.console import Console

    from edgeprune import api
    from edgeprune.reports import console
    from edgeprune.storage import codec

    found = api.groups(project)
    if as_json:
        print(codec.dumps(found))
    else:
        console.show_survey(found, Console(width=None if sys.stdout.isatty() else 160))


@app.command()
def history(
    project: ProjectOption = HERE,
    target: TargetOption = "local",
    figure: Annotated[Figure, typer.Option("--figure", help="Which figure.")] = Figure.p50,
    as_json: JsonOption = False,
) -> None:
    """A figure over all checks, by commit, with the points at which it changed."""
    from rich.console import Console

    from edgeprune import api
    from edgeprune.reports import console
    from edgeprune.storage import codec

    found = api.history(project, target, FIGURES[figure])
    if as_json:
        print(codec.dumps(found))
    else:
        Console(width=None if sys.stdout.isatty() else 160).print(console.history_table(found))


@app.command()
def rollback(
    project: ProjectOption = HERE, target: TargetOption = "local", as_json: JsonOption = False, wait: WaitOption = False
) -> None:
    """Put the release that was in service before back into service."""
    from edgeprune import api

    _put_releases(api.rollback(project, target, lambda text: print(_clean(text), file=sys.stderr), wait), as_json)


@app.command()
def releases(target: TargetOption = "local", as_json: JsonOption = False, wait: WaitOption = False) -> None:
    """What is in service on the target's hosts, since when, and by which verdict; and what a rollback goes back to."""
    from edgeprune import api

    _put_releases(api.releases(target, wait), as_json)


def _put_releases(found: list[Release], as_json: bool) -> None:
    from rich.console import Console

    from edgeprune.reports import console
    from edgeprune.storage import codec

    if as_json:
        print(codec.dumps(found))
    elif not found:
        print("nothing was ever deployed there; see edgeprune deploy")
    else:
        Console(width=None if sys.stdout.isatty() else 160).print(console.releases_table(found))


@app.command()
def demo(target: TargetOption = "local", as_json: JsonOption = False, fresh: FreshOption = False) -> None:
    """Run the digits example: a residual network on handwritten digits, at half its latency."""
    run(_digits(), target, None, as_json, fresh, False, False)


@app.command()
def doctor(
    target: TargetArgument = "local",
    project: Annotated[Path | None, typer.Option("--project", "-p", help="Check this project file too.")] = None,
) -> None:
    """Is everything in place, here and on the device? Each finding comes with its fix."""
    from edgeprune.reports.doctor import examine

    failed = False
    for finding in examine(target, project):
        failed |= finding.level == "fail"
        print(f"{finding.level:<5} {_clean(finding.what)}" + (f"; fix: {finding.fix}" if finding.fix else ""))
    raise typer.Exit(errors.EXIT_FAIL if failed else errors.EXIT_PASS)


@app.command()
def tensorboard(
    run: Annotated[Path, typer.Argument(help="A run folder, such as runs/local.")],
    port: Annotated[int, typer.Option(help="Where it listens, on this machine only.")] = 6006,
) -> None:
    """Show how runs went: training, layers before and after, metric by latency. Ends with Ctrl-C."""
    from edgeprune.pipeline.road import EVENTS

    folder = run / EVENTS
    if not folder.is_dir():
        raise errors.UsageError(
            f"{folder} does not exist; give the folder of a run that trained with tensorboard installed"
        )
    if importlib.util.find_spec("tensorboard") is None:
        raise errors.RuntimeMissing("tensorboard is not installed; pip install 'edgeprune[tensorboard]'")
    argv = [
        sys.executable,
        "-m",
        "tensorboard.main",
        "--logdir",
        str(folder),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    raise typer.Exit(subprocess.run(argv).returncode)


@app.command()
def setup(target: TargetArgument, wait: WaitOption = False, dry_run: DryRunOption = False) -> None:
    """Put the agent and the runtime into a private folder on the device, without root."""
    from edgeprune import api
    from edgeprune.devices import install as installing
    from edgeprune.frontends import toml

    if dry_run:
        known = toml.read_target(toml.find_target(target, Path.cwd()))
        print("\n".join(line for _, one in known.all_hosts for line in installing.forecast(one)))
        return
    api.setup(target, lambda text: print(_clean(text), flush=True), wait)


@app.command()
def board(action: Annotated[BoardAction, typer.Argument(help="Start it, end it, or ask.")]) -> None:
    """The virtual board: an aarch64 machine under qemu, for those who have none. Its target is virtual-pi."""
    from edgeprune.devices.virtual import board

    if action is BoardAction.status:
        print(board.status())
    else:
        {BoardAction.up: board.up, BoardAction.down: board.down}[action]()


def _digits() -> Path:
    """The example's project file: the checkout's own, or a copy of the installed one in the working directory."""
    checkout = Path(__file__).parents[1] / "examples" / "digits"
    if checkout.is_dir():
        return checkout / "edgeprune.toml"
    own = Path.cwd() / "edgeprune-demo" / "digits"
    if not own.exists():
        shutil.copytree(Path(__file__).parent / "examples" / "digits", own)
    return own / "edgeprune.toml"


@contextmanager
def _road(
    project: Path, target: str, budget: str | None, as_json: bool, fresh: bool, wait: bool
) -> Iterator[tuple[Road, Callable[[Any], None]]]:
    """An open road with its progress shown, and a function that prints the answer."""
    from rich.console import Console

    from edgeprune.pipeline.road import SCHEMA, open_road
    from edgeprune.reports import console

    with _stdout_kept_clean(as_json) as stdout:
        screen = Console(stderr=as_json, width=None if sys.stdout.isatty() else 120)
        answers: list[Any] = []
        try:
            with console.Watcher(screen) as watch, open_road(project, target, budget, fresh, watch, wait) as road:
                yield road, answers.append
                groups = road.groups
        except errors.EdgepruneError as error:
            if as_json:
                text = _clean(str(error))
                document = {"schema": SCHEMA, "status": "error", "exit_code": error.exit_code, "error": text}
                stdout.write(json.dumps(document) + "\n")
            raise
        for value in answers:  # once the progress bars are gone
            if as_json:
                stdout.write(_document(value) + "\n")
            else:
                console.show(value, groups, screen)


def _document(value: object) -> str:
    """An answer as JSON; a report says its schema and its status, as a result does."""
    from edgeprune.pipeline.road import SCHEMA
    from edgeprune.records import Report
    from edgeprune.storage import codec

    if isinstance(value, Path):
        return json.dumps({"path": str(value)})
    if isinstance(value, Report):
        return codec.dumps({"schema": SCHEMA, "status": value.outcome, **asdict(value)})
    return codec.dumps(value)


@contextmanager
def _stdout_kept_clean(as_json: bool) -> Iterator[Any]:
    """With `--json`, whatever the user's code and the runtimes print goes to stderr; only the answer reaches stdout."""
    if not as_json:
        yield sys.stdout
        return
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with os.fdopen(os.dup(kept), "w") as stdout:
            yield stdout
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def _clean(text: str) -> str:
    """One line without control characters, of bounded length: it may quote a device or a file."""
    text = "".join(c if c.isprintable() else " " for c in text)
    return text if len(text) <= LIMITS.message_chars else text[: LIMITS.message_chars] + "…"


def main() -> None:
    """The entry point: maps errors to one line on stderr and to the exit codes of `edgeprune.errors`."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    try:
        app()
    except errors.EdgepruneError as error:
        print(f"error: {_clean(str(error))}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        code = errors.EXIT_INTERRUPTED
    except Exception:  # noqa: BLE001 - the last line of defence: said to be ours, shown whole
        traceback.print_exc()
        print("error: this is a bug in edgeprune; please report it with the lines above", file=sys.stderr)
        code = errors.EXIT_BUG
    sys.exit(code)


if __name__ == "__main__":
    main()
