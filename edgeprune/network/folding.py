"""Fold batch-norms into the layers before them, where that changes nothing that is computed."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from edgeprune.errors import CutError
from edgeprune.graph.editable import GraphNetwork, fold_graph
from edgeprune.network.prove import prove

Folds = tuple[tuple[str, str], ...]  # paths of (layer, batch-norm)


def fold(model: nn.Module, folds: Sequence[tuple[str, str]]) -> nn.Module:
    """Fold batch-norms into the layers before them.

    Args:
        model: The network. It stays unchanged.
        folds: Paths of (layer, batch-norm). Pairs in a removed block are skipped.

    Returns:
        A copy in eval mode.
    """
    if isinstance(model, GraphNetwork):
        return fold_graph(model, folds)
    model = copy.deepcopy(model).eval()
    there = dict(model.named_modules()).keys()
    for layer_path, norm_path in folds:
        if not {layer_path, norm_path} <= there:
            continue
        layer, norm = model.get_submodule(layer_path), model.get_submodule(norm_path)
        model.set_submodule(layer_path, _fused(layer, norm))
        model.set_submodule(norm_path, nn.Identity())
    return model


def _fused(layer: nn.Module, norm: Any) -> nn.Module:
    if isinstance(layer, nn.Linear):
        return fuse_linear_bn_eval(layer, norm)
    assert isinstance(layer, _ConvNd)
    return fuse_conv_bn_eval(layer, norm, transpose=isinstance(layer, _ConvTransposeNd))


def sound(model: nn.Module, folds: Folds, inputs: tuple[Tensor, ...]) -> Folds:
    """The folds after which a network computes the same.

    The user's code may read a layer's weight without its bias, or an attribute of a batch-norm. Such a pair is not folded.
    """
    if not folds or _is_sound(model, folds, inputs):
        return folds
    return tuple(pair for pair in folds if _is_sound(model, (pair,), inputs))


def _is_sound(model: nn.Module, folds: Folds, inputs: tuple[Tensor, ...]) -> bool:
    try:
        prove(model, fold(model, folds), {}, inputs)
    except (CutError, RuntimeError, AssertionError):  # the last two are torch's, about shapes that do not fit
        return False
    return True
