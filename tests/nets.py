"""Small networks that tests cut: one for each structure that couples channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(i: int, o: int, k: int = 3, **options: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(i, o, k, padding=k // 2, bias=False, **options), nn.BatchNorm2d(o), nn.ReLU())


class Head(nn.Module):
    def __init__(self, channels: int, classes: int = 5) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3)))


class Plain(nn.Module):
    """Convolutions in a row, then a flatten: every channel owns 16 columns of the linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 8), conv(8, 12)
        self.fc = nn.Linear(12 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.max_pool2d(self.b(self.a(x)), 2).flatten(1))


class Residual(nn.Module):
    """Two blocks; the second halves the image and has a projection shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.a1, self.a2 = conv(8, 6), conv(6, 8)
        self.b1, self.b2 = conv(8, 16, stride=2), conv(16, 16)
        self.short = nn.Conv2d(8, 16, 1, stride=2)
        self.head = Head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.a2(self.a1(x))
        y = self.b2(self.b1(x))
        y += self.short(x)
        return self.head(F.relu(y))


class OptionA(nn.Module):
    """The parameter-free shortcut of He et al.: strided slice, then zero padding on the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.b1, self.b2 = conv(8, 16, stride=2), conv(16, 16)
        self.head = Head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.b2(self.b1(x)) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4)))


class Concat(nn.Module):
    """A concatenation read by a convolution, as in DenseNet."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 8), conv(8, 4), conv(12, 6)
        self.d = conv(18, 10)
        self.head = Head(10)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        ab = torch.cat([a, self.b(a)], 1)
        return self.head(self.d(torch.cat([ab, self.c(ab)], 1)))


class Chunk(nn.Module):
    """Halves that are gated against each other (a gated linear unit by hand)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 16), conv(8, 6)
        self.head = Head(6)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.a(x).chunk(2, dim=1)
        return self.head(self.b(value * torch.sigmoid(gate)))


class Depthwise(nn.Module):
    """Depthwise-separable, with ReLU6."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.dw = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.ReLU6())
        self.pw = conv(8, 12, 1)
        self.head = Head(12)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pw(self.dw(self.stem(x))))


class Grouped(nn.Module):
    """A grouped convolution (ResNeXt) and group normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.g = conv(3, 16), nn.Conv2d(16, 32, 3, padding=1, groups=4)
        self.norm = nn.GroupNorm(8, 32)
        self.head = Head(32)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.silu(self.norm(self.g(self.a(x)))))


class SqueezeExcite(nn.Module):
    """A gate computed from the channel means multiplies the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 16), conv(16, 8)
        self.down, self.up = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        gate = torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))
        return self.head(self.b(x * gate))


class Shuffle(nn.Module):
    """ShuffleNet's channel shuffle: split, transpose, merge, sizes taken from the tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 16), conv(16, 6)
        self.head = Head(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        n, c, h, w = x.shape
        return self.head(self.b(x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)))


class HardCoded(nn.Module):
    """A size written into the code: a cut of `a` would raise, so it must come back locked."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 16), conv(16, 6)
        self.head = Head(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.head(self.b(x.view(1, 2, 8, 8, 8).flatten(1, 2)))


class Normalised(nn.Module):
    """Layer normalisation over the channels: statistics that a cut would change."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(12, 16), nn.Linear(16, 10), nn.Linear(10, 5)
        self.norm = nn.LayerNorm(16)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.gelu(self.b(self.norm(self.a(x.flatten(1)[:, :12])))))


class NoRule(nn.Module):
    """An operator that no rule knows between two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 8), conv(8, 6)
        self.head = Head(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(torch.roll(self.a(x), 1, 1)))


class Shared(nn.Module):
    """One convolution used twice, and tied linear weights."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.twice = conv(3, 8), conv(8, 8)
        self.up, self.down = nn.Linear(8, 6), nn.Linear(8, 6)
        self.down.weight = self.up.weight
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.twice(self.stem(x))).mean((2, 3))
        return self.fc(F.relu(self.up(x)) * F.relu(self.down(x)))


class Inner(nn.Module):
    """Adds to its input what two convolutions make of it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = conv(8, width), conv(width, width)
        self.last, self.norm = nn.Conv2d(width, 8, 1), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm(self.last(self.second(self.first(x)))))


class Attending(nn.Module):
    """Pre-norm: its attention cannot be cut, its inner layer can."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.LayerNorm(8), nn.LayerNorm(8)
        self.mix, self.up, self.down = nn.Linear(8, 8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.mix(self.before(x))
        x = x + F.scaled_dot_product_attention(y, y, y)
        return x + self.down(F.gelu(self.up(self.after(x))))


class Blocks(nn.Module):
    """Three blocks that can be removed, and one that changes what passes through it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.stage = nn.Sequential(Inner(6), Inner(4), conv(8, 8))
        self.attending = Attending()
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage(self.stem(x)).flatten(2).transpose(1, 2)
        return self.fc(self.attending(x).mean(1))


NETS: dict[str, type[nn.Module]] = {
    net.__name__: net
    for net in (
        *(Plain, Residual, OptionA, Concat, Chunk, Depthwise, Grouped, SqueezeExcite, Shuffle, HardCoded, Normalised),
        *(NoRule, Shared, Blocks),
    )
}


def image() -> tuple[Tensor]:
    return (torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1)),)
