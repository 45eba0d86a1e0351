"""Torch-Pruning on the same networks, used as in its first example."""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from edgeprune.network import weights
from edgeprune.network.outputs import tensors
from edgeprune.network.survey import randomised
from edgeprune.records import Groups


def torch_pruning(model: nn.Module, inputs: tuple[Tensor, ...], groups: Groups) -> str:
    """Cut half of everything by Torch-Pruning's own pruner, except output layers.

    Does the network run? Does it compute the same as the original with the same channels at zero?
    """
    try:
        cut, masked = randomised(model), randomised(model)
    except Exception as error:  # noqa: BLE001
        return f"no: {type(error).__name__} while copying"
    outputs = [g.name for g in groups.groups if (g.locked or "").startswith("output of the model")]
    ignored = [cut.get_submodule(name) for name in outputs if dict(cut.named_modules()).get(name)]
    names = {id(module): path for path, module in cut.named_modules()}
    removed = Removed(masked, names)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importance = tp.importance.MagnitudeImportance(p=2)
            given = inputs if len(inputs) > 1 else inputs[0]
            pruner = tp.pruner.MagnitudePruner(cut, given, importance, pruning_ratio=0.5, ignored_layers=ignored)
            before = weights.count_parameters(cut)
            for group in pruner.step(interactive=True):
                for dependency, indices in group:
                    removed.note(dependency, indices, pruner.DG)
                group.prune()
    except Exception as error:  # noqa: BLE001 - its error is the answer
        return f"no: {type(error).__name__} while tracing or cutting"
    if weights.count_parameters(cut) == before:
        return "no: cuts nothing"
    try:
        with torch.no_grad():
            got, expected = tensors(cut(*inputs)), tensors(masked(*inputs))
    except Exception as error:  # noqa: BLE001
        return f"no: {type(error).__name__} in the pruned network's forward"
    if not removed.known:
        return "runs"
    same = all(
        a.shape == b.shape and torch.allclose(a, b, atol=1e-4 * float(b.abs().max()))
        for a, b in zip(got, expected, strict=True)
    )
    return "yes" if same else "runs, but differs"


class Removed:
    """Sets to zero in the original what Torch-Pruning removes from the copy. Its indices count earlier removals."""

    def __init__(self, masked: nn.Module, names: dict[int, str]) -> None:
        self.masked, self.names, self.known = masked, names, True
        self._remaining: dict[tuple[str, int], list[int]] = {}

    def note(self, dependency: Any, indices: list[int], graph: Any) -> None:
        layer = dependency.target.module
        path = self.names.get(id(layer))
        out = graph.is_out_channel_pruning_fn(dependency.handler)
        transposed = isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)
        match layer:
            case nn.Conv1d() | nn.Conv2d() | nn.Conv3d() if layer.groups == 1 or layer.groups == layer.in_channels:
                dim = 0 if out or layer.groups > 1 else 1
            case nn.ConvTranspose2d() if layer.groups == 1:
                dim = 1 if out else 0
            case nn.Linear():
                dim = 0 if out else 1
            case nn.modules.batchnorm._BatchNorm() | nn.LayerNorm() | nn.GroupNorm():
                dim, out = 0, True
            case nn.Embedding():
                dim, out = 1, False
            case _ if type(layer).__module__.startswith("torch_pruning"):
                return  # its own nodes for reshapes, concatenations and element-wise operators
            case _:
                self.known = False
                return
        if path is None:
            self.known = False
            return
        self._zero(path, "weight", dim, indices)
        if (out or (dim == 0 and not transposed)) and getattr(layer, "bias", None) is not None:
            self._zero(path, "bias", 0, indices)

    def _zero(self, path: str, name: str, dim: int, indices: list[int]) -> None:
        parameter = getattr(self.masked.get_submodule(path), name)
        remaining = self._remaining.setdefault((f"{path}.{name}", dim), list(range(parameter.shape[dim])))
        original = [remaining[i] for i in indices]
        self._remaining[f"{path}.{name}", dim] = [i for i in remaining if i not in set(original)]
        with torch.no_grad():
            parameter.index_fill_(dim, torch.tensor(original, dtype=torch.long), 0)
