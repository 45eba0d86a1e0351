"""Backbones for images, written small and true to form: residual, concatenated and grouped."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from nets import conv
from torch import Tensor, nn

from zoo.making import Made, network


class Classifier(nn.Module):
    """Global average pooling and a linear layer."""

    def __init__(self, channels: int, classes: int = 5) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def backbone(*stages: nn.Module, out: int) -> nn.Sequential:
    return nn.Sequential(*stages, Classifier(out))


def cnn(*blocks: nn.Module, width: int = 32) -> nn.Module:
    """Blocks that keep their width between a strided stem and a classifier."""
    return backbone(conv(3, width, stride=2), *blocks, out=width)


class Vgg(nn.Module):
    """VGG (Simonyan and Zisserman 2015): plain convolutions, then three linear layers with dropout."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in (16, 0, 24, 24, 0, 32, 32, 0):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(True)] if width else [nn.MaxPool2d(2)]
            channels = width or channels
        self.features, self.avgpool = nn.Sequential(*layers), nn.AdaptiveAvgPool2d((2, 2))
        self.classifier = nn.Sequential(
            nn.Linear(32 * 4, 64),
            nn.ReLU(True),
            nn.Dropout(),
            nn.Linear(64, 64),
            nn.ReLU(True),
            nn.Dropout(),
            nn.Linear(64, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


class Bottleneck(nn.Module):
    """A residual bottleneck; with `groups` that of ResNeXt, with `mix` any layer in the middle."""

    def __init__(self, i: int, o: int, stride: int = 1, groups: int = 1, mix: nn.Module | None = None) -> None:
        super().__init__()
        width = o // 2
        self.conv1, self.bn1 = nn.Conv2d(i, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = mix or nn.Conv2d(width, width, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, o, 1, bias=False), nn.BatchNorm2d(o)
        self.downsample = None
        if stride > 1 or i != o:
            self.downsample = nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class Res2(nn.Module):
    """Res2Net's bottleneck (Gao et al. 2019): the parts of a split feed one another."""

    def __init__(self, i: int, o: int, width: int = 8, scale: int = 4) -> None:
        super().__init__()
        self.width, self.nums = width, scale - 1
        self.conv1, self.bn1 = nn.Conv2d(i, width * scale, 1, bias=False), nn.BatchNorm2d(width * scale)
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, 1, 1, bias=False) for _ in range(self.nums))
        self.bns = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(self.nums))
        self.conv3, self.bn3 = nn.Conv2d(width * scale, o, 1, bias=False), nn.BatchNorm2d(o)
        self.downsample = None if i == o else nn.Sequential(nn.Conv2d(i, o, 1, bias=False), nn.BatchNorm2d(o))

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(F.relu(self.bn1(self.conv1(x))), self.width, 1)
        outs: list[Tensor] = []
        for i in range(self.nums):
            part = parts[i] if i == 0 else outs[-1] + parts[i]
            outs.append(F.relu(self.bns[i](self.convs[i](part))))
        y = self.bn3(self.conv3(torch.cat([*outs, parts[self.nums]], 1)))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class SelectiveKernel(nn.Module):
    """SKNet's unit (Li et al. 2019): a softmax over branches with different kernels."""

    def __init__(self, channels: int, branches: int = 2) -> None:
        super().__init__()
        self.branches = nn.ModuleList(conv(channels, channels, 3, groups=4) for _ in range(branches))
        self.reduce, self.select = conv(channels, 8, 1), nn.Conv2d(8, channels * branches, 1, bias=False)
        self.channels, self.num = channels, branches

    def forward(self, x: Tensor) -> Tensor:
        ys = torch.stack([branch(x) for branch in self.branches], 1)
        gate = self.select(self.reduce(ys.sum(1).mean((2, 3), keepdim=True)))
        gate = gate.view(-1, self.num, self.channels, 1, 1).softmax(1)
        return (ys * gate).sum(1)


