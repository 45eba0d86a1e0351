"""Every rule against masking: cutting any free group must not change the outputs."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import NETS, conv, image, inputs_of
from torch import Tensor, nn

from edgeprune.graph import rules
from edgeprune.graph.groups import make_recipe
from edgeprune.network.cut import cut, cut_as_is, formed, provable
from edgeprune.network.survey import randomised, survey
from edgeprune.records import Groups

Op = Callable[[Tensor], Tensor]

# Operators between two convolutions, (1, 8, 8, 8) -> (1, channels, height, width).
BETWEEN: dict[str, Op] = {
    "flatten": lambda x: x.flatten(2).unflatten(2, (8, 8)),
    "reshape": lambda x: x.reshape(1, -1, 4, 16),
    "view": lambda x: x.view(1, -1, 64).view(1, -1, 8, 8),
    "squeeze": lambda x: x.unsqueeze(0).squeeze(0),
    "permute": lambda x: x.permute(0, 2, 3, 1).permute(0, 3, 1, 2),
    "transpose": lambda x: x.transpose(1, 3).swapaxes(1, 3),
    "movedim": lambda x: x.movedim(1, 3).movedim((3, 1), (1, 2)),
    "t": lambda x: x.flatten(1).t().t().unflatten(1, (-1, 8, 8)),
    "stack": lambda x: torch.stack([x, 2 * x], 2).flatten(2, 3),
    "cat": lambda x: torch.cat([x, x.relu()], 1),
    "hstack": lambda x: torch.hstack([x, x.relu()]),
    "column_stack": lambda x: torch.column_stack([x.relu(), x]),
    "vstack": lambda x: torch.vstack([x, x.relu()])[1:],
    "chunk": lambda x: x.chunk(2, 1)[0] + x.chunk(2, 1)[1],
    "split": lambda x: torch.cat(x.split(4, 1)[::-1], 1),
    "split_with_sizes": lambda x: torch.cat(x.split([2, 6], 1)[::-1], 1),
    "tensor_split": lambda x: x.tensor_split(2, 1)[1],
    "slice": lambda x: x[:, 2:, 1:, ::2],
    "narrow": lambda x: x.narrow(2, 1, 4),
    "select": lambda x: x[:, :, 3].unsqueeze(2),
    "unbind": lambda x: torch.cat([part.unsqueeze(2) for part in x.unbind(2)[:3]], 2),
    "index": lambda x: x[:, :, torch.tensor([3, 1, 1])],
    "index of channels": lambda x: x[:, torch.tensor([3, 1, 1])],
    "index_select": lambda x: x.index_select(3, torch.tensor([0, 5])),
    "roll": lambda x: x.roll(1, 2),
    "roll of channels": lambda x: x.roll(1, 1),
    "flip": lambda x: x.flip(3),
    "flip of channels": lambda x: x.flip(1),
    "pad": lambda x: F.pad(x, (1, 2, 0, 1)),
    "pad of channels": lambda x: F.pad(x, (0, 0, 0, 0, 1, 3)),
    "constant_pad_nd": lambda x: torch.constant_pad_nd(x, (1, 1)),
    "expand": lambda x: x.mean((2, 3), keepdim=True).expand(-1, -1, 4, 4),
    "expand_as": lambda x: x[:, :, :1].expand_as(x),
    "repeat": lambda x: x.repeat(1, 3, 1, 1),
    "tile": lambda x: x.tile(1, 2, 1, 1),
    "repeat_interleave": lambda x: x.repeat_interleave(2, 1),
    "mean": lambda x: x.mean(3, keepdim=True),
    "sum": lambda x: x.sum(1, keepdim=True),
    "amax": lambda x: x.amax(1, keepdim=True) + x.amin(2, keepdim=True),
    "prod": lambda x: x.prod(3, keepdim=True),
    "var": lambda x: x.var(3, keepdim=True),
    "var_mean": lambda x: torch.var_mean(x, 3, keepdim=True)[0],
    "std": lambda x: x.std(1, keepdim=True, correction=0),  # of one channel it is zero
    "std of what remains": lambda x: x / (0.1 + x.std(1, correction=0, keepdim=True)),
    "var of what remains": lambda x: x / (0.1 + x.var(1, unbiased=False, keepdim=True)),
    "mean of what remains": lambda x: x - x.mean(1, keepdim=True),
    "full": lambda x: torch.cat([x, torch.full((1, 2, 8, 8), 0.5)], 1),
    "norm": lambda x: x / x.norm(dim=1, keepdim=True).clamp(0.1),
    "logsumexp": lambda x: x.logsumexp(3, keepdim=True),
    "softmax": lambda x: x.softmax(3),
    "softmax of channels": lambda x: x.softmax(1),
    "log_softmax": lambda x: x.log_softmax(2),
    "cumsum": lambda x: x.cumsum(3),
    "cumsum along channels": lambda x: x.cumsum(1),
    "diff": lambda x: x.diff(dim=3),
    "diff of channels": lambda x: x.diff(dim=1),
    "normalize": lambda x: F.normalize(x),
    "cosine_similarity": lambda x: x * F.cosine_similarity(x, x.flip(2)).unsqueeze(1),
    "bilinear over channels": lambda x: F.bilinear(x.mT, x.mT, torch.ones(4, 8, 8)),
    "grid_sampler": lambda x: F.grid_sample(x, torch.full((1, 4, 4, 2), 0.3), align_corners=False),
    "col2im": lambda x: F.fold(F.unfold(x, 2), (8, 8), 2),
    "slice assignment": lambda x: assigned(x, (slice(None), slice(None), slice(1, 3)), 0.5 * x[:, :, 4:6]),
    "fill": lambda x: assigned(x, (slice(None), slice(None), 0), 2.0),
    "index_put": lambda x: assigned(x, (slice(None), slice(None), torch.tensor([1, 5])), x[:, :, :2]),
    "index of two dimensions": lambda x: x[:, :, torch.tensor([1, 2]), torch.tensor([[0], [3]])],
    "index of dimensions apart": lambda x: x[torch.tensor([0]), :, torch.tensor([1, 2])].unsqueeze(0).transpose(1, 2),
    "index_put of two dimensions": lambda x: assigned(
        x, (slice(None), slice(None), torch.tensor([1, 5]), torch.tensor([0, 2])), 1.0
    ),
    "index_put by a mask": lambda x: assigned(x, (x > 1,), 0.5),
    "gather": lambda x: x.gather(3, (x[..., :4] > 0.5).long()),
    "gather of channels": lambda x: x.gather(1, (x[:, :4] > 0.5).long()),
    "scatter": lambda x: x.scatter(3, (x[..., :2] > 0.5).long(), x[..., 2:4]),
    "scatter of channels": lambda x: x.scatter_add(1, (x[:, :2] > 0.5).long(), x[:, :2]),
    "sort": lambda x: x.sort(3)[0],
    "sort of channels": lambda x: x.sort(1)[0],
    "topk": lambda x: x.topk(4, 3)[0],
    "argsort": lambda x: x * x.argsort(3),
    "cumprod": lambda x: x.cumprod(3),
    "unfold": lambda x: x.unfold(2, 4, 4).mean(4),
    "tril": lambda x: x.tril() + x.triu(1),
    "fft_fft2": lambda x: torch.fft.fft2(x).real,
    "fft_irfft": lambda x: torch.fft.irfft(torch.fft.rfft(x, dim=3), dim=3),
    "fft_fft of channels": lambda x: torch.fft.fft(x, dim=1).abs(),
    "view_as_complex": lambda x: torch.view_as_real(torch.view_as_complex(x.unflatten(3, (4, 2)).contiguous())).flatten(
        3
    ),
    "cdist": lambda x: torch.cdist(x, x.flip(2)),
    "cdist over channels": lambda x: torch.cdist(x.flatten(2).mT, x.flatten(2).mT[:, :8]).mT.unflatten(2, (8, 8)),
    "pairwise_distance": lambda x: F.pairwise_distance(x, x.flip(2), keepdim=True),
    "mv": lambda x: torch.mv(x.flatten(2)[0], torch.ones(64)).view(1, -1, 1, 1),
    "outer": lambda x: x * torch.outer(x.mean((0, 2, 3)), torch.ones(8)).view(1, -1, 8, 1),
    "affine_grid_generator over channels": lambda x: F.grid_sample(
        x,
        F.affine_grid(x.sum((1, 3))[:, :6].view(1, 2, 3) / 64, [1, 1, 4, 4], align_corners=False),
        align_corners=False,
    ),
    "embedding_bag of channels": lambda x: F.embedding_bag(
        (x.flatten(2)[0, :, :4] > 0.5).long(), torch.ones(2, 8)
    ).view(1, 8, 8, 1),
    "broadcast_tensors": lambda x: torch.broadcast_tensors(x[:, :, :1], x)[0],
    "empty_like": lambda x: torch.empty_like(x).copy_(x),
    "randn_like": lambda x: torch.cat([x, torch.randn_like(x[:, :1])], 1),
    "logsumexp of what remains": lambda x: x - x.logsumexp(1, keepdim=True),
    "max of what remains": lambda x: x - x.max(1, keepdim=True)[0] + x.amin(1, keepdim=True),
    "numbers of channels": lambda x: x * x.max(1, keepdim=True)[1],
    "any": lambda x: x * (x > 0.5).any(3, keepdim=True),
    "index_put of channels": lambda x: assigned(x, (slice(None), torch.tensor([1, 5])), 1.0),
    "slice_scatter": lambda x: torch.slice_scatter(x, x[:, :, 4:], 2, 0, 4),
    "slice_scatter of channels": lambda x: torch.slice_scatter(x, x[:, 4:], 1, 0, 4),
    "select_scatter": lambda x: torch.select_scatter(x, x[:, :, 4], 2, 0),
    "fake_quantize_per_tensor_affine": lambda x: torch.fake_quantize_per_tensor_affine(x, 0.01, 0, 0, 255),
    "fake_quantize_per_channel_affine": lambda x: torch.fake_quantize_per_channel_affine(
        x, torch.full((8,), 0.01), torch.zeros(8, dtype=torch.int32), 3, 0, 255
    ),
    "matmul": lambda x: x @ x.transpose(2, 3),
    "matmul over channels": lambda x: (x.flatten(2) @ x.flatten(2).transpose(1, 2) / 64) @ x.flatten(2).unsqueeze(0),
    "bmm": lambda x: torch.bmm(x.flatten(2), x.flatten(2).transpose(1, 2)).unsqueeze(1),
    "baddbmm": lambda x: torch.baddbmm(x[:, :, 0], x[:, :, 1], x[0, :, :, 2].t().unsqueeze(0)[:, :, :8]).unsqueeze(3),
    "einsum": lambda x: torch.einsum("bchw,bcvw->bchv", x, x),
    "einsum with dots": lambda x: torch.einsum("...hw,...vw->...hv", x, x[0]),
    "einsum over channels": lambda x: torch.einsum("bchw,bcvw->bhv", x, x).unsqueeze(1),
    "einsum that sums": lambda x: torch.einsum("bchw->bch", x).unsqueeze(3),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x, 2),
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "channel_shuffle": lambda x: F.channel_shuffle(x, 2),
    "im2col": lambda x: F.unfold(x, 2, stride=2).unflatten(2, (4, 4)),
    "glu": lambda x: F.glu(x, 1),
    "avg_pool2d": lambda x: F.avg_pool2d(x, 2) + F.adaptive_avg_pool2d(x, 4) + F.adaptive_max_pool2d(x, 4),
    "max_unpool2d": lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2),
    "max_pool2d": lambda x: F.max_pool2d(x, 2),
    "upsample_nearest2d": lambda x: F.interpolate(x, scale_factor=2.0),
    "upsample_bilinear2d": lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear"),
    "upsample_bicubic2d": lambda x: F.interpolate(x, scale_factor=2.0, mode="bicubic"),
    "instance_norm": lambda x: F.instance_norm(x),
    "rms_norm": lambda x: F.rms_norm(x, (8,)),
    "zeros_like": lambda x: x + torch.zeros_like(x) * torch.ones_like(x),
    "max": lambda x: x.max(3, keepdim=True)[0] + x.min(2, keepdim=True)[0],
    "min": lambda x: torch.max(x, 0.5 * x) + torch.min(x, x.relu()),
    "max of channels": lambda x: x.max(1, keepdim=True)[0],
    "mT": lambda x: x.mT,
    "to": lambda x: x.to(torch.float64).type_as(x),
    "view_as": lambda x: x.flatten(2).view_as(x).flatten(2).reshape_as(x),
    "_upsample_nearest_exact2d": lambda x: F.interpolate(x, scale_factor=2.0, mode="nearest-exact"),
    "prelu": lambda x: F.prelu(x, torch.tensor([0.2])),
    "layer_norm": lambda x: F.layer_norm(x, (8, 8)),
    "addmm": lambda x: torch.addmm(x[0, 0], x[0, 1], x[0, 2]).expand(1, 2, -1, -1),
    "mm": lambda x: (
        x.flatten(1).flatten(0).unflatten(0, (-1, 64)).mm(torch.ones(64, 64)).unflatten(1, (8, 8)).unsqueeze(0)
    ),
    "_weight_norm": lambda x: F.conv2d(x, torch._weight_norm(torch.ones(8, 8, 1, 1), torch.ones(8, 1, 1, 1), 0)),
    "new_ones": lambda x: x + x.new_ones(1, 1, 8, 8),
    "where": lambda x: torch.where(x > 0, x, 0.1 * x),
    "masked_fill": lambda x: x.masked_fill(x < 0, 0.0),
    "scaled_dot_product_attention": lambda x: F.scaled_dot_product_attention(x, x, x, scale=0.3),
    "attention of grouped queries": lambda x: F.scaled_dot_product_attention(
        x, x.chunk(2, 1)[0], x.chunk(2, 1)[1], scale=0.3, enable_gqa=True
    ),
}


def assigned(x: Tensor, place: tuple[slice | Tensor | int, ...], value: Tensor | float) -> Tensor:
    y = x.clone()
    y[place] = value
    return y


class Between(nn.Module):
    """A convolution, some operators, another convolution, and a linear layer."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = names
        self.stem, self.last = conv(3, 8), nn.LazyConv2d(6, 3, padding=1)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for name in self.names:
            x = BETWEEN[name](x)
        return self.fc(F.relu(self.last(x)).mean((2, 3)))


