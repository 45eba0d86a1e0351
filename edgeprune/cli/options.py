"""Options of the command line. They are data classes, so that commands can share them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

# -------------------------------------------------------------------------------------------------------- options

HERE = Path("edgeprune.toml")
ProjectOption = Annotated[Path, typer.Option("--project", "-p", help="The project file, edgeprune.toml.")]


def _targets(incomplete: str) -> list[str]:
    """Names of targets, for the completion of a shell."""
    from edgeprune.frontends import toml

    return [name for name in sorted(toml.target_files(Path.cwd())) if name.startswith(incomplete)]


TARGET_HELP = "A target's name, or the path of its file."
TargetOption = Annotated[str, typer.Option("--target", "-t", help=TARGET_HELP, autocompletion=_targets)]
TargetsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        "-t",
        help="A target's name, or the path of its file. Repeat it: one network then meets the budget on each target.",
        autocompletion=_targets,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print only JSON on stdout.")]
FreshOption = Annotated[bool, typer.Option("--fresh", help="Redo everything, the measurements too.")]
WaitOption = Annotated[bool, typer.Option("--wait", help="Wait for a device that somebody else holds.")]
PatienceOption = Annotated[
    str | None, typer.Option(help="How long to repeat measurements that other programs disturb: 90s, 15m, 2h.")
]
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


class BoardAction(StrEnum):
    """Actions on the virtual board."""

    up = "up"
    down = "down"
    status = "status"


class Precision(StrEnum):
    """Precisions of a target."""

    fp32 = "fp32"
    fp16 = "fp16"
    int8 = "int8"
    auto = "auto"


class Executor(StrEnum):
    """What runs the jobs of a sweep."""

    local = "local"
    slurm = "slurm"


class Figure(StrEnum):
    """Figures that the history shows."""

    p50 = "p50"
    p90 = "p90"
    memory = "memory"
    size = "size"
    metric = "metric"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of every command."""

    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print no progress and no warnings.")] = False
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print also what libraries log.")] = False


@dataclass(frozen=True)
class OfProject(Options):
    """A project."""

    project: ProjectOption = HERE
    as_json: JsonOption = False


@dataclass(frozen=True)
class OfTargets(OfProject):
    """Options of `targets`."""

    farm: Annotated[
        bool, typer.Option("--farm", help="List the places of the labgrid farm, their tags, and who has them.")
    ] = False


@dataclass(frozen=True)
class OfTarget(OfProject):
    """A project on a target."""

    target: TargetOption = "local"


@dataclass(frozen=True)
class OfDevice(OfTarget):
    """A project on a target, with a device that is used."""

    wait: WaitOption = False
    patience: PatienceOption = None


PrecisionOption = Annotated[Precision | None, typer.Option("--precision", help="Replaces the target file's precision.")]


@dataclass(frozen=True)
class OfRun(OfDevice):
    """Options of the pipeline's stages."""

    budget: Annotated[
        str | None,
        typer.Option(
            "--budget", "-b", help='Replaces the file\'s: "12 ms", or "50%" of the original network\'s latency.'
        ),
    ] = None
    precision: PrecisionOption = None
    fresh: FreshOption = False
    dry_run: DryRunOption = False


@dataclass(frozen=True)
class OfTrained(OfRun):
    """Options of the stages that use the trained network."""

    weights: WeightsOption = None


@dataclass(frozen=True)
class OfWhole(OfTrained):
    """Options of `run`."""

    target: TargetsOption = None  # type: ignore[assignment] # several


@dataclass(frozen=True)
class OfProfile(OfDevice):
    """Options of `profile`."""

    explain: Annotated[
        bool, typer.Option("--explain", help="Show the measurements of each layer, and the preferred widths.")
    ] = False
    fresh: FreshOption = False
    dry_run: DryRunOption = False


@dataclass(frozen=True)
class OfInit(Options):
    """Options of `init`."""

    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE", help="The Python file of the model, or a model file; by default it is looked for."
        ),
    ] = None


@dataclass(frozen=True)
class OfDemo(Options):
    """Options of `demo`."""

    target: TargetOption = "local"
    as_json: JsonOption = False
    fresh: FreshOption = False
    wait: WaitOption = False
    patience: PatienceOption = None


@dataclass(frozen=True)
class OfHistory(OfTarget):
    """Options of `history`."""

    figure: Annotated[Figure, typer.Option("--figure", help="The figure.")] = Figure.p50


@dataclass(frozen=True)
class OfFront(OfDevice):
    """Options of `front`."""

    points: Annotated[int, typer.Option("--points", help="How many plans, evenly spaced in latency.")] = 20


