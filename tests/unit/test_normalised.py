"""Channels that a mean or a normalisation is taken over are cut: the statistic is then taken over what remains."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgeprune.errors import CutError
from edgeprune.graph.editable import as_graph
from edgeprune.graph.groups import make_recipe
from edgeprune.network.cut import cut, cut_as_is, formed, provable, sliced
from edgeprune.network.importance import CRITERIA
from edgeprune.network.prove import masked
from edgeprune.network.survey import randomised, survey
from edgeprune.records import Group, Groups

WIDTH = 12


class RMSNorm(nn.Module):
    """As Llama writes it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class ByHand(nn.Module):
    """Layer norm written out, with a sum of squares."""

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        return x / (x.square().sum(-1, keepdim=True) / x.shape[-1] + 1e-5).sqrt()


class OfChannels(nn.Module):
    """Group norm over the channels of (batch, length, channels)."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.transpose(1, 2)).transpose(1, 2)


class Response(nn.Module):
    """Global response normalisation, as in ConvNeXt V2."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        size = torch.linalg.vector_norm(x, ord=2, dim=1, keepdim=True)
        return x + self.weight * x * size / (size.mean(-1, keepdim=True) + 1e-6)


class Extremes(nn.Module):
    """The largest and the mean channel, as in the spatial attention of CBAM."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x.max(-1, keepdim=True)[0] + x.mean(-1, keepdim=True) - x.amin(-1, keepdim=True))


NORMS: dict[str, Callable[[], nn.Module]] = {
    "layer norm": lambda: nn.LayerNorm(WIDTH),
    "layer norm without weights": lambda: nn.LayerNorm(WIDTH, elementwise_affine=False),
    "RMS norm": lambda: nn.RMSNorm(WIDTH),
    "RMS norm, written out": lambda: RMSNorm(WIDTH),
    "layer norm, written out": ByHand,
    "group norm of one group": lambda: OfChannels(1),
    "group norm of three groups": lambda: OfChannels(3),
    "global response": Response,
    "extremes": Extremes,
}


class Encoder(nn.Module):
    """Tokens with a class token and positions, two residual layers after a norm each, and a head."""

    def __init__(self, norm: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.embed, self.token, self.place = (
            nn.Embedding(20, WIDTH),
            *(nn.Parameter(torch.randn(1, n, WIDTH)) for n in (1, 6)),
        )
        self.norms = nn.ModuleList(norm() for _ in range(3))
        self.into = nn.ModuleList(nn.Linear(WIDTH, 8) for _ in range(2))
        self.out = nn.ModuleList(nn.Linear(8, WIDTH) for _ in range(2))
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(tokens.shape[0], -1, -1), self.embed(tokens)], 1) + self.place
        for norm, into, out in zip(self.norms, self.into, self.out, strict=False):
            x = x + out(F.gelu(into(norm(x))))
        return self.head(self.norms[-1](x).mean(1))


def tokens(samples: int = 2) -> tuple[Tensor]:
    return (torch.randint(20, (samples, 5), generator=torch.Generator().manual_seed(0)),)


def encoder(name: str) -> nn.Module:
    torch.manual_seed(0)
    return Encoder(NORMS[name]).eval()


def stream(groups: Groups) -> list[Group]:
    """The free groups that own channels of the embedding."""
    return [group for group in groups.free if any(slot.parameter == "embed.weight" for slot in group.slots)]


@cache
def surveyed(name: str) -> Groups:
    return survey(encoder(name), tokens())


@cache
def whole(name: str) -> tuple[nn.Module, nn.Module]:
    """The network, and what its cuts are compared with. Tests must not change them."""
    model = formed(randomised(encoder(name)), surveyed(name), tokens())
    return model, provable(model, surveyed(name), tokens())


@pytest.mark.parametrize("name", NORMS)
def test_the_whole_width_of_a_residual_stream_is_a_group(name: str) -> None:
    found = stream(surveyed(name))
    three = "three" in name  # the groups of the norm, and the positions inside them
    assert sorted(group.width for group in found) == ([3, WIDTH // 3] if three else [WIDTH])
    assert any(group.normalised for group in found)
    owned = {slot.parameter for group in found for slot in group.slots}
    assert {"embed.weight", "token", "place", "into.0.weight", "out.0.weight", "head.weight"} <= owned


@settings(max_examples=12, deadline=None)
@given(name=st.sampled_from(sorted(NORMS)), data=st.data())
def test_a_cut_equals_the_original_with_statistics_over_what_remains(name: str, data: st.DataObject) -> None:
    groups, (model, compared) = surveyed(name), whole(name)
    keep = {
        group.name: sorted(data.draw(st.sets(st.integers(0, group.width - 1), min_size=1))) for group in groups.free
    }
    pruned = cut_as_is(model, make_recipe(groups, keep), tokens(), compared)
    assert pruned(*tokens(3)).shape == (3, 4)


def test_a_norm_over_zeros_is_not_what_a_cut_is_compared_with() -> None:
    """The proof with statistics over all channels fails, and that over what remains holds."""
    groups, model = surveyed("layer norm"), randomised(encoder("layer norm"))
    recipe = make_recipe(groups, {stream(groups)[0].name: range(0, WIDTH, 2)})
    with pytest.raises(CutError):
        cut_as_is(model, recipe, tokens())
    cut_as_is(model, recipe, tokens(), provable(model, groups, tokens()))


def test_the_masked_graph_of_a_layer_norm_is_right() -> None:
    """Computed by hand: the norm of the channels that remain, and zero at the removed ones."""

    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.b = nn.Linear(3, 6), nn.LayerNorm(6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.norm(self.a(x)))

    torch.manual_seed(0)
    model, inputs = randomised(Normalised()), (torch.randn(4, 3),)
    kept = [0, 1, 4]
    got = masked(as_graph(model, inputs), make_recipe(survey(model, inputs), {"a": kept}))(*inputs)
    a = model.get_submodule("a")(*inputs)[:, kept]
    norm = F.layer_norm(a, [3], model.get_parameter("norm.weight")[kept], model.get_parameter("norm.bias")[kept])
    want = norm @ model.get_parameter("b.weight")[:, kept].T + model.get_parameter("b.bias")
    assert torch.allclose(got, want, atol=1e-6)


def test_a_module_keeps_its_class_after_a_cut_of_its_stream() -> None:
    groups, model = surveyed("layer norm"), randomised(encoder("layer norm"))
    assert groups.form == "module"
    small = sliced(model, make_recipe(groups, {stream(groups)[0].name: [1, 4, 5]}))
    assert isinstance(small, Encoder) and small.embed.embedding_dim == 3
    assert all(norm.normalized_shape == (3,) for norm in small.norms)


def test_the_loss_of_a_cut_stream_is_measured_on_the_cut_network() -> None:
    """Channels that no layer reads cost nothing, which a norm over zeros would hide."""
    model = randomised(encoder("RMS norm"))
    with torch.no_grad():  # neighbours are copies of one another, and only one of them is read
        for name, parameter in model.named_parameters():
            if name.startswith(("into", "head")) and parameter.ndim == 2:
                parameter[:, ::2] = 0
            elif name in ("embed.weight", "token", "place"):
                parameter[..., ::2] = parameter[..., 1::2]
            elif name.startswith("out"):
                parameter[::2] = parameter[1::2]
    groups = surveyed("RMS norm")
    unread = make_recipe(groups, {stream(groups)[0].name: range(1, WIDTH, 2)})
    batches = [((given,), model(given).detach()) for given in (torch.randint(20, (16, 5)) for _ in range(8))]
    scores = CRITERIA["loss-curves"](model, groups, batches, F.mse_loss)
    over_zeros = F.mse_loss(masked(model, unread)(*batches[0][0]), batches[0][1])
    assert 0 <= scores.curves[stream(groups)[0].name][WIDTH // 2 - 1] < 0.1 * float(over_zeros.detach())


def test_a_norm_may_follow_a_norm() -> None:
    """As between the stages of SegFormer."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.LayerNorm(8), nn.Linear(8, 3))
    x = (torch.randn(4, 6),)
    groups = survey(net, x)
    assert [group.width for group in groups.free] == [8]
    cut(randomised(net), make_recipe(groups, {groups.free[0].name: (0, 3, 5)}), x)
