"""The user's data: splits that can be read repeatedly, the loss and the metric. Each use is checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from edgeprune.errors import UsageError
from edgeprune.frontends.model import finite, kind, tensors
from edgeprune.frontends.randomness import Generators, seeded
from edgeprune.limits import LIMITS
from edgeprune.records import Function, Project, SplitName

Policy = Callable[..., np.ndarray]
SPLITS: tuple[SplitName, ...] = ("train", "valid", "test")


class _Made:
    """What a split's function returned, and the random generators that it uses. The function runs once in a process."""

    def __init__(self, function: Function) -> None:
        call = function.load()
        with seeded(0), function.guarded():
            self.data = call()
        self.call = call  # kept alive, so that no other function gets its id
        own = [value for value in getattr(call, "__globals__", {}).values() if not callable(value)]
        self.generators = Generators(self.data, own)


_made: dict[tuple[Function, int], _Made] = {}


class Split:
    """One split of the user's data. Each iteration yields pairs of (tuple of inputs, targets), (batch, ...) each.

    `[data] clean` is applied to each batch. Then the batch is checked.

    Args:
        project: names the split's function and its helpers.
        name: the split.
        augmented: whether `[data] augment` is applied to the inputs.

    Raises:
        UsageError: the data is wrong. It is raised here, or later by the iteration; the message then names the batch.

    Example:
        >>> inputs, targets = next(iter(Split(project, "train")))
    """

    def __init__(self, project: Project, name: SplitName, augmented: bool = False) -> None:
        function = project.data.split(name)
        if function is None:
            raise UsageError(f"{project.where('data', name)} is missing; give a function that returns the batches")
        self.name, self.where = name, project.where("data", name)
        self._function, self._where = function, function.where
        key = (function, id(function.load()))
        if key not in _made:
            _made[key] = _Made(function)
        self._made, self._data = _made[key], _made[key].data
        self._cleaner, self._augmenter = project.data.clean, project.data.augment if augmented else None
        self._clean = self._cleaner.load() if self._cleaner else None
        self._augment = _made_by(self._augmenter) if self._augmenter else None
        if hasattr(self._data, "__next__"):
            raise UsageError(
                f"{self._where} returns {kind(self._data)}, which can only be read once; "
                "return a list, a DataLoader or an object with __iter__"
            )
        if not hasattr(self._data, "__iter__"):
            raise UsageError(f"{self._where} returns {kind(self._data)}; return an iterable of (inputs, targets)")

    @contextmanager
    def repeatable(self, seed: int, epoch: int = 0) -> Iterator[None]:
        """A context in which the order of this split depends only on `seed` and `epoch`.

        Global generators are seeded, and restored at the end. Generators that the data holds are reset to their first state;
        from epoch 1 on, they are seeded by `seed` and `epoch`.
        """
        self._made.generators.restart(seed + epoch if epoch else None)
        self.set_epoch(epoch)
        with seeded(seed + epoch):
            yield

    def set_epoch(self, epoch: int) -> None:
        """Call `set_epoch` of the data or of its sampler, if there is one, as a `DistributedSampler` needs it."""
        for holder in (self._data, getattr(self._data, "sampler", None)):
            if hasattr(holder, "set_epoch"):
                with self._function.guarded(f"{self._where}: set_epoch({epoch})"):
                    holder.set_epoch(epoch)  # type: ignore[union-attr]
                return

    def __iter__(self) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        end, count, empty = object(), 0, True
        with self._function.guarded():
            iterator = iter(self._data)
        while True:
            with self._function.guarded(f"{self._where}: batch {count}"):
                batch = next(iterator, end)
            if batch is end:
                break
            if count == LIMITS.data_batches:
                raise UsageError(f"{self._where} gives over {count} batches; return data whose iteration ends")
            inputs, targets = self._checked(self._cleaned(batch, count), count)
            count += 1
            if len(targets):
                empty = False
                yield self._augmented(inputs, count - 1), targets
        if not count:
            raise UsageError(
                f"{self._where} gives no batch: it is empty, or can only be read once; give at least one batch, every time"
            )
        if empty:
            assert self._cleaner is not None
            raise UsageError(
                f"{self._where}: [data] clean = {self._cleaner.name!r} removes all samples of {count} batches; keep some"
            )

    def _cleaned(self, batch: Any, number: int) -> Any:
        """The batch with only its good samples, which may be none."""
        if self._cleaner is None or self._clean is None or not isinstance(batch, tuple | list) or len(batch) != 2:
            return batch
        with self._cleaner.guarded(f"{self._cleaner.where}: batch {number}"):
            return self._clean(*batch)

    def _augmented(self, inputs: tuple[Tensor, ...], number: int) -> tuple[Tensor, ...]:
        if self._augmenter is None or self._augment is None:
            return inputs
        where = f"{self._augmenter.where}: batch {number}"
        with self._augmenter.guarded(where):
            changed = tensors(self._augment(*inputs))
        shapes = [tuple(tensor.shape) for tensor in inputs]
        if changed is None or [tuple(tensor.shape) for tensor in changed] != shapes or not all(map(finite, changed)):
            raise UsageError(f"{where} must return finite tensors of the same shapes as its inputs: {shapes}")
        return changed

    def _checked(self, batch: Any, number: int) -> tuple[tuple[Tensor, ...], Tensor]:
        where = f"{self._where}: batch {number}"
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise UsageError(f"{where} is {kind(batch)}; give pairs of (inputs, targets)")
        inputs, targets = tensors(batch[0]), batch[1]
        if inputs is None or not isinstance(targets, Tensor):
            raise UsageError(
                f"{where} holds {kind(batch[0])} and {kind(batch[1])}; give a tensor or a tuple of tensors, and a tensor"
            )
        sizes = [len(tensor) if tensor.ndim else 0 for tensor in (*inputs, targets)]
        if len(set(sizes)) > 1 or not (sizes[0] or self._cleaner):
            raise UsageError(
                f"{where} has {sizes[:-1]} inputs and {sizes[-1]} targets; give as many inputs as targets, at least one"
            )
        if not all(map(finite, inputs)):
            raise UsageError(f"{where} has NaN or infinity in its inputs; clean the data")
        return inputs, targets.detach().cpu()


