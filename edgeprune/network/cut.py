"""Cut a network: slice its parameters to the kept indices, replace removed blocks, and prove the result."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from edgeprune.errors import CutError
from edgeprune.graph.editable import GraphNetwork, as_graph, resize
from edgeprune.graph.trace import canonical_names
from edgeprune.network.adapter import file_names, input_names, rebuilding, structure_of
from edgeprune.network.attention import opened
from edgeprune.network.preprocessing import preprocess_of
from edgeprune.network.prove import prove
from edgeprune.network.sizes import kept_outputs, qualified, update_heads, update_sizes
from edgeprune.records import Groups, Recipe


def cut(model: nn.Module, recipe: Recipe, inputs: tuple[Tensor, ...]) -> nn.Module:
    """Cut a copy of `model` and prove it against the masked original.

    Cutting channels must equal setting them to zero (DepGraph's consistency, here checked numerically). The outputs must
    agree to 1e-4 of the largest output.

    The result is a module of the user's class. If the user's code fixes a size, it is the exported graph (`graph.editable`).

    Args:
        model: The original network. It stays unchanged.
        recipe: The indices to keep of each parameter, from `graph.groups.make_recipe`.
        inputs: Example inputs for the proof.

    Returns:
        The pruned network.

    Raises:
        CutError: The pruned network and the masked original differ. The message says how.

    Example:
        >>> groups = survey(model, inputs)
        >>> pruned = cut(model, make_recipe(groups, {"conv1": [0, 2, 5]}), inputs)
    """
    if isinstance(model, GraphNetwork):
        return cut_as_is(model, recipe, inputs)
    try:
        return cut_as_is(model, recipe, inputs)
    except CutError as error:
        try:
            graph = graph_of(model, inputs)
        except CutError:
            raise error from None
        with suppress(CutError):
            return cut_as_is(model, recipe, inputs, graph)
        return cut_as_is(graph, recipe, inputs)


def cut_as_is(
    model: nn.Module, recipe: Recipe, inputs: tuple[Tensor, ...], original: nn.Module | None = None
) -> nn.Module:
    """See `cut`. The result is of the model's class. It is compared with `original`, the model or its graph."""
    pruned = sliced(model, recipe)
    prove(original or opened(model), pruned, recipe, inputs)
    return pruned


def provable(model: nn.Module, groups: Groups, inputs: tuple[Tensor, ...]) -> nn.Module:
    """The form of a model that a cut is compared with: its graph if a mean or a normalisation is taken over a group.

    Raises:
        CutError: The model has no such graph.
    """
    if isinstance(model, GraphNetwork) or not any(group.normalised for group in groups.free):
        return model
    return as_graph(opened(model), inputs, free_batch=False)


def sliced(model: nn.Module, recipe: Recipe) -> nn.Module:
    """Cut a copy of `model` without proving it. That is enough to measure latency.

    A removed block is replaced by `PassThrough`. In a graph, the sizes among its constants follow.
    """
    model = opened(model)
    pruned = copy.deepcopy(model)
    names = canonical_names(model)
    for path in recipe.keys() & dict(model.named_modules()).keys():
        pruned.set_submodule(path, PassThrough())
    done: dict[str, nn.Parameter] = {}  # parameters shared by several modules stay shared
    for path, module in pruned.named_modules():
        touched = False
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            canonical = names.get(qualified(path, name), "")  # a buffer may not be persistent
            dims = recipe.get(canonical)
            if not dims:
                continue
            if isinstance(tensor, nn.Parameter):
                if canonical not in done:
                    done[canonical] = nn.Parameter(_slice(tensor.detach(), dims), requires_grad=tensor.requires_grad)
                setattr(module, name, done[canonical])
            else:
                setattr(module, name, _slice(tensor, dims))
            touched = True
        if touched:
            weight = names.get(qualified(path, "weight"), "")
            update_sizes(module, model.get_submodule(path), recipe.get(weight, {}))
    if isinstance(pruned, GraphNetwork):
        resize(pruned, recipe)
        return pruned
    for path, module in pruned.named_modules():
        update_heads(module, *kept_outputs(model.get_submodule(path), path, names, recipe))
    return pruned


def formed(model: nn.Module, groups: Groups, inputs: tuple[Tensor, ...]) -> nn.Module:
    """The network in the form that its groups are cut in: itself, or its exported graph; see `Groups.form`."""
    return graph_of(model, inputs) if groups.form == "graph" else model


def graph_of(model: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    """The exported graph of an adapted model. In training mode it returns what the user's model returns in eval mode."""
    graph = as_graph(opened(model), inputs)
    graph.meta |= {"names": input_names(model), "file_names": file_names(model), "preprocess": preprocess_of(model)}
    return rebuilding(graph, structure_of(model, inputs))


class PassThrough(nn.Identity):
    """Stands in for a removed block: returns its first argument and ignores all others."""

    def forward(self, input: Tensor, *others: Any, **named: Any) -> Tensor:  # noqa: A002 - its name in nn.Identity
        """The first argument, unchanged."""
        return input


def _slice(tensor: Tensor, dims: Mapping[int, Sequence[int]]) -> Tensor:
    for dim, indices in dims.items():
        tensor = tensor.index_select(dim, torch.tensor(indices, dtype=torch.long))
    return tensor.clone()
