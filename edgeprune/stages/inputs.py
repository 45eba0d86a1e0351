"""The inputs of stages: parts of the project and the target, the device, the runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, fields
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprune import runtimes
from edgeprune.frontends import checkpoint
from edgeprune.frontends.samples import Samples
from edgeprune.frontends.sources import installed
from edgeprune.pipeline.request import SHARED
from edgeprune.pipeline.run import Run
from edgeprune.pipeline.stage import Input, Stage
from edgeprune.records import (
    BudgetSection,
    Device,
    FinetuneSection,
    Function,
    Groups,
    Precision,
    PruneSection,
    SplitName,
    Widths,
    digest,
)
from edgeprune.runtimes.base import Runtime
from edgeprune.stages import bounds, confirm, finetune, precision, survey, trial
from edgeprune.stages import compile as compiling
from edgeprune.stages.final import Final
from edgeprune.storage.profiles import ProfileFile
from edgeprune.storage.store import file_sha256

if TYPE_CHECKING:
    import numpy as np

    from edgeprune.devices.bench import Bench
    from edgeprune.devices.pool import Pool
    from edgeprune.frontends.data import Loss, Metric, Split
    from edgeprune.frontends.model import Network
    from edgeprune.frontends.trial import Checker

LIBRARIES = "edgeprune", "torch", "onnx", "onnxruntime", "numpy"
SECTIONS = {"budget": BudgetSection, "prune": PruneSection, "finetune": FinetuneSection}  # that stages read
CALIBRATED = 300  # training samples that int8 ranges come from
Settings = Callable[[Run], Mapping[str, object]]


class Variants:
    """Files of the network at other widths, for measuring. The network is exported once and then sliced."""

    def __init__(
        self,
        network: Network,
        groups: Groups,
        runtime: Runtime,
        precision: Precision,
        calibration: Calibration,
        folder: Path,
    ) -> None:
        self._network, self._groups, self._runtime, self._precision = network, groups, runtime, precision
        self._calibration, self._folder = calibration, folder
        self._files: dict[str, Path] = {}
        self._form = runtime.exported_as(precision)

    @cached_property
    def _template(self) -> Any:
        from edgeprune.network.cut import formed
        from edgeprune.runtimes.formats import FORMATS

        model = formed(self._network.module, self._groups, self._network.inputs)
        return FORMATS[self._form](model, self._network.inputs, self._groups)

    def owners(self, widths: Widths) -> Mapping[str, str]:
        """{node of the file for these widths: the layer that it belongs to}."""
        owners: Mapping[str, str] = self._template.owners_of(widths)
        return owners

    @property
    def exports_singles(self) -> bool:
        """See `Template.exports_singles`."""
        exports: bool = self._template.exports_singles
        return exports

    def file(self, widths: Widths, reference: bool = False) -> Path:
        """The file to load of the network at these widths. The `reference` is in fp32 at any precision of the target."""
        name = "fp32" if reference else self._precision
        key = digest([dict(widths), name])
        if key not in self._files:
            folder = self._folder / f"variant-{key[:16]}"
            folder.mkdir()
            exported = folder / f"exported.{self._form}"
            exported.write_bytes(self._template.variant(widths))
            samples = [] if name == "fp32" else self._calibration.samples[:1]
            self._files[key] = self._runtime.convert(exported, folder, name, samples, exact=False)[0]
        return self._files[key]


class Calibration:
    """Calls with training samples, which the ranges of an int8 artifact come from. They are read at their first use."""

    def __init__(self, train: Split, network: Network, seed: int) -> None:
        self._train, self._network, self._seed = train, network, seed

    @cached_property
    def samples(self) -> list[tuple[np.ndarray, ...]]:
        """At most `CALIBRATED` calls, a tuple of arrays each."""
        from edgeprune.frontends import data

        with self._train.repeatable(self._seed):  # the data may shuffle and augment
            columns, _ = data.stacked(self._train, self._network.inputs, CALIBRATED)
        return list(zip(*columns, strict=True))


# ---------------------------------------------------------------------------------------------------- the project


def _code(key: str, *functions: Function | None) -> dict[str, object]:
    """The settings of a part of the project: the names of its functions, and digests of their source files."""
    given = [function for function in functions if function is not None]
    found: dict[str, object] = {key: [function.name for function in given]}
    for function in given:
        found |= function.sources()
    return found


def _network_settings(run: Run) -> dict[str, object]:
    project = run.request.project
    found = _code("[model]", project.model.factory, project.model.inputs)
    weights = project.model.weights
    for file in checkpoint.files(weights) if weights else ():
        found[f"weights {file.name}"] = file_sha256(file) if file.is_file() else "missing"
    given = asdict(project.preprocess) if project.preprocess else {}
    found["[preprocess]"] = {name: _plain(value) for name, value in given.items()} or None
    return {**found, **_seed(run)}


def _network(run: Run) -> Network:
    from edgeprune.frontends.model import Network

    return Network(run.request.project)


def _seed(run: Run) -> dict[str, object]:
    return {"[finetune] seed": run.request.project.finetune.seed}


def _given_weights(run: Run) -> dict[str, object]:
    given = run.request.weights
    return {} if given is None else {"--weights": [file_sha256(file) for file in checkpoint.files(given)]}


def _split(name: SplitName, augmented: bool = False) -> Input:
    """A split of the data. If the project has no such split, it is the validation split. Pruning needs the training split."""

    def functions(run: Run) -> list[Function | None]:
        data = run.request.project.data
        return [data.split(name) or data.valid, data.clean, data.augment if augmented else None]

    def value(run: Run) -> Split:
        from edgeprune.frontends.data import Split

        project = run.request.project
        return Split(project, name if project.data.split(name) else "valid", augmented)

    def settings(run: Run) -> dict[str, object]:
        given: SplitName = name if run.request.project.data.split(name) else "valid"
        samples: Samples = run.value("samples")
        dims = run.request.project.data.batch_dims
        found = {**_code(f"[data] {name}", *functions(run)), f"[data] {name} samples": samples.digest(given)}
        return {**found, "[data] batch_dims": dims} if dims else found

    return Input(value, settings)


def _samples(run: Run) -> Samples:
    return Samples(run.request.project, run.request.runs / SHARED, run.request.fresh)


def _loss(run: Run) -> Loss:
    from edgeprune.frontends.data import Loss

    return Loss(run.request.project, run.value("network").structure)


def _metric(run: Run) -> Metric:
    from edgeprune.frontends.data import Metric

    return Metric(run.request.project, run.value("network").structure)


def _metric_settings(run: Run) -> dict[str, object]:
    data = run.request.project.data
    return {**_code("[data] metric", data.metric), **_code("[data] closed_loop", data.closed_loop)}


def _checker(run: Run) -> Checker:
    from edgeprune.frontends.trial import Checker

    return Checker(run.value("network"), run.request.project)


def _settings() -> Iterator[tuple[str, Input]]:
    """An input for each key of `SECTIONS`, by the name SECTION_KEY, and for each section, by SECTION_section."""
    for name, section in SECTIONS.items():
        keys = tuple(field.name for field in fields(section))
        yield f"{name}_section", _setting(name, keys, lambda section: section)
        for key in keys:
            yield f"{name}_{key}", _setting(name, (key,), attrgetter(key))


def _setting(name: str, keys: Sequence[str], pick: Callable[[Any], Any]) -> Input:
    def section(run: Run) -> Any:
        return getattr(run.request.project, name)

    def settings(run: Run) -> dict[str, object]:
        found: dict[str, object] = {}
        for key in keys:
            label, value = f"[{name}] {key}", getattr(section(run), key)
            if value is None and name == "budget" and key != "latency":
                continue  # so that a project without limits keeps its keys
            found |= _code(label, value) if isinstance(value, Function) else {label: _plain(value)}
        return found

    return Input(lambda run: pick(section(run)), settings)


def _plain(value: Any) -> object:
    """A setting as a JSON value."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | None) else str(value)