def made(names: list[str]) -> nn.Module:
    torch.manual_seed(0)
    model = Between(names).eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model(*image())
    return model


@cache
def surveyed(name: str) -> tuple[nn.Module, Groups]:
    """A network with an operator between its layers, and its groups. Tests must not change them."""
    model = made([name])
    return model, survey(model, image())


@pytest.mark.parametrize("name", BETWEEN)
def test_groups_that_pass_an_operator_can_be_cut(name: str) -> None:
    model, groups = surveyed(name)
    assert not groups.unknown_operators
    model = formed(randomised(model), groups, image())
    original = provable(model, groups, image())  # once for all cuts
    for group in groups.free:
        for kept in ({0}, {group.width - 1}, set(range(1, group.width)) or {0}):
            cut_as_is(model, make_recipe(groups, {group.name: sorted(kept)}), image(), original)
    assert any(group.name == "last" for group in groups.free)


LOCKED = {"of channels", "over channels", "std", "split_with_sizes", "slice", "bmm"}
SPATIAL = [name for name in BETWEEN if not any(name.endswith(word) for word in LOCKED)]


def test_most_operators_do_not_lock_the_channels_before_them() -> None:
    locked = [name for name in SPATIAL if not any(g.name.startswith("stem") for g in surveyed(name)[1].free)]
    assert set(locked) <= {"baddbmm", "t", "split", "attention of grouped queries", "addmm", "_weight_norm", "prod"}, (
        locked
    )


