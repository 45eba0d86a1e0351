"""The user's data: splits that can be read repeatedly, the loss and the metric. Each use is checked."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from edgeprune.errors import UsageError
from edgeprune.frontends import agreement
from edgeprune.frontends.calls import calls, first
from edgeprune.frontends.model import batch_dims, finite, input_names, kind, size_of, tensor_of, tensors
from edgeprune.frontends.randomness import Generators, seeded
from edgeprune.limits import LIMITS
from edgeprune.network.outputs import ONE_TENSOR, Flat, Structure, main_of
from edgeprune.network.outputs import tensors as tensors_of
from edgeprune.records import Function, Project, SplitName

Policy = Callable[..., Sequence[np.ndarray]]
TARGETS = "labels", "label", "targets", "target", "y"  # keys of a batch that hold its targets


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


def forget(project: Project, name: SplitName) -> None:
    """Let the next `Split` call the split's function again."""
    for key in [key for key in _made if key[0] == project.data.split(name)]:
        del _made[key]


class Split:
    """One split of the user's data. Each iteration yields pairs of (tuple of inputs, targets), (batch, ...) each.

    `[data] clean` is applied to each batch. Then the batch is checked. `[data] batch_dims` says where its samples are.

    A batch of the user's is a pair of (inputs, targets), or a mapping that holds the targets under one of `TARGETS`. Inputs
    may be a mapping, too. They are then put in the order of `[model] inputs`.

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
        self.name, self.where = name, project.where("data", project.data.key(name))
        self._project, self._function, self._where = project, function, function.where
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

    def for_digest(self) -> Split:
        """This split without targets that follow from its inputs and the network."""
        found = copy.copy(self)
        if isinstance(self._data, agreement.Batches):
            found._data = self._data.without_targets()
        return found

    @property
    def target_dim(self) -> int:
        """The dimension of the targets that holds the samples."""
        given = self._project.data.batch_dims
        return given[-1] if given else 0

    def dims(self, inputs: int) -> tuple[int, ...]:
        """The dimension of each of the inputs that holds the samples."""
        return batch_dims(self._project, inputs)[0]

    def size(self, inputs: Sequence[Tensor]) -> int:
        """How many samples these inputs of a call hold."""
        return inputs[0].shape[self.dims(len(inputs))[0]]

    @property
    def length(self) -> int | None:
        """How many batches the data claims to have; None if it has no `len()`."""
        try:
            return len(self._data)
        except TypeError:
            return None

    @property
    def is_one_iterator(self) -> bool:
        """Whether the data returns the same iterator every time. Some loaders reset theirs."""
        with self._function.guarded():
            return iter(self._data) is iter(self._data)

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

    @contextmanager
    def in_one_process(self) -> Iterator[None]:
        """A context in which a DataLoader starts no workers, so that the files that it opens are seen in this process."""
        loader = self._data
        if not isinstance(loader, torch.utils.data.DataLoader):
            yield
            return
        kept = loader.num_workers, loader.timeout
        loader.num_workers, loader.timeout = 0, 0
        try:
            yield
        finally:
            loader.num_workers, loader.timeout = kept

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
            if targets.shape[self.target_dim]:
                empty = False
                yield self._augmented(inputs, count - 1), targets
        if not count:
            raise UsageError(
                f"{self._where} gives no batch: it is empty, or can only be read once; give at least one batch, every time"
            )
        if empty:
            assert self._cleaner is not None
            raise UsageError(f"{self._cleaner.where} removes all samples of {count} batches; keep some")

    def _cleaned(self, batch: Any, number: int) -> Any:
        """The batch with only its good samples, which may be none."""
        pair = self._pair(batch, number)
        if self._cleaner is None or self._clean is None:
            return pair
        with self._cleaner.guarded(f"{self._cleaner.where}: batch {number}"):
            return self._clean(*pair)

    def _pair(self, batch: Any, number: int) -> tuple[Any, Any]:
        """The inputs and the targets of a batch, as the user gives them."""
        where = f"{self._where}: batch {number}"
        if isinstance(batch, Mapping):
            keys = [key for key in TARGETS if key in batch and key not in self._names]
            if len(keys) != 1:
                has = f"the keys {', '.join(map(str, batch))}" if not keys else f"both {' and '.join(keys)}"
                raise UsageError(f"{where} has {has}; give the targets under one of {', '.join(TARGETS)}")
            return {name: value for name, value in batch.items() if name != keys[0]}, batch[keys[0]]
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise UsageError(f"{where} is {kind(batch)}; give pairs of (inputs, targets), or dicts with the key labels")
        return batch[0], batch[1]

    @cached_property
    def _names(self) -> tuple[str, ...]:
        return input_names(self._project)

    def _by_position(self, given: Mapping[str, Any], where: str) -> tuple[Any, ...]:
        """Inputs that are given by name, in the order of `[model] inputs`. What is no tensor, such as text, is left out."""
        if not self._names:
            names = ", ".join(map(str, given))
            raise UsageError(
                f"{where} gives inputs by name ({names}), and {self._project.model.inputs.where} returns a tuple;"
                " return a dict with these names"
            )
        missing = [name for name in self._names if name not in given]
        if missing:
            raise UsageError(
                f"{where} lacks the input {', '.join(missing)}, which {self._project.model.inputs.where} has"
            )
        more = [str(name) for name, value in given.items() if tensor_of(value) is not None and name not in self._names]
        if more:
            raise UsageError(
                f"{where} has the tensor {', '.join(more)}, which {self._project.model.inputs.where} lacks;"
                " add it there, or leave it out of the batches"
            )
        return tuple(given[name] for name in self._names)

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
        given, targets = self._pair(batch, number)  # again, since [data] clean may return anything
        inputs = tensors(self._by_position(given, where) if isinstance(given, Mapping) else given)
        wanted = tensor_of(targets)
        if inputs is None or wanted is None:
            raise UsageError(
                f"{where} holds {kind(given)} and {kind(targets)}; give a tensor, a tuple or a dict of tensors, and a tensor"
            )
        if not isinstance(targets, Tensor) and wanted.dtype == torch.uint8:  # classes: torch wants them as int64
            wanted = wanted.long()
        dims = (*self.dims(len(inputs)), self.target_dim)
        sizes = [size_of(tensor, dim) for tensor, dim in zip((*inputs, wanted), dims, strict=True)]
        if len(set(sizes)) > 1 or not (sizes[0] or self._cleaner):
            key = self._project.where("data", "batch_dims")
            raise UsageError(
                f"{where} has {sizes[:-1]} inputs and {sizes[-1]} targets; give as many inputs as targets, at least one,"
                f" or say which dimensions hold the samples: {key}"
            )
        if not all(map(finite, inputs)):
            raise UsageError(f"{where} has NaN or infinity in its inputs; clean the data")
        return inputs, wanted


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
        inputs: the example inputs.
        most: how many samples to read at most; None reads all.

    Returns:
        An array for each input, (calls, *shape of the example input), and the targets. The last call is filled up with copies
        of the first sample.

    Raises:
        UsageError: the samples do not have the shapes of the example inputs, or as `Split` does.
    """
    columns: list[list[Tensor]] = [[] for _ in inputs]
    targets, read = [], 0
    for batch, target in split:
        for column, tensor in zip(columns, batch, strict=True):
            column.append(tensor)
        targets.append(target)
        read += target.shape[split.target_dim]
        if most is not None and read >= most:
            break
    found, dims = [], split.dims(len(inputs))
    for column, example, dim in zip(columns, inputs, dims, strict=True):
        samples, sample = first(torch.cat(column, dim), most, dim), example.movedim(dim, 0)[0]
        if samples.movedim(dim, 0).shape[1:] != sample.shape:
            raise UsageError(
                f"{split.where} gives inputs of shape {tuple(samples.movedim(dim, 0).shape[1:])},"
                f" and the example inputs have {tuple(sample.shape)}; make them equal"
            )
        found.append(samples.numpy())
    together = torch.cat(targets, split.target_dim)
    return calls(found, inputs[0].shape[dims[0]], dims), first(together, most, split.target_dim)


