"""The table of layers: how each class of Keras becomes a module of torch. To add one, write one function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgeprune.errors import UsageError
from edgeprune.frontends.keras.graph import Order, Value


@dataclass(frozen=True)
class Built:
    """A layer as torch modules.

    Attributes:
        layer: has the layer's name, and its weights.
        reads: the order that its inputs must have.
        gives: the order of what it returns.
        before: is applied to the input first, such as uneven padding.
        after: is applied to the output, such as an activation.
        masks: the layer reads them behind its inputs. A mask is 1 where a step counts, and 0 elsewhere.
    """

    layer: nn.Module
    reads: Order = "last"
    gives: Order = "last"
    before: nn.Module | None = None
    after: nn.Module | None = None
    masks: tuple[Value, ...] = ()


@dataclass(frozen=True)
class Call:
    """A call of a Keras layer.

    Attributes:
        layer: of Keras.
        given: its inputs, in order.
        keywords: of the call, without tensors.
        arguments: as Keras passes them: the inputs stand where they were given.
        masks: by their names in the call. Keras computes them by operations that are in the graph.
    """

    layer: Any
    given: tuple[Value, ...]
    keywords: Mapping[str, Any]
    arguments: tuple[Any, ...]
    masks: Mapping[str, Value] = field(default_factory=dict)

    @property
    def first(self) -> Value:
        """The first input."""
        return self.given[0]

    @property
    def spatial(self) -> int:
        """The number of spatial dimensions of the first input."""
        return self.first.rank - 2

    @property
    def order(self) -> Order:
        """The order in which torch's layers with a data format read their inputs."""
        if self.spatial < 1 or getattr(self.layer, "data_format", "channels_last") == "channels_first":
            return "last"  # as it is in Keras: the channels are in dimension 1 already
        return "first"

    @property
    def common(self) -> Order:
        """The order for inputs that are combined by element: channels first if any is, and all have one rank."""
        alike = len({value.rank for value in self.given}) == 1
        return "first" if alike and any(value.order == "first" for value in self.given) else "last"

    def dim(self, axis: int, order: Order) -> int:
        """The dimension in `order` that Keras's `axis` is."""
        axis %= self.first.rank
        if order == "last" or axis == 0:
            return axis
        return 1 if axis == self.first.rank - 1 else axis + 1

    def missing(self, what: str) -> UsageError:
        """The error for what edgeprune cannot convert."""
        return UsageError(f"layer {self.layer.name!r} ({type(self.layer).__name__}): {what}; {FACTORY}")


FACTORY = "write the network in torch and name it as [model] factory"
Convert = Callable[[Call], Built]
TABLE: dict[str, Convert] = {}


def converts(*classes: str) -> Callable[[Convert], Convert]:
    """Put a function into the table for these classes of Keras; "ops.NAME" is an operation of `keras.ops`."""

    def put(function: Convert) -> Convert:
        TABLE.update(dict.fromkeys(classes, function))
        return function

    return put


def of_class(layer: Any) -> str:
    """The key in `TABLE` of a layer of Keras."""
    prefix = "ops." if type(layer).__module__.startswith("keras.src.ops.") else ""
    return prefix + type(layer).__name__


def values(variable: Any) -> Tensor:
    """The values of a variable of Keras, in single precision."""
    from keras import ops

    return torch.from_numpy(np.array(ops.convert_to_numpy(variable), np.float32))


def filled(module: nn.Module, **tensors: Tensor | None) -> nn.Module:
    """The module with these parameters and buffers. None leaves one unchanged."""
    state = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    module.load_state_dict(state, strict=False)
    return module