SAME = [
    name
    for name in BETWEEN
    if name not in ("t", "baddbmm") and BETWEEN[name](torch.ones(1, 8, 8, 8)).shape == (1, 8, 8, 8)
]


@settings(max_examples=16, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(SAME), min_size=2, max_size=4), st.randoms(use_true_random=False))
def test_any_cut_through_a_sequence_of_operators_equals_masking(names: list[str], random: object) -> None:
    model = made(names)
    groups = survey(model, image())
    keep = {
        group.name: sorted(random.sample(range(group.width), random.randint(1, group.width)))  # type: ignore[attr-defined]
        for group in groups.free
    }
    cut(randomised(model), make_recipe(groups, keep), image())


# Other numbers of dimensions, other names of an operator, and forms that only occur in decomposed graphs.
ALIKE = set(
    """
    conv1d conv3d conv_transpose1d conv_transpose3d avg_pool1d avg_pool3d max_pool1d max_pool3d max_pool2d_with_indices
    max_pool3d_with_indices adaptive_avg_pool1d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool3d upsample_nearest1d
    upsample_linear1d _softmax _log_softmax _unsafe_view unsafe_chunk unsafe_split concat concatenate native_channel_shuffle
    new_empty new_full new_zeros rnn_relu norm argmax _to_copy moveaxis swapdims _upsample_nearest_exact1d
    _upsample_nearest_exact3d upsample_nearest3d upsample_trilinear3d grid_sampler_2d grid_sampler_3d std_mean rnn_relu_cell
    dot argmin all cummax cummin logcumsumexp scatter_reduce fft_fftn fft_ifft fft_ifft2 fft_ifftn fft_irfft2 fft_irfftn
    fft_rfft2 fft_rfftn bernoulli normal rand_like randint_like
    max_unpool3d
    """.split()
)


@pytest.mark.slow
def test_every_rule_is_tested() -> None:
    """Each operator with a rule is in some network of the tests, or in `ALIKE`: it then shares a tested rule."""
    met: set[str] = set()

    def note(model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(model.eval(), inputs)
        met.update(getattr(n.target, "_opname", "").removesuffix("_") for n in program.graph.nodes)

    for name in BETWEEN:
        note(made([name]), image())
    for name, net in NETS.items():
        note(net(), inputs_of(name))
    left = set(rules.RULES) - met - set(rules.pointwise.ELEMENTWISE)
    assert left <= ALIKE, left - ALIKE
