"""Handwritten digits for a Keras model: the data and the functions of edgeprune.toml, as a Keras user would write them."""

from __future__ import annotations

import os
from pathlib import Path

os.environ["KERAS_BACKEND"] = "torch"  # Keras reads it once, while it is imported

import keras
import numpy as np

BATCH = 64
PARTS = {"train": slice(0, 1077), "valid": slice(1077, 1437), "test": slice(1437, 1797)}  # of digits.npz


class Batches(keras.utils.PyDataset):
    """One split in batches of (batch, 16, 16, 1). In training, every epoch has another order and other shifts."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, shuffled: bool) -> None:
        super().__init__()
        self.images, self.labels, self.shuffled = images, labels, shuffled
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which determines the order and the shifts. edgeprune calls it."""
        random = np.random.default_rng(epoch)
        count = len(self.labels)
        self.epoch = epoch
        self.order = random.permutation(count) if self.shuffled else np.arange(count)
        self.shifts = random.integers(-2, 3, (len(self), 2))

    def on_epoch_end(self) -> None:
        """Go on to the next epoch. Keras calls it."""
        self.set_epoch(self.epoch + 1)

    def __len__(self) -> int:
        return -(-len(self.labels) // BATCH)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = self.order[index * BATCH : (index + 1) * BATCH]
        images = self.images[chosen]
        if self.shuffled:
            rows, columns = self.shifts[index]
            padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
            images = padded[:, 2 + rows : 18 + rows, 2 + columns : 18 + columns]
        return images, self.labels[chosen]


def _split(part: str) -> Batches:
    with np.load(Path(__file__).parents[1] / "digits" / "digits.npz") as data:
        images, labels = data["images"][PARTS[part]], data["labels"][PARTS[part]].astype("int32")
    images = np.kron(images.astype("float32") / 16, np.ones((1, 2, 2), "float32"))[..., None]
    return Batches(images, labels, part == "train")


def train_batches() -> Batches:
    """1,077 images."""
    return _split("train")


def valid_batches() -> Batches:
    """360 images for every choice."""
    return _split("valid")


def test_batches() -> Batches:
    """360 images for the verdict. No choice uses them."""
    return _split("test")


def accuracy(outputs: object, targets: object) -> float:
    """The share of images whose digit is right. The arguments are tensors of torch."""
    return float((outputs.argmax(1) == targets).float().mean())  # type: ignore[attr-defined]
