"""Compare a network with its Keras model, on one sample."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgeprune.frontends.keras.build import functional
from edgeprune.frontends.keras.modules import PaddedMean

TOLERANCE = 1e-4  # of the largest output; the rounding of single precision is near 1e-6
HALF_TOLERANCE = 2e-2  # likewise, of a model that computes in half precision; the network computes in single


def examples(model: Any) -> tuple[Tensor, ...]:
    """One sample for each input: random numbers from 0 to 1, or zeros if they are integers; () if a size is open.

    Where zeros do not count, the first half of the integers is one. So it is of booleans, which mostly are masks.
    """
    random = torch.Generator().manual_seed(0)
    if any(size is None for tensor in model.inputs for size in tensor.shape[1:]):
        return ()
    masks = any(getattr(layer, "mask_zero", False) for layer in model._flatten_layers())
    return tuple(
        torch.rand(1, *tensor.shape[1:], generator=random)
        if tensor.dtype.startswith(("float", "bfloat"))
        else _integers(tuple(tensor.shape[1:]), masks or tensor.dtype == "bool", tensor.dtype)
        for tensor in model.inputs
    )


def _integers(shape: tuple[int, ...], masks: bool, dtype: str) -> Tensor:
    found = torch.zeros(1, *shape, dtype=torch.bool if dtype == "bool" else torch.int32)
    if masks and shape:
        found[..., : -(-shape[-1] // 2)] = 1
    return found


def difference(model: Any, module: nn.Module) -> str | None:
    """How the outputs of the network differ from those of the Keras model; None if they are equal or cannot be compared.

    Average pools with uneven padding are not compared: on torch, Keras counts the border twice, and on other backends not.
    """
    from keras import tree

    given = examples(model)
    if not given or any(isinstance(one, PaddedMean) for one in module.modules()):
        return None
    with torch.no_grad():
        expected = tree.flatten(
            model(tree.pack_sequence_as(functional(model)._inputs_struct, list(given)), training=False)
        )
        results = module(*given)
    halves = any("16" in str(layer.compute_dtype) for layer in model._flatten_layers())
    for one, other in zip(expected, results if isinstance(results, tuple) else (results,), strict=True):
        if one.shape != other.shape:
            return f"its output is {tuple(other.shape)} instead of {tuple(one.shape)}"
        one = one.cpu().float()
        scale = one.abs().max().clamp(min=1e-12)
        most = HALF_TOLERANCE if halves else TOLERANCE
        if not torch.allclose(one / scale, other / scale, rtol=0, atol=most, equal_nan=True):
            return f"its output differs by {float((one - other).abs().max() / scale):.1e} of the largest value"
    return None
