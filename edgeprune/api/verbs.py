"""The stages as functions, for notebooks and programs. The command line calls the same code.

A function of a stage takes a project and a target, runs the stages that are missing, and returns a record. The project is the
path of an `edgeprune.toml`, or of its folder, or an `edgeprune.Project`. All functions raise the errors of `edgeprune.errors`.

    import edgeprune

    result = edgeprune.run("edgeprune.toml", target="local", budget="50%")
    print(result.status, result.pruned.p50_ms)
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Unpack, overload

from edgeprune.api.networks import Compressed, PrunedNetwork
from edgeprune.devices import install
from edgeprune.errors import InfeasibleError, UsageError
from edgeprune.frontends import sections, toml
from edgeprune.limits import LIMITS
from edgeprune.pipeline import request
from edgeprune.pipeline.request import Given, read_project
from edgeprune.pipeline.run import Run, open_common, open_run
from edgeprune.records import (
    Artifact,
    Benchmark,
    History,
    Plan,
    Profile,
    Report,
    Reports,
    Survey,
    Target,
    Together,
    Verdict,
)

if TYPE_CHECKING:
    from torch import nn

    from edgeprune.pipeline.stage import Rules


class Options(request.Options, total=False):
    """Options of every stage: those of `edgeprune.pipeline.request.Options`, and one more.

    Attributes:
        progress: show the progress; by default only in a notebook or another interactive session. A `watch` replaces it.
    """

    progress: bool | None


@contextmanager
def opened(
    project: Given,
    target: str | Sequence[str] = "local",
    progress: bool | None = None,
    rules: Rules | None = None,
    **options: Unpack[request.Options],
) -> Iterator[Run]:
    """A context with a run of a project on a target. `run.record(STAGE)` gives the record of any stage.

    Args:
        project: an `edgeprune.Project`, or the path of an `edgeprune.toml` or of its folder.
        target: a target's name, or the path of its file. Several get one plan; the run is then their common one.
        progress: see `Options`.
        rules: of the pipeline; by default `edgeprune.stages.registry.RULES`.
        **options: see `Options`.
    """
    from rich.console import Console

    from edgeprune.reports import progress as shows
    from edgeprune.stages.registry import RULES

    request.require_known(options, Options)
    shown = hasattr(sys, "ps1") if progress is None else progress  # an interactive session has the prompt ps1
    with ExitStack() as stack:
        if shown and options.get("watch") is None:
            options["watch"] = stack.enter_context(shows.Watcher(Console(emoji=False)))
        asked = request.requests(project, request.target_names(target), **options)
        if asked[0].project.objects:
            from edgeprune.frontends.objects import generators_restored

            stack.enter_context(generators_restored(asked[0].project))
        known = rules or RULES
        yield stack.enter_context(open_run(asked[0], known) if len(asked) == 1 else open_common(asked, known))


@overload
def run(project: Given, target: str = "local", **options: Unpack[Options]) -> Compressed: ...


@overload
def run(project: Given, target: list[str] | tuple[str, ...], **options: Unpack[Options]) -> Compressed | Together: ...


def run(project: Given, target: str | Sequence[str] = "local", **options: Unpack[Options]) -> Compressed | Together:
    """Run the whole pipeline: profile, plan, prune, finetune, compile, verify.

    Args:
        project: an `edgeprune.Project`, or the path of an `edgeprune.toml` or of its folder.
        target: a target's name, or the path of its file. A list of several gives one network for all of them.
        **options: see `Options`.

    Returns:
        Of several targets: the results of each, and which one binds. Of one: the artifact, its figures (milliseconds, bytes)
        and its checks. `status` is "pass" if it meets the budget and all other checks pass. `model` is the pruned, fine-tuned
        network. Without a budget, it is the original network.

    Raises:
        InfeasibleError: no plan meets the budget.
        InconclusiveError: the device is too busy to measure.
        UsageError: a file, the user's code or its data is wrong.
        DeviceError: the device fails.

    Example:
        >>> result = edgeprune.run("examples/digits", target="local", budget="50%")
        >>> result.pruned.p50_ms <= result.budget_ms
        True
    """
    if options.get("budget") is None and read_project(project).budget.goal is not None:
        options["budget"] = fastest_budget(project, target, **options)
        options["fresh"] = False
    with opened(project, target, **options) as started:
        if started.members:
            from edgeprune.stages.together import together

            return together(started, _compressed)
        return _compressed(started)


def fastest_budget(project: Given, target: str | Sequence[str] = "local", **options: Unpack[Options]) -> str:
    """The least latency budget, such as "37%", at which the metric falls by at most `[budget] max_metric_drop`.

    It trains at most `fastest.TRAININGS` networks. They are kept, so a run with this budget reuses them. Args as in `run`.

    Raises:
        InfeasibleError: the metric of every trained network falls by more.
    """
    from edgeprune.stages import bounds, verify
    from edgeprune.stages.series.fastest import fastest
    from edgeprune.stages.verdicts.verdict import POLICY

    allowed = read_project(project).budget.max_metric_drop + POLICY.rounding

    def loses_little(share: float) -> bool:
        options["budget"] = _percent(share)
        try:
            with opened(project, target, **options) as started:
                verdicts = [member.record(verify.STAGE) for _, member in bounds.targets(started)]
        except InfeasibleError:
            return False
        return all(one.baseline.metric - one.pruned.metric <= allowed for one in verdicts)

    return _percent(fastest(loses_little))


def _percent(share: float) -> str:
    return f"{100 * share:.4g}%"


def _compressed(started: Run) -> Compressed:
    """The result of a run on one target, with its network."""
    from edgeprune.stages import verify
    from edgeprune.stages.result import result

    found, network = result(started), started.value("final").tuned
    verdict = started.entry(verify.STAGE)
    return Compressed(**vars(found), network=network, project=started.request.project, verdict=verdict)


def profile(project: Given, target: str = "local", **options: Unpack[Options]) -> Profile:
    """Measure the network's variants on the device. Times are integer nanoseconds. Args as in `run`.

    The profile is kept in `profiles/TARGET/` of the project, and later runs reuse it.
    """
    from edgeprune.stages import profile

    with opened(project, target, **options) as started:
        return started.record(profile.STAGE).profile


def plan(project: Given, target: str = "local", **options: Unpack[Options]) -> Plan:
    """Plan which channels to keep: the least expected loss within the budget, with a proof. Args as in `run`.

    The plan is not yet confirmed on the device.
    """
    from edgeprune.stages import plan

    with opened(project, target, **options) as started:
        return started.record(plan.STAGE)


def prune(project: Given, target: str = "local", **options: Unpack[Options]) -> PrunedNetwork:
    """Confirm the plan on the device, and cut the network. Args as in `run`.

    Returns:
        The pruned network that training starts from. Train its `model` as you like, and continue with `finish`.
    """
    from edgeprune.stages import confirm, prune

    with opened(project, target, **options) as started:
        confirmed, start = started.record(confirm.STAGE), started.record(prune.STAGE).start
        replaced = options.get("budget"), options.get("precision")
        return PrunedNetwork(confirmed, start, started.request.project, target, *replaced)


def finish(
    project: Given, pruned: PrunedNetwork, model: nn.Module | None = None, **options: Unpack[Options]
) -> Compressed:
    """Continue after your own training: compile the network, verify it on the device, and compare it with the original.

    Args:
        project: as in `run`.
        pruned: what `prune` returned. Its target, its budget and its precision are used.
        model: the trained network, if it is another object than `pruned.model`. Its tensors have the same names and shapes.
        **options: see `Options`.

    Returns:
        As `run`.

    Raises:
        UsageError: the network does not fit the plan.

    Example:
        >>> pruned = edgeprune.prune("edgeprune.toml", budget="50%")
        >>> train(pruned.model)
        >>> result = edgeprune.finish("edgeprune.toml", pruned)
    """
    from edgeprune.network import weights

    with TemporaryDirectory(prefix="edgeprune-") as folder:
        file = Path(folder) / "trained.safetensors"
        weights.save(file, pruned.model if model is None else model, {})
        options["budget"], options["precision"], options["weights"] = pruned.budget, pruned.precision, file
        try:
            return run(project, pruned.target, **options)
        except UsageError as error:  # the user knows no such file
            raise UsageError(str(error).replace(f"--weights {file}", "finish: the trained network")) from error


def finetune(project: Given, target: str = "local", **options: Unpack[Options]) -> Path:
    """Fine-tune the pruned network by distillation from the original. Args as in `run`.

    Returns:
        The file of the fine-tuned network (see `load`).
    """
    from edgeprune.stages import finetune

    with opened(project, target, **options) as started:
        return started.record(finetune.STAGE).network


def compile(project: Given, target: str = "local", **options: Unpack[Options]) -> Artifact:  # noqa: A001
    """Compile the fine-tuned network for the target's runtime. Args as in `run`."""
    from edgeprune.stages import compile as compiling

    with opened(project, target, **options) as started:
        return started.record(compiling.STAGE)


