"""The user's code: `module:function` beside the project file, imported, called and checked."""

from __future__ import annotations

import importlib
import importlib.util
import math
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from edgeprune.errors import SecurityError, UsageError
from edgeprune.types import Project


def load_function(project: Project, reference: str, key: str) -> Callable[..., Any]:
    """The function that `reference` names, its module looked up beside the project file first.

    `key` is the file's key, for the message. Raises `UsageError` where it cannot be imported or called.
    """
    where = f"{project.path}: {key} = {reference!r}"
    module_name, _, attribute = reference.partition(":")
    try:
        module = _module(project.path.parent, module_name)
    except Exception as error:  # the user's module may raise anything while it is imported
        raise UsageError(f"{where}: importing {module_name!r} raises {_told(error)}") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise UsageError(f"{where}: {module_name} has no function {attribute!r}; define it or mend the name")
    return function


def _module(folder: Path, name: str) -> Any:
    """Import a module by its place, under a name of its own, so that projects with like-named files do not meet."""
    file = folder.joinpath(*name.split(".")).with_suffix(".py")
    with _importable(folder):
        if not file.is_file():
            return importlib.import_module(name)
        unique = f"_edgeprune_{sha256(str(file).encode()).hexdigest()[:12]}"
        if unique not in sys.modules:
            spec = importlib.util.spec_from_file_location(unique, file)
            if spec is None or spec.loader is None:
                raise ImportError(f"{file} is no Python file")
            module = importlib.util.module_from_spec(spec)
            sys.modules[unique] = module
            try:
                spec.loader.exec_module(module)
            except BaseException:
                del sys.modules[unique]
                raise
        return sys.modules[unique]


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _told(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def _call(project: Project, reference: str, key: str) -> Any:
    function = load_function(project, reference, key)
    try:
        with _importable(project.path.parent):
            return function()
    except Exception as error:  # the user's function may raise anything
        raise UsageError(f"{project.path}: {key} = {reference!r} raises {_told(error)}") from error


# ------------------------------------------------------------------------------------------------------- model


def build_model(project: Project) -> nn.Module:
    """The user's model with its weights, in eval mode.

    Raises `UsageError` where the factory fails, the weights do not fit or are not finite, and `SecurityError` for a
    checkpoint that would have to run code to load.
    """
    torch.manual_seed(project.seed)  # a model without weights is the same one on every run
    model = _call(project, project.factory, "[model] factory")
    if not isinstance(model, nn.Module):
        raise UsageError(
            f"{project.path}: [model] factory = {project.factory!r} returns {type(model).__name__}, not a torch.nn.Module"
        )
    if project.weights is not None:
        _load_weights(project, model, project.weights)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            source = project.weights or project.factory
            raise UsageError(f"{source}: tensor {name!r} holds NaN or infinity; train it again or give an earlier checkpoint")
    return model.eval()


def _load_weights(project: Project, model: nn.Module, path: Path) -> None:
    where = f"{project.path}: [model] weights"
    if not path.is_file():
        raise UsageError(f"{where}: {path} does not exist; give the path beside the project file")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise SecurityError(
            f"{where}: {path} is a pickle that could run code, and is refused; save model.state_dict() alone,"
            " best with safetensors.torch.save_file"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise UsageError(f"{where}: {path} cannot be read: {_told(error)}") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UsageError(f"{where}: {path} holds no state dict; save model.state_dict()")
    own = model.state_dict()
    for name in [*own, *state]:
        if name not in state:
            raise UsageError(f"{where}: {path} has no tensor {name!r}, which the model needs")
        if name not in own:
            raise UsageError(f"{where}: {path} has a tensor {name!r}, which the model does not")
        if own[name].shape != state[name].shape:
            shapes = f"{tuple(state[name].shape)}, the model's {tuple(own[name].shape)}"
            raise UsageError(f"{where}: tensor {name!r} in {path} has shape {shapes}")
    model.load_state_dict(state)


def example_inputs(project: Project) -> tuple[Tensor, ...]:
    """The user's example inputs: a tuple of tensors whose shapes the artifact will have."""
    given = _call(project, project.inputs, "[model] inputs")
    inputs = (given,) if isinstance(given, Tensor) else tuple(given) if isinstance(given, tuple | list) else ()
    if not inputs or not all(isinstance(tensor, Tensor) and tensor.ndim for tensor in inputs):
        raise UsageError(f"{project.path}: [model] inputs = {project.inputs!r} must return a tensor or a tuple of tensors")
    return inputs


# -------------------------------------------------------------------------------------------------------- data


class Batches:
    """One split of the user's data, again and again: (inputs as a tuple of tensors, targets)."""

    def __init__(self, project: Project, split: str) -> None:
        reference = getattr(project, split)
        self._where = f"{project.path}: [data] {split} = {reference!r}"
        self._data = _call(project, reference, f"[data] {split}")
        if isinstance(self._data, Iterator) or not hasattr(self._data, "__iter__"):
            raise UsageError(f"{self._where} must return what can be iterated many times: a list or a DataLoader, no generator")

    def set_epoch(self, epoch: int) -> None:
        """Tell data that shuffles by epoch (as `DistributedSampler` does) which one comes."""
        for holder in (self._data, getattr(self._data, "sampler", None)):
            if hasattr(holder, "set_epoch"):
                holder.set_epoch(epoch)
                return

    def __iter__(self) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        count = 0
        iterator = iter(self._data)
        while True:
            try:
                batch = next(iterator, None)
            except Exception as error:  # the user's loader may raise anything
                raise UsageError(f"{self._where}: batch {count} raises {_told(error)}") from error
            if batch is None:
                break
            yield self._checked(batch, count)
            count += 1
        if not count:
            raise UsageError(f"{self._where} is empty; it must yield at least one batch of (inputs, targets)")

    def _checked(self, batch: Any, number: int) -> tuple[tuple[Tensor, ...], Tensor]:
        where = f"{self._where}: batch {number}"
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise UsageError(f"{where} is no pair of (inputs, targets)")
        inputs = (batch[0],) if isinstance(batch[0], Tensor) else tuple(batch[0])
        targets = batch[1]
        if not all(isinstance(tensor, Tensor) for tensor in (*inputs, targets)):
            raise UsageError(f"{where} holds something that is no tensor; convert inputs and targets to torch tensors")
        if not len(targets):
            raise UsageError(f"{where} is empty")
        for tensor in inputs:
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise UsageError(f"{where} has NaN or infinity in its inputs; clean the data first")
        return inputs, targets


def batches(project: Project, split: str) -> Batches:
    """The batches of "train", "valid" or "test", checked as they are read. Raises `UsageError` naming the batch."""
    return Batches(project, split)


def check_data(model: nn.Module, project: Project) -> None:
    """Read every split once: shapes that the model takes, labels that it can give.

    Raises `UsageError` naming the split, the batch and the label.
    """
    for split in ("train", "valid", "test"):
        if getattr(project, split) is None:
            continue
        classes: int | None = None
        for number, (inputs, targets) in enumerate(batches(project, split)):
            if number == 0:
                classes = _classes(model, project, split, inputs, targets)
            if classes is not None and not (0 <= int(targets.min()) and int(targets.max()) < classes):
                wrong = next(int(t) for t in targets.flatten() if not 0 <= int(t) < classes)
                raise UsageError(
                    f"{project.path}: [data] {split}, batch {number}: label {wrong} is out of range, the model has {classes} classes"
                )


def _classes(model: nn.Module, project: Project, split: str, inputs: tuple[Tensor, ...], targets: Tensor) -> int | None:
    """The number of classes where this is classification with the default loss, else None."""
    try:
        with torch.no_grad():
            outputs = model(*inputs)
    except Exception as error:  # whatever the user's forward raises on the user's data
        raise UsageError(f"{project.path}: the model raises {_told(error)} on the first batch of [data] {split}") from error
    labels = not targets.is_floating_point() and targets.ndim == 1
    return outputs.shape[1] if isinstance(outputs, Tensor) and outputs.ndim == 2 and labels and project.loss is None else None


def loss_function(project: Project) -> Callable[[Tensor, Tensor], Tensor]:
    """The user's loss (outputs, targets) -> scalar tensor; cross-entropy where none is given."""
    return load_function(project, project.loss, "[data] loss") if project.loss else F.cross_entropy


def metric_function(project: Project) -> Callable[[Tensor, Tensor], float]:
    """The user's metric (outputs, targets) -> float, larger is better; top-1 accuracy where none is given."""
    if project.metric is None:
        return lambda outputs, targets: float((outputs.argmax(1) == targets).float().mean())
    function = load_function(project, project.metric, "[data] metric")

    def metric(outputs: Tensor, targets: Tensor) -> float:
        value = float(function(outputs, targets))
        if not math.isfinite(value):
            raise UsageError(f"{project.path}: [data] metric = {project.metric!r} gives {value}; it must be a finite number")
        return value

    return metric
