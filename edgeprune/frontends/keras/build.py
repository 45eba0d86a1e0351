"""Build a network of torch from a Keras model: walk its graph, convert each layer, keep channels first in between."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from torch import nn

from edgeprune.errors import UsageError
from edgeprune.frontends.keras import activations, layers, merging, operations, sequences  # noqa: F401 - they fill the table
from edgeprune.frontends.keras.blocks import Parts, with_blocks
from edgeprune.frontends.keras.graph import LayerGraph, Order, Step, Value, attribute
from edgeprune.frontends.keras.modules import AsFloat, Permute, PerStep
from edgeprune.frontends.keras.table import FACTORY, TABLE, Built, Call, of_class

Shape = tuple[int | None, ...]
MASKLESS = "BatchNormalization", "TimeDistributed"  # layers that pass a mask on, or read it in training only


@dataclass(frozen=True)
class Network:
    """A network, and the layers of Keras that its modules were made from.

    Attributes:
        module: takes and returns tensors as the model does, with the channels last.
        layers: (path of a module, layer of Keras), for each layer with weights and each operation.
    """

    module: LayerGraph
    layers: tuple[tuple[str, Any], ...]


def build(model: Any) -> Network:
    """The network of a Keras model.

    Args:
        model: functional or sequential.

    Raises:
        UsageError: a layer is not supported. The message names it.
    """
    graph = functional(model)
    builder = Builder()
    given = [builder.value(tensor.shape) for tensor in graph.inputs]
    results = builder.outputs(
        graph, [builder.as_float(value, one) for value, one in zip(given, graph.inputs, strict=True)]
    )
    module = builder.graph(given, [builder.ordered(value, "last") for value in results])
    names = tuple(tensor.name for tensor in graph.inputs), tuple(graph.output_names)
    if len({*names[0], *names[1]}) == len(names[0]) + len(names[1]):
        module.names_in_file = names
    paths = {id(child): path for path, child in module.named_modules()}
    return Network(module, tuple((paths[id(child)], layer) for child, layer in builder.sources))


def sized(model: Any, shapes: Sequence[Shape]) -> Any:
    """The model for inputs of these shapes, with the same layers, if it leaves a size open. Otherwise the model itself."""
    from keras import Input, models, tree

    graph = functional(model)
    is_open = any(size is None for tensor in graph.inputs for size in tensor.shape[1:])
    if not is_open or len(shapes) != len(graph.inputs):
        return model
    given = [Input(shape[1:], dtype=old.dtype) for old, shape in zip(graph.inputs, shapes, strict=True)]
    inputs = tree.pack_sequence_as(graph._inputs_struct, given)
    return models.clone_model(graph, inputs, clone_function=lambda layer: layer)


def functional(model: Any) -> Any:
    """The graph of a model. A sequential model holds one."""
    kinds = [kind.__name__ for kind in type(model).__mro__]
    if "Functional" in kinds:
        return model
    if "Sequential" in kinds and model.built:
        return model._functional
    what = "has no input shape; add keras.Input" if "Sequential" in kinds else "is no functional or sequential model"
    raise UsageError(f"the model {model.name!r} {what}, or {FACTORY}")


def is_model(layer: Any) -> bool:
    """Whether a layer is a model itself."""
    return any(kind.__name__ in ("Functional", "Sequential") for kind in type(layer).__mro__)


def _masks(node: Any) -> Iterator[tuple[str, Any]]:
    """The masks of a layer with several inputs, such as "query_mask". Keras keeps them at the tensors only."""
    names = [*inspect.signature(node.operation.call).parameters]
    for name, tensor in {**dict(zip(names, node.arguments.args, strict=False)), **node.arguments.kwargs}.items():
        mask = getattr(tensor, "_keras_mask", None)
        if mask is not None and f"{name}_mask" in names:
            yield f"{name}_mask", mask


def _in_order(layer: Any, keywords: Mapping[str, Any]) -> list[Any]:
    """The keywords of a call in the order of the layer's own arguments."""
    names = [*inspect.signature(layer.call).parameters]
    return [
        keywords[name] for name in sorted(keywords, key=lambda one: names.index(one) if one in names else len(names))
    ]


