"""Options of the command line. They are data classes, so that commands can share them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

Given = TypeVar("Given")

# -------------------------------------------------------------------------------------------------------- options

HERE = Path("edgeprune.toml")
ProjectOption = Annotated[Path, typer.Option("--project", "-p", help="The project file, edgeprune.toml.")]
TargetOption = Annotated[str, typer.Option("--target", "-t", help="A target's name, or the path of its file.")]
TargetArgument = Annotated[str, typer.Argument(help="A target's name, or the path of its file.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print only JSON on stdout.")]
FreshOption = Annotated[bool, typer.Option("--fresh", help="Redo everything, the measurements too.")]
WaitOption = Annotated[bool, typer.Option("--wait", help="Wait for a device that somebody else holds.")]
DryRunOption = Annotated[
    bool,
    typer.Option("--dry-run", help="Contact no device. Print what would be sent and run there, and how long it takes."),
]
WeightsOption = Annotated[
    Path | None,
    typer.Option(
        "--weights", help="The weights of the pruned network that you trained yourself. They replace fine-tuning."
    ),
]


@dataclass(frozen=True)
class OfTarget:
    """A project on a target."""

    project: ProjectOption = HERE
    target: TargetOption = "local"
    as_json: JsonOption = False


@dataclass(frozen=True)
class OfDevice(OfTarget):
    """A project on a target, with a device that is used."""

    wait: WaitOption = False
    patience: Annotated[
        str | None,
        typer.Option(help="How long to repeat measurements that other programs disturb: 90s, 15m, 2h."),
    ] = None


@dataclass(frozen=True)
class OfRun(OfDevice):
    """Options of the pipeline's stages."""

    budget: Annotated[
        str | None,
        typer.Option(
            "--budget", "-b", help='Replaces the file\'s: "12 ms", or "50%" of the original network\'s latency.'
        ),
    ] = None
    fresh: FreshOption = False
    dry_run: DryRunOption = False


@dataclass(frozen=True)
class OfTrained(OfRun):
    """Options of the stages that use the trained network."""

    weights: WeightsOption = None


@dataclass(frozen=True)
class OfProfile(OfDevice):
    """Options of `profile`."""

    explain: Annotated[
        bool, typer.Option("--explain", help="Show the measurements of each layer, and the preferred widths.")
    ] = False
    fresh: FreshOption = False
    dry_run: DryRunOption = False


@dataclass(frozen=True)
class OfCheck(OfDevice):
    """Options of `check`."""

    budget: Annotated[
        list[str] | None,
        typer.Option("--budget", "-b", help='Replaces the file\'s: "12 ms", "p99 20 ms", "50%"; may be repeated.'),
    ] = None
    baseline: Annotated[Path | None, typer.Option("--baseline", help="The file of another baseline.")] = None
    update: Annotated[bool, typer.Option("--update", help="Make this measurement the baseline.")] = False
    reason: Annotated[
        str, typer.Option("--reason", help="Reason, stored with the baseline (required with --update).")
    ] = ""
    junit: Annotated[Path | None, typer.Option("--junit", help="Write the checks as JUnit XML.")] = None
    weights: WeightsOption = None


class BoardAction(StrEnum):
    """Actions on the virtual board."""

    up = "up"
    down = "down"
    status = "status"


class Figure(StrEnum):
    """Figures that the history shows."""

    p50 = "p50"
    p90 = "p90"
    memory = "memory"
    size = "size"
    metric = "metric"


def command(
    app: typer.Typer, name: str, options: type[Given], text: str | None = None
) -> Callable[[Callable[[Given], None]], None]:
    """Register a command. The fields of the data class `options` are its options; `text` or the docstring is its help."""
    hints = get_type_hints(options, include_extras=True)

    def register(function: Callable[[Given], None]) -> None:
        def called(**given: Any) -> None:
            function(options(**given))

        parameters = [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if field.default is MISSING else field.default,
                annotation=hints[field.name],
            )
            for field in fields(options)  # type: ignore[arg-type]
        ]
        called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        called.__annotations__ = hints
        app.command(name, help=text or inspect.getdoc(function))(called)

    return register
