"""The user's model: call its factory, load its weights, and check it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from edgeprune.errors import UsageError
from edgeprune.frontends import checkpoint
from edgeprune.frontends.fitting import fitted
from edgeprune.frontends.functions import one_line
from edgeprune.frontends.modelfile import FileModel, preprocess_of
from edgeprune.graph.editable import GraphNetwork
from edgeprune.graph.groups import matches
from edgeprune.network.adapter import adapted, batch_dims_of, structure_of
from edgeprune.network.attention import opened
from edgeprune.network.computed import computed_by_hooks
from edgeprune.network.outputs import Structure
from edgeprune.network.preprocessing import preprocessed
from edgeprune.network.wrappers import unwrapped
from edgeprune.records import Project

log = logging.getLogger("edgeprune")


class Network:
    """The user's model and its example inputs.

    Each is made at its first use. So a run that reuses everything makes neither.
    """

    def __init__(self, project: Project) -> None:
        self._project = project

    @cached_property
    def _built(self) -> Built:
        return built(self._project)

    @cached_property
    def module(self) -> nn.Module:
        """The original network, on the CPU, in eval mode; see `built`. It takes and returns tensors by position."""
        dims, _ = batch_dims(self._project, len(self.inputs))
        of_file = getattr(self._built.module, "batch_dims", None)
        if of_file and any(of_file) and of_file != dims:
            raise UsageError(
                f"{self._project.where('data', 'batch_dims')} must be {[*of_file, 0]}, the last number for the targets: the"
                " samples of the file are in these dimensions of its inputs. [data] samples are in dimension 0 always"
            )
        return adapted(self._built.module, input_names(self._project), dims)

    @property
    def notes(self) -> tuple[str, ...]:
        """How the user's model and its weights were adapted, a line for each."""
        return self._built.notes

    @cached_property
    def inputs(self) -> tuple[Tensor, ...]:
        """Example inputs, (batch, ...) each; see `example_inputs`."""
        return example_inputs(self._project)

    @cached_property
    def structure(self) -> Structure:
        """How the user's model returns its tensors. Raises `UsageError` if it fails or returns none."""
        where = f"{self._project.model.factory.where}: the model, called with the example inputs,"
        with self._project.model.factory.guarded(where):
            found = structure_of(self.module, self.inputs)
        if found is None:
            raise UsageError(f"{where} returns no tensor; return a tensor, or a tuple, dict or data class of tensors")
        dims, _ = batch_dims(self._project, len(self.inputs))
        return replace(found, batch_dims=batch_dims_of(self.module, self.inputs, dims))

    def files(self, folder: Path) -> list[Path]:
        """Write the example inputs into `folder`, and return their paths, one for each input."""
        paths = [folder / f"input_{i}.npy" for i in range(len(self.inputs))]
        for path, tensor in zip(paths, self.inputs, strict=True):
            np.save(path, tensor.numpy(), allow_pickle=False)
        return paths

    def write(self, pruned: nn.Module, folder: Path) -> None:
        """Write a pruned network in the format of the project's model file, if it has one that can be written."""
        factory = self._project.model.factory
        if not isinstance(factory, FileModel):
            return
        try:
            with factory.guarded():
                factory.write(pruned, folder)
        except UsageError as error:
            log.warning("%s; edgeprune.load gives it as a torch module", error)

    def require_locks(self, lock: Sequence[str]) -> None:
        """Raises `UsageError` for a pattern of `[prune] lock` that matches no parameter and no layer."""
        for pattern in lock:
            if not any(matches(name, pattern) for name, _ in self.module.named_parameters()):
                raise UsageError(
                    f"{self._project.where('prune', 'lock')}: {pattern!r} matches no parameter and no layer;"
                    " edgeprune groups prints them"
                )


@dataclass(frozen=True)
class Built:
    """The user's model, and how it and its weights were adapted, a line for each."""

    module: nn.Module
    notes: tuple[str, ...]


def build_model(project: Project) -> nn.Module:
    """The module of `built`."""
    return built(project).module


