"""The replacement of nn.MultiheadAttention gives the same results."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgeprune.network.attention import Attention, opened
from edgeprune.network.survey import survey


def padding(batch: int, keys: int) -> Tensor:
    mask = torch.zeros(batch, keys, dtype=torch.bool)
    mask[0, -2:] = True
    return mask


CAUSAL = torch.triu(torch.ones(5, 5, dtype=torch.bool), 1)


@pytest.mark.parametrize(
    "made",
    [
        {},
        {"batch_first": True},
        {"bias": False},
        {"kdim": 6, "vdim": 10},
        {"add_bias_kv": True},
        {"add_zero_attn": True},
        {"add_bias_kv": True, "add_zero_attn": True, "batch_first": True},
    ],
)
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"need_weights": False},
        {"average_attn_weights": False},
        {"attn_mask": CAUSAL, "is_causal": True, "need_weights": False},
        {"attn_mask": torch.randn(5, 5)},
        {"attn_mask": torch.randn(8, 5, 5)},
        {"key_padding_mask": padding(2, 5)},
        {"key_padding_mask": padding(2, 5), "attn_mask": CAUSAL},
    ],
)
def test_results_equal_torch(made: dict[str, Any], given: dict[str, Any]) -> None:
    torch.manual_seed(0)
    own = nn.MultiheadAttention(8, 4, **made).eval()
    for name, parameter in own.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)  # torch initialises them with zeros
    x = torch.randn(*((2, 5) if own.batch_first else (5, 2)), 8)
    key, value = (torch.randn(*x.shape[:2], made[size]) if size in made else x for size in ("kdim", "vdim"))
    stand_in = opened(own)
    assert isinstance(stand_in, Attention) and stand_in.state_dict().keys() == own.state_dict().keys()
    for grad in (True, False):  # without gradients, torch uses its fused kernel
        with torch.set_grad_enabled(grad):
            results = stand_in(x, key, value, **given), own(x, key, value, **given)
        for got, wanted in zip(*results, strict=True):
            assert (got is None) == (wanted is None)
            if wanted is not None:
                torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize(
    "given",
    [
        {"attn_mask": torch.zeros(5, 5, dtype=torch.long)},
        {"attn_mask": torch.zeros(4, 5, 5)},
        {"attn_mask": torch.zeros(1, 5)},
        {"key_padding_mask": torch.zeros(2, 5, dtype=torch.uint8)},
        {"is_causal": True},
    ],
)
def test_invalid_masks_are_refused_as_in_torch(given: dict[str, Any]) -> None:
    own, x = nn.MultiheadAttention(8, 4, batch_first=True), torch.randn(2, 5, 8)
    with pytest.raises((RuntimeError, AssertionError)):
        own(x, x, x, **given)
    with pytest.raises(ValueError):
        opened(own)(x, x, x, **given)


def test_a_subclass_stays_unchanged() -> None:
    class Own(nn.MultiheadAttention):
        def __init__(self) -> None:
            super().__init__(8, 4)
            del self.in_proj_weight
            self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            parts = (layer(x).view(*x.shape[:2], 4, 2).transpose(1, 2) for layer in (self.query, self.key, self.value))
            y = nn.functional.scaled_dot_product_attention(*parts)
            return self.out_proj(y.transpose(1, 2).flatten(2))

    model = nn.Sequential(nn.Linear(3, 8), Own(), nn.Linear(8, 2))
    assert opened(model) is model
    assert {group.width for group in survey(model, (torch.randn(1, 5, 3),)).free} >= {8}


def test_a_single_sample_needs_no_batch_dimension() -> None:
    torch.manual_seed(0)
    own = nn.MultiheadAttention(8, 4).eval()
    query, keys = torch.randn(3, 8), torch.randn(5, 8)
    given = {"key_padding_mask": padding(1, 5)[0]}
    for got, wanted in zip(opened(own)(query, keys, keys, **given), own(query, keys, keys, **given), strict=True):
        torch.testing.assert_close(got, wanted)


def test_gradients_of_a_transformer_layer_equal_torch() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).train()
    x, results = torch.randn(2, 5, 8), []
    for module in (layer, opened(layer)):
        module.zero_grad()
        module(x).square().sum().backward()
        results.append([parameter.grad.clone() for parameter in module.parameters()])
    for wanted, got in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted)


def test_a_model_without_attention_stays_unchanged() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    assert opened(model) is model
    kept = nn.MultiheadAttention(8, 4)
    both = nn.ModuleList([kept, kept])
    copied = opened(both)
    assert copied[0] is copied[1] and type(both[0]) is nn.MultiheadAttention


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")  # torch's own
def test_unpadded_positions_equal_torchs_encoder() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2).eval()
    x, mask = torch.randn(2, 5, 8), padding(2, 5)
    with torch.no_grad():
        torch.testing.assert_close(
            opened(encoder)(x, src_key_padding_mask=mask)[~mask], encoder(x, src_key_padding_mask=mask)[~mask]
        )


def test_unused_attention_weights_tie_no_heads() -> None:
    class Default(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.fc = nn.MultiheadAttention(16, 4, batch_first=True), nn.Linear(16, 3)
            self.dense = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            x = self.dense(x)
            return self.fc((x + self.attention(x, x, x)[0]).mean(1))

    free = [group.width for group in survey(Default(), (torch.randn(1, 6, 16),)).free]
    assert sorted(free) == [4, 4, 16]
