"""Preprocessing inside the network: scale and normalise the first input."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgeprune.graph.editable import GraphNetwork
from edgeprune.records import Preprocess


def preprocessed(model: nn.Module, preprocess: Preprocess) -> nn.Module:
    """Make a model scale and normalise its first input, in place. Its parameters keep their names.

    It adds a hook and two buffers that are in no state dict. Export, copies and cuts keep them.
    """
    model.register_buffer("preprocess_factor", torch.tensor(preprocess.factor), persistent=False)
    model.register_buffer("preprocess_shift", torch.tensor(preprocess.shift), persistent=False)
    model.register_forward_pre_hook(_Normalise(preprocess))
    return model


def preprocess_of(model: nn.Module) -> Preprocess | None:
    """The preprocessing that `preprocessed` added to a model, or None."""
    hooks = (hook for hook in model._forward_pre_hooks.values() if isinstance(hook, _Normalise))
    kept = model.meta.get("preprocess") if isinstance(model, GraphNetwork) else None  # it is part of the graph
    return next((hook.preprocess for hook in hooks), kept)


@dataclass(frozen=True)
class _Normalise:
    """The hook that `preprocessed` registers."""

    preprocess: Preprocess

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        first, *others = inputs
        factor, shift = module.get_buffer("preprocess_factor"), module.get_buffer("preprocess_shift")
        shape = (-1, *(1,) * (first.ndim - 2))
        return (first.float() * factor.view(shape) + shift.view(shape), *others)
