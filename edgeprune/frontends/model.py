"""The user's model: call its factory, load its weights, and check it."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from edgeprune.errors import SecurityError, UsageError
from edgeprune.frontends.functions import one_line
from edgeprune.graph.groups import matches
from edgeprune.limits import LIMITS
from edgeprune.network.attention import opened
from edgeprune.network.preprocessing import preprocessed
from edgeprune.records import Project

CONVERT = "if you trust it, load it and save its tensors: safetensors.torch.save_file(model.state_dict(), FILE)"


class Network:
    """The user's model and its example inputs.

    Each is made at its first use. So a run that reuses everything makes neither.
    """

    def __init__(self, project: Project) -> None:
        self._project = project

    @cached_property
    def module(self) -> nn.Module:
        """The original network, on the CPU, in eval mode; see `build_model`."""
        return build_model(self._project)

    @cached_property
    def inputs(self) -> tuple[Tensor, ...]:
        """Example inputs, (batch, ...) each; see `example_inputs`."""
        return example_inputs(self._project)

    def files(self, folder: Path) -> list[Path]:
        """Write the example inputs into `folder`, and return their paths, one for each input."""
        paths = [folder / f"input_{i}.npy" for i in range(len(self.inputs))]
        for path, tensor in zip(paths, self.inputs, strict=True):
            np.save(path, tensor.numpy(), allow_pickle=False)
        return paths

    def require_locks(self, lock: Sequence[str]) -> None:
        """Raises `UsageError` for a pattern of `[prune] lock` that matches no parameter and no layer."""
        for pattern in lock:
            if not any(matches(name, pattern) for name, _ in self.module.named_parameters()):
                raise UsageError(
                    f"{self._project.where('prune', 'lock')}: {pattern!r} matches no parameter and no layer;"
                    " edgeprune groups prints them"
                )


def build_model(project: Project) -> nn.Module:
    """The user's model with its weights and its preprocessing, on the CPU, in eval mode.

    Raises:
        UsageError: the factory fails, or the weights do not fit the model or are not finite.
        SecurityError: loading the checkpoint would run code.
    """
    section = project.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(project.finetune.seed)  # so that a model without weights is the same in every process
        with section.factory.guarded():
            model = section.factory.load()()
    where = section.factory.where
    if not isinstance(model, nn.Module):
        raise UsageError(f"{where} returns {kind(model)}; return a torch.nn.Module")
    model = model.cpu().eval()
    for path, module in model.named_modules():
        for name, tensor in vars(module).items():
            if isinstance(tensor, Tensor) and not tensor.is_leaf:
                raise UsageError(
                    f"{where}: {path}.{name} is a computed tensor, and torch cannot copy such a model;"
                    " make it a parameter (torch.nn.utils.prune.remove), or use a parametrization"
                )
    if section.weights is not None:
        _load_weights(project, model, section.weights)
    _require_finite(project, model)
    model = opened(model)
    return preprocessed(model, project.preprocess) if project.preprocess else model


def _require_finite(project: Project, model: nn.Module) -> None:
    parameters = dict(model.named_parameters())
    for name, tensor in [*parameters.items(), *model.named_buffers()]:
        # A buffer may hold infinity on purpose (an attention mask), but running statistics may not.
        strict = name in parameters or "running_" in name
        if not finite(tensor) and (strict or bool(tensor.isnan().any())):
            weights = project.model.weights
            source = f"{project.where('model', 'weights')} {weights}" if weights else project.model.factory.where
            raise UsageError(f"{source}: tensor {name} holds NaN or infinity; give a finite checkpoint")


def _load_weights(project: Project, model: nn.Module, path: Path) -> None:
    where = f"{project.where('model', 'weights')} {path}"
    if not path.is_file():
        raise UsageError(f"{where} does not exist; make it, or give a path relative to the project file's folder")
    if path.stat().st_size > LIMITS.weights_bytes:
        raise UsageError(f"{where} is over {LIMITS.weights_bytes} bytes; is it the right file?")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of a pickle protocol, and then refuses it
            state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise SecurityError(
            f"{where} is refused: it is a pickle that runs code when it is loaded; {CONVERT}"
        ) from error
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
        # torch raises the last three for a file that is cut short or is not a checkpoint.
        raise UsageError(f"{where} cannot be read: {one_line(error, project.code)}; save it again") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UsageError(f"{where} holds no state dict; save model.state_dict()")
    own = model.state_dict()
    for name in own:
        if name not in state:
            raise UsageError(f"{where} has no tensor {name}, which the model needs; give a checkpoint of this model")
    for name, tensor in state.items():
        if name not in own:
            raise UsageError(
                f"{where} has a tensor {name}, which the model does not have; give a checkpoint of this model"
            )
        if own[name].shape != tensor.shape:
            shapes = f"{tuple(tensor.shape)}, and the model needs {tuple(own[name].shape)}"
            raise UsageError(f"{where}: tensor {name} has the shape {shapes}; give a checkpoint of this model")
    model.load_state_dict(state)


def example_inputs(project: Project) -> tuple[Tensor, ...]:
    """The user's example inputs, on the CPU.

    Returns:
        (batch, ...) each. All have the same batch size; the artifact is made for it.

    Raises:
        UsageError: the function returns something else, or NaN or infinity.
    """
    section = project.model
    where = section.inputs.where
    with section.inputs.guarded():
        inputs = tensors(section.inputs.load()())
    if inputs is None:
        raise UsageError(f"{where} must return a tuple of tensors, such as (torch.zeros(1, 3, 224, 224),)")
    if any(tensor.ndim == 0 or tensor.numel() == 0 for tensor in inputs):
        raise UsageError(f"{where} returns an empty tensor or one without a batch dimension; return (batch, ...)")
    if len({len(tensor) for tensor in inputs}) > 1:
        raise UsageError(f"{where} returns the batch sizes {[len(tensor) for tensor in inputs]}; make them equal")
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


def tensors(value: Any) -> tuple[Tensor, ...] | None:
    """A tensor, or a sequence of tensors, as a tuple on the CPU; None for anything else."""
    given = (value,) if isinstance(value, Tensor) else tuple(value) if isinstance(value, tuple | list) else ()
    return tuple(t.detach().cpu() for t in given) if given and all(isinstance(t, Tensor) for t in given) else None


def finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity."""
    return not (tensor.is_floating_point() or tensor.is_complex()) or bool(torch.isfinite(tensor).all())


def kind(value: Any) -> str:
    """The type of a value, in words for a message."""
    return "None" if value is None else f"a {type(value).__name__}"
