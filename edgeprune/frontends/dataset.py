"""What is wrong with a project's data, before anybody trains on it; only sums, digests and some labels are kept."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from edgeprune.errors import EdgepruneError
from edgeprune.frontends.data import SPLITS, Split
from edgeprune.frontends.model import build_model
from edgeprune.frontends.trial import check_data
from edgeprune.limits import LIMITS
from edgeprune.network.importance.curves import SAMPLES
from edgeprune.records import Finding, Preprocess, Project, SplitName

RARE = 0.1  # of the most frequent class, below which another is rare
FAR = 3.0  # standard deviations that a mean may lie from zero
SCALES = 0.05, 20.0  # of the standard deviation, between which networks train well
STILL = 1e-6  # of its mean: a channel that varies less does not, but for rounding
SHIFT = 0.5  # standard deviations by which the means of two splits may differ
FIRST = SAMPLES[1], LIMITS.reconstruction_samples  # that loss curves, and that fits are made from, at most
SURE = 20.0  # of the order, in nats
TOLD = 5  # names in one finding


@dataclass
class _Moments:
    """Of one input, by channel: dimension 1, (channels,); None where it holds whole numbers, such as tokens."""

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
    """What one pass over a split leaves."""

    samples: int = 0
    classes: Counter[int] = field(default_factory=Counter)
    first: list[int] = field(default_factory=list)  # the classes of as many samples as anything is computed from
    digests: set[bytes] = field(default_factory=set)
    repeated: int = 0
    moments: dict[int, _Moments] = field(default_factory=dict)


def examine(project: Project) -> Iterator[Finding]:
    """Read the splits, `LIMITS.checked_samples` of each at most, and tell what will hurt.

    Labels and shapes that the model cannot take, NaN and infinity; channels that never change; rare and missing classes;
    samples that are in two splits, or sorted by class; inputs that are not near zero mean and unit scale, or are in one
    split and not in another.
    """
    try:
        check_data(build_model(project), project)  # labels, shapes, and what is not finite
    except EdgepruneError as error:
        yield Finding("fail", str(error), "mend the data")
        return
    splits = {name: _read(project, name) for name in SPLITS if project.data.split(name) is not None}
    for name, split in splits.items():
        yield Finding("ok", f"[data] {name}: {split.samples} samples" + _balance(split))
        yield from _inputs(name, split, project.preprocess)
    yield from _order(splits["train"])
    for name, split in splits.items():
        if name != "train":
            yield from _together("train", splits["train"], name, split)


def _read(project: Project, name: SplitName) -> _Content:
    found = _Content()
    for inputs, targets in Split(project, name):
        found.samples += len(targets)
        if targets.ndim == 1 and not targets.is_floating_point():
            found.classes.update(targets.tolist())
            found.first += targets[: FIRST[-1] - len(found.first)].tolist()
        for place, tensor in enumerate(inputs):
            if tensor.is_floating_point():
                found.moments.setdefault(place, _Moments()).add(tensor)
        for i in range(len(targets)):
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
        fix = "remove them, unless they are meant to weigh more" if name == "train" else "remove them"
        yield Finding("warn", f"{where}: {split.repeated} samples are there more than once", fix)
    most = max(split.classes.values(), default=0)
    rare = [str(label) for label, count in sorted(split.classes.items()) if count < RARE * most]
    if rare:
        what = f"{where}: less than a tenth as many samples as of the largest class: {_some(rare)}"
        yield Finding("warn", what, "gather more of them, or weigh them in [data] loss")
    for place, moments in split.moments.items():
        mean, deviation = moments.mean, moments.deviation
        if place == 0 and preprocess is not None:  # as the network sees it
            factor = torch.tensor(preprocess.factor)
            mean, deviation = mean * factor + torch.tensor(preprocess.shift), deviation * factor.abs()
        which = f"{where}: input {place}" if len(split.moments) > 1 else where
        still = deviation <= STILL * mean.abs()
        if still.any():
            names = [str(i) for i in still.nonzero().flatten().tolist()]
            yield Finding("warn", f"{which}: channels that never change: {_some(names)}", "leave them out of the model")
        moving = ~still
        if not moving.any():
            continue
        off = (mean[moving].abs() > FAR * deviation[moving]).any()
        low, high = float(deviation[moving].min()), float(deviation[moving].max())
        if off or low < SCALES[0] or high > SCALES[1]:
            text = (
                f"mean {float(mean.min()):.3g} to {float(mean.max()):.3g}, standard deviation {low:.3g} to {high:.3g}"
            )
            yield Finding("warn", f"{which}: {text}", "bring channels to zero mean and unit scale, by [preprocess] say")


def _order(train: _Content) -> Iterator[Finding]:
    """Whether the first samples, which scores and fits are made from, are like the others."""
    for most in FIRST:
        first = train.first[: min(most, train.samples // 2)]
        share = len(first) / train.samples
        expected = [share * count for label, count in train.classes.items() if label not in first]
        # A set of classes is missing by chance with exp(-Σ expected), times the number of such sets.
        if sum(max(0.0, count - math.log(len(train.classes))) for count in expected) < SURE:
            continue
        there = f"{len(set(first))} of {len(train.classes)} classes"
        what = f"[data] train is sorted: its first {len(first)} samples have {there}"
        yield Finding("warn", what, "shuffle it, with DataLoader(…, shuffle=True) say: scores are of the first samples")
        return


def _together(first: str, a: _Content, second: str, b: _Content) -> Iterator[Finding]:
    """What only shows when two splits are held against each other."""
    shared = len(a.digests & b.digests)
    if shared:
        what = f"[data] {shared} samples are in both {first} and {second}: its metric would flatter"
        yield Finding("warn", what, f"take them out of {first}")
    unseen = [str(label) for label in sorted(b.classes.keys() - a.classes.keys())]
    if unseen:
        yield Finding("warn", f"[data] {second} has classes that {first} lacks: {_some(unseen)}", "split the data anew")
    for place in a.moments.keys() & b.moments.keys():
        one, other = a.moments[place], b.moments[place]
        if one.mean.shape != other.mean.shape:
            continue
        scale = torch.maximum(one.deviation, other.deviation).clamp(min=1e-12)
        shift = float(((one.mean - other.mean).abs() / scale).max())
        if shift > SHIFT:
            what = f"[data] {first} and {second} differ by {shift:.2g} standard deviations on average in input {place}"
            yield Finding("warn", what, "normalise both by the same figures")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - TOLD} more" if len(names) > TOLD else ""
    return ", ".join(names[:TOLD]) + more
