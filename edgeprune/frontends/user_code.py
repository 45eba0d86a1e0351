"""The user's code: `module:function` beside the project file, imported, called and checked."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import math
import pickle
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from edgeprune.errors import EdgepruneError, SecurityError, UsageError
from edgeprune.graph import groups as graph
from edgeprune.limits import LIMITS
from edgeprune.network import surgery as network
from edgeprune.network.attention import opened
from edgeprune.records import Project

Policy = Callable[..., np.ndarray]
SPLITS = ("train", "valid", "test")
CONVERT = "load it where you trust it and save its tensors: safetensors.torch.save_file(model.state_dict(), FILE)"

# ------------------------------------------------------------------------------------------------- functions


def load_function(project: Project, reference: str, key: str) -> Callable[..., Any]:
    """The function that `reference` ("module:function") names, looked up beside the project file first.

    `key` is the project file's key, for messages. Raises `UsageError` naming the file, the key and the original
    error where the module cannot be imported or has no such function.
    """
    where = f"{project.path}: {key} = {reference!r}"
    name, _, attribute = reference.partition(":")
    with _users_code(project, where):
        module = _module(project.path.parent, name)
        function = getattr(module, attribute, None)
    if function is None:
        raise UsageError(f"{where}: module {name} has no function {attribute}; define it or mend the name")
    if not callable(function):
        raise UsageError(f"{where}: {attribute} is a {type(function).__name__}, not a function; define a function")
    return function  # type: ignore[no-any-return]


def _module(root: Path, name: str) -> ModuleType:
    """Import by place, under a name made from path and text, so that like-named modules do not meet."""
    file = next((f for f in (root / f"{name}.py", root / name / "__init__.py") if f.is_file()), None)
    if file is None:  # inside a package, whose relative imports need its true name, or installed
        return importlib.import_module(name)
    source = file.read_bytes()
    unique = f"_edgeprune_{hashlib.sha256(str(file).encode() + source).hexdigest()[:16]}"
    if unique not in sys.modules:
        folders = [str(file.parent)] if file.name == "__init__.py" else None
        spec = importlib.util.spec_from_file_location(unique, file, submodule_search_locations=folders)
        if spec is None:
            raise ImportError(f"{file} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[unique] = module
        try:
            # Compiled here: Python's own cache takes a file for unchanged when it was edited within a second.
            exec(compile(source, file, "exec"), module.__dict__)  # noqa: S102 - the user's own module
        except BaseException:
            del sys.modules[unique]
            raise
    return sys.modules[unique]


_siblings: dict[str, Path] = {}  # modules imported from a project's folder, by their plain names


@contextmanager
def _users_code(project: Project, where: str) -> Iterator[None]:
    """Run the user's code with its folder importable; what it raises becomes one line that says where."""
    root = project.path.parent
    for name in [name for name, home in _siblings.items() if home != root]:
        del _siblings[name]  # another project's; it keeps what it has already imported
        sys.modules.pop(name, None)
    before = set(sys.modules)
    sys.path.insert(0, str(root))
    try:
        yield
    except EdgepruneError:
        raise
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise UsageError(f"{where} raises {_told(error, root)}") from error
    finally:
        if str(root) in sys.path:
            sys.path.remove(str(root))
        for name in set(sys.modules) - before:
            top = root / name.partition(".")[0]
            if top.is_dir() or top.with_suffix(".py").is_file():
                _siblings[name] = root