def verify(project: Given, target: str = "local", **options: Unpack[Options]) -> Verdict:
    """Check the artifact on the device: numerics, metric, latency, size, memory. Args as in `run`."""
    from edgeprune.stages import verify

    with opened(project, target, **options) as started:
        return started.record(verify.STAGE)


@overload
def check(
    project: Given,
    target: str = "local",
    budgets: Sequence[str] = (),
    baseline: Path | None = None,
    reason: str = "",
    **options: Unpack[Options],
) -> Report: ...


@overload
def check(
    project: Given,
    target: list[str] | tuple[str, ...],
    budgets: Sequence[str] = (),
    baseline: Path | None = None,
    reason: str = "",
    **options: Unpack[Options],
) -> Report | Reports: ...


def check(
    project: Given,
    target: str | Sequence[str] = "local",
    budgets: Sequence[str] = (),
    baseline: Path | None = None,
    reason: str = "",
    **options: Unpack[Options],
) -> Report | Reports:
    """Compare the artifact with its budgets and its baseline.

    Args:
        project: an `edgeprune.Project`, or the path of an `edgeprune.toml` or of its folder.
        target: a target's name, or the path of its file. Of several, each one's artifact of their common run is checked.
        budgets: such as "12 ms", "p99 20 ms" or "50%"; they replace the project's.
        baseline: the baseline's file; by default it is in `profiles/TARGET/` of the project.
        reason: with a reason, the measurement becomes the baseline.
        **options: see `Options`.

    Returns:
        The checks, and their outcome; of several targets a report of each.

    Example:
        >>> report = edgeprune.check("edgeprune.toml", target="raspberrypi", budgets=["p99 20 ms"])
        >>> report.outcome
        <Outcome.PASS: 'pass'>
    """
    from edgeprune.stages import check as checking

    wanted = [sections.read_budget("budget", text) for text in budgets]
    with opened(project, target, **options) as started:
        return checking.checked(started, checking.Options(wanted, baseline, reason))


