"""A project that is made of Python objects: a model, loaders and functions instead of the keys of a file."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from pydantic import ValidationError
from torch import Tensor, nn
from torch.utils import _pytree

from edgeprune.errors import EdgepruneError, UsageError, quoted, usage_error
from edgeprune.frontends import callables
from edgeprune.frontends.functions import one_line
from edgeprune.frontends.model import require_module, require_values
from edgeprune.frontends.modelfile import FORMATS
from edgeprune.frontends.randomness import Generators
from edgeprune.frontends.sections import ProjectFile, Source, project_of
from edgeprune.frontends.toml import keys_of, nearest, wanted_of
from edgeprune.frontends.unlabelled import Objects
from edgeprune.network.computed import copied
from edgeprune.network.wrappers import outermost
from edgeprune.records import Project, keyword
from edgeprune.records.project import SPLITS

RUNS = "edgeprune-runs"  # the folder that holds the folder of each project
NAME = re.compile(r"\w[\w.-]*", re.ASCII)


class Options(TypedDict, total=False):
    """Keywords of `edgeprune.Project`. Each stands for a key of the project file; docs/project-file.md describes it.

    Attributes:
        train: batches of (inputs, targets) that can be read repeatedly, or a function that returns them.
        valid: likewise, for every choice.
        test: likewise, for the verdict.
        loss: a function of (outputs, targets).
        metric: a function of (outputs, targets); larger is better.
        closed_loop: a function of (policy, split); larger is better.
        clean: a function of (inputs, targets) that returns the good samples.
        augment: a function of the inputs, such as a module.
        batch_dims: the dimension that holds the samples: of each input, then of the targets.
        samples: samples without labels, instead of all above: an array, a list of samples, or a pattern of files.
        weights: the path of a state dict, which is loaded into a copy of the model.
        budget: "12 ms" or "50%".
        max_metric_drop: how much lower than the original network's the metric may be.
        size: "4 MB" or "50%", of the artifact.
        parameters: "200k" or "50%".
        macs: "40M" or "50%", multiply-accumulates of a call.
        activations: "256 kB" or "50%", tensors that live at the same time.
        memory: "64 MB" or "80%", the peak of the process on the device.
        energy: "5 mJ" or "50%", of a call on the device.
        throughput: "200/s", "4 streams 200/s" or "150%", samples a second at least.
        goal: "fastest", instead of a budget.
        mean: of each channel of the first input.
        std: likewise.
        scale: multiplies the first input before.
        importance: the importance criterion.
        lock: names or patterns of parameters whose channels must not be removed.
        epochs: of fine-tuning.
        optimizer: "sgd" or "adamw".
        learning_rate: the highest one.
        weight_decay: of all parameters.
        ema: the decay of the weights' moving average.
        seed: of everything that is random.
        trainer: a function that trains instead.
        check_budget: the budgets of `edgeprune.check`.
        slowdown: the share by which the artifact may be slower than its baseline.
        name: names profiles and services; by default the name of the model's class.
        folder: the folder of the runs; by default `edgeprune-runs/NAME` in the working directory.
    """

    train: Any
    valid: Any
    test: Any
    loss: Callable[..., Any] | None
    metric: Callable[..., Any] | None
    closed_loop: Callable[..., Any] | None
    clean: Callable[..., Any] | None
    augment: Callable[..., Any] | None
    batch_dims: Any
    samples: Any
    weights: str | Path | None
    budget: str
    max_metric_drop: float
    size: str
    parameters: str
    macs: str
    activations: str
    memory: str
    throughput: str
    energy: str
    goal: str
    mean: Any
    std: Any
    scale: float
    importance: str
    lock: Any
    epochs: int
    optimizer: str
    learning_rate: float | None
    weight_decay: float | None
    ema: float | None
    seed: int
    trainer: Callable[..., Any] | None
    check_budget: Any
    slowdown: float | None
    name: str
    folder: str | Path


@dataclass(frozen=True, eq=False)
class ObjectFunction:
    """A function that a keyword of `edgeprune.Project` stands for; see `records.Function`.

    Attributes:
        where: the keyword in messages.
        given: the user's object.
        call: the function.
        digests: makes the digests of what it depends on.
    """

    where: str
    given: object
    call: Callable[..., Any]
    digests: Callable[[], Mapping[str, str]]

    @property
    def name(self) -> str:
        """See `records.Function.name`."""
        return str(getattr(self.given, "__qualname__", type(self.given).__qualname__))

    def load(self) -> Callable[..., Any]:
        """See `records.Function.load`."""
        return self.call

    def sources(self) -> Mapping[str, str]:
        """See `records.Function.sources`."""
        return self.digests()

    def guarded(self, where: str = "") -> AbstractContextManager[None]:
        """See `records.Function.guarded`."""
        return _guarded(where or self.where)


@contextmanager
def _guarded(where: str) -> Iterator[None]:
    try:
        yield
    except EdgepruneError:
        raise
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise UsageError(f"{where} raises {one_line(error, Path(Path.cwd().anchor))}") from error


def name_of(path: Path) -> str:
    """The name of a project that is made of a file."""
    return "_".join(re.findall(r"[\w.-]+", path.stem.lower(), re.ASCII)).lstrip(".-") or "model"


def project(model: nn.Module, example_inputs: Any, options: Options) -> Project:
    """A project of these objects. It holds a copy of the model, so later training of it changes nothing.

    Raises:
        UsageError: a keyword is unknown or wrong. The message names it.
    """
    given: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    name, folder = given.pop("name", type(outermost(model)).__name__.lower()), given.pop("folder", None)
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise usage_error(f"Project(name=...) must be of letters, digits, '_', '-' and '.', not {quoted(name)}")
    places = {keyword(section, key): (section, key) for section in keys_of(ProjectFile, ()) for key in _keys(section)}
    for key in given:
        if key not in places:
            raise usage_error(f"Project has no keyword {quoted(key)}{nearest(key, [*places, 'name', 'folder'])}")
    functions = {key: value for key, value in given.items() if _is_function(*places[key])}
    functions |= {"model": _copy(model), "example_inputs": example_inputs}
    samples = given.get("samples")
    held = None if samples is None or isinstance(samples, str | Path) else Objects(copy.deepcopy(samples))
    if held is not None:
        given["samples"] = "objects"
    content: dict[str, dict[str, Any]] = {}
    for key, value in {**given, **functions}.items():
        section, name_of_key = places[key]
        content.setdefault(section, {})[name_of_key] = f"keyword:{key}" if key in functions else _plain(value)
    place = Path(os.path.abspath(folder if folder is not None else Path(RUNS) / name))
    made = {key: _function(key, value) for key, value in functions.items()}
    source = Source(place, name, lambda section, key, _: made[keyword(section, key)], objects=True, samples=held)
    return project_of(source, _checked(content, source))


@contextmanager
def generators_restored(project: Project) -> Iterator[None]:
    """A context in which the user's data is read. The random generators that it uses are as before at the end."""
    held: list[object] = []
    for one in map(project.data.split, SPLITS):
        if isinstance(one, ObjectFunction):
            variables = getattr(one.given, "__globals__", {}).values()
            held += [one.given, *(value for value in variables if not callable(value))]
    generators = Generators(*held)
    try:
        yield
    finally:
        generators.restart()