def built(project: Project) -> Built:
    """The user's model with its weights and its preprocessing, on the CPU, in eval mode.

    Raises:
        UsageError: the factory fails, or the weights do not fit the model or are not finite.
        SecurityError: loading the checkpoint would run code.
    """
    section = project.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(project.finetune.seed)  # so that a model without weights is the same in every process
        with section.factory.guarded():
            made = section.factory.load()()
    where = section.factory.where
    require_module(where, made)
    for path, module in made.named_modules():
        require_module(where, module, path)
    bare = unwrapped(made)
    for module in bare.modules():
        module._compiled_call_impl = None  # of module.compile()
    _require_plain(where, bare)
    with section.factory.guarded():
        model = bare.cpu().eval()
    notes = [f"model: taken out of {kind(made)}"] if type(made) is not type(bare) else []
    if section.weights is not None:
        how = _load_weights(project, model, section.weights)
        notes += [f"weights: {', '.join(how)}"] if how else []
    _require_finite(project, model)
    if project.preprocess is not None and project.preprocess == preprocess_of(section.factory):
        notes.append("preprocess: that of the model's processor, so inputs are raw pixels")
    for note in notes:
        log.info("%s", note)
    model = opened(model)
    return Built(preprocessed(model, project.preprocess) if project.preprocess else model, tuple(notes))


def require_module(where: str, module: object, path: str = "") -> None:
    """The model, or a module inside it at `path`, must be Python code, which can be cut and exported."""
    what = f"{where}: {path} is" if path else f"{where} returns"
    if isinstance(module, torch.jit.ScriptModule):
        raise UsageError(f"{what} TorchScript, which cannot be cut; return the torch.nn.Module that it was made from")
    exported = isinstance(module, torch.export.ExportedProgram)
    if exported or (isinstance(module, torch.fx.GraphModule) and _is_exported(module)):
        raise UsageError(
            f"{what} an exported program, which cannot be cut; return the torch.nn.Module that was exported"
        )
    if isinstance(module, type):
        raise UsageError(f"{what} the class {module.__name__}; return a network of it: {module.__name__}()")
    if not isinstance(module, nn.Module):
        raise UsageError(f"{what} {kind(module)}; return a torch.nn.Module")


def _is_exported(module: torch.fx.GraphModule) -> bool:
    """Whether `torch.export` made a graph: it consists of operators instead of modules, and has no eval mode."""
    if isinstance(module, GraphNetwork):  # a network that edgeprune cut
        return False
    return any(isinstance(node.target, torch._ops.OpOverload) for node in module.graph.nodes)


def require_values(where: str, model: nn.Module) -> None:
    """Raises `UsageError` for a parameter that has no shape or no values."""
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise UsageError(f"{where}: parameter {name} has no shape yet; call the model once first")
        if parameter.is_meta:
            raise UsageError(f"{where}: parameter {name} has no values (device meta); build the model on the CPU")


def _require_plain(where: str, model: nn.Module) -> None:
    """The parameters must be ordinary tensors in single precision, and copies of the model must be possible."""
    require_values(where, model)
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            dtype = str(parameter.dtype).removeprefix("torch.")
            raise UsageError(
                f"{where}: parameter {name} is {dtype}; return model.float(), and inputs in float32:"
                " [runtime] precision of the target sets the precision of the artifact"
            )
    for path, module in model.named_modules():
        if any(base.__name__ == "FakeQuantizeBase" for base in type(module).__mro__):
            raise UsageError(
                f"{where}: {path} is fake quantisation; return the model from before prepare_qat:"
                " [runtime] precision of the target sets the precision of the artifact"
            )
        if type(module).__module__.startswith(("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")):
            raise UsageError(f"{where}: {path} is quantised; return the model from before that, in float32")
        for name, tensor in vars(module).items():
            if (
                isinstance(tensor, Tensor)
                and f"{name}_orig" in module._parameters
                and name not in computed_by_hooks(module)
            ):
                raise UsageError(
                    f"{where}: {path}.{name} is a computed tensor, and a cut cannot follow it;"
                    " make it a parameter (torch.nn.utils.prune.remove), or use a parametrization"
                )


def _require_finite(project: Project, model: nn.Module) -> None:
    parameters = dict(model.named_parameters())
    for name, tensor in [*parameters.items(), *model.named_buffers()]:
        # A buffer may hold infinity on purpose (an attention mask), but running statistics may not.
        strict = name in parameters or "running_" in name
        if not finite(tensor) and (strict or bool(tensor.isnan().any())):
            weights = project.model.weights
            source = f"{project.where('model', 'weights')} {weights}" if weights else project.model.factory.where
            raise UsageError(f"{source}: tensor {name} holds NaN or infinity; give a finite checkpoint")


