"""Memory layouts of image channels."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils import convert_conv2d_weight_memory_format

from edgeprune.network.outputs import tensors


def channels_last(model: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    """Convert a model to channels-last memory in place if it supports that. Most convolutions are faster then.

    The layout of the weights determines the layout of the activations. A model keeps its layout in two cases:

    - It fails on a trial copy, as code that uses `view` may.
    - It would return channels-last outputs to the user's code.
    """
    trial = convert_conv2d_weight_memory_format(copy.deepcopy(model), torch.channels_last)
    try:
        outputs = tensors(trial.train()(*inputs))
        sum(output.sum() for output in outputs if output.requires_grad).backward()  # type: ignore[union-attr]
        with torch.no_grad():
            outputs += tensors(trial.eval()(*inputs))
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, AssertionError):
        return model  # any other fault shows in training
    if not all(output.is_contiguous() for output in outputs):
        return model
    return convert_conv2d_weight_memory_format(model, torch.channels_last)


def channels_first(model: nn.Module) -> nn.Module:
    """Convert a model to PyTorch's default memory layout in place."""
    return convert_conv2d_weight_memory_format(model, torch.contiguous_format)
