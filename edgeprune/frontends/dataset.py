"""Find mistakes in a project's data before training. Only sums, digests and some labels are kept in memory."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from edgeprune.errors import EdgepruneError
from edgeprune.frontends.data import Split
from edgeprune.frontends.model import Network
from edgeprune.frontends.trial import check_data
from edgeprune.limits import LIMITS
from edgeprune.network.importance.sampling import CURVE_SAMPLES
from edgeprune.records import Finding, Preprocess, Project, SplitName
from edgeprune.records.project import SPLITS

RARE = 0.1  # a class with less than this share of the largest class's samples is rare
FAR = 3.0  # standard deviations that a channel's mean may be from zero
SCALES = 0.05, 20.0  # networks train well if a channel's standard deviation is in this range
CONSTANT = 1e-6  # a channel whose standard deviation is below this share of its mean varies only by rounding
SHIFT = 0.5  # standard deviations by which the means of two splits may differ
FIRST = CURVE_SAMPLES[1], LIMITS.reconstruction_samples  # most samples that loss curves and refits are computed from
SURE = 20.0  # data counts as sorted if its order would occur by chance with less than exp(-SURE)
NAMES_SHOWN = 5  # in one finding


@dataclass
class _Moments:
    """Sums over an input, by channel (dimension 1): (channels,) each. Inputs of integers, such as tokens, have none."""

    count: int = 0
    total: Tensor | None = None
    squares: Tensor | None = None

    def add(self, batch: Tensor) -> None:
        channels = batch.shape[1] if batch.ndim > 1 else 1
        values = batch.double().reshape(len(batch), channels, -1).transpose(0, 1).reshape(channels, -1)
        sums, squares = values.sum(1), (values**2).sum(1)
        self.total = sums if self.total is None else self.total + sums
        self.squares = squares if self.squares is None else self.squares + squares
        self.count += values.shape[1]

    @property
    def mean(self) -> Tensor:
        assert self.total is not None
        return self.total / self.count

    @property
    def deviation(self) -> Tensor:
        assert self.squares is not None
        return (self.squares / self.count - self.mean**2).clamp(min=0).sqrt()


@dataclass
class _Content:
    """What is kept of a split that was read once."""

    samples: int = 0
    classes: Counter[int] = field(default_factory=Counter)
    first: list[int] = field(default_factory=list)  # the classes of the first samples, at most the largest of `FIRST`
    digests: set[bytes] = field(default_factory=set)
    repeated: int = 0
    moments: dict[int, _Moments] = field(default_factory=dict)


def examine(project: Project) -> Iterator[Finding]:
    """Read at most `LIMITS.checked_samples` of each split, and report mistakes that make training worse or fail:

    - labels and shapes that the model cannot take, NaN and infinity
    - channels that never change, or are far from zero mean and unit scale
    - rare classes, and classes that a split lacks
    - samples that occur twice or in two splits
    - training data that is sorted by class
    - splits with different means

    Args:
        project: names the model and the data.

    Yields:
        Findings, each as soon as it is known.
    """
    try:
        check_data(Network(project).module, project)  # labels, shapes, NaN and infinity
    except EdgepruneError as error:
        yield Finding("fail", str(error), "fix the data")
        return
    splits = {name: _read(project, name) for name in SPLITS if project.data.split(name) is not None}
    for name, split in splits.items():
        yield Finding("ok", f"[data] {name}: {split.samples} samples" + _balance(split))
        yield from _inputs(name, split, project.preprocess)
    if "train" not in splits:
        return
    yield from _order(splits["train"])
    for name, split in splits.items():
        if name != "train":
            yield from _together("train", splits["train"], name, split)


def _read(project: Project, name: SplitName) -> _Content:
    found = _Content()
    split = Split(project, name)
    for given, targets in split:
        inputs = [tensor.movedim(dim, 0) for tensor, dim in zip(given, split.dims(len(given)), strict=True)]
        found.samples += len(inputs[0])
        if targets.ndim == 1 and not targets.is_floating_point():
            found.classes.update(targets.tolist())
            found.first += targets[: FIRST[-1] - len(found.first)].tolist()
        for place, tensor in enumerate(inputs):
            if tensor.is_floating_point():
                found.moments.setdefault(place, _Moments()).add(tensor)
        for i in range(len(inputs[0])):
            sha = hashlib.blake2b(digest_size=16)
            for tensor in inputs:
                sha.update(tensor[i].contiguous().numpy().tobytes())
            found.repeated += sha.digest() in found.digests
            found.digests.add(sha.digest())
        if found.samples >= LIMITS.checked_samples:
            break
    return found


def _balance(split: _Content) -> str:
    if not split.classes:
        return ""
    return f", {len(split.classes)} classes of {min(split.classes.values())} to {max(split.classes.values())}"


def _inputs(name: str, split: _Content, preprocess: Preprocess | None) -> Iterator[Finding]:
    where = f"[data] {name}"
    if split.repeated:
        fix = "remove them, unless they shall count more" if name == "train" else "remove them"
        yield Finding("warn", f"{where}: {split.repeated} samples occur more than once", fix)
    most = max(split.classes.values(), default=0)
    rare = [str(label) for label, count in sorted(split.classes.items()) if count < RARE * most]
    if rare:
        what = f"{where}: classes with less than a tenth of the largest class's samples: {_some(rare)}"
        yield Finding("warn", what, "collect more samples of them, or weight them in [data] loss")
    for place, moments in split.moments.items():
        mean, deviation = moments.mean, moments.deviation
        if place == 0 and preprocess is not None:  # as the network sees it
            factor = torch.tensor(preprocess.factor)
            mean, deviation = mean * factor + torch.tensor(preprocess.shift), deviation * factor.abs()
        which = f"{where}: input {place}" if len(split.moments) > 1 else where
        constant = deviation <= CONSTANT * mean.abs()
        if constant.any():
            names = [str(i) for i in constant.nonzero().flatten().tolist()]
            yield Finding("warn", f"{which}: channels that never change: {_some(names)}", "remove them from the inputs")
        varying = ~constant
        if not varying.any():
            continue
        off = (mean[varying].abs() > FAR * deviation[varying]).any()
        low, high = float(deviation[varying].min()), float(deviation[varying].max())
        if off or low < SCALES[0] or high > SCALES[1]:
            text = (
                f"mean {float(mean.min()):.3g} to {float(mean.max()):.3g}, standard deviation {low:.3g} to {high:.3g}"
            )
            fix = "normalise the channels to zero mean and unit scale, for instance by [preprocess]"
            yield Finding("warn", f"{which}: {text}", fix)


def _order(train: _Content) -> Iterator[Finding]:
    """Whether the first samples are like the others. Scores and refits are computed from the first ones."""
    for most in FIRST:
        first = train.first[: min(most, train.samples // 2)]
        share = len(first) / train.samples
        expected = [share * count for label, count in train.classes.items() if label not in first]
        # A set of classes is missing by chance with probability exp(-Σ expected), times the number of such sets.
        if sum(max(0.0, count - math.log(len(train.classes))) for count in expected) < SURE:
            continue
        found = f"{len(set(first))} of {len(train.classes)} classes"
        what = f"[data] train is sorted: its first {len(first)} samples have {found}"
        fix = "shuffle it, for instance by DataLoader(…, shuffle=True): scores are computed from the first samples"
        yield Finding("warn", what, fix)
        return


def _together(first: str, a: _Content, second: str, b: _Content) -> Iterator[Finding]:
    """Mistakes that show only when two splits are compared."""
    shared = len(a.digests & b.digests)
    if shared:
        what = f"[data] {shared} samples are in both {first} and {second}: the metric of {second} would be too high"
        yield Finding("warn", what, f"remove them from {first}")
    unseen = [str(label) for label in sorted(b.classes.keys() - a.classes.keys())]
    if unseen:
        what = f"[data] {second} has classes that {first} lacks: {_some(unseen)}"
        yield Finding("warn", what, "split the data again, so that each split has all classes")
    for place in a.moments.keys() & b.moments.keys():
        one, other = a.moments[place], b.moments[place]
        if one.mean.shape != other.mean.shape:
            continue
        scale = torch.maximum(one.deviation, other.deviation).clamp(min=1e-12)
        shift = float(((one.mean - other.mean).abs() / scale).max())
        if shift > SHIFT:
            what = f"[data] {first} and {second} differ by {shift:.2g} standard deviations on average in input {place}"
            yield Finding("warn", what, "normalise both by the same mean and standard deviation")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more
