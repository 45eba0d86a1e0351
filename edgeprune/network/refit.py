"""Refit the dense layers of a pruned network by least squares.

The remaining channels of a layer predict the removed ones, and its weights can absorb that prediction. The refitted layer
comes nearest to the outputs of the original one (He et al., Channel pruning, ICCV 2017).

The same moments rank the units of a group. A unit costs little if the others predict it, weighted by what the layer makes
of it. This is the optimal brain surgeon (Hassibi and Stork 1993) on units (ZipLM, Kurtic et al., NeurIPS 2023).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from edgeprune.network.moments import TINY, Moments
from edgeprune.network.observe import DenseCall, DenseLayer, Reference, run
from edgeprune.records import Group, Recipe, Slot

ROUNDS = 64  # in which the units of a group are removed


def removal_losses(
    model: nn.Module, group: Group, reference: Reference, moments: Mapping[str, Moments]
) -> dict[int, float]:
    """Remove all units of a group, cheapest first, and return the loss of each removal.

    The loss is the rise of the squared error of the layers that read the group, refitted after every removal, relative to
    the layers' outputs.

    Args:
        model: The original network.
        group: The group.
        reference: What the dense layers of `model` read.
        moments: The moments of the layers that read the group, by weight.

    Returns:
        `{unit: loss}`, in the order of removal. Empty if no dense layer reads the group.
    """
    weights = dict(model.named_parameters())
    readers = [_Reader(weights[s.parameter].detach(), s, moments[s.parameter]) for s in reference.readers(group)]
    losses: dict[int, float] = {}
    remaining = torch.arange(group.width if readers else 0)
    while len(remaining):
        rises = torch.stack([reader.rises(remaining) for reader in readers]).sum(0)
        cheapest = rises.argsort(stable=True)[: max(1, group.width // ROUNDS)]
        removed = remaining[cheapest]
        losses |= zip(removed.tolist(), rises[cheapest].tolist(), strict=True)
        for reader in readers:
            reader.remove(removed)
        remaining = remaining[~torch.isin(remaining, removed)]
    return losses


def refit_sequentially(model: nn.Module, pruned: nn.Module, recipe: Recipe, reference: Reference) -> nn.Module:
    """Refit every dense layer to reproduce its original outputs from what it reads in the refitted network.

    One forward pass refits each layer when it reaches it. So each layer also compensates the errors of earlier layers. This
    gives the best network without training. A layer with several calls is refitted before, as in `refit_separately`, since
    what it reads at a later call may depend on itself.

    Args:
        model: The original network.
        pruned: The network that `recipe` cuts from it.
        recipe: The kept indices of each parameter.
        reference: What the dense layers of `model` read.

    Returns:
        A refitted copy, or `pruned` itself if the copy's outputs are not nearer to the original's on held-out samples.
    """
    refitted = copy.deepcopy(pruned)
    several = {name: layer for name, layer in reference.layers.items() if layer.calls > 1}
    _refit_alone(several, model, refitted, recipe)

    def refit(call: DenseCall) -> None:
        layer = reference.layers.get(call.weight)
        # It has several calls, or its channels are another layer's positions.
        if layer is None or call.positions != layer.positions:
            return
        moments = Moments.of(call.rows(len(layer.rows)), layer.rows, bool(layer.bias))
        _refit(call.weight, layer, moments, model, refitted, recipe)

    run(refitted, reference.inputs, refit, reference.call)
    return _nearer(refitted, pruned, reference)


def refit_separately(model: nn.Module, pruned: nn.Module, recipe: Recipe, reference: Reference) -> nn.Module:
    """Refit each dense layer that reads fewer channels as if all earlier layers were unchanged.

    The result is further from the original than that of `refit_sequentially`, but a better start of training. No layer is
    bent to compensate errors of earlier layers, which training fixes where they arise.

    Args and returns as `refit_sequentially`.
    """
    refitted = copy.deepcopy(pruned)
    _refit_alone(reference.layers, model, refitted, recipe)
    return _nearer(refitted, pruned, reference)


def _refit_alone(layers: Mapping[str, DenseLayer], model: nn.Module, pruned: nn.Module, recipe: Recipe) -> None:
    """Refit layers of `pruned` that read fewer channels, in place, each as if all other layers were unchanged."""
    names = {name for name, _ in pruned.named_parameters()}
    for name, layer in layers.items():
        if name in names and layer.dim in recipe.get(name, {}):
            _refit(name, layer, layer.moments().of_kept(recipe[name][layer.dim]), model, pruned, recipe)


def _refit(name: str, layer: DenseLayer, moments: Moments, model: nn.Module, pruned: nn.Module, recipe: Recipe) -> None:
    """Refit one layer of `pruned` in place, from its weights in the original network."""
    dims, dim, own = recipe.get(name, {}), layer.dim, pruned.get_parameter(name)
    weight = model.get_parameter(name).detach()
    for other, kept in dims.items():
        if other != dim:
            weight = weight.index_select(other, torch.tensor(kept, dtype=torch.long))
    bias = pruned.get_parameter(layer.bias) if layer.bias else None
    new, added = moments.refitted(weight, dim, bias, dims.get(dim, range(weight.shape[dim])))
    own.data.copy_(new)
    if bias is not None and added is not None:
        bias.data.copy_(added)


def _nearer(refitted: nn.Module, pruned: nn.Module, reference: Reference) -> nn.Module:
    return refitted if _distance(refitted, reference) < _distance(pruned, reference) else pruned


def _distance(candidate: nn.Module, reference: Reference) -> float:
    """Squared distance of a network's outputs from the original's, on held-out samples."""
    inputs, outputs = reference.held_out
    return sum(
        float((a.double() - b.double()).square().sum())
        for a, b in zip(run(candidate, inputs, call=reference.call), outputs, strict=True)
    )


class _Reader:
    """A layer that reads a group's channels, refitted after each removal of units.

    `inverse` is the inverse of the moments of its channels, `products` are the products of its weights. Both are
    (channels, channels).
    """

    def __init__(self, weight: Tensor, slot: Slot, moments: Moments) -> None:
        rows = weight.movedim(slot.dim, 0).flatten(1).double()
        self.indices = torch.tensor(slot.indices, dtype=torch.long)  # (units, channels of each)
        self.inverse = torch.linalg.inv(moments.ridged)
        self.products = rows @ rows.T
        self.energy = float((self.products * moments.gram).sum()) + TINY

    def rises(self, units: Tensor) -> Tensor:
        """The relative rise of the squared error for the removal of each unit, w·(H⁻¹)⁻¹·w: (units,)."""
        own = self.indices[units]
        among = own[:, :, None], own[:, None, :]
        lost = torch.linalg.solve(self.inverse[among], self.products[among])
        rises: Tensor = lost.diagonal(dim1=1, dim2=2).sum(1) / self.energy
        return rises

    def remove(self, units: Tensor) -> None:
        """Remove `units`, and add what the other channels predict of them to the weights of those."""
        gone = self.indices[units].flatten()
        share = torch.linalg.solve(self.inverse[gone][:, gone], self.inverse[gone])  # (gone, channels)
        moved = share.T @ self.products[gone]
        self.products += share.T @ self.products[gone][:, gone] @ share - moved - moved.T
        self.inverse -= self.inverse[:, gone] @ share
