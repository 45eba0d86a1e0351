"""The agreement of a network with the original one, on samples without labels: targets, loss and metric.

Targets are all outputs of the original network that are real numbers, side by side: (samples, numbers). `Comparison` knows
which output holds the scores of classes:

- Scores of classes are the only output, or the one named logits or out, if it is (samples, classes). Their loss is the
  Kullback-Leibler divergence. Their agreement is the share of samples with the same class.
- The loss of other outputs is the mean squared difference ÷ the variance over samples. Their agreement is
  1 − Σ(output − original)² ÷ Σ(original − mean over samples)², and at least 0.

Several outputs count alike.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from edgeprune.errors import UsageError, usage_error
from edgeprune.frontends import samplefiles
from edgeprune.limits import LIMITS
from edgeprune.network.adapter import file_names
from edgeprune.network.outputs import main_of, tensors
from edgeprune.records import BudgetSection, DataSection, FinetuneSection, Project, SplitName

if TYPE_CHECKING:
    from edgeprune.frontends.model import Network
    from edgeprune.frontends.unlabelled import Unlabelled

BATCH = 32
SHARES: Mapping[SplitName, tuple[float, float]] = {"train": (0.0, 0.6), "valid": (0.6, 0.8), "test": (0.8, 1.0)}
SCALED = 256  # training samples that the variance of an output comes from
NEAR_ONE = 1e-3  # how far the sum of probabilities may be from 1
LEAST = 1e-12  # a smaller probability counts as this
FLAT = 1e-10  # a smaller share of the squares is rounding


class Comparison:
    """Splits of samples, and the loss and the metric of a network's outputs for them.

    Attributes:
        functions: by the keys of `[data]` that they stand for.
    """

    def __init__(self, given: Unlabelled) -> None:
        self._given = given
        self._original = Original(given)
        self.functions: Mapping[str, Callable[..., Any]] = {
            **{name: partial(self._split, name) for name in SHARES},
            "loss": Distance(self),
            "metric": partial(_metric, self),
        }

    @cached_property
    def _splits(self) -> Mapping[SplitName, Batches]:
        """All splits. They have the same samples in every process, and no sample is in two of them."""
        samples, where = self._samples(), self._given.where
        least = LIMITS.unlabelled_least * (1 if self._original.takes_any else self._original.batch)
        if len(samples) < least:
            raise UsageError(
                f"{where} gives {len(samples)} samples; give at least {least}, and better some hundreds:"
                " they are divided into training, validation and test samples"
            )
        order = np.random.default_rng(0).permutation(len(samples))
        bounds = {name: [round(share * len(samples)) for share in shares] for name, shares in SHARES.items()}
        return {
            name: Batches(samples, order[begin:end], self._original, shuffled=name == "train")
            for name, (begin, end) in bounds.items()
        }

    def _samples(self) -> Sequence[samplefiles.Sample]:
        given, form, where = self._given.given, self._original.form, self._given.where
        if isinstance(given, str):
            return Kept(samplefiles.Files(where, self._given.files(), form))
        return samplefiles.Held(where, given.given, form)

    def _split(self, name: SplitName) -> Batches:
        return self._splits[name]

    @cached_property
    def scales(self) -> list[float]:
        """The variance of each output of the original network over training samples."""
        targets, count = [], 0
        for _, found in self._splits["train"].in_order():
            targets.append(found)
            count += len(found)
            if count >= SCALED:
                break
        return [_scale(part) for part in torch.split(torch.cat(targets), self._original.sizes, 1)]

    def pairs(self, outputs: Any, targets: Tensor) -> list[tuple[Tensor, Tensor, float, bool]]:
        """Each output beside the original network's, (samples, numbers), its scale, and whether it scores classes.

        Args:
            outputs: what a network returns. In training it may be more than in eval mode; the main output then counts.
            targets: the original network's.

        Raises:
            UsageError: the outputs have other shapes than the original network's.
        """
        original, found = self._original, tensors(outputs)
        parts = list(zip(torch.split(targets, original.sizes, 1), self.scales, original.classes, strict=True))
        if len(found) == original.count:
            columns = original.columns(found)
        else:
            columns, parts = [main_of(outputs).flatten(1)], [parts[original.main]]
        if [column.shape for column in columns] != [part[0].shape for part in parts]:
            shapes = [tuple(tensor.shape) for tensor in found]
            raise UsageError(f"the network returns {shapes} in training, other than before; give [data] loss for them")
        return [(column, *part) for column, part in zip(columns, parts, strict=True)]


class Original:
    """The original network, and its outputs for samples."""

    def __init__(self, given: Unlabelled) -> None:
        self._given = given

    @cached_property
    def _project(self) -> Project:
        """A project with the same network."""
        given = self._given
        data, finetune = DataSection(given.section().valid), FinetuneSection(seed=given.seed)
        place = given.path, given.path.name
        return Project(
            *place, given.model, data, BudgetSection(), given.preprocess, finetune=finetune, objects=given.objects
        )

    @cached_property
    def network(self) -> Network:
        """The network. It is built at its first use."""
        from edgeprune.frontends.model import Network

        return Network(self._project)

    @cached_property
    def form(self) -> samplefiles.Form:
        """What a sample is: an example input without its batch."""
        from edgeprune.frontends.model import input_names

        given, inputs = self._given, self.network.inputs
        types = tuple(tensor.numpy().dtype for tensor in inputs)
        raw = types[0].kind != "f" or (given.preprocess is not None and given.preprocess.scale != 1)
        names, in_file = input_names(self._project), file_names(self.network.module)
        shapes = tuple(tuple(tensor.shape[1:]) for tensor in inputs)
        return samplefiles.Form(names or tuple(in_file[0] if in_file else ()), shapes, types, raw, loose=not names)

    @cached_property
    def _examples(self) -> list[Tensor]:
        """The outputs for the example inputs."""
        with torch.no_grad(), self._given.guarded():
            return tensors(self.network.module.eval()(*self.network.inputs))

    @property
    def count(self) -> int:
        """How many tensors the network returns."""
        return len(self._examples)

    @cached_property
    def _real(self) -> list[int]:
        """The outputs that are compared."""
        found = [i for i, tensor in enumerate(self._examples) if tensor.is_floating_point()]
        if not found:
            raise usage_error(f"{self._given.where}: the model returns no real numbers to compare; return logits")
        return found

    @property
    def main(self) -> int:
        """The place of the main output among those that are compared."""
        main = self.network.structure.main
        return self._real.index(main) if main in self._real else 0

    @cached_property
    def sizes(self) -> list[int]:
        """How many numbers each output has for a sample."""
        return [column.shape[1] for column in self.columns(self._examples)]

    @cached_property
    def classes(self) -> list[bool]:
        """Whether each output scores classes."""
        structure = self.network.structure
        scored = [structure.is_certain and i == structure.main and self._examples[i].ndim == 2 for i in self._real]
        return [one and size > 1 for one, size in zip(scored, self.sizes, strict=True)]

    @property
    def batch(self) -> int:
        """The samples of a batch. It is that of the example inputs if the model takes no other."""
        return BATCH if self.takes_any else self.network.inputs[0].shape[0]

    @cached_property
    def takes_any(self) -> bool:
        """Whether the model takes batches of any size."""
        given = self.network.inputs[0].shape[0]
        tried = copy.deepcopy(self.network.module).eval()
        try:
            with torch.no_grad():
                found = tensors(tried(*(torch.cat([tensor] * 2) for tensor in self.network.inputs)))
                return [column.shape[0] for column in self.columns(found)] == [2 * given] * len(self._real)
        except (RuntimeError, ValueError, IndexError, AssertionError):
            return False

    def columns(self, found: Sequence[Tensor]) -> list[Tensor]:
        """The outputs that are compared, (samples, numbers) each."""
        dims = self.network.structure.batch_dims
        return [found[i].movedim(dims[i], 0).flatten(1) for i in self._real]

    def targets(self, inputs: Sequence[Tensor]) -> Tensor:
        """All outputs side by side, (samples, numbers)."""
        where = f"{self._given.where}: the model"
        with torch.no_grad(), self._given.guarded(where):
            found = tensors(self.network.module.eval()(*inputs))
            return torch.cat([column.float() for column in self.columns(found)], 1)


class Kept(Sequence[samplefiles.Sample]):
    """Samples that stay in memory once they were read, as far as `LIMITS` allow."""

    def __init__(self, read: Sequence[samplefiles.Sample]) -> None:
        self._read, self._left = read, LIMITS.unlabelled_kept_bytes
        self._kept: dict[int, samplefiles.Sample] = {}

    def __len__(self) -> int:
        return len(self._read)

    def __getitem__(self, number: Any) -> Any:
        if number in self._kept:
            return self._kept[number]
        sample = self._read[number]
        size = sum(array.nbytes for array in sample)
        if size <= self._left:
            self._kept[number] = sample
            self._left -= size
        return sample


class Batches:
    """Batches of some samples, with the original network's outputs as targets.

    Args:
        samples: all samples.
        chosen: the numbers of those that are read.
        original: computes the targets.
        shuffled: whether every epoch has an order of its own.
    """

    def __init__(
        self, samples: Sequence[samplefiles.Sample], chosen: np.ndarray, original: Original, shuffled: bool
    ) -> None:
        self._size, self._epoch, self._targeted = original.batch, 0, True
        whole = len(chosen) // self._size * self._size
        self._chosen = chosen if original.takes_any else chosen[:whole]
        self._samples, self._original, self._shuffled = samples, original, shuffled
        self._known: dict[int, Tensor] = {}  # the targets of groups of samples that follow each other

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which determines the order."""
        self._epoch = epoch

    def without_targets(self) -> Batches:
        """The same batches with zeros as targets, for digests: targets follow from the inputs and the network."""
        found = copy.copy(self)
        found._targeted = False
        return found

    def in_order(self) -> Batches:
        """The same batches, not shuffled."""
        found = copy.copy(self)
        found._shuffled = False
        return found

    def __len__(self) -> int:
        return -(-len(self._chosen) // self._size)

    def __iter__(self) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        places = np.arange(len(self._chosen))
        if self._shuffled:
            places = np.random.default_rng(self._epoch).permutation(places)
        for number in range(len(self)):
            batch = places[number * self._size : (number + 1) * self._size]
            inputs = self._inputs(batch)
            yield inputs, self._targets(batch, inputs) if self._targeted else torch.zeros(len(batch), 1)

    def _inputs(self, places: np.ndarray) -> tuple[Tensor, ...]:
        rows = [self._samples[int(self._chosen[place])] for place in places]
        return tuple(torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True))

    def _targets(self, places: np.ndarray, inputs: tuple[Tensor, ...]) -> Tensor:
        """The targets of a batch. They are computed in fixed groups, so that they do not depend on the order."""
        size = self._size
        if 4 * sum(self._original.sizes) * len(self._samples) > LIMITS.unlabelled_kept_bytes:
            return torch.cat(
                [self._original.targets(part) for part in zip(*(torch.split(x, size) for x in inputs), strict=True)]
            )
        for group in {int(place) // size for place in places} - self._known.keys():
            members = np.arange(group * size, min((group + 1) * size, len(self._chosen)))
            self._known[group] = self._original.targets(self._inputs(members))
        return torch.stack([self._known[int(place) // size][int(place) % size] for place in places])


# --------------------------------------------------------------------------------------------------- loss and metric


def divergence(outputs: Tensor, original: Tensor, temperature: float = 1.0) -> Tensor:
    """The Kullback-Leibler divergence of softened outputs from the original network's, (samples, classes, ...) both."""
    return F.kl_div(
        F.log_softmax(outputs / temperature, 1),
        F.log_softmax(original / temperature, 1),
        log_target=True,
        reduction="batchmean",
    )


@dataclass(frozen=True)
class Distance:
    """The loss: the mean distance of all outputs from the original network's.

    Its gradient is zero at the original network. With `is_sampled`, the gradient there is that of the loss against targets
    that are drawn at random around the original outputs (Martens 2020, section 5). So importance has something to measure.
    """

    comparison: Comparison
    is_sampled: bool = False

    def sampled(self) -> Distance:
        """The same loss, with a gradient at the original network."""
        return replace(self, is_sampled=True)

    def __call__(self, outputs: Any, targets: Tensor) -> Tensor:
        """The loss of a batch."""
        found = []
        for output, target, scale, classes in self.comparison.pairs(outputs, targets):
            distance = _of_classes if classes else partial(_of_numbers, scale=scale)
            value = distance(output, target)
            if self.is_sampled:
                drawn = distance(output, target, noise=_noise(target))
                value = value + drawn - drawn.detach()
            found.append(value)
        return torch.stack(found).mean()


def _of_classes(output: Tensor, target: Tensor, noise: Tensor | None = None) -> Tensor:
    """The divergence of classes' scores; with noise, the cross-entropy of a class that is drawn by its probability."""
    probabilities = _are_probabilities(target)
    scores, original = (_logarithm(x) if probabilities else x for x in (output, target))
    if noise is None:
        return divergence(scores, original)
    uniform = torch.special.ndtr(noise).clamp(1e-6, 1 - 1e-6)
    return F.cross_entropy(scores, (original.log_softmax(1) - (-uniform.log()).log()).argmax(1))


def _of_numbers(output: Tensor, target: Tensor, noise: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """The mean squared difference ÷ the scale; with noise, from targets that are as far away as others are on average."""
    wanted = target if noise is None else target + scale**0.5 * noise
    return F.mse_loss(output, wanted) / scale


def _noise(target: Tensor) -> Tensor:
    """Normal numbers that follow from the target."""
    seed = zlib.crc32(target.detach().cpu().contiguous().numpy().tobytes())
    return torch.randn(target.shape, generator=torch.Generator().manual_seed(seed)).to(target.device)


def _are_probabilities(target: Tensor) -> bool:
    return bool((target >= 0).all()) and bool(((target.sum(1) - 1).abs() < NEAR_ONE).all())


def _logarithm(probabilities: Tensor) -> Tensor:
    return probabilities.clamp(min=LEAST).log()


def _scale(target: Tensor) -> float:
    """The variance over samples. If all samples have the same numbers, it is their mean square, or 1."""
    squares = float(target.square().mean())
    variance = float(target.var(0, correction=0).mean())
    return variance if variance > FLAT * squares else squares or 1.0


def _metric(comparison: Comparison, outputs: Any, targets: Tensor) -> float:
    """The mean agreement of all outputs, from 0 to 1."""
    found = []
    for output, target, _, classes in comparison.pairs(outputs, targets):
        if classes:
            found.append(float((output.argmax(1) == target.argmax(1)).double().mean()))
        else:
            found.append(_explained(output.double(), target.double()))
    return float(np.mean(found))


def _explained(output: Tensor, target: Tensor) -> float:
    """1 − the squared differences ÷ those of the mean, at least 0. If all samples are alike, relative to their squares."""
    error, squares = float((output - target).square().sum()), float(target.square().sum())
    varying = float((target - target.mean(0)).square().sum())
    total = varying if varying > FLAT * squares else squares
    return max(0.0, 1 - error / total) if total else float(error == 0)
