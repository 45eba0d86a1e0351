"""Networks for images, written small and true to form: backbones."""

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


# --------------------------------------------------------------------------------------------- plain and residual


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
            nn.Linear(32 * 4, 64), nn.ReLU(True), nn.Dropout(), nn.Linear(64, 64), nn.ReLU(True), nn.Dropout(), nn.Linear(64, 5)
        )  # fmt: skip

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
        self.short = StdConv2d(i, o, 1) if i != o else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norms[0](x))
        short = self.short(y) if isinstance(self.short, StdConv2d) else x
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


# ------------------------------------------------------------------------------------- concatenation and branches


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


# ------------------------------------------------------------------------------------------------------- mobile


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


# ---------------------------------------------------------------------------------- attention over channels and places


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


def cnn(*blocks: nn.Module, width: int = 32) -> nn.Module:
    """Blocks that keep their width between a strided stem and a classifier."""
    return backbone(conv(3, width, stride=2), *blocks, out=width)


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