def bench(
    files: Path | str | Sequence[Path | str],
    targets: str | Sequence[str] = (),
    shapes: Mapping[str, Sequence[int]] | None = None,
    batch: int | None = None,
    layers: bool = False,
    seconds: float = LIMITS.bench_s,
) -> Benchmark:
    """Measure how fast model files run. It needs no project and no torch.

    Args:
        files: `.onnx`, OpenVINO's `.xml`, `.tflite`, ncnn's `.param` or `.pte`; one or several. Several are interleaved, and
            compared with the first.
        targets: names, or paths of target files; by default each file's own runtime on this machine.
        shapes: of inputs with dynamic dimensions, by name.
        batch: the samples of a call: the first dimension of every input.
        layers: time every operator, too.
        seconds: how long to measure at most; narrow intervals end it earlier.

    Returns:
        The figures of each file on each target: milliseconds, bytes, samples in a second. `status` is "inconclusive" if other
        programs disturbed them.

    Raises:
        UsageError: a file or a target is wrong, or a runtime cannot run a file.
        DeviceError: a device fails.

    Example:
        >>> edgeprune.bench("model.onnx").files[0].latency_ms["p50"].mid
        0.941
    """
    from edgeprune.devices.patience import Patience
    from edgeprune.frontends import feeds
    from edgeprune.pipeline.request import Quiet
    from edgeprune.stages import bench as stage

    paths, names = ([given] if isinstance(given, str | Path) else given for given in (files, targets))
    sizes = {name: tuple(shape) for name, shape in (shapes or {}).items()}
    given = feeds.Given(sizes, {}, batch)
    asked = stage.Asked(tuple(map(Path, paths)), tuple(map(str, names)), given, layers=layers, seconds=seconds)
    watch = Quiet()
    patience = Patience(LIMITS.bench_patience_s, watch.note, accepting=True)
    return stage.measure(asked, stage.subjects(asked), patience, watch)[0]


def groups(project: Given) -> Survey:
    """The channel groups and blocks of the project's model that can be removed. It contacts no device."""
    from edgeprune.stages import survey

    return survey.of_project(read_project(project))


def history(project: Given, target: str = "local", figure: str = "p50_ns") -> History:
    """A figure over all checks of a project on a target, and the checks at which its level changed.

    Args:
        project: an `edgeprune.Project`, or the path of an `edgeprune.toml` or of its folder.
        target: a target's name, or the path of its file.
        figure: "p50_ns", "p90_ns", "peak_memory_bytes", "size_bytes" or "metric".

    Raises:
        UsageError: nothing was checked yet.
    """
    from edgeprune.stages.verdicts.history import of_request

    return of_request(request.request(project, target), figure)


def setup(target: str, report: Callable[[str], None] = print, wait: bool = False) -> str:
    """Install the agent and the target's runtime on the target's hosts, without root.

    Args:
        target: a target's name, or the path of its file.
        report: is called with a line for each step.
        wait: wait for a host that somebody else holds.

    Returns:
        The runtime's version on the first host.

    Raises:
        DeviceError: a host fails. The others were set up all the same.
    """
    from edgeprune.devices import fleet

    known, wait_s = _target(target), LIMITS.lease_wait_s if wait else 0.0
    found = fleet.each(known.all_hosts, lambda turn: install.setup(turn.target, turn.report, wait_s), fleet.ALL, report)
    return fleet.values(known.all_hosts, found)[0]


def load(path: Path | str, model: nn.Module) -> nn.Module:
    """Load a pruned network.

    Args:
        path: a `pruned.safetensors` or `tuned.safetensors` that edgeprune wrote.
        model: a new instance of the original network; it stays unchanged.

    Returns:
        A pruned copy of `model` with the saved weights, in eval mode.

    Raises:
        UsageError: the file is not of this model.

    Example:
        >>> path = edgeprune.finetune("edgeprune.toml", budget="50%")
        >>> network = edgeprune.load(path, build())
    """
    from edgeprune.network import weights

    return weights.load(path, model)


def _target(name: str) -> Target:
    return toml.read_target(toml.find_target(name, Path.cwd()))


__all__ = [
    "bench",
    "check", "compile", "finetune", "finish", "groups", "history", "load", "plan", "profile", "prune",
    "run", "setup", "verify",
]  # fmt: skip