@dataclass(frozen=True, kw_only=True)
class OfSweep(Options):
    """Options of `sweep`."""

    budget: Annotated[
        list[str], typer.Option("--budget", "-b", help='Budgets: 80% 50%, or "12 ms"; also separated by commas.')
    ]
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target", "-t", help="Targets: names, or paths of files. Default: local.", autocompletion=_targets
        ),
    ] = None
    precision: Annotated[
        list[Precision] | None, typer.Option("--precision", help="Precisions; by default the target file's.")
    ] = None
    project: ProjectOption = HERE
    export: Annotated[
        list[Path] | None, typer.Option("--export", help="Write a file: *.json, *.csv or *.md; may be repeated.")
    ] = None
    as_json: JsonOption = False
    fresh: FreshOption = False
    wait: WaitOption = False
    patience: PatienceOption = None
    executor: Annotated[
        Executor | None, typer.Option("--executor", help="Run each cell as a job: on this machine, or of Slurm.")
    ] = None
    jobs: Annotated[
        int | None, typer.Option("--jobs", help="Jobs at the same time; by default 1 on this machine, all of Slurm's.")
    ] = None
    slurm: Annotated[
        list[str] | None,
        typer.Option("--slurm", help="Long options of sbatch for each job: partition=gpu time=4:00:00 gpus=1."),
    ] = None
    nproc_per_node: Annotated[
        int | None,
        typer.Option(
            "--nproc-per-node", help="Processes that train each job's network, by torchrun: one for each GPU."
        ),
    ] = None
    dry_run: DryRunOption = False


@dataclass(frozen=True, kw_only=True)
class OfCompare(Options):
    """Options of `compare`."""

    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN", help="Run folders, such as runs/local, or verify-… folders in them; or runs."),
    ]
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table as Markdown.")] = False
    csv: Annotated[bool, typer.Option("--csv", help="Print a line for each run as CSV.")] = False
    as_json: JsonOption = False


@dataclass(frozen=True)
class OfReport(Options):
    """Options of `report`."""

    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN",
            help="Run folders, such as runs/local, or verify-… folders in them; by default all of the project.",
        ),
    ] = None
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The file to write; by default report.html in the run's folder."),
    ] = None
    budget: Annotated[
        str | None, typer.Option("--budget", "-b", help="Show the last run with this budget instead of the last run.")
    ] = None
    project: ProjectOption = HERE
    as_json: JsonOption = False


@dataclass(frozen=True)
class OfReleases(Options):
    """Options of `releases`."""

    target: TargetOption = "local"
    as_json: JsonOption = False
    wait: WaitOption = False


@dataclass(frozen=True)
class OfDoctor(Options):
    """Options of `doctor`."""

    named: Annotated[str | None, typer.Argument(metavar="TARGET", help="The target; the same as --target.")] = None
    target: Annotated[str | None, typer.Option("--target", "-t", help=TARGET_HELP)] = None
    project: Annotated[
        Path | None,
        typer.Option("--project", "-p", help="The project file; by default edgeprune.toml, if there is one."),
    ] = None


@dataclass(frozen=True, kw_only=True)
class OfSetup(Options):
    """Options of `setup`."""

    target: Annotated[str, typer.Argument(help=TARGET_HELP)]
    wait: WaitOption = False
    dry_run: DryRunOption = False


@dataclass(frozen=True, kw_only=True)
class OfBoard(Options):
    """Options of `board`."""

    action: Annotated[BoardAction, typer.Argument(help="Start it, stop it, or print its state.")]


@dataclass(frozen=True, kw_only=True)
class OfTensorboard(Options):
    """Options of `tensorboard`."""

    run: Annotated[Path, typer.Argument(help="A run folder, such as runs/local.")]
    port: Annotated[int, typer.Option(help="The port to listen on, on this machine only.")] = 6006


@dataclass(frozen=True, kw_only=True)
class OfBench(Options):
    """Options of `bench`."""

    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE", help="Model files: .onnx, .xml (OpenVINO), .tflite, .param (ncnn), .pte."),
    ]
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            "-t",
            help=f"{TARGET_HELP} May be repeated. By default the file's own runtime on this machine.",
            autocompletion=_targets,
        ),
    ] = None
    shape: Annotated[
        list[str] | None, typer.Option("--shape", help="The shape of an input with dynamic dimensions: x=1x3x224x224.")
    ] = None
    input: Annotated[
        list[str] | None, typer.Option("--input", help="The file of an input: x=x.npy. By default it is random.")
    ] = None
    batch: Annotated[int | None, typer.Option("--batch", min=1, help="The samples of a call: the first dimension.")] = (
        None
    )
    streams: Annotated[
        int, typer.Option("--streams", min=1, max=256, help="Calls that run at the same time, for the throughput.")
    ] = 1
    layers: Annotated[bool, typer.Option("--layers", help="Time every operator, too.")] = False
    time: Annotated[str | None, typer.Option("--time", help="How long to measure: 10s, 2m; by default 30s.")] = None
    export: Annotated[
        list[Path] | None,
        typer.Option(
            "--export", help="Write a file: *trace.json for Perfetto, *.json (raw times), *layers.csv, *.csv or *.md."
        ),
    ] = None
    as_json: JsonOption = False
    wait: WaitOption = False
    patience: PatienceOption = None
    dry_run: DryRunOption = False


@dataclass(frozen=True)
class OfCheck(OfDevice):
    """Options of `check`."""

    target: TargetsOption = None  # type: ignore[assignment] # several
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
    deployed: Annotated[
        bool, typer.Option("--deployed", help="Only run what is deployed, on every host of the target.")
    ] = False
    from_metrics: Annotated[
        bool,
        typer.Option("--from-metrics", help="Judge the metrics of the running service, on every host of the target."),
    ] = False
    weights: WeightsOption = None