# ----------------------------------------------------------------------------------------------- device and runtime


def _runtime(run: Run) -> Runtime:
    return runtimes.host(run.request.target.runtime)


def _runtime_settings(run: Run) -> dict[str, object]:
    return {"[runtime] name": run.request.target.runtime}


def _libraries(run: Run) -> dict[str, object]:
    return {f"package {name}": installed(name) for name in LIBRARIES}


def _packages(run: Run) -> dict[str, object]:
    runtime = _runtime(run)
    return {f"package {name}": installed(name) for name in (runtime.converter, runtime.quantizer)}


def _device(run: Run) -> Bench:
    from edgeprune.devices.bench import open_bench
    from edgeprune.devices.patience import Patience
    from edgeprune.stages.verdicts import ondevice

    _require_converter(run)
    run.record(trial.STAGE)  # nothing is measured with a model or data that later stages cannot use
    run.record(compiling.ORIGINAL)  # or with a model that the runtime cannot express
    request = run.request

    def opened(stack: ExitStack) -> tuple[Bench, Device]:
        patience = Patience(request.patience_s, request.watch.note)
        bench = stack.enter_context(open_bench(request.target, run.scratch, request.wait_s, patience))
        ondevice.require(request.project.budget.limits, bench)
        return bench, bench.device

    return run.lease(opened)