def _made_by(function: Function) -> Callable[..., Any]:
    """Call a user's function; it must return a callable."""
    with function.guarded():
        found = function.load()()
    if not callable(found):
        raise UsageError(f"{function.where} returns {kind(found)}; return a function of the inputs, such as a module")
    return found  # type: ignore[no-any-return]


def stacked(split: Split, inputs: tuple[Tensor, ...], most: int | None = None) -> tuple[list[np.ndarray], Tensor]:
    """The samples of a split as calls with the example inputs' batch size.

    Args:
        split: is read.
        inputs: the example inputs, (batch, ...) each.
        most: how many samples to read at most; None reads all.

    Returns:
        An array for each input, (calls, batch, ...), and the targets, (samples, ...). The last call is filled up with copies
        of the first sample.

    Raises:
        UsageError: the samples do not have the shapes of the example inputs, or as `Split` does.
    """
    columns: list[list[Tensor]] = [[] for _ in inputs]
    targets = []
    for batch, target in split:
        for column, tensor in zip(columns, batch, strict=True):
            column.append(tensor)
        targets.append(target)
        if most is not None and sum(map(len, targets)) >= most:
            break
    found = []
    for column, example in zip(columns, inputs, strict=True):
        samples = torch.cat(column)[:most]
        if samples.shape[1:] != example.shape[1:]:
            raise UsageError(
                f"{split.where} gives inputs of shape {tuple(samples.shape[1:])},"
                f" and [model] inputs gives {tuple(example.shape[1:])}; make them equal"
            )
        found.append(samples.numpy())
    return calls(found, inputs[0].shape[0]), torch.cat(targets)[:most]


