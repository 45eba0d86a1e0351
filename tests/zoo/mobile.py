"""Mobile backbones for images, and gates of channels and places, written small and true to form."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from nets import conv
from torch import Tensor, nn

from zoo.images import SqueezeExcite, backbone, cnn
from zoo.making import Made, network


class InvertedResidual(nn.Module):
    """The block of MobileNetV3 and EfficientNet: expand, depthwise, squeeze-and-excitation, project."""

    def __init__(self, i: int, expanded: int, o: int, stride: int = 1, act: type[nn.Module] = nn.Hardswish) -> None:
        super().__init__()
        gate = nn.Hardsigmoid() if act is nn.Hardswish else nn.Sigmoid()
        self.block = nn.Sequential(
            nn.Conv2d(i, expanded, 1, bias=False), nn.BatchNorm2d(expanded), act(),
            nn.Conv2d(expanded, expanded, 3, stride, 1, groups=expanded, bias=False), nn.BatchNorm2d(expanded), act(),
            SqueezeExcite(expanded, 8, gate), nn.Conv2d(expanded, o, 1, bias=False), nn.BatchNorm2d(o),
        )  # fmt: skip
        self.use_shortcut = stride == 1 and i == o

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x) if self.use_shortcut else self.block(x)


class Ghost(nn.Module):
    """GhostNet's module (Han et al. 2020): cheap features beside primary ones, then a slice to the width."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.oup, primary = o, (o + 1) // 2
        self.primary, self.cheap = conv(i, primary, 1), conv(primary, primary, 3, groups=primary)

    def forward(self, x: Tensor) -> Tensor:
        a = self.primary(x)
        return torch.cat([a, self.cheap(a)], 1)[:, : self.oup, :, :]


class Shuffle(nn.Module):
    """ShuffleNet V2's unit in torchvision's form (Ma et al. 2018)."""

    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.stride, half = stride, o // 2
        self.left = nn.Sequential(
            nn.Conv2d(i, i, 3, stride, 1, groups=i, bias=False), nn.BatchNorm2d(i), conv(i, half, 1)
        ) if stride > 1 else nn.Identity()  # fmt: skip
        self.right = nn.Sequential(
            conv(i if stride > 1 else half, half, 1), nn.Conv2d(half, half, 3, stride, 1, groups=half, bias=False),
            nn.BatchNorm2d(half), conv(half, half, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            a, b = x.chunk(2, 1)
            x = torch.cat([a, self.right(b)], 1)
        else:
            x = torch.cat([self.left(x), self.right(x)], 1)
        batch, channels, height, width = x.size()
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).contiguous()
        return x.view(batch, channels, height, width)


class PartialConv(nn.Module):
    """FasterNet's block (Chen et al. 2023): a convolution of some channels, the others pass."""

    def __init__(self, channels: int, divider: int = 4) -> None:
        super().__init__()
        self.dim_conv = channels // divider
        self.dim_untouched = channels - self.dim_conv
        self.mix = nn.Conv2d(self.dim_conv, self.dim_conv, 3, 1, 1, bias=False)
        self.mlp = nn.Sequential(conv(channels, 2 * channels, 1), nn.Conv2d(2 * channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.split(x, [self.dim_conv, self.dim_untouched], 1)
        return x + self.mlp(torch.cat((self.mix(a), b), 1))


class InceptionNext(nn.Module):
    """InceptionNeXt's token mixer (Yu et al. 2023): an unequal split into depthwise branches."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        part = channels // 8
        self.split_indexes = (channels - 3 * part, part, part, part)
        self.hw = nn.Conv2d(part, part, 3, 1, 1, groups=part)
        self.w = nn.Conv2d(part, part, (1, 11), 1, (0, 5), groups=part)
        self.h = nn.Conv2d(part, part, (11, 1), 1, (5, 0), groups=part)
        self.norm, self.up, self.down = nn.BatchNorm2d(channels), nn.Conv2d(channels, 64, 1), nn.Conv2d(64, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        rest, hw, w, h = torch.split(x, self.split_indexes, 1)
        y = torch.cat((rest, self.hw(hw), self.w(w), self.h(h)), 1)
        return x + self.down(F.gelu(self.up(self.norm(y))))


class Star(nn.Module):
    """StarNet's block (Ma et al. 2024): the product of two branches."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dw = nn.Sequential(nn.Conv2d(channels, channels, 7, 1, 3, groups=channels), nn.BatchNorm2d(channels))
        self.f1, self.f2, self.g = nn.Conv2d(channels, 48, 1), nn.Conv2d(channels, 48, 1), nn.Conv2d(48, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.dw(x)
        return x + self.g(F.relu6(self.f1(y)) * self.f2(y))


class Residual(nn.Module):
    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(x) + x


def conv_mixer() -> nn.Module:
    """ConvMixer (Trockman and Kolter 2022)."""
    mix = [nn.Sequential(Residual(nn.Sequential(nn.Conv2d(24, 24, 5, groups=24, padding=2), nn.GELU(), nn.BatchNorm2d(24))),
                         nn.Conv2d(24, 24, 1), nn.GELU(), nn.BatchNorm2d(24)) for _ in range(3)]  # fmt: skip
    return backbone(nn.Conv2d(3, 24, 4, 4), nn.GELU(), nn.BatchNorm2d(24), *mix, out=24)


def mobile(act: type[nn.Module]) -> nn.Module:
    return backbone(
        conv(3, 16, stride=2), InvertedResidual(16, 24, 16, 1, act), InvertedResidual(16, 48, 24, 2, act),
        InvertedResidual(24, 72, 24, 1, act), InvertedResidual(24, 72, 40, 2, act), conv(40, 64, 1), out=64,
    )  # fmt: skip


class EfficientChannel(nn.Module):
    """ECA-Net's gate (Wang et al. 2020): a convolution along the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.adaptive_avg_pool2d(x, 1)
        return x * self.conv(y.squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1).sigmoid()


class Cbam(nn.Module):
    """CBAM (Woo et al. 2018): a gate of the channels, then one of the places from mean and maximum over channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Conv2d(channels, 4, 1), nn.ReLU(), nn.Conv2d(4, channels, 1))
        self.place = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        x = x * (self.mlp(F.adaptive_avg_pool2d(x, 1)) + self.mlp(F.adaptive_max_pool2d(x, 1))).sigmoid()
        pooled = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]], 1)
        return x * self.place(pooled).sigmoid()