def _pool(run: Run) -> Pool:
    from edgeprune.devices import pool
    from edgeprune.devices.patience import Patience

    request, device = run.request, run.value("device")
    patience = Patience(request.patience_s, request.watch.note)
    return pool.Pool(device, pool.others(request.target, run.scratch, patience))


def _require_converter(run: Run) -> None:
    """Raises `RuntimeMissing` if the host lacks a package that every artifact of the target needs."""
    _runtime(run).require(_allowed(run)[0])


def _identified(run: Run) -> Device:
    if run.device is None:
        run.value("device")
    assert run.device is not None
    return run.device


def _state(run: Run) -> dict[str, object]:
    target = run.request.target
    return {"[runtime] threads": target.threads, **({"device state": _plain(target.state)} if target.state else {})}


def _precision(run: Run) -> Precision:
    """The target's precision. If it stands for several, it is the one that the precision stage chose."""
    allowed = _allowed(run)
    return allowed[0] if len(allowed) == 1 else run.record(precision.STAGE).precision


def _precision_made(run: Run) -> dict[str, object]:
    return {} if len(_allowed(run)) == 1 else {"precision": run.key(precision.STAGE)}


def _allowed(run: Run) -> tuple[Precision, ...]:
    return _runtime(run).candidates(run.request.target.precision)


def _precision_settings(run: Run) -> dict[str, object]:
    return {"[runtime] precision": run.request.target.precision}


def _calibration(run: Run) -> Calibration:
    return Calibration(run.value("train"), run.value("network"), run.request.project.finetune.seed)


def _variants(run: Run) -> Variants:
    return Variants(
        run.value("network"),
        run.record(survey.STAGE),
        _runtime(run),
        _precision(run),
        run.value("calibration"),
        run.scratch,
    )


def _profile_file(run: Run) -> ProfileFile:
    request, groups = run.request, run.record(survey.STAGE)
    name, device = request.project.name, _identified(run)
    return ProfileFile.of(request.profiles, name, request.target, groups, device, _precision(run))


def _pruned(run: Run) -> bool:
    """Whether the network is pruned: the project has a limit to meet."""
    return run.request.project.budget.prunes


def _traced(run: Run) -> Stage[Any, Groups]:
    """The stage that gives the channel groups. No group needs to be proved if nothing is pruned."""
    return survey.STAGE if _pruned(run) else survey.TRACE


def _final(run: Run) -> Final:
    network, groups = run.value("network"), run.value("groups")
    if not _pruned(run):
        return Final(network, None, groups.network, groups.full())
    tuned, plan = run.record(finetune.STAGE).network, run.record(confirm.STAGE).plan
    return Final(network, tuned, file_sha256(tuned), {**groups.full(), **plan.widths})