def calls(arrays: Sequence[np.ndarray], size: int) -> list[np.ndarray]:
    """Samples, (samples, ...) each, as calls with the batch size `size`, (calls, size, ...) each.

    The last call is filled up with copies of the first sample.
    """
    missing = -len(arrays[0]) % size
    filled = (np.concatenate([array, array[:1].repeat(missing, axis=0)]) for array in arrays)
    return [np.ascontiguousarray(array).reshape(-1, size, *array.shape[1:]) for array in filled]


class Loss:
    """The project's loss: a function of (outputs, targets). It is cross-entropy if the project gives none.

    A call raises `UsageError` if the function fails, or does not return a scalar tensor.
    """

    def __init__(self, project: Project) -> None:
        self._project, self._function = project, project.data.loss
        self._where = self._function.where if self._function else f"{project.where('data', 'loss')} (cross-entropy)"
        self._call = self._function.load() if self._function else F.cross_entropy

    @property
    def is_default(self) -> bool:
        """Whether it is cross-entropy. The outputs are then logits."""
        return self._function is None

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of a batch: a scalar tensor."""
        with _guarded(self._project, self._function, self._where):
            value = self._call(outputs, targets)
        if not isinstance(value, Tensor) or value.numel() != 1:
            shown = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else kind(value)
            raise UsageError(f"{self._where} returns {shown}; return a scalar tensor")
        return value


class Metric:
    """The project's metric: a finite number; larger is better. It is the top-1 accuracy if the project gives none.

    With `[data] closed_loop`, the model acts in the user's simulation, and the metric is its score there.
    A call raises `UsageError` if the function fails, and `NotFinite` if the number is not finite.
    """

    def __init__(self, project: Project) -> None:
        self._project = project

    @property
    def in_closed_loop(self) -> bool:
        """Whether the metric needs a policy that acts, instead of outputs."""
        return self._project.data.closed_loop is not None

    def __call__(self, outputs: Tensor, targets: Tensor) -> float:
        """The metric of a whole split, from its outputs and targets, (samples, ...) both."""
        return self._number(self._project.data.metric, outputs, targets)

    def of_policy(self, policy: Policy, split: SplitName) -> float:
        """The score of a policy in the episodes of a split: of "valid" for choices, of "test" for the verdict.

        The user's function calls `policy` at every step of a simulation, for many episodes at once. The policy takes the
        model's inputs as arrays, (samples, ...) each, and returns the outputs, (samples, ...).
        """
        return self._number(self._project.data.closed_loop, policy, split)

    def _number(self, function: Function | None, *arguments: Any) -> float:
        where = function.where if function else f"{self._project.where('data', 'metric')} (top-1)"
        call = function.load() if function else _top1
        with _guarded(self._project, function, where):
            value = float(call(*arguments))
        if not math.isfinite(value):
            raise NotFinite(f"{where} gives {value}; return a finite number")
        return value


class NotFinite(UsageError):
    """A metric or outputs are not finite. `count` is how many numbers are not."""

    def __init__(self, message: str, count: int = 1) -> None:
        super().__init__(message)
        self.count = count


def _guarded(project: Project, function: Function | None, where: str) -> AbstractContextManager[None]:
    """A context for the user's function, or for its default, which may fail on the user's outputs, too."""
    return (function or project.model.factory).guarded(where)


def _top1(outputs: Tensor, targets: Tensor) -> float:
    """The share of correct samples. Outputs are (samples, classes, ...), targets (samples, ...)."""
    chosen = outputs.argmax(1)
    if chosen.shape != targets.shape:  # torch would broadcast them
        raise ValueError(
            f"outputs {tuple(outputs.shape)} do not fit targets {tuple(targets.shape)}; give [data] metric"
        )
    return float((chosen == targets).double().mean())