class Loss:
    """The project's loss: a function of (outputs, targets). It is cross-entropy of the main output if the project gives none.

    The user's function gets outputs with the structure that the user's model returns.

    Of samples without labels, it is the distance from the original network: see `frontends.agreement`. Training minimises it.
    A direct call, for importance, gives a loss of the same value that has a gradient at the original network, too.

    A call raises `UsageError` if the function fails, or does not return a scalar tensor.
    """

    def __init__(self, project: Project, structure: Structure = ONE_TENSOR) -> None:
        self.structure = structure
        self._project, self._function = project, project.data.loss
        self._where = self._function.where if self._function else f"{project.where('data', 'loss')} (cross-entropy)"
        self._call = self._function.load() if self._function else _cross_entropy
        self._sampled = self._call.sampled() if isinstance(self._call, agreement.Distance) else self._call

    @property
    def is_default(self) -> bool:
        """Whether it is cross-entropy. The outputs are then logits."""
        return self._function is None

    def __call__(self, outputs: Flat, targets: Tensor) -> Tensor:
        """The loss of a batch, from what the adapted model returns in eval mode: a scalar tensor."""
        flat = tensors_of(outputs)
        given = flat[self.structure.main] if self.is_default else self.structure.rebuilt(flat)
        return self._value(self._sampled, given, targets)

    def of_training(self, outputs: Any, targets: Tensor) -> Tensor:
        """The loss of a batch, from what the user's model returns in training mode: a scalar tensor."""
        return self._value(self._call, main_of(outputs) if self.is_default else outputs, targets)

    def _value(self, call: Callable[..., Any], outputs: Any, targets: Tensor) -> Tensor:
        with _guarded(self._project, self._function, self._where):
            value = call(outputs, targets)
        if not isinstance(value, Tensor) or value.numel() != 1:
            shown = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else kind(value)
            raise UsageError(f"{self._where} returns {shown}; return a scalar tensor")
        return value