def _load_weights(project: Project, model: nn.Module, path: Path) -> tuple[str, ...]:
    """Load a checkpoint into a model. Returns how it was adapted."""
    where = f"{project.where('model', 'weights')} {path}"
    found = fitted(where, model, checkpoint.read(where, path, project.code))
    try:
        model.load_state_dict(found.state, strict=False)  # all names fit; a module may also have a state of its own
    except RuntimeError as error:
        raise UsageError(f"{where} cannot be loaded: {one_line(error, project.code)}") from error
    return found.notes


def input_names(project: Project) -> tuple[str, ...]:
    """The arguments of the model's forward that its inputs are, if `[model] inputs` returns them by name; else ()."""
    with project.model.inputs.guarded():
        given = project.model.inputs.load()()
    return tuple(map(str, given)) if isinstance(given, Mapping) else ()


def example_inputs(project: Project) -> tuple[Tensor, ...]:
    """The user's example inputs, on the CPU. If they have names, these are `input_names`, in the same order.

    Returns:
        (batch, ...) each, or as `[data] batch_dims` says. All have the same batch size; the artifact is made for it.

    Raises:
        UsageError: the function returns something else, or NaN or infinity.
    """
    section = project.model
    where = section.inputs.where
    with section.inputs.guarded():
        inputs = tensors(section.inputs.load()())
    if inputs is None:
        raise UsageError(
            f"{where} must return a tuple of tensors, such as (torch.zeros(1, 3, 224, 224),), or a dict of tensors by name"
        )
    if any(tensor.ndim == 0 or tensor.numel() == 0 for tensor in inputs):
        raise UsageError(f"{where} returns an empty tensor or one without a batch dimension; return (batch, ...)")
    sizes = [size_of(tensor, dim) for tensor, dim in zip(inputs, batch_dims(project, len(inputs))[0], strict=True)]
    if len(set(sizes)) > 1 or not sizes[0]:
        key = project.where("data", "batch_dims")
        raise UsageError(
            f"{where} returns the batch sizes {sizes}; make them equal, or say where the samples are: {key}"
        )
    if not all(map(finite, inputs)):
        raise UsageError(f"{where} returns NaN or infinity; return inputs like the real ones")
    channels = inputs[0].shape[1] if inputs[0].ndim > 1 else 1
    if project.preprocess and len(project.preprocess.mean) not in (1, channels):
        count = len(project.preprocess.mean)
        raise UsageError(
            f"{project.where('preprocess', 'mean')} has {count} numbers, and the first input has {channels} channels;"
            " give one number for each channel"
        )
    return inputs


def batch_dims(project: Project, inputs: int) -> tuple[tuple[int, ...], int]:
    """The dimension that holds the samples, of each input, and of the targets.

    Raises:
        UsageError: `[data] batch_dims` has another number of dimensions.
    """
    found = project.data.batch_dims or (0,) * (inputs + 1)
    if len(found) != inputs + 1:
        raise UsageError(
            f"{project.where('data', 'batch_dims')} has {len(found)} numbers, and the model has {inputs} inputs;"
            " give one for each input, then one for the targets"
        )
    return found[:-1], found[-1]


def tensors(value: Any) -> tuple[Tensor, ...] | None:
    """A tensor or an array, or a sequence or mapping of these, as a tuple on the CPU; None for anything else."""
    value = tuple(value.values()) if isinstance(value, Mapping) else value
    given = value if isinstance(value, tuple | list) else (value,)
    found = [one for one in map(tensor_of, given) if one is not None]
    return tuple(found) if found and len(found) == len(given) else None


def tensor_of(value: Any) -> Tensor | None:
    """A tensor on the CPU; None if the value is neither a tensor nor an array of numbers.

    Arrays of NumPy, and those of TensorFlow or JAX, have torch's usual types then: float32 for float64, and int64 for integers
    that are no bytes.
    """
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if not hasattr(value, "__array__") or isinstance(value, np.generic):
        return None
    array = np.array(value)
    if array.dtype.kind not in "biuf":
        return None
    if array.dtype.kind in "iu" and array.dtype != np.uint8:
        return torch.from_numpy(array.astype(np.int64))
    return torch.from_numpy(array.astype(np.float32) if array.dtype == np.float64 else array)


def size_of(tensor: Tensor, dim: int) -> int:
    """The size of a dimension; 0 if the tensor has no such dimension."""
    return tensor.shape[dim] if dim < tensor.ndim else 0


def finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity."""
    return not (tensor.is_floating_point() or tensor.is_complex()) or bool(torch.isfinite(tensor).all())


def kind(value: Any) -> str:
    """The type of a value, in words for a message."""
    return "None" if value is None else f"a {type(value).__name__}"