@dataclass(frozen=True)
class Nested:
    """A model inside the model: its module's name, and the values at its ends."""

    name: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]


class Builder:
    """Collects the layers and the steps of one graph."""

    def __init__(self) -> None:
        self.sources: list[tuple[nn.Module, Any]] = []  # modules, and the layers of Keras that they were made from
        self._keys = count()
        self._layers: dict[str, nn.Module] = {}
        self._names: dict[int, str] = {}  # by the identity of the layer of Keras
        self._steps: list[Step] = []
        self._reordered: dict[tuple[int, Order], Value] = {}
        self._nested: dict[int, Nested] = {}

    def value(self, shape: Sequence[int | None], order: Order = "last") -> Value:
        """A new tensor."""
        return Value(next(self._keys), tuple(shape), order)

    def graph(self, inputs: Sequence[Value], outputs: Sequence[Value]) -> LayerGraph:
        """What was collected, as a module."""
        keys = tuple(value.key for value in inputs), tuple(value.key for value in outputs)
        found = with_blocks(Parts(dict(self._layers), tuple(self._steps), *keys))
        return LayerGraph(found.layers.items(), found.steps, found.inputs, found.outputs)

    def outputs(self, model: Any, inputs: Sequence[Value]) -> list[Value]:
        """Convert all layers of a functional model. Returns its outputs."""
        found = {id(tensor): value for tensor, value in zip(model.inputs, inputs, strict=True)}
        for depth in sorted(model._nodes_by_depth, reverse=True):  # Keras's order of execution
            for node in model._nodes_by_depth[depth]:
                self._convert(node, found)
        return [found[id(tensor)] for tensor in model.outputs]

    def _convert(self, node: Any, found: dict[int, Value]) -> None:
        """Convert one call, and those before it that are in no graph, as those that make masks. Results go into `found`."""
        if node.is_input or any(id(tensor) in found for tensor in node.outputs):
            return
        masks = {name: mask for name, mask in _masks(node) if name not in node.arguments.kwargs}
        for tensor in (*node.arguments.keras_tensors, *masks.values()):
            history = tensor._keras_history
            self._convert(history.operation._inbound_nodes[history.node_index], found)
        arguments, keywords = node.arguments.fill_in(found)
        keywords |= {name: found[id(mask)] for name, mask in masks.items()}
        shapes = [tuple(tensor.shape) for tensor in node.outputs]
        results = self._called(node.operation, arguments, keywords, shapes)
        found |= {id(tensor): value for tensor, value in zip(node.outputs, results, strict=True)}

    def ordered(self, value: Value, order: Order) -> Value:
        """The tensor with its channels where a layer reads them."""
        if value.order == order or value.rank < 3:
            return value
        if (value.key, order) not in self._reordered:
            dims = (0, value.rank - 1, *range(1, value.rank - 1)) if order == "first" else (0, *range(2, value.rank), 1)
            found = self.value(value.shape, order)
            self._add(f"channels_{order}", Permute(dims), [value], [found])
            self._reordered[value.key, order] = found
        return self._reordered[value.key, order]

    def as_float(self, value: Value, tensor: Any) -> Value:
        """An input as the type that the model computes with. Images may be bytes."""
        if not str(tensor.dtype).startswith(("float", "bfloat")):
            return value
        found = self.value(value.shape)
        self._add("as_float", AsFloat(), [value], [found])
        return found

    def _add(self, name: str, module: nn.Module, given: Sequence[Value], found: Sequence[Value]) -> str:
        """Add a layer and its call. Returns its name."""
        name = attribute(name, self._layers)
        self._layers[name] = module
        self._step(name, given, found)
        return name

    def _step(self, name: str, given: Sequence[Value], found: Sequence[Value]) -> None:
        self._steps.append(Step(name, tuple(v.key for v in given), tuple(v.key for v in found)))

    def _called(self, layer: Any, arguments: Any, keywords: Any, shapes: Sequence[Shape]) -> list[Value]:
        """Convert one call of a layer, or of a nested model. Returns its outputs, which have these shapes."""
        from keras import tree

        masks = {name: v for name, v in keywords.items() if name.endswith("mask") and isinstance(v, Value)}
        others = _in_order(layer, {name: value for name, value in keywords.items() if name not in masks})
        given = [value for value in tree.flatten((arguments, others)) if isinstance(value, Value)]
        if is_model(layer):
            return self._nested_call(layer, given)
        if of_class(layer) == "InputLayer":
            return given
        plain = {name: value for name, value in keywords.items() if not isinstance(value, Value)}
        call = Call(layer, tuple(given), plain, tuple(arguments), masks)
        if of_class(layer) not in TABLE:
            raise call.missing("edgeprune does not know this layer")
        if getattr(layer, "quantization_mode", None):
            raise UsageError(f"layer {layer.name!r} is quantised; save the model before quantize() is called")
        if of_class(layer) == "TimeDistributed" and of_class(layer.layer) != "Dense":
            built = self._per_step(layer, given[0], shapes[0])
        else:
            built = TABLE[of_class(layer)](call)
        if masks and not built.masks and of_class(layer) not in MASKLESS:
            raise call.missing("a mask is not supported")
        results = [self.value(shape, built.gives if len(shape) > 2 else "last") for shape in shapes]
        self._add_built(layer, built, [*(self.ordered(one, built.reads) for one in given), *built.masks], results)
        return results

    def _add_built(self, layer: Any, built: Built, given: list[Value], results: list[Value]) -> None:
        """Add a layer, and what is before and after it. A layer that was called before is the same module."""
        name = self._names.get(id(layer))
        if built.before is not None:
            padded = self.value(given[0].shape, built.reads)
            self._add(f"{layer.name}_pad", built.before, given, [padded])
            given = [padded]
        last = [self.value(value.shape, value.order) for value in results] if built.after is not None else results
        if name is None:
            self._names[id(layer)] = self._add(layer.name, built.layer, given, last)
            self.sources.append((built.layer, layer))
        elif repr(self._layers[name]) == repr(built.layer):
            self._step(name, given, last)
        else:
            raise UsageError(f"layer {layer.name!r} is shared by inputs of different sizes; {FACTORY}")
        if built.after is not None:
            self._add(f"{layer.name}_activation", built.after, last, results)

    def _per_step(self, layer: Any, given: Value, shape: Shape) -> Built:
        """A layer or a model that is applied to each step of a sequence."""
        inner = Builder()
        step = inner.value((None, *given.shape[2:]))
        if is_model(layer.layer):
            found = inner.outputs(functional(layer.layer), [step])
        else:
            found = inner._called(layer.layer, (step,), {}, [(None, *shape[2:])])
        return Built(PerStep(inner.graph([step], [inner.ordered(value, "last") for value in found])))

    def _nested_call(self, model: Any, given: list[Value]) -> list[Value]:
        """Convert a call of a model inside the model. All its calls share one module."""
        if id(model) not in self._nested:
            inner = Builder()
            inputs = [inner.value(value.shape, value.order) for value in given]
            outputs = inner.outputs(functional(model), inputs)
            self._layers[attribute(model.name, self._layers)] = inner.graph(inputs, outputs)
            self.sources += inner.sources
            self._nested[id(model)] = Nested([*self._layers][-1], tuple(inputs), tuple(outputs))
        nested = self._nested[id(model)]
        if [value.shape for value in given] != [value.shape for value in nested.inputs]:
            raise UsageError(f"the model {model.name!r} is shared by inputs of different sizes; {FACTORY}")
        ordered = [self.ordered(value, one.order) for value, one in zip(given, nested.inputs, strict=True)]
        results = [self.value(value.shape, value.order) for value in nested.outputs]
        self._step(nested.name, ordered, results)
        return results
