"""Digits in a scene: the data, the network and the functions of edgeprune.toml."""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn

sys.path.append(str(Path(__file__).parents[1] / "digits"))  # the example that these handwritten digits are from
from digits import PARTS

DIGITS = Path(__file__).parents[1] / "digits" / "digits.npz"

CLASSES = 10
SIDE = 64  # pixels of a scene
STRIDES = {"fine": 8, "coarse": 16}  # pixels between two cells of each output
LARGE = 22  # pixels: a digit of this height or more belongs to the coarse output

# -------------------------------------------------------------------------------------------------------- network


class Block(nn.Module):
    """Two 3×3 convolutions and a projection as shortcut. It halves the resolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class Head(nn.Module):
    """For each cell, a logit of every class, and the box of a digit: its centre and size."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.predict = nn.Conv2d(channels, CLASSES + 4, 1)
        rare = -math.log(99)  # at first, every class has a probability of 1 % (Lin et al. 2017)
        self.predict.bias.data = torch.tensor([rare] * CLASSES + [0.0] * 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.predict(F.relu(self.bn(self.conv(x))))


class Detector(nn.Module):
    """A single-shot detector with two feature maps as outputs, and a pathway from the coarse one to the fine one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 32, 3, 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(32)
        self.layer1 = Block(32, 48)
        self.layer2 = Block(48, 96)
        self.layer3 = Block(96, 128)
        self.lateral = nn.Conv2d(96, 96, 1)
        self.down = nn.Conv2d(128, 96, 1)
        self.fine = Head(96)
        self.coarse = Head(128)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.layer1(F.relu(self.bn(self.stem(x))))
        fine = self.layer2(x)
        coarse = self.layer3(fine)
        merged = self.lateral(fine) + F.interpolate(self.down(coarse), scale_factor=2.0, mode="nearest")
        return {"fine": self.fine(merged), "coarse": self.coarse(coarse)}


def build() -> nn.Module:
    """The network, without its trained weights. Its inputs are pixels after [preprocess]."""
    return Detector()


def example_inputs() -> tuple[Tensor]:
    """One camera image, 0 to 255: the artifact takes one at a time."""
    return (torch.zeros(1, 1, SIDE, SIDE, dtype=torch.uint8),)


# ----------------------------------------------------------------------------------------------------------- data

BATCH = 32
EPOCH = 32  # batches of an epoch, all of new scenes
HELD = {"valid": 320, "test": 640}  # scenes of the other splits
MOST = 4  # digits in a scene
HEIGHTS = 12, 33  # pixels of a digit: the least, and one more than the most
CONTRAST = 90, 190  # grey levels of a digit above the background
ATTEMPTS = 20  # to find a free place for a digit


class Ink(NamedTuple):
    """The handwritten digits of one split."""

    images: np.ndarray  # (n, 8, 8), uint8, 0 to 16
    labels: np.ndarray  # (n,)


@cache
def ink(part: str) -> Ink:
    """The digits of a split. No digit is in two splits."""
    with np.load(DIGITS, allow_pickle=False) as file:
        return Ink(file["images"][PARTS[part]], file["labels"][PARTS[part]])


def scene(digits: Ink, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A scene (SIDE, SIDE), uint8, and its digits (MOST, 5).

    A row holds the left, upper, right and lower edge of a digit in pixels, and its class; or only -1 if there is none.
    """
    ramp = np.linspace(-1, 1, SIDE, dtype="float32")
    slopes = random.uniform(-20, 20, (2, 1)).astype("float32")
    picture = random.uniform(20, 60) + slopes[0] * ramp + (slopes[1] * ramp)[:, None]
    found = np.full((MOST, 5), -1, "float32")
    for row in range(random.integers(1, MOST + 1)):
        chosen, height = random.integers(len(digits.labels)), int(random.integers(*HEIGHTS))
        drawn = drawn_digit(digits.images[chosen], height)
        box = free_place(found[:row, :4], drawn.shape, random)
        if box is None:
            break
        left, top, right, bottom = box
        picture[top:bottom, left:right] += random.uniform(*CONTRAST) * drawn
        found[row] = *box, digits.labels[chosen]
    picture += random.normal(0, 6, picture.shape)
    return picture.clip(0, 255).astype("uint8"), found


def drawn_digit(image: np.ndarray, height: int) -> np.ndarray:
    """A digit of this height without empty rows and columns, 0 to 1."""
    rows, columns = (np.flatnonzero((image > 2).any(axis)) for axis in (1, 0))
    tight = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    width = max(4, round(height * tight.shape[1] / tight.shape[0]))
    enlarged = Image.fromarray(tight * np.uint8(15)).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(enlarged, "float32") / 240


def free_place(taken: np.ndarray, shape: tuple[int, ...], random: np.random.Generator) -> tuple[int, ...] | None:
    """The edges of a box of this shape that overlaps with no other box, or None if no attempt finds one."""
    height, width = shape
    if width > SIDE:
        return None
    for _ in range(ATTEMPTS):
        left, top = int(random.integers(SIDE - width + 1)), int(random.integers(SIDE - height + 1))
        right, bottom = left + width, top + height
        apart = (taken[:, 0] >= right) | (taken[:, 2] <= left) | (taken[:, 1] >= bottom) | (taken[:, 3] <= top)
        if apart.all():
            return left, top, right, bottom
    return None


def scenes(part: str, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Scenes (count, 1, SIDE, SIDE), uint8, and their digits (count, MOST, 5). The seed determines them."""
    random = np.random.default_rng(seed)
    pictures, found = zip(*(scene(ink(part), random) for _ in range(count)), strict=True)
    return torch.from_numpy(np.stack(pictures)[:, None]), torch.from_numpy(np.stack(found))


class NewScenes:
    """The training batches. The epoch determines the scenes, so a resumed training sees the same ones."""

    def __init__(self) -> None:
        self.epoch = 0

    def __len__(self) -> int:
        return EPOCH

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which determines the scenes."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in range(EPOCH):
            yield scenes("train", BATCH, self.epoch * EPOCH + batch)


@cache
def _held(part: str) -> list[tuple[Tensor, Tensor]]:
    columns = (tensor.split(BATCH) for tensor in scenes(part, HELD[part], seed=0))
    return list(zip(*columns, strict=True))


def train_batches() -> NewScenes:
    """1,024 scenes, new ones in every epoch, of 1,077 digits."""
    return NewScenes()


def valid_batches() -> list[tuple[Tensor, Tensor]]:
    """320 scenes of 360 other digits, for every choice."""
    return _held("valid")


def test_batches() -> list[tuple[Tensor, Tensor]]:
    """640 scenes of 360 other digits, for the verdict. No choice uses them."""
    return _held("test")


# ----------------------------------------------------------------------------------------------- loss and metric

BOX_LOSS = 2.0  # the weight of the boxes
FOCUS = 2.0  # the exponent of the focal loss
LEAST_SCORE = 0.05  # of a detection
OVERLAP = 0.5  # intersection over union of two detections of one digit


def cells(stride: int) -> Tensor:
    """The centres of an output's cells in pixels, (cells, 2), row by row."""
    along = torch.arange(stride / 2, SIDE, stride)
    return torch.stack(torch.meshgrid(along, along, indexing="xy"), -1).flatten(0, 1)


def assigned(targets: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """What an output should say about each cell: the class (n, cells), or -1, and the box (n, cells, 4).

    A digit belongs to the output for its height, there to the cells within a stride of its centre, and to the nearest of two
    digits. A box is its centre from the cell's, and the logarithm of its size, both in strides (Liu et al. 2016).
    """
    size = targets[..., 2:4] - targets[..., :2]
    centre = targets[..., :2] + size / 2
    coarse = size[..., 1] >= LARGE
    belongs = (targets[..., 4] >= 0) & (coarse == (stride == STRIDES["coarse"]))
    offset = (centre[:, None] - cells(stride).to(targets.device)[:, None]) / stride  # (n, cells, digits, 2)
    distance = offset.abs().amax(-1).masked_fill(~belongs[:, None], torch.inf)
    nearest, digit = distance.min(-1)
    classes = targets[..., 4].gather(1, digit).masked_fill(nearest >= 1, -1).long()
    scale = (size.clamp(min=1) / stride).log()[:, None].expand_as(offset)
    boxes = torch.cat([offset, scale], -1)
    return classes, boxes.take_along_dim(digit[..., None, None], 2)[:, :, 0]


def loss(outputs: Mapping[str, Tensor], targets: Tensor) -> Tensor:
    """Focal loss of the classes (Lin et al. 2017) and smooth L1 loss of the boxes, by cell that has a digit."""
    total, positives = torch.zeros((), device=targets.device), 0
    for name, stride in STRIDES.items():
        logits, boxes = outputs[name].flatten(2).transpose(1, 2).split([CLASSES, 4], -1)
        classes, wanted = assigned(targets, stride)
        has_digit = classes >= 0
        truth = F.one_hot(classes.clamp(min=0), CLASSES) * has_digit[..., None]
        surprise = F.binary_cross_entropy_with_logits(logits, truth.to(logits.dtype), reduction="none")
        total = total + ((1 - torch.exp(-surprise)) ** FOCUS * surprise).sum()
        total = total + BOX_LOSS * F.smooth_l1_loss(boxes[has_digit], wanted[has_digit], reduction="sum", beta=0.1)
        positives += int(has_digit.sum())
    return total / max(1, positives)


def detections(outputs: Mapping[str, Tensor]) -> list[np.ndarray]:
    """The digits that were found in each scene, (digits, 6), the surest first: edges, score and class."""
    columns = []
    for name, stride in STRIDES.items():
        logits, boxes = outputs[name].float().flatten(2).transpose(1, 2).split([CLASSES, 4], -1)
        centre = cells(stride) + stride * boxes[..., :2]
        half = stride * boxes[..., 2:].clamp(max=5).exp() / 2
        score, label = logits.sigmoid().max(-1)
        columns.append(torch.cat([centre - half, centre + half, score[..., None], label[..., None]], -1))
    return [_distinct(rows[rows[:, 4] >= LEAST_SCORE]) for rows in torch.cat(columns, 1).numpy()]


def _distinct(rows: np.ndarray) -> np.ndarray:
    """Of detections of one class that overlap, the surest: greedy non-maximum suppression."""
    rows = rows[np.argsort(-rows[:, 4], kind="stable")]
    upper, lower = np.maximum(rows[:, None, :2], rows[:, :2]), np.minimum(rows[:, None, 2:4], rows[:, 2:4])
    shared, area = (lower - upper).clip(0).prod(-1), (rows[:, 2:4] - rows[:, :2]).prod(-1)
    same = (shared > OVERLAP * (area[:, None] + area - shared)) & (rows[:, None, 5] == rows[:, 5])
    kept: list[int] = []
    for row in range(len(rows)):
        if not same[row, kept].any():
            kept.append(row)
    return rows[kept]


def mean_average_precision(outputs: Mapping[str, Tensor], targets: Tensor) -> float:
    """COCO's mean average precision: over the classes, and thresholds of the overlap from 0.50 to 0.95."""
    scenes_found = enumerate(detections(outputs))
    found = [(image, *_corner_and_size(row[:4]), *row[4:]) for image, rows in scenes_found for row in rows]
    if not found:
        return 0.0
    with redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        truth = COCO()
        truth.dataset = _annotations(targets)
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(np.array(found, "float64")), "bbox")
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, SIDE**2]], ["all"]
        evaluation.params.maxDets = [100]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"]
    return float(precision[precision >= 0].mean())  # -1 stands for a class without digits


def _corner_and_size(edges: np.ndarray) -> list[float]:
    return [*edges[:2].tolist(), *(edges[2:] - edges[:2]).tolist()]


def _annotations(targets: Tensor) -> dict[str, list[dict[str, object]]]:
    """The true digits in COCO's form, whose numbers start at 1."""
    annotations: list[dict[str, object]] = []
    for image, rows in enumerate(targets.numpy()):
        for row in rows[rows[:, 4] >= 0]:
            box = _corner_and_size(row[:4])
            one = {"image_id": image, "category_id": int(row[4]), "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, **one})
    images: list[dict[str, object]] = [{"id": image} for image in range(len(targets))]
    return {"images": images, "annotations": annotations, "categories": [{"id": kind} for kind in range(CLASSES)]}
