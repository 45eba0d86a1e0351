"""Run a network again from an operation in its middle.

A loss curve changes a few parameters and runs the network many times. The operations before the first one that reads a
changed parameter would give the same results every time. Here they are not executed. The model's Python code runs as always,
and each of these operations returns its kept result if a later one reads it. Otherwise it returns a tensor without content.

Results are kept at one operation only. So the memory does not grow with the depth of a network.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

Inputs = tuple[Tensor, ...]
_Value = tuple[int, int]  # the operation that made a tensor, -1 for the inputs, and the tensor's place in its result


@dataclass(frozen=True)
class _Shape:
    """What a tensor without content needs to look like a result."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @staticmethod
    def of(tensor: Tensor) -> _Shape:
        return _Shape(tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device)

    def hollow(self) -> Tensor:
        return torch.empty_strided(self.size, self.stride, dtype=self.dtype, device=self.device)


@dataclass(frozen=True)
class _Same:
    """An operation in place returns the tensor that it changes: the one at this place among its arguments."""

    argument: int


@dataclass(frozen=True)
class _Operation:
    """An operation of the recorded pass.

    `read` holds what it read: for each argument a `_Value`, None for a tensor that no operation made, or a plain value. `made`
    holds a `_Shape`, a `_Same` or a plain value for each part of the result.
    """

    function: object
    read: tuple[Any, ...]
    made: tuple[Any, ...]
    structure: pytree.TreeSpec


@dataclass
class _Record:
    """All operations of one forward pass, and who reads what."""

    operations: list[_Operation] = field(default_factory=list)
    bytes: dict[_Value, int] = field(default_factory=dict)
    last_read: dict[_Value, int] = field(default_factory=dict)
    first_use: dict[int, int] = field(default_factory=dict)  # address of a storage -> the first operation that reads it

    def needed(self, start: int) -> frozenset[_Value]:
        """The results that operations from `start` on read, and earlier ones made."""
        return frozenset(value for value, last in self.last_read.items() if value[0] < start <= last)


class Diverged(Exception):
    """The model does not execute the recorded operations, so kept results are of no use."""