class Metric:
    """The project's metric: a finite number; larger is better. The default is the main output's top-1 accuracy.

    The user's function gets outputs with the structure that the user's model returns.

    With `[data] closed_loop`, the model acts in the user's simulation, and the metric is its score there.
    A call raises `UsageError` if the function fails, and `NotFinite` if the number is not finite.
    """

    def __init__(self, project: Project, structure: Structure = ONE_TENSOR) -> None:
        self.structure = structure
        self._project = project

    @property
    def is_default(self) -> bool:
        """Whether it is the top-1 accuracy."""
        return self._project.data.metric is None and not self.in_closed_loop

    @property
    def in_closed_loop(self) -> bool:
        """Whether the metric needs a policy that acts, instead of outputs."""
        return self._project.data.closed_loop is not None

    @property
    def is_agreement(self) -> bool:
        """Whether it is the agreement with the original network, of samples without labels."""
        return self._project.data.is_agreement

    @property
    def name(self) -> str:
        """Its name in reports."""
        return self._project.data.metric_name

    def __call__(self, outputs: Flat, targets: Tensor) -> float:
        """The metric of a whole split, from its outputs and targets, (samples, ...) all."""
        flat = tensors_of(outputs)
        given = flat[self.structure.main] if self.is_default else self.structure.rebuilt(flat)
        return self._number(self._project.data.metric, given, targets)

    def of_policy(self, policy: Policy, split: SplitName) -> float:
        """The score of a policy in the episodes of a split: of "valid" for choices, of "test" for the verdict.

        The user's function calls the policy at every step of a simulation, for many episodes at once. It gives the model's
        inputs as arrays, (samples, ...) each. It gets the outputs as arrays, with the structure that the user's model returns.

        Args:
            policy: from arrays of inputs to a list of arrays of outputs, (samples, ...) each.
            split: names the episodes.
        """
        return self._number(
            self._project.data.closed_loop, lambda *inputs: self.structure.rebuilt(policy(*inputs)), split
        )

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


def _cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """The cross-entropy of logits, (samples, classes, ...), and classes, (samples, ...), or probabilities of classes."""
    if targets.is_floating_point() and targets.shape == outputs.shape:
        return F.cross_entropy(outputs, targets)
    if not targets.is_floating_point() and targets.shape == outputs.shape[:1] + outputs.shape[2:]:
        return F.cross_entropy(outputs, targets.long())
    shown = f"outputs {tuple(outputs.shape)} do not fit targets {tuple(targets.shape)}"
    dtype = str(targets.dtype).removeprefix("torch.")
    raise ValueError(f"{shown} of type {dtype}; give each sample the number of its class, or give a loss")


def _top1(outputs: Tensor, targets: Tensor) -> float:
    """The share of correct samples. Outputs are (samples, classes, ...), targets (samples, ...)."""
    chosen = outputs.argmax(1)
    if chosen.shape != targets.shape:  # torch would broadcast them
        raise ValueError(
            f"outputs {tuple(outputs.shape)} do not fit targets {tuple(targets.shape)}; give a metric for them"
        )
    return float((chosen == targets).double().mean())