class SplitAttention(nn.Module):
    """ResNeSt's convolution (Zhang et al. 2020): a grouped convolution, and a softmax over its splits."""

    def __init__(self, channels: int, radix: int = 2, groups: int = 1) -> None:
        super().__init__()
        self.radix, self.cardinality, self.channels = radix, groups, channels
        self.conv = nn.Conv2d(channels, channels * radix, 3, 1, 1, groups=groups * radix, bias=False)
        self.bn0 = nn.BatchNorm2d(channels * radix)
        self.fc1, self.bn1 = nn.Conv2d(channels, 8, 1, groups=groups), nn.BatchNorm2d(8)
        self.fc2 = nn.Conv2d(8, channels * radix, 1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn0(self.conv(x)))
        batch, rchannel = x.shape[:2]
        splits = torch.split(x, rchannel // self.radix, 1)
        gap = F.adaptive_avg_pool2d(sum(splits), 1)
        attention = self.fc2(F.relu(self.bn1(self.fc1(gap))))
        attention = attention.view(batch, self.cardinality, self.radix, -1).transpose(1, 2).softmax(1)
        attention = attention.reshape(batch, -1, 1, 1)
        parts = torch.split(attention, rchannel // self.radix, 1)
        return sum(gate * split for gate, split in zip(parts, splits, strict=True))


class SqueezeExcite(nn.Module):
    """A gate of the channels, from their means."""

    def __init__(self, channels: int, inner: int, gate: nn.Module) -> None:
        super().__init__()
        self.fc1, self.fc2, self.gate = nn.Conv2d(channels, inner, 1), nn.Conv2d(inner, channels, 1), gate

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True)))))


class RegNetY(nn.Module):
    """RegNet's Y block (Radosavovic et al. 2020): grouped convolution and squeeze-and-excitation."""

    def __init__(self, channels: int, group_width: int = 8) -> None:
        super().__init__()
        self.a, self.b = conv(channels, channels, 1), conv(channels, channels, 3, groups=channels // group_width)
        self.se = SqueezeExcite(channels, channels // 4, nn.Sigmoid())
        self.c, self.bn = nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.bn(self.c(self.se(self.b(self.a(x))))))


class StdConv2d(nn.Conv2d):
    """Weight standardisation (Qiao et al. 2019), in timm's form: a batch norm of the weight."""

    def forward(self, x: Tensor) -> Tensor:
        weight = F.batch_norm(
            self.weight.reshape(1, self.out_channels, -1), None, None, training=True, momentum=0.0, eps=1e-6
        )
        return F.conv2d(
            x, weight.reshape_as(self.weight), self.bias, self.stride, self.padding, self.dilation, self.groups
        )


class ScaledStdConv2d(nn.Conv2d):
    """NFNet's convolution (Brock et al. 2021): a standardised weight with a gain."""

    def __init__(self, i: int, o: int, k: int, **options: int) -> None:
        super().__init__(i, o, k, **options)
        self.gain, self.scale = nn.Parameter(torch.ones(o, 1, 1, 1)), 1.7868 / self.weight[0].numel() ** 0.5

    def forward(self, x: Tensor) -> Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        var = self.weight.var((1, 2, 3), keepdim=True, unbiased=False)
        weight = (self.weight - mean) * torch.rsqrt(var + 1e-5) * (self.gain * self.scale)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class PreActivated(nn.Module):
    """ResNet V2's bottleneck with group norm, as in BiT (Kolesnikov et al. 2020)."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        width = o // 2
        self.norms = nn.ModuleList(nn.GroupNorm(4, n) for n in (i, width, width))
        self.convs = nn.ModuleList(
            [StdConv2d(i, width, 1), StdConv2d(width, width, 3, padding=1), StdConv2d(width, o, 1)]
        )
        self.short = StdConv2d(i, o, 1) if i != o else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norms[0](x))
        short = x if self.short is None else self.short(y)
        for conv_, norm in zip(self.convs[:2], self.norms[1:], strict=True):
            y = F.relu(norm(conv_(y)))
        return short + self.convs[2](y)


class NormFree(nn.Module):
    """NFNet's block: scaled activations, no norm, and a skip-init gain."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.a, self.b = ScaledStdConv2d(channels, 12, 1), ScaledStdConv2d(12, 12, 3, padding=1)
        self.c, self.skip = ScaledStdConv2d(12, channels, 1), nn.Parameter(torch.full((), 0.2))

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(F.gelu(x) * 1.7015)
        y = self.c(F.gelu(self.b(F.gelu(y) * 1.7015)) * 1.7015)
        return x + self.skip * y


class RepVgg(nn.Module):
    """RepVGG's block as it trains (Ding et al. 2021): three branches, which could be one convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dense = nn.Sequential(nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels))
        self.one = nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels))
        self.identity = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.dense(x) + self.one(x) + self.identity(x))


class DenseLayer(nn.Module):
    """DenseNet's layer (Huang et al. 2017), which reads all earlier outputs."""

    def __init__(self, i: int, growth: int = 8) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(i), nn.Conv2d(i, 4 * growth, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(4 * growth), nn.Conv2d(4 * growth, growth, 3, 1, 1, bias=False)

    def forward(self, xs: list[Tensor]) -> Tensor:
        return self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(torch.cat(xs, 1)))))))


