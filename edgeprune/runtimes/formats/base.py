"""The interface of export formats: a network is exported once, then sliced to any widths in milliseconds.

A variant for measuring needs the right shapes, not the right weights. So the template is exported with random parameters.
Then the values of a constant identify its parameter, even if the exporter renamed or transposed it.
"""

from __future__ import annotations

import copy
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from edgeprune.errors import UsageError
from edgeprune.graph import places
from edgeprune.graph.editable import reserved
from edgeprune.graph.groups import first_units, make_recipe
from edgeprune.graph.trace import called, exported
from edgeprune.network.computed import computed_constants
from edgeprune.network.cut import sliced
from edgeprune.network.folding import fold
from edgeprune.network.survey import randomised
from edgeprune.records import Groups, Layer, Recipe, Widths, digest, output_dim
from edgeprune.runtimes.formats import sizes
from edgeprune.runtimes.formats.sizes import Constants, Sizes

# The operator in the message of an exporter or of a runtime.
PLACE = re.compile(r"(/\S+\.py):(\d+)(?::\d+)?")  # in an error of a converter
OPERATOR = re.compile(r"aten(?:::|\.)(\w+)|builtin opcode '(?:STABLEHLO_)?(\w+)'")

Dims = dict[int, tuple[int, ...]]  # dimension -> indices kept


@dataclass(frozen=True)
class Origin:
    """The parameter that a constant of the file came from, and the parameter's dimension for each axis (None: size one)."""

    parameter: str
    dims: tuple[int | None, ...]
    spread: float = 1.0  # standard deviation of its values

    @property
    def parameters(self) -> tuple[str, ...]:
        """The name of the parameter, as of an origin with several."""
        return (self.parameter,)

    def patterned(self, value: np.ndarray, kept: Mapping[str, Dims]) -> np.ndarray:
        """The same as `pattern(take(value, kept))`, computed from the shape."""
        dims = kept.get(self.parameter, {})
        shape = tuple(
            size if dim is None or dim not in dims else len(dims[dim])
            for size, dim in zip(value.shape, self.dims, strict=True)
        )
        return _repeated(shape, self.spread) if _large(value.dtype, shape) else self.take(value, kept)

    def take(self, value: np.ndarray, kept: Mapping[str, Dims]) -> np.ndarray:
        """The constant with only the kept indices of its parameter."""
        for axis, dim in enumerate(self.dims):
            if dim is not None and dim in kept.get(self.parameter, {}):
                value = value.take(kept[self.parameter][dim], axis=axis)
        return np.ascontiguousarray(value)


@dataclass(frozen=True)
class Node:
    """One operator of the file: the names that a profiler may use for it, its inputs, outputs and parameters."""

    names: tuple[str, ...]
    inputs: tuple[Hashable, ...]
    outputs: tuple[Hashable, ...]
    parameters: tuple[str, ...]


def refusal(form: str, model: nn.Module, inputs: tuple[Tensor, ...], error: Exception) -> UsageError:
    """What a format cannot express: the operator, and the line of the user's code that calls it, if both are known."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    telling = next((line for line in lines if "error:" in line), lines[0] if lines else type(error).__name__)
    found = OPERATOR.search(telling)
    if found is None:
        return UsageError(f"the model cannot be exported to {form}: {PLACE.sub(_named, telling)[:200]}")
    name = (found[1] or found[2]).lower().strip("_")
    nodes = exported(copy.deepcopy(model), inputs).graph.nodes
    calls = (node for node in nodes if getattr(node.target, "_opname", "").lower().strip("_") == name)
    place = next(filter(None, map(places.of_call, calls)), "the model")
    return UsageError(f"{place}: {name} cannot be written as {form}; use other operators")


class _Nested(nn.Module):
    """A model as the only child of a module, so that its own modules may have any name."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Any:
        return self.model(*inputs)


def _nested(model: nn.Module) -> nn.Module:
    return _Nested(model) if reserved(model) else model


def _named(place: re.Match[str]) -> str:
    return f"{Path(place[1]).name}:{place[2]}"


