"""Cell nuclei in a microscope image: the data, the network and the functions of edgeprune.toml."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE = 64  # pixels of a tile
CLASSES = 2  # background and nucleus

# -------------------------------------------------------------------------------------------------------- network


class Double(nn.Sequential):
    """Two 3×3 convolutions. The first may halve the resolution."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(
            *(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()),
            *(nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()),
        )


class Up(nn.Module):
    """Doubles the resolution, and joins the features of the way down that have it: a skip connection."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.enlarge = nn.ConvTranspose2d(inputs, outputs, 2, 2)
        self.convs = Double(2 * outputs, outputs)

    def forward(self, x: Tensor, skipped: Tensor) -> Tensor:
        return self.convs(torch.cat([skipped, self.enlarge(x)], 1))


class UNet(nn.Module):
    """A U-Net (Ronneberger et al. 2015) with three skip connections, at half of the image's resolution and below."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = Double(1, 16, stride=2)
        self.down2 = Double(16, 24)
        self.down3 = Double(24, 32)
        self.bottom = Double(32, 48)
        self.up3 = Up(48, 32)
        self.up2 = Up(32, 24)
        self.up1 = Up(24, 16)
        self.classify = nn.ConvTranspose2d(16, CLASSES, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        first = self.down1(x)
        second = self.down2(F.max_pool2d(first, 2))
        third = self.down3(F.max_pool2d(second, 2))
        x = self.bottom(F.max_pool2d(third, 2))
        return self.classify(self.up1(self.up2(self.up3(x, third), second), first))


def build() -> nn.Module:
    """The network, without its trained weights. Its inputs are pixels after [preprocess]."""
    return UNet()


def example_inputs() -> tuple[Tensor]:
    """One tile of the camera image, 0 to 255: the artifact takes one at a time."""
    return (torch.zeros(1, 1, SIDE, SIDE, dtype=torch.uint8),)


# ----------------------------------------------------------------------------------------------------------- data

ROWS = {"train": slice(0, 256), "valid": slice(256, 384), "test": slice(384, 512)}  # of the image
BATCH = 8
EPOCH = 32  # batches of random tiles
GAIN = 0.6, 1.6  # the least and the most brightness of a training tile


@cache
def region(part: str) -> tuple[Tensor, Tensor]:
    """The pixels and the classes of one part of the image, (rows, 512) each, uint8 and int64."""
    with np.load(Path(__file__).with_name("nuclei.npz"), allow_pickle=False) as file:
        image, nucleus = file["image"][ROWS[part]], file["nucleus"][ROWS[part]] > 0
    return torch.from_numpy(image.copy()), torch.from_numpy(nucleus.astype("int64"))


class RandomTiles:
    """The training batches. The epoch determines the tiles, so a resumed training sees the same ones."""

    def __init__(self) -> None:
        self.epoch = 0

    def __len__(self) -> int:
        return EPOCH

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which determines the tiles and their changes."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        random = np.random.default_rng(self.epoch)
        for _ in range(EPOCH):
            tiles = [random_tile(*region("train"), random) for _ in range(BATCH)]
            pixels, classes = zip(*tiles, strict=True)
            yield torch.stack(pixels)[:, None], torch.stack(classes)


def random_tile(pixels: Tensor, classes: Tensor, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A tile from anywhere, turned, perhaps mirrored, and with another brightness."""
    top, left = (int(random.integers(size - SIDE + 1)) for size in pixels.shape)
    both = torch.stack([pixels.long(), classes])[:, top : top + SIDE, left : left + SIDE]
    both = both.rot90(int(random.integers(4)), (1, 2))
    if random.random() < 0.5:
        both = both.flip(2)
    bright = both[0] * float(np.exp(random.uniform(*np.log(GAIN))))
    return bright.clamp(0, 255).to(torch.uint8), both[1]


def _tiles(part: str) -> list[tuple[Tensor, Tensor]]:
    """All tiles of a part, side by side, as batches."""
    pixels, classes = (
        tensor.unfold(0, SIDE, SIDE).unfold(1, SIDE, SIDE).reshape(-1, SIDE, SIDE) for tensor in region(part)
    )
    return [(pixels[:, None], classes)]


def train_batches() -> RandomTiles:
    """256 random tiles of the upper half, new ones in every epoch."""
    return RandomTiles()


def valid_batches() -> list[tuple[Tensor, Tensor]]:
    """The 16 tiles of the third quarter, for every choice."""
    return _tiles("valid")


def test_batches() -> list[tuple[Tensor, Tensor]]:
    """The 16 tiles of the lowest quarter, for the verdict. No choice uses them."""
    return _tiles("test")


# ----------------------------------------------------------------------------------------------- loss and metric


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of the pixels, and 1 − the soft intersection over union of the nuclei."""
    nucleus, wanted = outputs.softmax(1)[:, 1], targets.to(outputs.dtype)
    shared = (nucleus * wanted).sum()
    return F.cross_entropy(outputs, targets) + 1 - shared / (nucleus.sum() + wanted.sum() - shared).clamp(min=1)


def nucleus_iou(outputs: Tensor, targets: Tensor) -> float:
    """The intersection over union of the nuclei's pixels, over all tiles together."""
    found, wanted = outputs.argmax(1) == 1, targets == 1
    return float((found & wanted).sum() / (found | wanted).sum().clamp(min=1))