def _keys(section: str) -> list[str]:
    """The keys of a section that have a keyword. A model file is no keyword of a project that has a model."""
    return [key for key in keys_of(ProjectFile, (section, "")) if key not in FORMATS]


def _is_function(section: str, key: str) -> bool:
    return "module:function" in wanted_of(ProjectFile, (section, key))


def _checked(content: dict[str, dict[str, Any]], source: Source) -> ProjectFile:
    try:
        return ProjectFile.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if len(first["loc"]) < 2:  # the whole section of the data
            raise usage_error("Project needs data: give train and valid, or samples without labels") from None
        section, key = map(str, first["loc"][:2])
        where = source.where(section, key)
        if first["type"] == "missing":
            raise usage_error(f"{where} is missing; give it") from None
        raise usage_error(
            f"{where} must be {wanted_of(ProjectFile, (section, key))}, not {quoted(first['input'])}"
        ) from None


def _plain(value: Any) -> Any:
    """A value as a file would hold it. Numbers and arrays of NumPy and of torch are numbers and lists."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.generic | np.ndarray | Tensor):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value


def _copy(model: Any) -> nn.Module:
    where = "Project(model=...)"
    require_module(where, model)
    require_values(where, model)
    with _guarded(f"{where}: copy.deepcopy(model)"):
        return copied(model)


def _function(key: str, value: Any) -> ObjectFunction:
    """The function that a keyword stands for."""
    where = f"Project({key}=...)"
    if key == "model":
        return ObjectFunction(where, value, lambda: copied(value), cache(lambda: _of_model(value, where)))
    if key == "example_inputs":
        held = _held(value)
        return ObjectFunction(where, held, lambda: held, cache(lambda: {where: callables.of_value(held, where)}))
    if key in SPLITS and not (callable(value) and not hasattr(value, "__iter__")):
        return ObjectFunction(where, value, lambda: value, lambda: {where: callables.of_class(value, where)})
    if not callable(value):
        raise usage_error(f"{where} must be a function, and is of type {type(value).__name__}")
    call = (lambda: value) if key == "augment" else value
    return ObjectFunction(where, value, call, lambda: {where: callables.of_value(value, where)})


def _of_model(model: nn.Module, where: str) -> Mapping[str, str]:
    return {
        f"{where}: code": callables.of_structure(model, where),
        f"{where}: weights": callables.of_tensors(callables.state(model)),
    }


def _held(inputs: Any) -> Any:
    """A copy of example inputs, so that later changes of the tensors do not count."""
    named = dict(inputs) if isinstance(inputs, Mapping) else inputs
    return _pytree.tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), named)