class Template(ABC):
    """One export of a network, from which the file for any widths is sliced.

    If a constant cannot be identified by its values, or the file fixes a size that a cut changes, `variant` exports the
    pruned network instead. That is slower.

    Attributes:
        singles_differ: Whether the exporter writes other operators for a dimension of size one, such as a single head. The
            file for a group of one unit is then an export, too.

    Args:
        model: The network.
        inputs: Example inputs of fixed shape.
        groups: Its channel groups.
    """

    singles_differ: ClassVar[bool] = False

    def __init__(self, model: nn.Module, inputs: tuple[Tensor, ...], groups: Groups) -> None:
        self._model = randomised(model)
        self._inputs, self._groups = inputs, groups
        self.exported = self.export(self._model, inputs, groups.folds)
        self._folded = fold(self._model, groups.folds)
        self._computed = computed_constants(self._folded, inputs)
        self._sizes: Sizes = {}  # what `sliced` changes beside the parameters
        self._singles: dict[str, dict[str, str]] = {}  # owners in files with operators of their own

    def variant(self, widths: Widths) -> bytes:
        """The file for these widths (kept units of each group). Its weights repeat, so it compresses well.

        It has the operators that the exporter writes at these widths.
        """
        groups = self._groups
        recipe = make_recipe(groups, first_units(groups, widths))
        removed = groups.removed(widths)
        if self.singles_differ and groups.singles(widths) and not removed:
            single = type(self)(sliced(self._model, recipe), self._inputs, groups)
            self._singles[digest(dict(widths))] = single.owners(groups.layers)
            return self.filled(single.exported)
        if removed or not self.slices:
            return self.filled(self._exported(recipe))
        return self.sliced(self._kept(recipe), widths, filled=True)

    @property
    def exports_singles(self) -> bool:
        """Whether files are sliced but for those of groups of one unit, so that these take longer than others."""
        return self.singles_differ and self.slices

    def owners_of(self, widths: Widths) -> dict[str, str]:
        """As `owners`, for the file that `variant` gave for these widths."""
        return self._singles.get(digest(dict(widths)), self._owners)

    @cached_property
    def _owners(self) -> dict[str, str]:
        return self.owners(self._groups.layers)

    def owners(self, layers: Sequence[Layer]) -> dict[str, str]:
        """Assign the nodes of the file to layers.

        A node with a layer's weight belongs to that layer, at every call. If several layers share a weight, its first node
        belongs to the first of them, and so on. Any other node, such as an activation, belongs to the last layer before it. A
        node before the first layer belongs to none.

        Returns:
            `{name of a node in a profile: layer}`.
        """
        sharing: dict[str, list[str]] = {}
        for each in layers:
            sharing.setdefault(each.weight, []).append(each.name)
        order = {layer.name: i for i, layer in enumerate(layers)}
        owner: dict[Hashable, str] = {}
        names: dict[str, str] = {}
        for node in self.nodes():
            weight = next((parameter for parameter in node.parameters if parameter in sharing), None)
            own = sharing[weight][0] if weight is not None else None
            if weight is not None and len(sharing[weight]) > 1:
                del sharing[weight][0]
            before = [owner[name] for name in node.inputs if name in owner]
            layer = own or max(before, key=order.__getitem__, default=None)
            if layer is not None:
                owner.update(dict.fromkeys(node.outputs, layer))
                names.update(dict.fromkeys(node.names, layer))
        return names

    @classmethod
    def export(cls, model: nn.Module, inputs: tuple[Tensor, ...], folds: Sequence[tuple[str, str]]) -> bytes:
        """Export a copy of a model for inputs of exactly these shapes, with batch-norm folded. See `written`."""
        return cls.written(_nested(called(fold(model, folds), inputs)), inputs)

    @staticmethod
    @abstractmethod
    def written(model: nn.Module, inputs: tuple[Tensor, ...]) -> bytes:
        """Write a model in this format, without folds. The exporter may leave its own tensors in the model.

        Raises:
            UsageError: The exporter does not support the model.
            RuntimeMissing: The exporter is not installed.
        """

    @staticmethod
    @abstractmethod
    def operators(file: bytes) -> int:
        """Number of operators in the file, without constants."""

    @abstractmethod
    def nodes(self) -> Iterable[Node]:
        """The operators of the exported file, in order."""

    @staticmethod
    @abstractmethod
    def constants(file: bytes) -> Constants:
        """The constants that the nodes of a file read."""

    @abstractmethod
    def sliced(self, kept: Mapping[str, Dims], widths: Widths, filled: bool = False) -> bytes:
        """The exported file with only these indices of its parameters, for these widths. `filled`: with repeating weights."""

    @abstractmethod
    def agrees(self, kept: Mapping[str, Dims], widths: Widths, exported: bytes) -> bool:
        """Whether `sliced` equals an export of the pruned network: the same operators, attributes and values."""

    @staticmethod
    @abstractmethod
    def filled(file: bytes) -> bytes:
        """The file with `pattern` in place of all weights. Its latency is the same, and it compresses well."""

    def _exported(self, recipe: Recipe) -> bytes:
        return self.export(sliced(self._model, recipe), self._inputs, self._groups.folds)

    def _kept(self, recipe: Recipe) -> dict[str, Dims]:
        """The recipe with biases that folding and converters add. They are cut like the outputs of their layer."""
        kept = {name: dict(dims) for name, dims in recipe.items()}
        for layer in self._groups.layers:
            outputs = kept.get(layer.weight, {}).get(output_dim(layer.kind))
            if outputs is not None:
                kept.setdefault(layer.weight.removesuffix("weight") + "bias", {}).setdefault(0, outputs)
        return kept

    @cached_property
    def slices(self) -> bool:
        """Whether slicing equals an export of the pruned network, tried on a cut of every group."""
        groups, widths = self._groups, sizes.distinct(self._groups)
        recipe = make_recipe(groups, first_units(groups, widths))
        file = self._exported(recipe)
        layers, owners = {layer.name: layer for layer in groups.layers}, self.owners(groups.layers)
        owned = {i: layers[owners[n]] for i, node in enumerate(self.nodes()) for n in node.names if n in owners}
        self._sizes = sizes.find(self.constants(self.exported), self.constants(file), owned, groups, widths)
        return self.agrees(self._kept(recipe), widths, file)