class NonLocal(nn.Module):
    """A non-local block (Wang et al. 2018): attention between all places."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.theta, self.phi, self.g = (nn.Conv2d(channels, 8, 1) for _ in range(3))
        self.out = nn.Conv2d(8, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        theta, phi, g = (layer(x).flatten(2) for layer in (self.theta, self.phi, self.g))
        y = (theta.transpose(1, 2) @ phi).softmax(-1) @ g.transpose(1, 2)
        return x + self.out(y.transpose(1, 2).reshape(batch, -1, height, width))


class GlobalContext(nn.Module):
    """GCNet's block (Cao et al. 2019): one attention map, then a bottleneck with layer norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mask = nn.Conv2d(channels, 1, 1)
        self.mix = nn.Sequential(
            nn.Conv2d(channels, 8, 1), nn.LayerNorm([8, 1, 1]), nn.ReLU(), nn.Conv2d(8, channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        weight = self.mask(x).flatten(2).softmax(-1).transpose(1, 2)
        return x + self.mix((x.flatten(2) @ weight).unsqueeze(-1))


ENTRIES: dict[str, Callable[[], Made]] = {
    "MobileNetV3": network(lambda: mobile(nn.Hardswish)),
    "EfficientNet, written out": network(lambda: mobile(nn.SiLU)),
    "GhostNet": network(lambda: backbone(conv(3, 16, stride=2), Ghost(16, 24), Ghost(24, 31), out=31)),
    "ShuffleNet V2": network(
        lambda: backbone(conv(3, 16, stride=2), Shuffle(16, 32, 2), Shuffle(32, 32, 1), Shuffle(32, 32, 1), out=32)
    ),
    "FasterNet": network(lambda: cnn(PartialConv(32), PartialConv(32))),
    "InceptionNeXt": network(lambda: cnn(InceptionNext(32), InceptionNext(32))),
    "StarNet": network(lambda: cnn(Star(32), Star(32))),
    "ConvMixer": network(conv_mixer),
    "ECA-Net": network(lambda: cnn(conv(32, 32), EfficientChannel(), conv(32, 32))),
    "CBAM": network(lambda: cnn(Cbam(32), conv(32, 32))),
    "non-local network": network(lambda: cnn(NonLocal(32), conv(32, 32))),
    "GCNet": network(lambda: cnn(GlobalContext(32), conv(32, 32))),
}
