"""Networks as people bring them: all that their code does not fix can be cut, and one line names the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nets import Head, conv, image
from torch import Tensor, nn

from edgeprune.errors import UsageError
from edgeprune.graph.groups import make_recipe
from edgeprune.network.attention import opened
from edgeprune.network.cut import cut
from edgeprune.network.survey import randomised, survey

FILE = Path(__file__).name
LINES = Path(__file__).read_text().splitlines()


def line(code: str) -> str:
    return f"{FILE}:{next(number for number, text in enumerate(LINES, start=1) if code in text)}"


class DeformableByGather(nn.Module):
    """A deformable convolution as it is written without torchvision: positions from offsets, one gather for all taps."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.offsets, self.mix, self.head = (
            conv(3, 16),
            nn.Conv2d(16, 18, 3, padding=1),
            conv(144, 12, 1),
            Head(12),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        n, c, h, w = x.shape
        rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        moved = self.offsets(x).view(n, 2, 9, h, w) + torch.stack([rows, columns])[None, :, None]
        index = moved[:, 0].round().clamp(0, h - 1) * w + moved[:, 1].round().clamp(0, w - 1)
        index = index.long().view(n, 1, -1).expand(-1, c, -1)
        x = x.view(n, c, -1).gather(-1, index).view(n, c, 9, h, w)
        return self.head(self.mix(x.flatten(1, 2)))


class DeformableByGrid(nn.Module):
    """The same by one grid for each tap."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.offsets, self.head = conv(3, 16), nn.Conv2d(16, 18, 3, padding=1), Head(12)
        self.weight = nn.Parameter(torch.randn(12, 16, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        n, _, h, w = x.shape
        rows, columns = torch.meshgrid(torch.linspace(-1, 1, h), torch.linspace(-1, 1, w), indexing="ij")
        offsets = self.offsets(x).view(n, 9, 2, h, w).permute(1, 0, 3, 4, 2)
        grids = [torch.stack([columns, rows], -1) + 0.1 * offset for offset in offsets]
        taps = torch.stack([F.grid_sample(x, grid, align_corners=True) for grid in grids], 2)
        return self.head(torch.einsum("nckhw,ock->nohw", taps, self.weight.flatten(2)).relu())


@torch.library.custom_op("edgeprune_tests::halved", mutates_args=())
def halved(x: Tensor) -> Tensor:
    return x / 2


halved.register_fake(torch.empty_like)


class Custom(nn.Module):
    """An operator of the user between layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = conv(3, 16), conv(16, 12), conv(12, 8), Head(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.c(torch.ops.edgeprune_tests.halved(self.b(self.a(x)))))


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * x.sigmoid() * (1 + x * (1 - x.sigmoid()))


class OwnGradient(nn.Module):
    """A function with a gradient of its own, and a size in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.a, self.b, self.head = 8, nn.Conv2d(3, 16, 3), conv(16, 12), Head(12)

    def forward(self, x: Tensor) -> Tensor:
        first, second = torch.split(Swish.apply(self.a(x)), self.width, 1)
        return self.head(self.b(torch.cat([second, first], 1)))


class Conditional(nn.Module):
    """The weight is a mixture of experts that follows from the input: one group of the convolution for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.route, self.made, self.head = conv(3, 16), nn.Linear(16, 4), 12, Head(12)
        self.experts = nn.Parameter(torch.randn(4, 12 * 16 * 9) / 12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        n, c, h, w = x.shape
        weight = (self.route(x.mean((2, 3))).sigmoid() @ self.experts).view(n * self.made, c, 3, 3)
        x = F.conv2d(x.reshape(1, n * c, h, w), weight, padding=1, groups=n)
        return self.head(x.view(n, self.made, h, w).relu())


class Extended(nn.Module):
    """An attention with a learned key and value, and one of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.fc = nn.Conv2d(3, 8, 1), nn.Linear(8, 5)
        self.mix = nn.MultiheadAttention(8, 4, add_bias_kv=True, add_zero_attn=True, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).flatten(2).mT
        return self.fc((x + self.mix(x, x, x)[0]).mean(1))


class Routed(nn.Module):
    """The two best of four experts."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.fc = nn.Linear(24, 4), nn.Linear(12, 5)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(24, 16), nn.GELU(), nn.Linear(16, 12)) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = x.mean(2).flatten(1)
        gates = self.gate(x)
        best, chosen = gates.softmax(-1).topk(2, -1)
        gates = torch.zeros_like(gates).scatter(-1, chosen, best)
        return self.fc(torch.stack([gates[:, i, None] * expert(x) for i, expert in enumerate(self.experts)]).sum(0))


class Bags(nn.Module):
    """Sums of embeddings, a cosine classifier, and a change of the input in place."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.bag, self.a, self.b = (
            8,
            nn.EmbeddingBag(3, 16, mode="sum"),
            nn.Linear(24, 16),
            nn.Linear(16, 12),
        )
        self.classes = nn.Parameter(torch.randn(5, 12))

    def forward(self, x: Tensor) -> Tensor:
        x = x.sub_(0.5).mean(2).flatten(1)
        first, second = torch.split(self.a(x) + self.bag((x > 0).long()), self.width, 1)
        x = self.b(torch.cat([second, first.relu()], 1))
        return F.linear(F.normalize(x), F.normalize(self.classes))


class Turned(nn.Module):
    """Rotary positions as complex numbers, and a Fourier transform along positions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.q, self.k, self.v, self.fc = (
            nn.Conv2d(3, 8, 1),
            *(nn.Linear(8, 16) for _ in range(3)),
            nn.Linear(16, 5),
        )

    def turned(self, x: Tensor) -> Tensor:
        angles = torch.arange(64.0)[:, None] / torch.tensor([1.0, 10.0])
        turns = torch.polar(torch.ones_like(angles), angles)
        return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turns).flatten(-2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).flatten(2).mT
        x = x + torch.fft.fft(x, dim=1).real / 8
        q, k, v = (layer(x).view(*x.shape[:2], -1, 4).transpose(1, 2) for layer in (self.q, self.k, self.v))
        x = F.scaled_dot_product_attention(self.turned(q), self.turned(k), v, scale=0.5)
        return self.fc(x.transpose(1, 2).flatten(2).mean(1))