class Origins:
    """Identifies the parameter of a constant by its values, in any dimension order that exporters use.

    A constant that the network computes from parameters comes from the largest of them. So does a weight that the exporter
    scaled, such as one of a shared layer with another batch-norm at each call. Neither is sliced.

    Args:
        folded: The exported network.
        computed: The constants that it computes from parameters, see `computed_constants`.
    """

    def __init__(self, folded: nn.Module, computed: Sequence[tuple[str, Tensor]] = ()) -> None:
        weights = (*computed, *folded.named_parameters())
        self._scaled = [(name, tensor.detach().numpy()) for name, tensor in weights if tensor.ndim > 1]
        self._known: dict[tuple[tuple[int, ...], bytes], tuple[str, tuple[int, ...]]] = {}
        for name, tensor in [*folded.named_parameters(), *folded.named_buffers()]:
            array = tensor.detach().numpy()
            for order in _orders(array.ndim):
                turned = np.ascontiguousarray(array.transpose(order))
                dims = tuple(dim for dim in order if array.shape[dim] != 1)
                self._known.setdefault(_key(turned), (name, dims))

    def find(self, value: np.ndarray) -> Origin | None:
        """The origin of a constant, or None if it is no parameter of the network."""
        if not value.size:
            return None
        known = self._known.get(_key(value))
        if known is None:
            name = next((name for name, array in self._scaled if _is_scaled(array, value)), None)
            return None if name is None else Origin(name, (None,) * value.ndim, float(value.std()) or 1.0)
        left = iter(known[1])
        dims = tuple(None if size == 1 else next(left) for size in value.shape)
        return Origin(known[0], dims, float(value.std()) or 1.0)


LEAST = 4  # numbers for each factor, so that no other constant looks like a scaled weight
PERIOD = 1021  # prime, so that rows of a weight differ


def pattern(value: np.ndarray) -> np.ndarray:
    """Replace the values of a large array by values that repeat every `PERIOD`, with the same standard deviation.

    The latency of dense kernels does not depend on the values, except for denormals, infinities and zeros. The new values
    are none of these. A small array is returned unchanged.
    """
    return _repeated(value.shape, float(value.std()) or 1.0) if _large(value.dtype, value.shape) else value


def _large(dtype: np.dtype[Any], shape: Sequence[int]) -> bool:
    return dtype == np.float32 and math.prod(shape) > PERIOD


def _repeated(shape: tuple[int, ...], spread: float) -> np.ndarray:
    numbers = (spread * np.random.default_rng(0).standard_normal(PERIOD)).astype(np.float32)
    return np.resize(numbers, shape)


def _is_scaled(weight: np.ndarray, value: np.ndarray) -> bool:
    """Whether a constant is a weight in any order, with a factor for each output."""
    if sorted(_squeezed(weight)) != sorted(_squeezed(value)) or weight.size < LEAST * weight.shape[0]:
        return False
    turned = ((weight.transpose(order), order.index(0)) for order in _orders(weight.ndim))
    return any(
        np.allclose(_normed(array, axis), _normed(value.reshape(array.shape), axis), rtol=0, atol=1e-4)
        for array, axis in turned
        if _squeezed(array) == _squeezed(value)
    )


def _normed(array: np.ndarray, axis: int) -> np.ndarray:
    """An array whose slices along an axis have the norm 1."""
    norms = np.linalg.norm(np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1), axis=1)
    shape = [-1 if dim == axis else 1 for dim in range(array.ndim)]
    result: np.ndarray = array / np.maximum(norms, 1e-12).reshape(shape)
    return result


def _squeezed(array: np.ndarray) -> tuple[int, ...]:
    return tuple(size for size in array.shape if size != 1)


def _key(value: np.ndarray) -> tuple[tuple[int, ...], bytes]:
    return _squeezed(value), value.tobytes()


def _orders(ndim: int) -> Iterator[tuple[int, ...]]:
    """Dimension orders: unchanged, reversed (matrices), channels last (O,H,W,I), and depthwise (I,H,W,O)."""
    dims = tuple(range(ndim))
    candidates = [dims, dims[::-1]]
    if ndim >= 3:
        candidates += [(0, *dims[2:], 1), (1, *dims[2:], 0)]
    yield from dict.fromkeys(candidates)
