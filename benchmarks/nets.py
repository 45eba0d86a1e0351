"""Networks that benchmarks measure: the usual ones, written out, with random weights (latency does not depend on them)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def layer(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, act: nn.Module | None = None
) -> nn.Module:
    """Convolution, batch-norm and, where given, an activation."""
    parts = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        act,
    ]
    return nn.Sequential(*(part for part in parts if part is not None))


class Basic(nn.Module):
    """Two 3×3 convolutions (He et al. 2016)."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(layer(inputs, width, 3, stride, act=nn.ReLU()), layer(width, width, 3))
        same = stride == 1 and inputs == width
        self.shortcut = nn.Identity() if same else layer(inputs, width, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 (He et al. 2016, the stride in the 3×3)."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.body = nn.Sequential(
            layer(inputs, width, 1, act=nn.ReLU()),
            layer(width, width, 3, stride, act=nn.ReLU()),
            layer(width, outputs, 1),
        )
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else layer(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


class ResNet(nn.Module):
    """Four stages of residual blocks for 224×224 images."""

    def __init__(self, block: type[Basic] | type[Bottleneck], depths: tuple[int, ...]) -> None:
        super().__init__()
        self.stem = nn.Sequential(layer(3, 64, 7, 2, act=nn.ReLU()), nn.MaxPool2d(3, 2, 1))
        blocks, channels = [], 64
        for stage, depth in enumerate(depths):
            for i in range(depth):
                blocks.append(block(channels, 64 << stage, 2 if stage and not i else 1))
                channels = (64 << stage) * block.expansion
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(channels, 1000)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


class InvertedResidual(nn.Module):
    """Expand, depthwise, project (Sandler et al. 2018)."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = inputs * expand
        first = [layer(inputs, hidden, 1, act=nn.ReLU6())] if expand > 1 else []
        depthwise = layer(hidden, hidden, 3, stride, hidden, nn.ReLU6())
        self.body = nn.Sequential(*first, depthwise, layer(hidden, outputs, 1))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.residual else self.body(x)


class MobileNetV2(nn.Module):
    """Width 1.0, for 224×224 images."""

    SETTINGS = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )

    def __init__(self) -> None:
        super().__init__()
        blocks: list[nn.Module] = [layer(3, 32, 3, 2, act=nn.ReLU6())]
        channels = 32
        for expand, width, depth, stride in self.SETTINGS:
            for i in range(depth):
                blocks.append(InvertedResidual(channels, width, 1 if i else stride, expand))
                channels = width
        self.features = nn.Sequential(*blocks, layer(channels, 1280, 1, act=nn.ReLU6()))
        self.fc = nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).mean((2, 3)))


NETS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: ResNet(Basic, (2, 2, 2, 2)),
    "resnet50": lambda: ResNet(Bottleneck, (3, 4, 6, 3)),
    "mobilenetv2": MobileNetV2,
}


def inputs() -> tuple[Tensor]:
    """One 224×224 image."""
    return (torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0)),)
