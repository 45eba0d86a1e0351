"""The adapter around the user's model: tensors go in by position, and tensors come out.

Export, cuts, proofs, refits and runtimes need no other form. The module stays the same object. So parameters keep their names,
and copies and cuts of the model keep the adapter.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from edgeprune.network.outputs import Structure, tensors

FileNames = tuple[Sequence[str], Sequence[str]]  # of inputs, and of outputs


def adapted(model: nn.Module, names: tuple[str, ...] = (), dims: tuple[int, ...] = ()) -> nn.Module:
    """Make a model take tensors by position, and return tensors in eval mode, in place.

    It then returns one tensor, or a tuple of several. In training mode it returns what the user's code returns, since that
    may be something else, such as auxiliary outputs.

    Args:
        model: any module.
        names: the arguments of its forward that the inputs are given as; empty if they are given by position.
        dims: the dimension of each input that holds the samples; empty if it is the first.
    """
    if names:
        model.__class__ = _by_position(type(model), names)
    model.register_forward_hook(_Flatten(dims))
    return model


def input_names(model: nn.Module) -> tuple[str, ...]:
    """The arguments that an adapted model's inputs are given as; empty if they are given by position."""
    names: tuple[str, ...] = getattr(type(model), "input_names", ())
    return names


def file_names(model: nn.Module) -> FileNames | None:
    """The names of the inputs and outputs in the file that a network was read from; None for a network of Python code."""
    of_graph = model.meta.get("file_names") if isinstance(model, torch.fx.GraphModule) else None
    found: FileNames | None = getattr(model, "names_in_file", of_graph)
    return found


def has_samples_first(model: nn.Module) -> bool:
    """Whether the samples are in the first dimension of all inputs."""
    return not any(any(hook.dims) for hook in _flattening(model).values())


def with_own_outputs(model: nn.Module) -> nn.Module:
    """Make an adapted model return what the user's code returns in eval mode, too; in place."""
    for key in _flattening(model):
        del model._forward_hooks[key]
    for key, hook in model._forward_hooks.items():
        if isinstance(hook, _Rebuild):
            model._forward_hooks[key] = replace(hook, always=True)
    return model


def rebuilding(model: nn.Module, structure: Structure | None) -> nn.Module:
    """Make a model that returns tensors return them as the user's model does in training mode, in place."""
    if structure is not None:
        model.register_forward_hook(_Rebuild(structure))
    return model


def structure_of(model: nn.Module, inputs: tuple[Tensor, ...]) -> Structure | None:
    """The structure of what the user's model returns in eval mode; None if it returns no tensor."""
    hooks = _flattening(model)
    try:
        with torch.no_grad():
            outputs = with_own_outputs(model).eval()(*inputs)
    finally:
        model._forward_hooks.update(hooks)
    return Structure.of(outputs) if tensors(outputs) else None


def batch_dims_of(model: nn.Module, inputs: tuple[Tensor, ...], dims: tuple[int, ...]) -> tuple[int, ...]:
    """The dimension of each output that holds the samples: the one that doubles with them.

    Args:
        model: an adapted model; a copy of it is called.
        inputs: example inputs.
        dims: the dimension of each input that holds the samples.

    Returns:
        A dimension for each output. It is 0 if none doubles, or if the model accepts one batch size only.
    """
    tried = copy.deepcopy(model).eval()
    twice = tuple(torch.cat([tensor, tensor], dim) for tensor, dim in zip(inputs, dims, strict=True))
    with torch.no_grad():
        once = tensors(tried(*inputs))
        try:
            double = tensors(tried(*twice))
        except (RuntimeError, ValueError, IndexError, AssertionError):
            return (0,) * len(once)
    return tuple(
        next((dim for dim, size in enumerate(a.shape) if a.ndim == b.ndim and b.shape[dim] == 2 * size), 0)
        for a, b in zip(once, double, strict=True)
    )


def _flattening(model: nn.Module) -> dict[int, _Flatten]:
    return {key: hook for key, hook in model._forward_hooks.items() if isinstance(hook, _Flatten)}


def _by_position(known: type[nn.Module], names: tuple[str, ...]) -> type[nn.Module]:
    """A subclass whose forward takes these arguments by position. Exporters read its signature."""

    class ByPosition(known):  # type: ignore[valid-type, misc]
        input_names = names

        def forward(self, *inputs: Any, **named: Any) -> Any:
            given = dict(zip(names, inputs, strict=True)) if inputs else {}  # the user's code may give names
            return super().forward(**given, **named)

    ByPosition.__name__ = known.__name__
    return ByPosition


@dataclass(frozen=True)
class _Flatten:
    """A hook after the model's forward."""

    dims: tuple[int, ...]

    def __call__(self, module: nn.Module, args: tuple[Any, ...], outputs: Any) -> Any:
        if module.training or isinstance(outputs, Tensor):
            return outputs
        found = tensors(outputs)
        return tuple(found) if len(found) > 1 else found[0] if found else outputs


@dataclass(frozen=True)
class _Rebuild:
    """A hook after the forward of an exported graph, which returns tensors only."""

    structure: Structure
    always: bool = False

    def __call__(self, module: nn.Module, args: tuple[Any, ...], outputs: Any) -> Any:
        return self.structure.rebuilt(tensors(outputs)) if module.training or self.always else outputs