def _final_settings(run: Run) -> Mapping[str, object]:
    return {"finetune": run.settings(finetune.STAGE)} if _pruned(run) else _network_settings(run)


def _final_made(run: Run) -> Mapping[str, object]:
    return {"finetune": run.key(finetune.STAGE)} if _pruned(run) else {}


def _boards(run: Run) -> tuple[confirm.Board, ...]:
    """The targets that a plan is confirmed on. Several are opened in turn, since they may be one device."""

    def opener(member: Run) -> Callable[[], Any]:
        return lambda: (member.value("device"), member.value("variants"), member.value("profile_file"))

    if not run.members:
        opened = opener(run)()
        return (confirm.Board("", lambda: opened, lambda: None),)
    members = run.members.items()
    return tuple(confirm.Board(name, opener(member), member.release_device) for name, member in members)


def _all(*parts: Settings) -> Settings:
    return lambda run: {label: value for part in parts for label, value in part(run).items()}


_TRAIN = _split("train")
_DEVICE = Input(_device, _state, lambda run: {"device": _identified(run).identity}, of_target=True, leased=True)
_VARIANTS = Input(
    _variants,
    _all(_network_settings, _runtime_settings, _precision_settings, _TRAIN.settings),
    _all(_libraries, _packages, _precision_made),
    of_target=True,
)
INPUTS: Mapping[str, Input] = {
    "network": Input(_network, _network_settings, _libraries),
    "given_weights": Input(lambda run: run.request.weights, _given_weights),
    **dict(_settings()),
    "samples": Input(_samples, lambda run: {}),  # the splits have its digests in their settings
    "train": _TRAIN,
    "augmented": _split("train", augmented=True),
    "valid": _split("valid"),
    "test": _split("test"),
    "loss": Input(_loss, lambda run: _code("[data] loss", run.request.project.data.loss)),
    "metric": Input(_metric, _metric_settings),
    "checker": Input(_checker, lambda run: {}),  # it raises an error or does nothing: no record depends on it
    "runtime": Input(_runtime, _runtime_settings, _packages, of_target=True),
    "allowed": Input(_allowed, _precision_settings, of_target=True),
    "chosen_precision": Input(_precision, _precision_settings, _precision_made, of_target=True),
    "calibration": Input(_calibration, _all(_TRAIN.settings, _seed)),
    "device": _DEVICE,
    "pool": Input(_pool, lambda run: {}, of_target=True, leased=True),  # equal boards: they change no record
    "variants": _VARIANTS,
    "budget_latency": Input(bounds.latency, bounds.latency_settings),
    "bounds": Input(
        bounds.of_run,
        lambda run: bounds.settings(run, _VARIANTS.settings, _state),
        lambda run: bounds.machine(run, _VARIANTS.machine, _DEVICE.machine),
        of_target=True,
    ),
    "is_pruned": Input(_pruned, lambda run: {"[budget] latency is given": _pruned(run)}),
    "groups": Input(
        lambda run: run.record(_traced(run)),
        lambda run: {"groups": run.settings(_traced(run))},
        lambda run: {_traced(run).name: run.key(_traced(run))},
    ),
    "final": Input(_final, _final_settings, _final_made, of_target=True),
    "evidence": Input(bounds.evidence, bounds.evidence_settings, bounds.evidence_made, of_target=True),
    "boards": Input(
        _boards,
        lambda run: bounds.of_targets(run, _all(_state, _VARIANTS.settings)),
        lambda run: bounds.of_targets(run, _all(_DEVICE.machine, _VARIANTS.machine)),
        of_target=True,
        leased=True,
    ),
    # A sweep fills them: see `series.ahead`.
    "confirmed_ahead": Input(lambda run: {}, lambda run: {}),
    "timed_ahead": Input(lambda run: {}, lambda run: {}),
    # Only a path, so it is not in keys: the profile stage makes the content.
    "profile_file": Input(_profile_file, lambda run: {}, of_target=True),
}
