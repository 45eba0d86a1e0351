"""Handwritten digits: the data, the network and the functions of edgeprune.toml."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

BATCH = 64
PARTS = {"train": slice(0, 1077), "valid": slice(1077, 1437), "test": slice(1437, 1797)}  # of digits.npz


class Block(nn.Module):
    """Two 3×3 convolutions and a shortcut. The shortcut is a projection if the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class Separable(nn.Module):
    """A depthwise convolution, then a pointwise one."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(inputs, inputs, 3, 1, 1, groups=inputs, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.pointwise(F.relu(self.bn1(self.depthwise(x))))))


class Digits(nn.Module):
    """A residual network with a depthwise block, for 16×16 grey images."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 48, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(48)
        self.block1 = Block(48, 112)
        self.block2 = Block(112, 112)
        self.block3 = Block(112, 96, stride=2)
        self.separable = Separable(96, 128)
        self.fc = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        x = self.separable(self.block3(self.block2(self.block1(x))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def build() -> nn.Module:
    """The network, without its trained weights."""
    return Digits()


def example_inputs() -> tuple[Tensor]:
    """One image: the artifact takes one at a time."""
    return (torch.zeros(1, 1, 16, 16),)


class Batches:
    """One split in batches. In training, every epoch has a new order and shifts by up to a pixel of the original."""

    def __init__(self, images: Tensor, labels: Tensor, shuffled: bool = False) -> None:
        self.images, self.labels, self.shuffled = images, labels, shuffled
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which determines the order."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        random = np.random.default_rng(self.epoch)
        order = random.permutation(len(self.labels)) if self.shuffled else np.arange(len(self.labels))
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            images = self.images[chosen]
            if self.shuffled:
                rows, columns = random.integers(-2, 3, 2)
                images = F.pad(images, (2, 2, 2, 2))[:, :, 2 + rows : 18 + rows, 2 + columns : 18 + columns]
            yield images, self.labels[chosen]


def _split(part: str) -> Batches:
    with np.load(Path(__file__).with_name("digits.npz")) as data:
        images, labels = data["images"][PARTS[part]], data["labels"][PARTS[part]].astype("int64")
    images = np.kron(images.astype("float32") / 16, np.ones((1, 2, 2), "float32"))[:, None]
    return Batches(torch.from_numpy(images), torch.from_numpy(labels), part == "train")


def train_batches() -> Batches:
    """1,077 images."""
    return _split("train")


def valid_batches() -> Batches:
    """360 images for every choice."""
    return _split("valid")


def test_batches() -> Batches:
    """360 images for the verdict. No choice uses them."""
    return _split("test")


def accuracy(outputs: Tensor, targets: Tensor) -> float:
    """The share of images whose digit is right."""
    return float((outputs.argmax(1) == targets).float().mean())
