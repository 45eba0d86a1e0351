"""Attention that may be narrower than its embedding, which `nn.MultiheadAttention` cannot be, and stands in for it."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def opened(model: nn.Module) -> nn.Module:
    """`model`, or a copy in which every `nn.MultiheadAttention` is an `Attention` of the same parameters, names and results.

    So its heads can be cut; and PyTorch's transformer layers, which call a kernel of their own in eval mode, be exported.
    (`nn.TransformerEncoder` leaves out what is padded in eval mode, and answers zeros there: not so here, nor in training.)
    Those with a bias of their own for keys (`add_bias_kv`) or with `add_zero_attn` stay what they are, and so do subclasses.
    """
    if not any(map(_can_be_opened, model.modules())):
        return model
    model = copy.deepcopy(model)
    for module in model.modules():
        if _can_be_opened(module):
            Attention.become(module)  # the same object, so that a module used in two places stays one, with its hooks
        elif isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0  # what its kernel is called for, and nothing else
        elif isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
    return model


def _can_be_opened(module: nn.Module) -> bool:
    return type(module) is nn.MultiheadAttention and module.bias_k is None and not module.add_zero_attn


class Attention(nn.MultiheadAttention):
    """`num_heads` heads of `head_dim` each, whatever the embedding's size, scaled as they were before a cut."""

    scale: float

    @classmethod
    def become(cls, module: nn.Module) -> None:
        """Make one of an `nn.MultiheadAttention`."""
        assert isinstance(module, nn.MultiheadAttention)
        module.__class__ = cls
        assert isinstance(module, cls)
        module.scale = module.head_dim**-0.5

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As `nn.MultiheadAttention.forward`, whose `is_causal` is a hint about `attn_mask` only."""
        batched = query.ndim == 3
        if is_causal and attn_mask is None:
            raise ValueError("is_causal is a hint about attn_mask, and there is none")
        q, k, v = (self._heads(x, batched) for x in self._projected(query, key, value))
        mask = self._mask(attn_mask, key_padding_mask, q, k, batched)
        weights = None
        if need_weights:
            scores = self.scale * q @ k.transpose(-2, -1)
            weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), self.dropout, self.training)
            out = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if batched else weights[0]
        else:
            rate = self.dropout if self.training else 0.0
            out = F.scaled_dot_product_attention(q, k, v, mask, rate, scale=self.scale)
        # Not the module itself: torch's own does not call it, nor the hooks on it.
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

    def _mask(
        self, of_places: Tensor | None, of_keys: Tensor | None, q: Tensor, k: Tensor, batched: bool
    ) -> Tensor | None:
        """What is added to the scores: (batch or 1, heads or 1, queries or 1, keys)."""
        (samples, heads, queries, _), keys, found = q.shape, k.shape[2], None
        if of_places is not None:
            alone = of_places.ndim == 2
            _require(of_places, (queries, keys) if alone else (samples * heads, queries, keys), "attn_mask")
            found = _added(of_places, q.dtype)
            found = found[None, None] if alone else found.view(samples, heads, queries, keys)
        if of_keys is not None:
            of_keys = of_keys if batched else of_keys[None]
            _require(of_keys, (samples, keys), "key_padding_mask")
            added = _added(of_keys, q.dtype)[:, None, None]
            found = added if found is None else found + added
        return found


def _require(mask: Tensor, shape: tuple[int, ...], name: str) -> None:
    if tuple(mask.shape) != shape or not (mask.dtype == torch.bool or mask.is_floating_point()):
        raise ValueError(f"{name} is {mask.dtype} {tuple(mask.shape)}; give bool or real numbers of {shape}")


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask that says True where nothing may be looked at, as numbers to add; one of numbers as it is."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(mask, float("-inf"))