def _told(error: BaseException, root: Path) -> str:
    """An error in one line, with the last line of the user's code that it passed."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).parent == root]
    return f"{text} ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else text


def _call(project: Project, reference: str, key: str) -> Any:
    function = load_function(project, reference, key)
    with _users_code(project, f"{project.path}: {key} = {reference!r}"):
        return function()


# ----------------------------------------------------------------------------------------------------- model


def build_model(project: Project) -> nn.Module:
    """The user's model with its weights and its preprocessing, on the CPU, in eval mode.

    Raises `UsageError` where the factory fails or the weights do not fit or are not finite, and `SecurityError`
    for a checkpoint that would have to run code to load.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(project.seed)  # a model without weights is the same one in every process
        model = _call(project, project.factory, "[model] factory")
    if not isinstance(model, nn.Module):
        raise UsageError(
            f"{project.path}: [model] factory = {project.factory!r} returns {_kind(model)}; return a torch.nn.Module"
        )
    model = model.cpu().eval()
    for path, module in model.named_modules():
        for name, tensor in vars(module).items():
            if isinstance(tensor, Tensor) and not tensor.is_leaf:
                raise UsageError(
                    f"{project.path}: [model] factory = {project.factory!r}: {path}.{name} is computed, and such a"
                    " model cannot be copied; torch.nn.utils.prune.remove makes it one, parametrizations do without"
                )
    for pattern in project.lock:
        if not any(graph.matches(name, pattern) for name, _ in model.named_parameters()):
            raise UsageError(
                f"{project.path}: [prune] lock: {pattern!r} matches no parameter and no layer; edgeprune groups prints them"
            )
    if project.weights is not None:
        _load_weights(project, model, project.weights)
    parameters = dict(model.named_parameters())
    for name, tensor in [*parameters.items(), *model.named_buffers()]:
        # A buffer may hold infinity on purpose (an attention mask), but running statistics may not.
        strict = name in parameters or "running_" in name
        if not _finite(tensor) and (strict or bool(tensor.isnan().any())):
            source = f"weights {project.weights}" if project.weights else f"factory = {project.factory!r}"
            raise UsageError(
                f"{project.path}: [model] {source}: tensor {name} holds NaN or infinity; "
                "give a checkpoint that is finite"
            )
    model = opened(model)
    return network.preprocessed(model, project.preprocess) if project.preprocess else model


def _load_weights(project: Project, model: nn.Module, path: Path) -> None:
    where = f"{project.path}: [model] weights {path}"
    if not path.is_file():
        raise UsageError(f"{where} does not exist; make it, or give a path that starts beside the project file")
    if path.stat().st_size > LIMITS.weights_bytes:
        raise UsageError(f"{where} is over {LIMITS.weights_bytes} bytes; is it the right file?")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of pickle protocols that it refuses a moment later
            state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise SecurityError(f"{where} is a pickle that needs to run code, and is refused; {CONVERT}") from error
    except (
        SafetensorError,
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
    ) as error:
        # The last three are torch's on a file that is cut short or is no checkpoint.
        raise UsageError(f"{where} cannot be read: {_told(error, project.path.parent)}; save it again") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UsageError(f"{where} holds no state dict; save model.state_dict()")
    own = model.state_dict()
    for name in own:
        if name not in state:
            raise UsageError(f"{where} has no tensor {name}, which the model needs; is it another model's?")
    for name, tensor in state.items():
        if name not in own:
            raise UsageError(f"{where} has a tensor {name}, which the model does not have; is it another model's?")
        if own[name].shape != tensor.shape:
            shapes = f"{tuple(tensor.shape)}, the model's {tuple(own[name].shape)}"
            raise UsageError(f"{where}: tensor {name} has shape {shapes}; is it another model's?")
    model.load_state_dict(state)


def example_inputs(project: Project) -> tuple[Tensor, ...]:
    """The user's example inputs, on the CPU: (batch, ...) each, with one batch size, which the artifact keeps.

    Raises `UsageError` for anything else, and for NaN or infinity.
    """
    where = f"{project.path}: [model] inputs = {project.inputs!r}"
    inputs = _tensors(_call(project, project.inputs, "[model] inputs"))
    if inputs is None:
        raise UsageError(f"{where} must return a tuple of tensors, such as (torch.zeros(1, 3, 224, 224),)")
    if any(tensor.ndim == 0 or tensor.numel() == 0 for tensor in inputs):
        raise UsageError(f"{where} returns an empty tensor or one without a batch dimension; return (batch, ...)")
    if len({len(tensor) for tensor in inputs}) > 1:
        raise UsageError(f"{where} returns batch sizes {[len(tensor) for tensor in inputs]}; make them the same")
    if not all(map(_finite, inputs)):
        raise UsageError(f"{where} returns NaN or infinity; return inputs like the real ones")
    channels = inputs[0].shape[1] if inputs[0].ndim > 1 else 1
    if project.preprocess and len(project.preprocess.mean) not in (1, channels):
        count = len(project.preprocess.mean)
        raise UsageError(f"{project.path}: [preprocess] mean has {count} numbers, the first input {channels} channels")
    return inputs


