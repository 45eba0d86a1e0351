"""What a model returns: a tensor, or tensors in tuples, lists, mappings and data classes."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from itertools import count
from typing import Any

from torch import Tensor

from edgeprune.errors import UsageError

MAIN = "logits", "out"  # names of the output that a default loss and metric read
PLAIN = (bool, int, float, complex, str, bytes, type(None))

Flat = Tensor | Sequence[Tensor]  # a model's outputs as tensors: one, or several in order


def tensors(outputs: Any) -> list[Tensor]:
    """All tensors in a model's outputs, in order."""
    return [tensor for _, tensor in _leaves(outputs)]


def main_of(outputs: Any) -> Tensor:
    """The tensor that a default loss and metric read: the only one, the one named logits or out, or the first real one."""
    found = list(_leaves(outputs))
    if not found:
        raise UsageError(f"the model returns a {type(outputs).__name__} without tensors; return at least one")
    return found[_main(found)][1]


@dataclass(frozen=True)
class _Place:
    """Stands for the tensor with this number."""

    number: int


@dataclass(frozen=True)
class _Container:
    """An example of a container, and what stands for its parts, by name."""

    example: Any
    parts: tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Structure:
    """How a model's outputs hold its tensors.

    Attributes:
        names: of the tensors, in order, such as "logits" or "features.0"; "" if the model returns a tensor.
        main: the place of the tensor that `main_of` returns.
        pattern: the outputs, with a place for each tensor.
        batch_dims: the dimension of each tensor that holds the samples.
    """

    names: tuple[str, ...]
    main: int
    pattern: Any
    batch_dims: tuple[int, ...]

    @staticmethod
    def of(outputs: Any) -> Structure:
        """The structure of outputs that hold at least one tensor."""
        found = list(_leaves(outputs))
        names = tuple(name for name, _ in found)
        return Structure(names, _main(found), _pattern(outputs, count()), (0,) * len(found))

    @property
    def is_certain(self) -> bool:
        """Whether `main` is the only tensor, or is named logits or out."""
        return len(self.names) == 1 or _last(self.names[self.main]) in MAIN

    def rebuilt(self, flat: Sequence[Any]) -> Any:
        """Outputs with this structure that hold other tensors or arrays, given in order."""
        return _built(self.pattern, flat)


ONE_TENSOR = Structure(("",), 0, _Place(0), (0,))


def _main(found: Sequence[tuple[str, Tensor]]) -> int:
    named = [i for name in MAIN for i, (path, _) in enumerate(found) if _last(path) == name]
    real = [i for i, (_, tensor) in enumerate(found) if tensor.is_floating_point()]
    return [*named, *real, 0][0]


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _items(value: Any) -> list[tuple[str, Any]] | None:
    """The parts of a container by name; None for anything else."""
    if isinstance(value, Mapping):
        return [(str(key), part) for key, part in value.items()]
    if is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name, None)) for field in fields(value)]
    if isinstance(value, tuple | list):
        names = getattr(value, "_fields", None) or map(str, range(len(value)))
        return list(zip(names, value, strict=True))
    return None


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
    for name, part in _items(value) or ():
        yield from _leaves(part, f"{path}.{name}" if path else name)


def _pattern(value: Any, numbers: Iterator[int]) -> Any:
    """Places for the tensors of a value. What is neither a container nor plain becomes None."""
    if isinstance(value, Tensor):
        return _Place(next(numbers))
    items = _items(value)
    if items is None:
        return value if isinstance(value, PLAIN) else None
    return _Container(value, tuple((name, _pattern(part, numbers)) for name, part in items))


def _built(pattern: Any, flat: Sequence[Any]) -> Any:
    if isinstance(pattern, _Place):
        return flat[pattern.number]
    if not isinstance(pattern, _Container):
        return pattern
    example, parts = pattern.example, {name: _built(part, flat) for name, part in pattern.parts}
    if is_dataclass(example):
        return _of_fields(example, parts)
    if isinstance(example, Mapping):
        return _of_keys(example, dict(zip(example, parts.values(), strict=True)))
    if hasattr(example, "_fields"):
        return type(example)(*parts.values())
    return type(example)(parts.values())


def _of_keys(example: Mapping[Any, Any], parts: dict[Any, Any]) -> Any:
    """A mapping of the example's class, which may give its keys as attributes, too."""
    kind: Any = type(example)
    with suppress(TypeError):
        return kind(parts)
    with suppress(TypeError):
        return kind(**parts)
    found: Any = copy.copy(example)
    found.update(parts)
    return found


def _of_fields(example: Any, parts: Mapping[str, Any]) -> Any:
    """A data class with the example's class. Its constructor is called, which may set more."""
    given = {field.name for field in fields(example) if field.init}
    made = type(example)(**{name: part for name, part in parts.items() if name in given})
    for name in parts.keys() - given:
        object.__setattr__(made, name, parts[name])
    return made
