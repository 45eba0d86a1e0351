"""A network between its file and its module: steps that call torch's functions and layers on values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


@dataclass(eq=False)
class Layer:
    """A layer with weights. Several steps may call it.

    Attributes:
        module: holds the parameters.
        weight: the name of its weight in the file.
        kind: made it of `values` and `options`.
        values: its weights.
        options: numbers, tuples and texts.
    """

    module: nn.Module
    weight: str
    kind: Callable[..., nn.Module]
    values: tuple[Value | None, ...]
    options: dict[str, Any]


@dataclass(eq=False)
class Step:
    """A call of a function or a layer.

    Attributes:
        target: what is called.
        args: of the call; values, numbers, and lists of them.
        named: arguments by name.
        scope: the modules that it belongs to, outermost first.
        results: what it makes.
    """

    target: Callable[..., Any] | Layer
    args: tuple[Any, ...]
    named: dict[str, Any]
    scope: tuple[str, ...]
    results: list[Value] = field(default_factory=list)

    @property
    def reads(self) -> Iterator[Value]:
        """The values that it reads."""
        return (leaf for leaf in tree_leaves((self.args, self.named)) if isinstance(leaf, Value))


@dataclass(eq=False)
class Value:
    """A tensor of the network.

    Attributes:
        fakes: its shape and type, for each batch size that the network is read with.
        step: what makes it; None for inputs and constants.
        place: which result of the step it is.
        constant: its value for each batch size, if it does not depend on the inputs.
        weight: the name of the weight that it is, or was computed from; empty for other constants.
        readers: how many nodes of the file read it.
    """

    fakes: tuple[Tensor, ...]
    step: Step | None = None
    place: int = 0
    constant: tuple[Tensor, ...] | None = None
    weight: str = ""
    readers: int = field(default=0)

    @property
    def shape(self) -> tuple[int, ...]:
        """For the example's batch size."""
        return tuple(self.fakes[0].shape)

    @property
    def rank(self) -> int:
        """The number of dimensions."""
        return self.fakes[0].ndim

    @property
    def is_real(self) -> bool:
        """Whether it holds real numbers."""
        return self.fakes[0].is_floating_point()

    def made_by(self, *targets: Callable[..., Any]) -> tuple[Any, ...] | None:
        """The arguments of the call that makes it, if it calls one of these functions; else None."""
        return self.step.args if self.step is not None and self.step.target in targets else None


@dataclass(frozen=True, eq=False)
class Items:
    """A sequence of tensors: it exists while the file is read, and the network has its tensors only."""

    values: tuple[Value, ...]
