"""Read a graph node by node: shapes follow from torch's own functions on tensors without data, and constants are folded.

Everything is computed for two batch sizes. What differs between them follows the batch: so a size that the file fixes can be
told from one that follows.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map

from edgeprune.errors import EdgepruneError, UsageError, first_line, quoted
from edgeprune.frontends.onnx import functions
from edgeprune.frontends.onnx.file import Graph, Node, nodes_of, tensor_of
from edgeprune.frontends.onnx.graph import Items, Layer, Step, Value
from edgeprune.limits import LIMITS
from edgeprune.runtimes.files.onnx import text_of

# It prints a stack for every call that fails. Here calls fail if a file takes one batch size only.
logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)
Made = Value | Items | Sequence[Value | Items]


class FixedBatchError(Exception):
    """The file fixes the batch size. The message says where."""


class Builder:
    """The steps of a network.

    Args:
        graph: the network's file.
        shapes: of each input, for each batch size that the network is read with.
        operators: adds the steps of a node; see `operators`.
        simplified: is called with each new value; see `patterns`.
    """

    def __init__(
        self,
        graph: Graph,
        shapes: Sequence[Sequence[tuple[int, ...]]],
        operators: Mapping[str, Callable[..., Made]],
        simplified: Callable[[Builder, Value], Value],
    ) -> None:
        self.graph = graph
        self._operators = operators
        self._simplified = simplified
        self._readers = Counter(name for node in graph.nodes for name in node.inputs) + Counter(graph.outputs)
        self.steps: list[Step] = []
        self.values: dict[str, Value | Items] = {}
        self.node: Node | None = None
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._batches = len(shapes[0])
        self._computed = 0
        self._inner = 0  # nodes of branches and loops
        self._branches: dict[int, _Branch] = {}
        self._made: dict[tuple[Any, ...], tuple[Value, Value]] = {}
        self._layers: dict[tuple[Any, ...], Layer] = {}
        self._parameters: dict[
            int, tuple[Tensor, nn.Parameter]
        ] = {}  # holds the tensors, so that their ids stay theirs
        with self._mode:
            self.inputs = [
                Value(tuple(torch.empty(size, dtype=one.dtype) for size in sizes))
                for one, sizes in zip(graph.inputs, shapes, strict=True)
            ]
        self.values.update((one.name, value) for one, value in zip(graph.inputs, self.inputs, strict=True))
        following = [(value, dim) for value in self.inputs for dim in _changed(value.fakes)]
        self.batch, self.batch_dim = following[0] if following else (self.inputs[0], 0)
        for name, tensor in graph.weights.items():
            self.values[name] = self.constant(tensor, name)

    def run(self, nodes: Iterable[Node]) -> None:
        """Add the steps of nodes.

        Raises:
            UsageError: an operator has no converter, or cannot be computed.
            FixedBatchError: the nodes take one batch size only.
        """
        for node in nodes:
            self.node = node
            if node.op not in self._operators:
                raise self.error(
                    "has no converter; export the network with other operators,"
                    " or add one function to edgeprune/frontends/onnx/operators"
                )
            if unknown := [name for name in node.inputs if name and name not in self.values]:
                raise self.error(f"reads {quoted(unknown[0])}, which nothing makes; export the file again")
            inputs = [self.values[name] if name else None for name in node.inputs]
            while inputs and inputs[-1] is None:
                inputs.pop()
            try:
                made = self._operators[node.op](self, node, *inputs)
            except (
                AttributeError,
                KeyError,
                TypeError,
                IndexError,
                ValueError,
                OverflowError,
            ) as error:  # the file's own numbers
                raise self.error(f"has attributes or inputs that do not fit ({first_line(error)})") from error
            for name, value in zip(node.outputs, [made] if isinstance(made, Value | Items) else made, strict=False):
                self.values[name] = value
                if isinstance(value, Value):
                    value.readers += self._readers[name]
            for name in filter(None, node.outputs):
                if name not in self.values and self._readers[name]:
                    raise self.error(f"has a result {quoted(name)} without a converter")

    # --------------------------------------------------------------------------------------------- what operators use

    def is_read(self, name: str) -> bool:
        """Whether a node or an output reads a value."""
        return bool(self._readers[name])

    def inlined(
        self, node: Node, body: onnx.GraphProto, given: Sequence[Value | Items | None] = ()
    ) -> list[Value | Items]:
        """The results of a branch or of one pass of a loop, whose nodes become nodes of the network.

        Args:
            node: holds the body.
            body: a graph.
            given: its inputs.
        """
        if id(body) not in self._branches:
            path = self.graph.path
            weights = {text_of(one.name): one for one in body.initializer}
            held = {n: self.constant(tensor_of(path, t, f"the weight {quoted(n)}"), n) for n, t in weights.items()}
            self._branches[id(body)] = _Branch(body, tuple(nodes_of(path, body)), held)
        branch = self._branches[id(body)]
        self._inner += len(branch.nodes) + 1
        if self._inner > LIMITS.onnx_nodes:
            raise self.error(f"makes more than {LIMITS.onnx_nodes} nodes; export the network with a shorter loop")
        self.values.update(branch.weights)
        names = (text_of(value.name) for value in body.input)
        self.values.update((name, value) for name, value in zip(names, given, strict=False) if value is not None)
        self.run(branch.nodes)
        self.node = node
        return [self.values[text_of(output.name)] for output in body.output]

    def constant(self, tensor: Tensor, weight: str = "") -> Value:
        """A constant; `weight` is its name if it is a weight of the file."""
        return self._constant((tensor,) * self._batches, weight if tensor.is_floating_point() else "")

    def constants(self, tensors: Sequence[Tensor], weight: str = "") -> Value:
        """A constant with a value for each batch size."""
        return self._constant(_shared(tuple(tensors)), weight)

    def per_batch(
        self, target: Callable[..., Tensor], given: Sequence[tuple[Any, ...]], weight: str = "", **named: Any
    ) -> Value:
        """A constant that a function makes of other arguments for each batch size, or of the same for all."""
        made = [self._folded(target, args, named, [])[0].constant for args in given]
        tensors = [each[0] for each in made if each is not None]
        return self.constants(tensors * (self._batches // len(tensors)), weight)

    def call(self, target: Callable[..., Any], *args: Any, **named: Any) -> Value:
        """The result of a function. It is computed at once if all arguments are constants."""
        return self._simplified(self, self.calls(target, *args, **named)[0])

    def calls(self, target: Callable[..., Any], *args: Any, **named: Any) -> list[Value]:
        """The results of a function that returns several tensors."""
        read = [leaf for leaf in tree_leaves((args, named)) if isinstance(leaf, Value)]
        if all(value.constant is not None for value in read):
            return self._folded(target, args, named, read)
        args, named = tree_map(self._following, args), tree_map(self._following, named)
        return self._step(target, args, named)

    def once(self, target: Callable[..., Any], value: Value, *args: Any) -> Value:
        """A function of one constant. The same call of the same constant has the same result, so tied weights stay tied."""
        assert value.constant is not None
        key = (target, id(value.constant[0]), args)
        if key not in self._made:
            self._made[key] = value, self.call(target, value, *args)
        return self._made[key][1]

    def as_shape(self, value: Value, shape: Sequence[int]) -> Value:
        """A constant broadcast to a shape."""
        return value if value.shape == tuple(shape) else self.once(functions.expanded, value, tuple(shape))

    def layer(self, kind: Callable[..., nn.Module], x: Value, weights: Sequence[Value | None], **options: Any) -> Value:
        """The result of a layer whose parameters are weights of the file.

        Args:
            kind: makes the layer of the weights' tensors and the options. It is called once for the same arguments.
            x: what the layer is called with.
            weights: constants.
            options: numbers, tuples and texts.
        """
        return self.layers(kind, (x,), weights, **options)[0]

    def layers(
        self, kind: Callable[..., nn.Module], xs: Sequence[Value], weights: Sequence[Value | None], **options: Any
    ) -> list[Value]:
        """The results of a layer that takes or returns several tensors; see `layer`."""
        tensors = [None if value is None else value.constant[0] for value in weights]  # type: ignore[index]
        key = (kind, *map(id, tensors), *sorted(options.items()))
        if key not in self._layers:
            name = next((value.weight for value in weights if value is not None and value.weight), "")
            module = kind(*map(self._parameter, tensors), **options).eval()
            self._layers[key] = Layer(module, name, kind, tuple(weights), options)
        return self._step(self._layers[key], tree_map(self._following, tuple(xs)), {})

    def relayered(self, step: Step, bias: Value) -> Value:
        """The result of a layer with a bias in place of its last weight."""
        layer = step.target
        assert isinstance(layer, Layer)
        return self.layers(layer.kind, step.args, [*layer.values[:-1], bias], **layer.options)[0]

    def outputs(self) -> list[Value]:
        """The outputs of the network. Raises `UsageError` if one is a sequence."""
        found = [self.values[name] for name in self.graph.outputs]
        for name, value in zip(self.graph.outputs, found, strict=True):
            if isinstance(value, Items):
                raise self.graph.refused(f"the output {quoted(name)} is a sequence; export its tensors as outputs")
        return [self._following(value) for value in found]

    def error(self, text: str) -> UsageError:
        """The error of the present node."""
        return self.graph.refused(f"{self.node} {text}")

    def ints(self, value: Value) -> tuple[list[int], ...]:
        """The numbers of a constant, such as a shape, for each batch size.

        Raises:
            UsageError: they depend on the inputs.
        """
        if value.constant is None:
            raise self.error(
                "needs sizes that depend on the values of the inputs; export the network with fixed shapes"
            )
        return tuple([int(number) for number in tensor.flatten().tolist()] for tensor in value.constant)

    def fixed(self, value: Value) -> list[int]:
        """The numbers of a constant that do not follow the batch size."""
        first, *others = self.ints(value)
        if any(other != first for other in others):
            raise FixedBatchError(f"{self.node} uses the batch size")
        return first

    def scalar(self, value: Value) -> float | int | bool:
        """The only number of a constant."""
        if value.constant is None or value.constant[0].numel() != 1:
            raise self.error("needs a number that does not depend on the inputs; export the network with fixed shapes")
        if any(not torch.equal(value.constant[0], other) for other in value.constant):
            raise FixedBatchError(f"{self.node} uses the batch size")
        return value.constant[0].item()

    # ------------------------------------------------------------------------------------------------------- how

    def _constant(self, tensors: tuple[Tensor, ...], weight: str) -> Value:
        with self._mode:
            fakes = tuple(torch.empty(tensor.shape, dtype=tensor.dtype) for tensor in tensors)
        return Value(fakes, constant=tensors, weight=weight)

    def _parameter(self, tensor: Tensor | None) -> nn.Parameter | None:
        """The parameter of a tensor: the same one wherever the file uses the same tensor."""
        if tensor is None:
            return None
        return self._parameters.setdefault(id(tensor), (tensor, nn.Parameter(tensor)))[1]

    def _step(self, target: Callable[..., Any] | Layer, args: Any, named: Any) -> list[Value]:
        run = target.module if isinstance(target, Layer) else target
        found = [self._outputs(run, args, named, batch) for batch in range(self._batches)]
        if len({len(results) for results in found}) > 1:
            raise FixedBatchError(f"{self.node} makes as many tensors as there are samples")
        assert self.node is not None
        step = Step(target, args, named, self.node.scope)
        self.steps.append(step)
        step.results = [Value(fakes, step, place) for place, fakes in enumerate(zip(*found, strict=True))]
        return step.results

    def _outputs(self, run: Callable[..., Any], args: Any, named: Any, batch: int) -> list[Tensor]:
        """What a call returns for a batch size: tensors without data."""
        given = tree_map(lambda leaf: leaf.fakes[batch] if isinstance(leaf, Value) else leaf, (args, named))
        try:
            with self._mode, torch.no_grad():
                found = run(*given[0], **given[1])
        except EdgepruneError:
            raise
        except Exception as error:  # torch's functions raise many types; all of them are about the file's shapes here
            if batch:
                raise FixedBatchError(f"{self.node} takes one batch size only") from error
            raise self.error(f"cannot be computed: {first_line(error)}") from error
        tensors = [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]
        for tensor in tensors:
            if tensor.numel() > LIMITS.onnx_elements:
                raise self.error(
                    f"makes a tensor of {tensor.numel()} numbers, which is more than {LIMITS.onnx_elements}"
                )
            if not tensor.numel() and batch == 0:
                self._refuse_empty(args, named)
        return tensors

    def _refuse_empty(self, args: Any, named: Any) -> None:
        """Raises `UsageError` for an empty tensor, unless it is computed from constants only."""
        read = [leaf for leaf in tree_leaves((args, named)) if isinstance(leaf, Value)]
        if any(value.constant is None for value in read):
            raise self.error("makes a tensor without elements; export the network for inputs that hold data")

    def _folded(self, target: Callable[..., Any], args: Any, named: Any, read: list[Value]) -> list[Value]:
        """The results of a call on constants. Their size is known before they are computed."""
        constants = [value.constant for value in read if value.constant is not None]
        same = all(tensor is values[0] for values in constants for tensor in values)
        results: list[list[Tensor]] = []
        for batch in range(1 if same else self._batches):
            for fake in self._outputs(target, args, named, batch):
                self._computed += fake.numel() * fake.element_size()
            if self._computed > LIMITS.onnx_computed_bytes:
                raise self.error(f"makes constants of more than {LIMITS.onnx_computed_bytes} bytes in all")
            given = tree_map(
                lambda leaf, batch=batch: (leaf.constant or ())[batch] if isinstance(leaf, Value) else leaf,
                (args, named),
            )
            with torch.no_grad():
                found = target(*given[0], **given[1])
            results.append([leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)])
        if same:
            results *= self._batches
        weight = next((value.weight for value in read if value.weight), "")
        return [
            self._constant(_shared(tensors), weight if tensors[0].is_floating_point() else "")
            for tensors in zip(*results, strict=True)
        ]

    def _following(self, leaf: Any) -> Any:
        """A constant whose size follows the batch, as a call that repeats it for the present batch."""
        if not isinstance(leaf, Value) or leaf.constant is None or leaf.constant[0] is leaf.constant[-1]:
            return leaf
        first, last = leaf.constant[0], leaf.constant[-1]
        dims = _changed((first, last))
        if first.ndim != last.ndim or len(dims) != 1:
            raise FixedBatchError(f"{self.node} uses the batch size")
        dim = dims[0]
        once = first.narrow(dim, 0, 1)
        if not (torch.equal(once.expand_as(first), first) and torch.equal(once.expand_as(last), last)):
            raise FixedBatchError(f"{self.node} uses the batch size")
        kept = self._constant((once.contiguous(),) * self._batches, leaf.weight)
        per_sample = first.shape[dim] // self.batch.shape[self.batch_dim]
        return self._step(functions.repeated, (kept, self.batch, self.batch_dim, dim, per_sample), {})[0]


@dataclass(frozen=True)
class _Branch:
    """A graph inside a node, which stays at its place in memory. Passes of a loop share its weights."""

    body: onnx.GraphProto
    nodes: tuple[Node, ...]
    weights: Mapping[str, Value]


def _changed(tensors: Sequence[Tensor]) -> list[int]:
    """The dimensions whose size the batch changes."""
    first, last = tensors[0], tensors[-1]
    return [dim for dim, (a, b) in enumerate(zip(first.shape, last.shape, strict=False)) if a != b]


def _shared(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The same object for each batch size, if the tensors are equal."""
    first = tensors[0]
    if all(other.shape == first.shape and torch.equal(other, first) for other in tensors):
        return (first,) * len(tensors)
    return tensors