class _Reached(BaseException):
    """Ends a forward pass. It is no `Exception`, so that the model's own handlers let it pass."""


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records all operations."""

    def __init__(self, inputs: Inputs) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.record = _Record()
        self._values = WeakTensorKeyDictionary()
        for place, tensor in enumerate(inputs):
            self._add(tensor, (-1, place))

    def _add(self, tensor: Tensor, value: _Value) -> None:
        self._values[tensor] = value
        self.record.bytes[value] = tensor.untyped_storage().nbytes()

    def read(self, leaves: Iterable[Any]) -> None:
        """Note that the next operation, or the caller of the model, reads the tensors among `leaves`."""
        number = len(self.record.operations)
        for tensor in _tensors(leaves):
            self.record.first_use.setdefault(_address(tensor), number)
            if (value := self._values.get(tensor)) is not None:  # type: ignore[no-untyped-call]
                self.record.last_read[value] = number

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        arguments = pytree.tree_leaves((args, kwargs))
        given, read = _tensors(arguments), _identified(arguments, self._values)
        self.read(given)
        result = func(*args, **(kwargs or {}))
        parts, structure = pytree.tree_flatten(result)
        made: list[Any] = []
        for place, part in enumerate(parts):
            if not isinstance(part, Tensor):
                made.append(part)
            elif (same := next((i for i, tensor in enumerate(given) if tensor is part), None)) is not None:
                made.append(_Same(same))
            else:
                self._add(part, (len(self.record.operations), place))
                made.append(_Shape.of(part))
        self.record.operations.append(_Operation(func, read, tuple(made), structure))
        return result


class _Player(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Skips the operations before `start`, and executes the others. Ends before operation `stop`, if it is given."""

    def __init__(self, record: _Record, start: int, kept: Mapping[_Value, Tensor], stop: int | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._record, self._start, self._kept, self._stop = record, start, kept, stop
        self._wanted = record.needed(stop) if stop is not None else frozenset()
        self._hollow, self._values = WeakTensorKeyDictionary(), WeakTensorKeyDictionary()
        self._number = 0
        self.found: dict[_Value, Tensor] = {}

    def given(self, value: _Value, tensor: Tensor) -> Tensor:
        """The kept tensor if there is one, else `tensor`. It is collected if it is needed at `stop`."""
        tensor = self._kept.get(value, tensor)
        self._values[tensor] = value
        if value in self._wanted:
            self.found[value] = tensor
        return tensor

    def check(self, leaves: Iterable[Any]) -> None:
        """Raise `Diverged` if an operation, or the caller, would read a tensor without content."""
        if any(tensor in self._hollow for tensor in _tensors(leaves)):
            raise Diverged

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        number, self._number = self._number, self._number + 1
        if number == self._stop:
            raise _Reached
        arguments = pytree.tree_leaves((args, kwargs))
        if number < self._start:
            return self._skipped(number, func, arguments)
        self.check(arguments)
        result = func(*args, **(kwargs or {}))
        if self._wanted:
            for place, part in enumerate(pytree.tree_leaves(result)):
                if isinstance(part, Tensor):
                    self.given((number, place), part)
        return result

    def _skipped(self, number: int, func: Any, arguments: Sequence[Any]) -> Any:
        operation = self._record.operations[number]
        if operation.function is not func or operation.read != _identified(arguments, self._values):
            raise Diverged
        given, parts = _tensors(arguments), list[Any]()
        for place, made in enumerate(operation.made):
            if isinstance(made, _Same):
                parts.append(given[made.argument])
            elif not isinstance(made, _Shape):
                parts.append(made)
            else:
                parts.append(self._kept_or_hollow((number, place), made))
        return pytree.tree_unflatten(parts, operation.structure)

    def _kept_or_hollow(self, value: _Value, shape: _Shape) -> Tensor:
        if value in self._kept:
            return self.given(value, self._kept[value])
        hollow = shape.hollow()
        self._hollow[hollow] = True
        self._values[hollow] = value
        return hollow


class Tape:
    """One batch of inputs, and a network's results in the middle of its forward pass.

    Example:
        >>> tape, output = Tape.recorded(model, inputs)
        >>> tape.advance(model, tape.first_use(["conv7.weight"]))
        >>> changed = tape.run(model)  # executes conv7 and what follows
    """

    def __init__(self, inputs: Inputs, record: _Record, addresses: Mapping[str, int]) -> None:
        self._inputs, self._record, self._addresses = inputs, record, addresses
        self._start, self._kept = 0, dict[_Value, Tensor]()

    @staticmethod
    def recorded(model: nn.Module, inputs: Inputs) -> tuple[Tape, Any]:
        """Run a network. Returns the tape, and what the network returned."""
        given = _copies(inputs)
        recorder = _Recorder(given)
        with torch.no_grad(), recorder:
            output = model(*given)
        recorder.read(pytree.tree_leaves(output))
        addresses = {name: _address(parameter) for name, parameter in model.named_parameters(remove_duplicate=False)}
        return Tape(inputs, recorder.record, addresses), output

    @property
    def kept_bytes(self) -> int:
        """The memory of the results that are kept now."""
        return sum({_address(tensor): tensor.untyped_storage().nbytes() for tensor in self._kept.values()}.values())

    def first_use(self, parameters: Iterable[str]) -> int:
        """The first operation that reads any of these parameters. It is 0 if an operation that reads one is not known."""
        return min((self._record.first_use.get(self._addresses[name], 0) for name in parameters), default=0)

    def needed_bytes(self, start: int) -> int:
        """The memory of the results that operations from `start` on need."""
        return sum(self._record.bytes[value] for value in self._record.needed(start))

    def advance(self, model: nn.Module, start: int) -> None:
        """Run the unchanged network up to operation `start`, and keep what later operations need."""
        if start < self._start:
            self.rewind()
        if start == self._start:
            return
        player = _Player(self._record, self._start, self._kept, stop=start)
        try:
            self._played(model, player)
        except _Reached:
            self._start, self._kept = start, _cloned(player.found)
        except Diverged:
            self.rewind()

    def rewind(self) -> None:
        """Keep nothing. Runs then execute all operations."""
        self._start, self._kept = 0, {}

    def run(self, model: nn.Module) -> Any:
        """The output of a network that differs from the recorded one only in operations that are executed.

        If it differs in others, all operations are executed.
        """
        if not self._start:
            return self._plain(model)
        kept = _cloned(self._kept)  # an operation may change a tensor in place
        try:
            return self._played(model, _Player(self._record, self._start, kept))
        except Diverged:
            return self._plain(model)

    def _plain(self, model: nn.Module) -> Any:
        with torch.no_grad():
            return model(*_copies(self._inputs))

    def _played(self, model: nn.Module, player: _Player) -> Any:
        inputs = [player.given((-1, place), tensor) for place, tensor in enumerate(_copies(self._inputs))]
        with torch.no_grad(), player:
            output = model(*inputs)
        player.check(pytree.tree_leaves(output))
        return output


def advance(tapes: Iterable[Tape], model: nn.Module, parameters: Iterable[str], most: int) -> None:
    """Prepare tapes for changes of these parameters. They keep at most `most` bytes; the others execute all operations."""
    names, kept = tuple(parameters), 0
    for tape in tapes:
        start = tape.first_use(names)
        if kept + tape.needed_bytes(start) > most:
            tape.rewind()
            continue
        tape.advance(model, start)
        kept += tape.kept_bytes


def _tensors(leaves: Iterable[Any]) -> list[Tensor]:
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _identified(arguments: Iterable[Any], values: Mapping[Tensor, _Value]) -> tuple[Any, ...]:
    """The arguments of an operation in a form that can be compared between passes."""
    return tuple(values.get(leaf) if isinstance(leaf, Tensor) else leaf for leaf in arguments)


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _copies(inputs: Inputs) -> Inputs:
    """Copies, since a model may change its inputs in place."""
    return tuple(tensor.clone() for tensor in inputs)


def _cloned(found: Mapping[_Value, Tensor]) -> dict[_Value, Tensor]:
    """Copies of tensors. Those that share memory share it in the copy, too."""
    storages = {_address(tensor): tensor.untyped_storage() for tensor in found.values()}
    copies = {address: storage.clone() for address, storage in storages.items()}  # type: ignore[no-untyped-call]
    return {
        value: torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(
            copies[_address(tensor)], tensor.storage_offset(), tensor.shape, tensor.stride()
        )
        for value, tensor in found.items()
    }
