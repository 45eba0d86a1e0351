"""An attention whose heads can be cut. It replaces `nn.MultiheadAttention`, whose code fixes their number and width."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from edgeprune.errors import UsageError
from edgeprune.network.computed import baked, copied, kept_with_gradient
from edgeprune.network.wrappers import unwrapped


def opened(model: nn.Module) -> nn.Module:
    """Prepare a model for cuts: weights are parameters (see `computed.baked`), and attention has heads that can be cut.

    Modules of torch that wrap a network are removed (see `wrappers.unwrapped`).

    Every `nn.MultiheadAttention` is replaced by an `Attention` with the same parameters, names and results.

    Heads can be cut then. PyTorch's transformer layers can be exported then, since they no longer call their fused kernel
    in eval mode. Exceptions:

    - An attention of a subclass stays unchanged.
    - In eval mode `nn.TransformerEncoder` returns zeros at padded positions. The replacement computes them, as in training.

    Args:
        model: Any module. It stays unchanged.

    Returns:
        A copy, or `model` if there is nothing to replace. The copy keeps no tensor from a call with gradients.

    Raises:
        UsageError: A parameter has no shape yet.
    """
    model = unwrapped(model)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise UsageError(f"{name} has no shape yet; call the model once first")
    model = baked(copied(model) if kept_with_gradient(model) else model)
    if not any(map(_can_be_opened, model.modules())):
        return model
    model = copy.deepcopy(model)
    for module in model.modules():
        if _can_be_opened(module):
            Attention.become(module)  # the same object, so a module used in two places stays one, with its hooks
        elif isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0  # disables the fused kernel, and has no other effect
        elif isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
    return model


def _can_be_opened(module: nn.Module) -> bool:
    return type(module) is nn.MultiheadAttention


@dataclass(frozen=True)
class _Options:
    """The optional arguments of `nn.MultiheadAttention.forward`, in its order and with its defaults."""

    key_padding_mask: Tensor | None = None
    need_weights: bool = True
    attn_mask: Tensor | None = None
    average_attn_weights: bool = True
    is_causal: bool = False


class Attention(nn.MultiheadAttention):
    """`num_heads` heads of width `head_dim`, for any embedding size. A cut does not change the scale."""

    scale: float

    @classmethod
    def become(cls, module: nn.Module) -> None:
        """Turn an `nn.MultiheadAttention` into an `Attention`, in place."""
        assert isinstance(module, nn.MultiheadAttention)
        module.__class__ = cls
        assert isinstance(module, cls)
        module.scale = module.head_dim**-0.5

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Compute attention, with the arguments and results of `nn.MultiheadAttention.forward`.

        As there, `is_causal` is only a hint about `attn_mask`.

        Raises:
            ValueError: A mask has the wrong shape or type, or `is_causal` is given without `attn_mask`.
        """
        options = _Options(*args, **kwargs)
        batched = query.ndim == 3
        if options.is_causal and options.attn_mask is None:
            raise ValueError("is_causal is a hint about attn_mask, which is missing")
        q, k, v = (self._heads(x, batched) for x in self._projected(query, key, value))
        mask = _mask(options, q, k, batched)
        k, v, mask = self._extended(k, self.bias_k), self._extended(v, self.bias_v), self._extended_mask(mask, options)
        weights = None
        if options.need_weights:
            scores = self.scale * q @ k.transpose(-2, -1)
            weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), self.dropout, self.training)
            out = weights @ v
            weights = weights.mean(1) if options.average_attn_weights else weights
            weights = weights if batched else weights[0]
        else:
            rate = self.dropout if self.training else 0.0
            out = F.scaled_dot_product_attention(q, k, v, mask, rate, scale=self.scale)
        # Like torch, this does not call the module out_proj, nor its hooks.
        out = F.linear(out.transpose(1, 2).flatten(2), self.out_proj.weight, self.out_proj.bias)
        if not batched:
            return out[0], weights
        return (out if self.batch_first else out.transpose(0, 1)), weights

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values of all heads."""
        if self.in_proj_weight is not None and query is key and key is value:
            return F.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
        if self.in_proj_weight is not None:
            parts = self.in_proj_weight.chunk(3)
        else:
            parts = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        return tuple(F.linear(x, *own) for x, *own in zip((query, key, value), parts, biases, strict=True))

    def _heads(self, x: Tensor, batched: bool) -> Tensor:
        """(batch, heads, length, width)."""
        x = x.view(*x.shape[:-1], self.num_heads, self.head_dim)
        if not batched:
            return x.transpose(0, 1)[None]
        return x.transpose(1, 2) if self.batch_first else x.permute(1, 2, 0, 3)

    def _extended(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Keys or values of all heads, with the learned one of `add_bias_kv` and the zeros of `add_zero_attn` as the last."""
        one = x[:, :, :1]
        parts = [x] if bias is None else [x, bias.view(1, self.num_heads, 1, self.head_dim).expand_as(one)]
        parts += [torch.zeros_like(one)] if self.add_zero_attn else []
        return torch.cat(parts, 2) if len(parts) > 1 else x

    def _extended_mask(self, mask: Tensor | None, options: _Options) -> Tensor | None:
        """A mask for these, too. They are seen, unless torch calls its causal kernel."""
        more = (self.bias_k is not None) + bool(self.add_zero_attn)
        causal = options.is_causal and options.key_padding_mask is None and not options.need_weights
        return mask if mask is None or not more else F.pad(mask, (0, more), value=float("-inf") if causal else 0.0)


def _mask(options: _Options, q: Tensor, k: Tensor, batched: bool) -> Tensor | None:
    """The sum of both masks, to be added to the scores: (batch or 1, heads or 1, queries or 1, keys)."""
    (samples, heads, queries, _), keys = q.shape, k.shape[2]
    found, of_places, of_keys = None, options.attn_mask, options.key_padding_mask
    if of_places is not None:
        shared = of_places.ndim == 2
        _require(of_places, (queries, keys) if shared else (samples * heads, queries, keys), "attn_mask")
        found = _additive(of_places, q.dtype)
        found = found[None, None] if shared else found.view(samples, heads, queries, keys)
    if of_keys is not None:
        of_keys = of_keys if batched else of_keys[None]
        _require(of_keys, (samples, keys), "key_padding_mask")
        added = _additive(of_keys, q.dtype)[:, None, None]
        found = added if found is None else found + added
    return found


def _require(mask: Tensor, shape: tuple[int, ...], name: str) -> None:
    if tuple(mask.shape) != shape or not (mask.dtype == torch.bool or mask.is_floating_point()):
        raise ValueError(f"{name} is {mask.dtype} {tuple(mask.shape)}; give booleans or real numbers of shape {shape}")


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A boolean mask (True: ignore this position) as numbers to add. A mask of numbers stays unchanged."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(mask, float("-inf"))
