"""The data of the digits' example, and the metric. The network is in digits.onnx."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

BATCH = 64
DATA = Path(__file__).parents[1] / "digits" / "digits.npz"
PARTS = {"train": slice(0, 1077), "valid": slice(1077, 1437), "test": slice(1437, 1797)}


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
    with np.load(DATA) as data:
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
