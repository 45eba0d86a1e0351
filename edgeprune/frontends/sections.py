"""The sections of a project, with the values that each key may have. A file and keywords are checked by the same classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from edgeprune.errors import UsageError, quoted, usage_error
from edgeprune.frontends import unlabelled
from edgeprune.frontends.modelfile import FORMATS, FileModel, located, preprocess_of
from edgeprune.limits import LIMITS
from edgeprune.records import (
    Budget,
    BudgetSection,
    CheckSection,
    DataSection,
    FinetuneSection,
    Function,
    Limit,
    ModelSection,
    Preprocess,
    Project,
    PruneSection,
    where,
)
from edgeprune.records.budget import LIMITED

PLANNED = (0.5, 0.9)  # quantiles that a plan can be made for
Made = TypeVar("Made")  # the record of a section


class FunctionName(str):
    """The value of a key that names a function."""


# A field's description completes the sentence "KEY must be …".
Text = Annotated[str, StringConstraints(min_length=1)]
Reference = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$"),
    AfterValidator(FunctionName),
    Field(description='a function as "module:function"'),
]
Share = Annotated[float, Field(ge=0, allow_inf_nan=False, description="a number from 0 up, such as 0.01")]
Rate = Annotated[float | None, Field(gt=0, allow_inf_nan=False, description="a number above 0, such as 0.01")]
Numbers = Annotated[list[float], Field(description="a list of numbers, one a channel, such as [0.485, 0.456, 0.406]")]
Bytes = Annotated[Text | None, Field(description='bytes such as "4 MB" or a share such as "50%", in quotes')]
Count = Annotated[Text | None, Field(description='a number such as "200k" or a share such as "50%", in quotes')]
Epochs = Annotated[int, Field(ge=0, le=LIMITS.epochs, description=f"a whole number from 0 to {LIMITS.epochs}")]
Seed = Annotated[int, Field(ge=0, lt=2**31, description="a whole number from 0 to 2147483647")]


class Section(BaseModel):
    """A section: unknown keys and wrong types are errors."""

    model_config = ConfigDict(extra="forbid", strict=True)


class _Model(Section):
    factory: Reference | None = None
    inputs: Reference | None = None
    weights: Annotated[Text | None, Field(description="the path of a file")] = None
    keras: Annotated[Text | None, Field(description="the path of a .keras or .h5 file")] = None
    tensorflow: Annotated[
        Text | None, Field(description="the folder of a SavedModel, or the path of a .tflite file")
    ] = None
    onnx: Annotated[Text | None, Field(description="the path of a .onnx file")] = None
    transformers: Annotated[
        Text | None, Field(description="a folder that save_pretrained wrote, or a name on the hub")
    ] = None


class _Data(Section):
    valid: Reference | None = None
    train: Reference | None = None
    test: Reference | None = None
    loss: Reference | None = None
    metric: Reference | None = None
    closed_loop: Reference | None = None
    clean: Reference | None = None
    augment: Reference | None = None
    batch_dims: Annotated[
        list[Annotated[int, Field(ge=0)]],
        Field(description="a list of dimensions: one for each input, then one for the targets, such as [1, 0]"),
    ] = []
    samples: Annotated[
        Text | None, Field(description='a pattern of files without labels, such as "calibration/*.npy"')
    ] = None


class _Budget(Section):
    latency: Annotated[Text | None, Field(description='a time such as "12 ms" or a share such as "50%", in quotes')] = (
        None
    )
    max_metric_drop: Share = 0.01
    size: Bytes = None
    parameters: Count = None
    macs: Count = None
    activations: Bytes = None
    memory: Bytes = None
    throughput: Annotated[
        Text | None,
        Field(description='a rate such as "200/s" or "4 streams 200/s", or a share such as "150%", in quotes'),
    ] = None
    energy: Annotated[Text | None, Field(description='energy such as "5 mJ" or a share such as "50%", in quotes')] = (
        None
    )
    goal: Annotated[Literal["fastest"] | None, Field(description='"fastest"')] = None


class _Preprocess(Section):
    mean: Numbers
    std: Numbers
    scale: Annotated[float, Field(description="a number, such as 0.00392")] = 1.0


class _Prune(Section):
    importance: Literal[
        "loss-curves", "taylor", "fisher", "magnitude-l1", "magnitude-l2", "bn-scale", "fpgm", "random"
    ] = "loss-curves"
    lock: Annotated[list[Text], Field(description='a list of names or patterns, such as ["head.*"]')] = []


class _Finetune(Section):
    epochs: Epochs = 20
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: Rate = None
    weight_decay: Annotated[
        float | None, Field(ge=0, allow_inf_nan=False, description="a number from 0 up, such as 0.0001")
    ] = None
    ema: Annotated[
        float | None, Field(gt=0, lt=1, description="the decay of the moving average of weights, such as 0.999")
    ] = None
    seed: Seed = 0
    trainer: Reference | None = None


class _Check(Section):
    budget: Annotated[
        list[Text], Field(description='a list of times or shares, such as ["p50 12 ms", "p99 20 ms"]')
    ] = []
    slowdown: Annotated[float | None, Field(gt=0, allow_inf_nan=False, description="a share above 0, such as 0.03")] = (
        None
    )


class ProjectFile(Section):
    """All sections of a project."""

    model: _Model
    data: _Data
    budget: _Budget = _Budget()
    preprocess: _Preprocess | None = None
    prune: _Prune = _Prune()
    finetune: _Finetune = _Finetune()
    check: _Check = _Check()


@dataclass(frozen=True)
class Source:
    """Where a project comes from.

    Attributes:
        path: the project file; the folder of a project that is made of objects.
        name: the project's name.
        function: the user's function of a section and a key, by the name that the key holds.
        objects: whether it is made of objects.
        samples: samples without labels that a program gives.
    """

    path: Path
    name: str
    function: Callable[[str, str, str], Function]
    objects: bool = False
    samples: unlabelled.Objects | None = None

    @property
    def folder(self) -> Path:
        """The folder that paths in the project are relative to."""
        return Path.cwd() if self.objects else self.path.parent

    def where(self, section: str, key: str = "") -> str:
        """See `records.where`."""
        return where(self.path, self.objects, section, key)


def project_of(source: Source, file: ProjectFile, budget: str | None = None) -> Project:
    """The project of these sections.

    Args:
        source: where they come from.
        file: the sections.
        budget: "12 ms" or "50%"; replaces `[budget] latency`.

    Raises:
        UsageError: values do not fit together. The message names the file and the key, or the keyword.
    """
    given = file.budget.latency
    limit = None if given is None else _planned(source.where("budget", "latency"), given)
    if file.data.metric and file.data.closed_loop:
        raise usage_error(f"{source.where('data')} metric and closed_loop exclude each other; keep one of them")

    def read(section: str, record: Callable[..., Made], **values: Any) -> Made:
        """The record of a section. `values` replace those of its keys."""
        try:
            return record(**{**_values(source, section, getattr(file, section)), **values})
        except UsageError as error:
            raise usage_error(f"{source.where(section)} {error}") from error

    if given is not None and file.budget.goal is not None:
        raise usage_error(f"{source.where('budget')} latency and goal exclude each other; keep one of them")
    model = _model(source, file.model)
    preprocess = read("preprocess", Preprocess) if file.preprocess else preprocess_of(model.factory)
    network = model, preprocess, file.finetune.seed
    return Project(
        path=source.path,
        name=source.name,
        model=model,
        data=_data(source, network, **_values(source, "data", file.data)),
        budget=read(
            "budget",
            BudgetSection,
            latency=limit if budget is None else _planned("--budget", budget),
            **_limits(source, file.budget),
        ),
        preprocess=preprocess,
        prune=read("prune", PruneSection),
        finetune=read("finetune", FinetuneSection),
        check=read("check", CheckSection, budget=_budgets(source, file.check.budget)),
        objects=source.objects,
    )


def _model(source: Source, given: _Model) -> ModelSection:
    """The model: a factory of the user, or one of the model files of `modelfile.FORMATS`."""
    files = {key: getattr(given, key) for key in FORMATS if getattr(given, key) is not None}
    where = partial(source.where, "model")
    if len(files) + (given.factory is not None) > 1:
        names = " and ".join([*files, *(["factory"] if given.factory else [])])
        raise usage_error(f"{where()} {names} exclude each other; keep one of them")
    values = _values(source, "model", given)
    if files:
        (key, name), *_ = files.items()
        shown = f"{where(key)} = {name!r}"
        made = partial(FileModel, shown, key, located(shown, key, source.folder, name))
        functions = made("network", values["inputs"]), values["inputs"] or made("example_inputs")
    elif given.factory is None or given.inputs is None:
        missing = "factory" if given.factory is None else "inputs"
        others = f"; or name a model file: {', '.join(FORMATS)}" if missing == "factory" else ""
        raise usage_error(f'{where(missing)} is missing; add it: a function as "module:function"{others}')
    else:
        functions = values["factory"], values["inputs"]
    return ModelSection(*functions, weights=source.folder / given.weights if given.weights else None)


def _data(source: Source, network: tuple[ModelSection, Preprocess | None, int], **values: Any) -> DataSection:
    """The data: the user's functions, or what samples without labels stand for.

    Args:
        source: where they come from.
        network: whose outputs are the targets of samples without labels: the model, its preprocessing and the seed.
        values: the keys of the section.
    """
    where, given = partial(source.where, "data"), source.samples or values["samples"]
    if given is None and values["valid"] is None:
        fix = "give it" if source.objects else 'add it: a function as "module:function"'
        other = where("samples") if source.objects else 'samples = "calibration/*.npy"'
        raise usage_error(f"{where('valid')} is missing; {fix}; or give samples without labels: {other}")
    if given is None:
        return DataSection(**values)
    if both := [key for key in ("train", "valid", "test", "batch_dims") if values[key]]:
        raise usage_error(f"{where()} samples and {both[0]} exclude each other; keep samples for data without labels")
    shown = where("samples") if source.objects else f"{where('samples')} = {given!r}"
    place = shown, source.path, source.folder, source.objects
    chosen = {key: value for key, value in values.items() if value and key != "samples"}
    if values["closed_loop"]:
        chosen["metric"] = None
    return unlabelled.Unlabelled(*place, given, *network).section(**chosen)


def _values(source: Source, section: str, given: Section) -> dict[str, Any]:
    """The keys of a section: functions instead of their names, and tuples instead of lists."""
    found: dict[str, Any] = {}
    for key, value in given:
        if isinstance(value, FunctionName):
            found[key] = source.function(section, key, value)
        else:
            found[key] = tuple(value) if isinstance(value, list) else value
    return found


def _budgets(source: Source, texts: list[str]) -> tuple[Budget, ...]:
    return tuple(read_budget(source.where("check", "budget"), text) for text in texts)


def _limits(source: Source, given: _Budget) -> dict[str, Limit | None]:
    """The limits on other figures than latency."""
    found: dict[str, Limit | None] = {}
    for figure in LIMITED:
        text = getattr(given, figure)
        try:
            found[figure] = None if text is None else Limit.parse(figure, text)
        except UsageError as error:
            raise usage_error(f"{source.where('budget', figure)}: {error}") from None
    return found


def replaced(project: Project, budget: str) -> Project:
    """The project with another budget: "12 ms" or "50%"."""
    return replace(project, budget=replace(project.budget, latency=_planned("--budget", budget)))


def _planned(where: str, text: str) -> Budget:
    """The budget that plans are made for. It must be of the median or the p90."""
    limit = read_budget(where, text)
    if limit.quantile not in PLANNED:
        raise usage_error(
            f"{where}: {quoted(text)} is not of the median or the p90, which plans are made for;"
            " give other quantiles in [check] budget"
        )
    return limit


def read_budget(where: str, text: str) -> Budget:
    """A budget from its text, such as "12 ms". Raises `UsageError` for another text; `where` begins the message."""
    try:
        return Budget.parse(text)
    except OverflowError:
        raise usage_error(f'{where}: {quoted(text)} is too long; write a time such as "12 ms"') from None
    except UsageError as error:
        raise usage_error(f"{where}: {error}") from None
