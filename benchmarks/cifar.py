"""Small images and the networks for them that `compression.py` compresses.

The images are CIFAR-10's, re-compressed as JPEG, from `cifar10-jpeg-train.npz` and `cifar10-jpeg-test.npz`. Each file has
`jpeg` (the concatenated images), `offset` and `label`. Without them, scikit-learn's handwritten digits replace them,
enlarged. These are few and easy, but available on any machine.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import cache, partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from nets import VisionTransformer, inverted_residuals, layer
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # the ResNets' weights were trained with these
VALID = 0.1  # of the training images, held back to choose the best epoch
BATCH = 128
CROP = 4  # pixels of zeros around an image; a random part is kept


@cache
def images(data: Path | None, split: str) -> tuple[Tensor, Tensor]:
    """All images of "train" or "test", uint8 (n, 3, 32, 32), and their labels (n,)."""
    if data is None:
        digits = load_digits()
        large = np.kron(digits.images, np.ones((4, 4))) * (255 / 16)
        pixels = torch.from_numpy(large).to(torch.uint8)[:, None].expand(-1, 3, -1, -1)
        labels = torch.from_numpy(digits.target)
        place = torch.arange(len(labels)) % 5 == 0
        chosen = place if split == "test" else ~place
        return pixels[chosen], labels[chosen]
    with np.load(data / f"cifar10-jpeg-{split}.npz", allow_pickle=False) as file:
        jpeg, offset, label = file["jpeg"], file["offset"], file["label"]
    files = (jpeg[a:b].tobytes() for a, b in pairwise(offset))
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(content)).convert("RGB")) for content in files])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(label.astype(np.int64))


def batches(data: Path | None, split: str, count: int | None = None) -> Batches:
    """Batches of "train", "valid" or "test". `count` limits the images of the first two."""
    pixels, labels = images(data, "test" if split == "test" else "train")
    if split != "test":
        held = round(VALID * len(labels))
        last = len(labels) - held
        part = slice(last, None) if split == "valid" else slice(0, last)
        pixels, labels = pixels[part][:count], labels[part][:count]
    return Batches(pixels, labels, augmented=split == "train", mirrored=data is not None)


class Batches:
    """(inputs, labels). If `augmented`: in random order, cropped, and (except digits) mirrored at random."""

    def __init__(self, pixels: Tensor, labels: Tensor, augmented: bool, mirrored: bool) -> None:
        self.pixels, self.labels, self.augmented, self.mirrored = pixels, labels, augmented, mirrored

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        count = len(self.labels)
        order = torch.randperm(count) if self.augmented else torch.arange(count)
        for chosen in order.split(BATCH):
            x = self.pixels[chosen].float() / 255
            x = (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
            if self.augmented and self.mirrored:
                x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(3), x)
            yield (_cropped(x) if self.augmented else x), self.labels[chosen]


def _cropped(x: Tensor) -> Tensor:
    count, channels, height, width = x.shape
    top, left = torch.randint(0, 2 * CROP + 1, (2, count))
    rows, columns = top[:, None] + torch.arange(height), left[:, None] + torch.arange(width)
    of_sample, of_channel = torch.arange(count)[:, None, None, None], torch.arange(channels)[None, :, None, None]
    return F.pad(x, (CROP,) * 4)[of_sample, of_channel, rows[:, None, :, None], columns[:, None, None, :]]


class Block(nn.Module):
    """Two 3×3 convolutions. If the size changes, the shortcut takes every other pixel and pads new channels with zeros."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.stride, self.padded = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        if self.padded:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padded, self.padded))
        return torch.relu(out + x)


class CifarResNet(nn.Module):
    """He et al. 2016, section 4.2, with option-A shortcuts; 6·blocks + 2 layers."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(Block(16, 16, 1) for _ in range(blocks)))
        self.layer2 = nn.Sequential(Block(16, 32, 2), *(Block(32, 32, 1) for _ in range(blocks - 1)))
        self.layer3 = nn.Sequential(Block(32, 64, 2), *(Block(64, 64, 1) for _ in range(blocks - 1)))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


class SmallMobileNet(nn.Module):
    """Inverted residuals (Sandler et al. 2018) at a size for 32×32 images."""

    SETTINGS = ((1, 16, 1, 1), (4, 24, 2, 1), (4, 32, 3, 2), (4, 64, 3, 2), (4, 96, 1, 1))

    def __init__(self) -> None:
        super().__init__()
        blocks = inverted_residuals(32, self.SETTINGS)
        self.features = nn.Sequential(layer(3, 32, 3, act=nn.ReLU6()), *blocks, layer(96, 256, 1, act=nn.ReLU6()))
        self.fc = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).mean((2, 3)))


class ChannelNorm(nn.LayerNorm):
    """A layer norm over the channels of (n, channels, height, width)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Inverted(nn.Module):
    """A ConvNeXt block (Liu et al. 2022): depthwise 7×7, norm, expand, project, and a scale for each channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(width, width, 7, 1, 3, groups=width), ChannelNorm(width)
        self.up, self.down = nn.Conv2d(width, 4 * width, 1), nn.Conv2d(4 * width, width, 1)
        self.scale = nn.Parameter(torch.full((width, 1, 1), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.down(F.gelu(self.up(self.norm(self.depthwise(x)))))


class ConvNext(nn.Module):
    """ConvNeXt at its "atto" size (timm: widths 40 to 320). Its first convolution halves the small images, not quarters."""

    WIDTHS, DEPTHS = (40, 80, 160, 320), (2, 2, 6, 2)

    def __init__(self) -> None:
        super().__init__()
        parts: list[nn.Module] = [nn.Conv2d(3, self.WIDTHS[0], 2, 2), ChannelNorm(self.WIDTHS[0])]
        before = self.WIDTHS[0]
        for width, depth in zip(self.WIDTHS, self.DEPTHS, strict=True):
            if width != before:
                parts += [ChannelNorm(before), nn.Conv2d(before, width, 2, 2)]
            parts += [Inverted(width) for _ in range(depth)]
            before = width
        self.features, self.norm, self.fc = nn.Sequential(*parts), nn.LayerNorm(before), nn.Linear(before, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.features(x).mean((2, 3))))


NETS = {
    "resnet20": partial(CifarResNet, 3),
    "resnet32": partial(CifarResNet, 5),
    "mobilenet": SmallMobileNet,
    "vit": partial(VisionTransformer, 32, 8, 10),
    "convnext": ConvNext,
}


def inputs() -> tuple[Tensor]:
    """One image."""
    return (torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)),)