class Sampling(nn.Module):
    """Random positions at every call, as Informer's attention takes them, and a size in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.a, self.b, self.fc = 8, nn.Conv2d(3, 16, 1), nn.Conv2d(16, 12, 1), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).flatten(2)[:, :, torch.randint(64, (16,))].unflatten(2, (4, 4))
        first, second = torch.split(x, self.width, 1)
        return self.fc(self.b(torch.cat([second, first], 1)).relu().mean((2, 3)))


# Network -> its groups that can be cut, with their widths
BROUGHT: dict[type[nn.Module], dict[str, int]] = {
    DeformableByGather: {"stem.0": 16, "offsets:2": 9, "mix.0": 12},
    DeformableByGrid: {"stem.0": 16, "weight": 12},
    Custom: {"a.0": 16, "c.0": 8},
    OwnGradient: {"a": 16, "b.0": 12},
    Conditional: {"route": 4, "experts": 12, "experts:2": 16},
    Extended: {"a": 8, "mix": 4, "mix:2": 2},
    Routed: {"experts.0.2": 12} | {f"experts.{i}.0": 16 for i in range(4)},  # two of them at a time
    Bags: {"a": 16, "b": 12},
    Sampling: {"a": 16, "b": 12},
    Turned: {"a": 8, "q": 4, "q:2": 2, "v": 4},
}


@pytest.mark.parametrize("kind", BROUGHT)
def test_all_that_the_code_does_not_fix_can_be_cut(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    groups = survey(model, image())
    assert {group.name: group.width for group in groups.free} == BROUGHT[kind]
    keep = {group.name: range(0, group.width, 2) for group in groups.free}
    pruned = cut(randomised(opened(model)), make_recipe(groups, keep), image())
    assert pruned(image()[0].repeat(3, 1, 1, 1)).shape[0] == 3


def test_a_custom_operator_is_named_with_its_line() -> None:
    groups = survey(Custom(), image())
    assert groups.unknown_operators == ("edgeprune_tests.halved.default",)
    locked = next(group.locked or "" for group in groups.groups if group.name == "b.0")
    assert locked.startswith(f"{line('torch.ops.edgeprune_tests.halved')}, halved: ") and "docs/operators.md" in locked


class Hooked(nn.Module):
    """A hook keeps an inner result."""

    def __init__(self, by_method: bool) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 16), conv(16, 12), Head(28)
        self.a.register_forward_hook(self.keep if by_method else lambda *call: self.keep(*call))

    def keep(self, module: nn.Module, given: Any, made: Tensor) -> None:
        self.kept = made

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.b(self.a(x)), self.kept], 1))


def test_a_hook_that_is_a_method_is_copied_with_the_model_and_a_lambda_is_named() -> None:
    assert {group.name for group in survey(Hooked(by_method=True), image()).free} == {"a.0", "b.0"}
    with pytest.raises(
        UsageError, match=r"a copy of the model fails .*method of the model instead of a lambda"
    ) as caught:
        survey(Hooked(by_method=False), image())
    assert line("self.kept], 1)") in str(caught.value)