class DenseBlock(nn.Module):
    def __init__(self, i: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DenseLayer(i + 8 * n) for n in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(layer(features))
        return torch.cat(features, 1)


class Inception(nn.Module):
    """Inception's block (Szegedy et al. 2016), with asymmetric kernels and a pooling branch."""

    def __init__(self, i: int) -> None:
        super().__init__()
        self.b1, self.b2 = conv(i, 8, 1), nn.Sequential(conv(i, 8, 1), conv(8, 12))
        self.b3 = nn.Sequential(
            conv(i, 8, 1), nn.Conv2d(8, 8, (1, 7), padding=(0, 3)), nn.Conv2d(8, 8, (7, 1), padding=(3, 0)), nn.ReLU()
        )
        self.b4 = conv(i, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.b4(F.avg_pool2d(x, 3, 1, 1))
        return torch.cat([self.b1(x), self.b2(x), self.b3(x), pooled], 1)


class Fire(nn.Module):
    """SqueezeNet's module (Iandola et al. 2016)."""

    def __init__(self, i: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(i, squeeze, 1)
        self.e1, self.e3 = nn.Conv2d(squeeze, expand, 1), nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.e1(x)), F.relu(self.e3(x))], 1)


class Elan(nn.Module):
    """YOLOv7's aggregation of layers (Wang et al. 2022)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.a, self.b = conv(channels, 8, 1), conv(channels, 8, 1)
        self.c, self.d = nn.Sequential(conv(8, 8), conv(8, 8)), nn.Sequential(conv(8, 8), conv(8, 8))
        self.out = conv(32, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        c = self.c(b)
        return self.out(torch.cat([a, b, c, self.d(c)], 1))


class HighResolution(nn.Module):
    """HRNet's fusion (Wang et al. 2019): two resolutions exchange features."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = conv(3, 16), conv(16, 24, stride=2)
        self.high, self.low = nn.Sequential(conv(16, 16), conv(16, 16)), nn.Sequential(conv(24, 24), conv(24, 24))
        self.up, self.fuse = nn.Conv2d(24, 16, 1), nn.Conv2d(16, 24, 3, 2, 1)
        self.out = nn.Conv2d(40, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        high = self.stem(x)
        low = self.low(self.down(high))
        high = self.high(high)
        size = high.shape[2:]
        a = F.relu(high + F.interpolate(self.up(low), size=size, mode="bilinear", align_corners=False))
        b = F.relu(low + self.fuse(high))
        return self.out(torch.cat([a, F.interpolate(b, size=size, mode="bilinear", align_corners=False)], 1))


ENTRIES: dict[str, Callable[[], Made]] = {
    "VGG": network(Vgg),
    "ResNeXt": network(
        lambda: backbone(
            conv(3, 32, stride=2), Bottleneck(32, 48, 1, 4), Bottleneck(48, 48, 1, 4), Bottleneck(48, 64, 2, 4), out=64
        )
    ),
    "RegNetY": network(lambda: cnn(RegNetY(32), RegNetY(32))),
    "Res2Net": network(lambda: backbone(conv(3, 32, stride=2), Res2(32, 48), Res2(48, 48), out=48)),
    "SKNet": network(lambda: backbone(conv(3, 32, stride=2), Bottleneck(32, 32, mix=SelectiveKernel(16)), out=32)),
    "ResNeSt": network(lambda: backbone(conv(3, 32, stride=2), Bottleneck(32, 32, mix=SplitAttention(16)), out=32)),
    "ResNet V2 with weight standardisation": network(
        lambda: backbone(StdConv2d(3, 16, 3, stride=2, padding=1), PreActivated(16, 32), PreActivated(32, 32), out=32)
    ),
    "NFNet": network(
        lambda: backbone(ScaledStdConv2d(3, 24, 3, stride=2, padding=1), NormFree(24), NormFree(24), out=24)
    ),
    "RepVGG": network(lambda: cnn(RepVgg(32), RepVgg(32))),
    "DenseNet": network(
        lambda: backbone(
            conv(3, 16, stride=2),
            DenseBlock(16, 3),
            nn.BatchNorm2d(40),
            conv(40, 20, 1),
            nn.AvgPool2d(2),
            DenseBlock(20, 2),
            out=36,
        )
    ),
    "Inception": network(lambda: backbone(conv(3, 16, stride=2), Inception(16), Inception(32), out=32)),
    "SqueezeNet": network(
        lambda: nn.Sequential(
            conv(3, 16, stride=2),
            Fire(16, 8, 16),
            Fire(32, 8, 16),
            nn.Dropout(),
            nn.Conv2d(32, 5, 1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
    ),
    "ELAN (YOLOv7)": network(lambda: cnn(Elan(32), Elan(32))),
    "HRNet": network(HighResolution),
}