def _tensors(value: Any) -> tuple[Tensor, ...] | None:
    """One tensor or some, as a tuple on the CPU; None for anything else."""
    given = (value,) if isinstance(value, Tensor) else tuple(value) if isinstance(value, tuple | list) else ()
    return tuple(t.detach().cpu() for t in given) if given and all(isinstance(t, Tensor) for t in given) else None


def _finite(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex()) or bool(torch.isfinite(tensor).all())


def _kind(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


# ------------------------------------------------------------------------------------------------------ data

_loaded: dict[tuple[Path, str, int], tuple[Callable[..., Any], Any]] = {}  # so that every split is made once a process


class Batches:
    """One split of the user's data, again and again: (tuple of inputs, targets), cleaned, checked as they are read, and
    augmented where that is asked for."""

    def __init__(self, project: Project, split: str, augmented: bool = False) -> None:
        reference = getattr(project, split)
        if reference is None:
            raise UsageError(f'{project.path}: [data] {split} is missing; add it: a function as "module:function"')
        self._project = project
        self._where = f"{project.path}: [data] {split} = {reference!r}"
        function = load_function(project, reference, f"[data] {split}")
        key = (project.path, reference, id(function))
        if key not in _loaded:
            with _users_code(project, self._where):
                _loaded[key] = function, function()  # the function too: its id is its own only while it lives
        self._data = _loaded[key][1]
        self._clean = load_function(project, project.clean, "[data] clean") if project.clean else None
        self._augment = _call(project, project.augment, "[data] augment") if project.augment and augmented else None
        if self._augment is not None and not callable(self._augment):
            raise UsageError(
                f"{project.path}: [data] augment = {project.augment!r} returns {_kind(self._augment)}; return a function of"
                " the inputs, such as a module"
            )
        if hasattr(self._data, "__next__"):
            raise UsageError(
                f"{self._where} returns {_kind(self._data)}, which can be read once only; "
                "return a list, a DataLoader or an object with __iter__"
            )
        if not hasattr(self._data, "__iter__"):
            raise UsageError(f"{self._where} returns {_kind(self._data)}; return an iterable of (inputs, targets)")

    def set_epoch(self, epoch: int) -> None:
        """Tell data that is shuffled by epoch, or its sampler (as `DistributedSampler`), which one comes."""
        for holder in (self._data, getattr(self._data, "sampler", None)):
            if hasattr(holder, "set_epoch"):
                with _users_code(self._project, f"{self._where}: set_epoch({epoch})"):
                    holder.set_epoch(epoch)  # type: ignore[union-attr]
                return

    def __iter__(self) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        end, count, empty = object(), 0, True
        with _users_code(self._project, self._where):
            iterator = iter(self._data)
        while True:
            with _users_code(self._project, f"{self._where}: batch {count}"):
                batch = next(iterator, end)
            if batch is end:
                break
            if count == LIMITS.data_batches:
                raise UsageError(f"{self._where} gives over {count} batches; let an epoch end")
            inputs, targets = self._checked(self._cleaned(batch, count), count)
            count += 1
            if len(targets):
                empty = False
                yield self._augmented(inputs, count - 1), targets
        if not count:
            raise UsageError(f"{self._where} is empty, or can be read once only; give at least one batch, every time")
        if empty:
            raise UsageError(f"{self._where}: [data] clean = {self._project.clean!r} leaves none of {count} batches")

    def _cleaned(self, batch: Any, number: int) -> Any:
        """What the user's function leaves of a batch, which may be nothing."""
        if self._clean is None or not isinstance(batch, tuple | list) or len(batch) != 2:
            return batch
        with _users_code(
            self._project, f"{self._project.path}: [data] clean = {self._project.clean!r}: batch {number}"
        ):
            return self._clean(*batch)

    def _augmented(self, inputs: tuple[Tensor, ...], number: int) -> tuple[Tensor, ...]:
        if self._augment is None:
            return inputs
        where = f"{self._project.path}: [data] augment = {self._project.augment!r}: batch {number}"
        with _users_code(self._project, where):
            changed = _tensors(self._augment(*inputs))
        shapes = [tuple(tensor.shape) for tensor in inputs]
        if changed is None or [tuple(tensor.shape) for tensor in changed] != shapes or not all(map(_finite, changed)):
            raise UsageError(f"{where} must return finite tensors of the shapes that it is given: {shapes}")
        return changed

    def _checked(self, batch: Any, number: int) -> tuple[tuple[Tensor, ...], Tensor]:
        where = f"{self._where}: batch {number}"
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise UsageError(f"{where} is {_kind(batch)}; give pairs of (inputs, targets)")
        inputs, targets = _tensors(batch[0]), batch[1]
        if inputs is None or not isinstance(targets, Tensor):
            raise UsageError(
                f"{where} holds {_kind(batch[0])} and {_kind(batch[1])}; "
                "give a tensor, or a tuple of them, and a tensor"
            )
        sizes = [len(tensor) if tensor.ndim else 0 for tensor in (*inputs, targets)]
        if len(set(sizes)) > 1 or not (sizes[0] or self._clean):
            raise UsageError(
                f"{where} has {sizes[:-1]} inputs and {sizes[-1]} targets; give as many of both, at least one"
            )
        if not all(map(_finite, inputs)):
            raise UsageError(f"{where} has NaN or infinity in its inputs; clean the data")
        return inputs, targets.detach().cpu()


def batches(project: Project, split: str, augmented: bool = False) -> Batches:
    """The batches of "train", "valid" or "test"; `UsageError`, here or while they are read, names the split."""
    return Batches(project, split, augmented)


def stacked(
    project: Project, split: str, inputs: tuple[Tensor, ...], most: int | None = None
) -> tuple[list[np.ndarray], Tensor]:
    """The samples of a split, `most` of them at most, in calls of the example inputs' batch size: inputs (calls, batch, …),
    targets (samples, …); the last call is filled up with the first sample."""
    columns: list[list[Tensor]] = [[] for _ in inputs]
    targets = []
    for batch, target in batches(project, split):
        for column, tensor in zip(columns, batch, strict=True):
            column.append(tensor)
        targets.append(target)
        if most is not None and sum(map(len, targets)) >= most:
            break
    found = []
    for column, example in zip(columns, inputs, strict=True):
        samples = torch.cat(column)[:most]
        if samples.shape[1:] != example.shape[1:]:
            raise UsageError(
                f"{project.path}: [data] {split} gives inputs of shape {tuple(samples.shape[1:])},"
                f" [model] inputs of {tuple(example.shape[1:])}; they must be the same"
            )
        found.append(samples.numpy())
    return calls(found, inputs[0].shape[0]), torch.cat(targets)[:most]


def check_data(model: nn.Module, project: Project) -> None:
    """Run the model, the loss and the metric on a first batch, and read every split once.

    Raises `UsageError` naming the split, the batch and the label where the model does not take the data, or where
    a label is not one of its classes. That is known for outputs (samples, classes) and integer targets (samples,)
    with the default loss or metric.
    """
    classes = _first_batch(model, project)
    for split in SPLITS:
        if getattr(project, split) is None:
            continue
        for number, (inputs, targets) in enumerate(batches(project, split)):
            where = f"{project.path}: [data] {split}: batch {number}"
            if number == 0:
                _outputs(model, project, where, inputs)
            if not _finite(targets):
                raise UsageError(f"{where} has NaN or infinity in its targets; clean the data")
            if classes is None:
                continue
            wrong = targets[(targets < 0) | (targets >= classes)]
            if len(wrong):
                raise UsageError(
                    f"{where} has the label {wrong.flatten()[0].item()}, the model has {classes} classes; "
                    f"labels run from 0 to {classes - 1}"
                )


def _first_batch(model: nn.Module, project: Project) -> int | None:
    """Try the model, the loss and the metric; the number of classes where labels index them, else None."""
    inputs, targets = next(iter(batches(project, "valid")))
    where = f"{project.path}: [data] valid: batch 0"
    outputs = _outputs(model, project, where, inputs)
    if not outputs.ndim or len(outputs) != len(targets):
        raise UsageError(
            f"{where}: the model returns {tuple(outputs.shape)} for {len(targets)} targets; return (samples, ...)"
        )
    if not _finite(outputs):
        raise UsageError(f"{where}: the model returns NaN or infinity; check its weights and the range of the inputs")
    index = outputs.ndim == 2 and targets.ndim == 1 and not targets.is_floating_point()
    classes = outputs.shape[1] if index and (project.loss is None or project.metric is None) else None
    if classes is None or bool(((targets >= 0) & (targets < classes)).all()):
        with torch.no_grad():
            loss = loss_function(project)(outputs, targets)
        if not _finite(loss):
            raise UsageError(f"{where}: the loss is {loss.item()}; check [data] loss and the targets")
        if project.closed_loop is None:
            metric_function(project)(outputs, targets)
    if project.augment:
        next(iter(batches(project, "train", augmented=True)))
    return classes


def _outputs(model: nn.Module, project: Project, where: str, inputs: tuple[Tensor, ...]) -> Tensor:
    """What the model returns for a batch: one tensor."""
    model.eval()
    with torch.no_grad(), _users_code(project, f"{where}: the model"):
        outputs = model(*inputs)
    if not isinstance(outputs, Tensor):
        raise UsageError(f"{where}: the model returns {_kind(outputs)}; wrap it in a module that returns one tensor")
    return outputs


def loss_function(project: Project) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss, (outputs, targets) -> a scalar tensor; cross-entropy where none is given.

    Calling it raises `UsageError` where the user's function does, or returns something else.
    """
    where = f"{project.path}: [data] loss" + (f" = {project.loss!r}" if project.loss else " (cross-entropy)")
    function = load_function(project, project.loss, "[data] loss") if project.loss else F.cross_entropy

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        with _users_code(project, where):
            value = function(outputs, targets)
        if not isinstance(value, Tensor) or value.numel() != 1:
            shown = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else _kind(value)
            raise UsageError(f"{where} returns {shown}; return a scalar tensor")
        return value

    return loss


def metric_function(project: Project) -> Callable[[Tensor, Tensor], float]:
    """The metric, (outputs, targets) of a whole split -> a finite number, larger is better; default top-1.

    Calling it raises `UsageError` where the user's function does, or returns something else.
    """
    where = f"{project.path}: [data] metric" + (f" = {project.metric!r}" if project.metric else " (top-1)")
    function = load_function(project, project.metric, "[data] metric") if project.metric else _top1

    def metric(outputs: Tensor, targets: Tensor) -> float:
        return _number(project, where, lambda: function(outputs, targets))

    return metric


def _number(project: Project, where: str, function: Callable[[], Any]) -> float:
    """What the user's function makes: a finite number."""
    with _users_code(project, where):
        value = float(function())
    if not math.isfinite(value):
        raise UsageError(f"{where} gives {value}; return a finite number")
    return value


def closed_loop(project: Project, policy: Policy, split: str) -> float:
    """What the user's [data] closed_loop makes of a policy in the episodes of a split, "valid" for choices and "test" for the
    verdict: a finite number, larger is better.

    `policy` takes what the model takes, as arrays of any number of samples, and returns the outputs: the user's function calls
    it at every step of a simulation, for many episodes at once. Raises `UsageError` where the function does, or gives another
    thing than a number.
    """
    assert project.closed_loop is not None
    where = f"{project.path}: [data] closed_loop = {project.closed_loop!r}"
    function = load_function(project, project.closed_loop, "[data] closed_loop")
    return _number(project, where, lambda: function(policy, split))


def calls(arrays: Sequence[np.ndarray], size: int) -> list[np.ndarray]:
    """Samples (samples, …) as calls of a fixed batch size: (calls, batch, …), the last one filled up with the first sample."""
    missing = -len(arrays[0]) % size
    whole = (np.concatenate([array, array[:1].repeat(missing, axis=0)]) for array in arrays)
    return [np.ascontiguousarray(array).reshape(-1, size, *array.shape[1:]) for array in whole]


def _top1(outputs: Tensor, targets: Tensor) -> float:
    """The share of samples, outputs (samples, classes, ...), whose largest output is the target's."""
    chosen = outputs.argmax(1)
    if chosen.shape != targets.shape:  # torch would stretch one over the other
        raise ValueError(
            f"outputs {tuple(outputs.shape)} do not fit targets {tuple(targets.shape)}; give [data] metric"
        )
    return float((chosen == targets).double().mean())
