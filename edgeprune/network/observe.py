"""Observe the dense layers of a network at work: what they read, which weight and bias they use.

A dense layer is a convolution or a matrix product with a parameter. It is recognised as a function call, so the model may
write it in any way. These layers are left out:

- Layers whose weight has another use, such as an embedding.
- Layers with a computed weight, and grouped convolutions.
- Layers that read fewer positions than channels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from edgeprune.limits import LIMITS
from edgeprune.network.moments import Moments
from edgeprune.network.outputs import tensors
from edgeprune.records import Group, Slot

MEMORY_FACTOR = 4  # memory of a forward pass relative to its largest tensor, roughly
HELD_OUT = 8  # one of this many samples is held out

Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Extent:
    """How much is observed at most.

    Attributes:
        samples: samples that are run.
        rows: positions of a layer's input that are kept.
        row_bytes: inputs of all layers that are kept.
        pass_bytes: memory of the forward pass.
    """

    samples: int
    rows: int
    row_bytes: int
    pass_bytes: int

    @staticmethod
    def full() -> Extent:
        """As much as a refit of the final network may use."""
        memory = LIMITS.reconstruction_bytes
        return Extent(LIMITS.reconstruction_samples, memory, memory, memory)


def forward(model: nn.Module, inputs: Inputs) -> Any:
    """Call a model."""
    return model(*inputs)


@dataclass(frozen=True)
class DenseLayer:
    """What a dense layer of the original network reads, at all its calls.

    `rows` (rows, channels) is a sample of its `positions`. `dim` is the input dimension of its weight. `bias` names the
    bias, "" for none. `calls` counts its calls.
    """

    rows: Tensor
    positions: int
    dim: int
    bias: str
    calls: int = 1

    def moments(self) -> Moments:
        """The moments of its channels, all of them read."""
        return Moments.of_unchanged(self.rows, bool(self.bias))


@dataclass(frozen=True)
class Reference:
    """The original network at work on `inputs`.

    `layers` maps the name of a weight to its dense layer. `held_out` holds other inputs and the network's outputs for them.
    `call` calls a variant of the network with one of these inputs.
    """

    inputs: Inputs
    layers: Mapping[str, DenseLayer]
    held_out: tuple[Inputs, tuple[Tensor, ...]]
    call: Callable[[nn.Module, Inputs], Any] = forward

    @property
    def macs(self) -> int:
        """Multiply-accumulates of a refit of all layers, roughly."""
        return sum((len(layer.rows) + layer.rows.shape[1]) * layer.rows.shape[1] ** 2 for layer in self.layers.values())

    @property
    def nbytes(self) -> int:
        """Bytes of all inputs and outputs that it holds."""
        inputs, outputs = self.held_out
        return sum(x.nbytes for x in (*self.inputs, *inputs, *outputs, *(one.rows for one in self.layers.values())))

    def readers(self, group: Group) -> list[Slot]:
        """The slots at which dense layers read the channels of a group."""
        return [s for s in group.slots if s.parameter in self.layers and self.layers[s.parameter].dim == s.dim]


def observe(
    model: nn.Module,
    batches: Iterable[tuple[Inputs, Tensor]],
    extent: Extent | None = None,
    call: Callable[[nn.Module, Inputs], Any] = forward,
) -> Reference:
    """Run a network and record what its dense layers read.

    Args:
        model: The original network.
        batches: Batches of (inputs, targets). The first samples are used.
        extent: How much is used at most; None is `Extent.full()`.
        call: Calls the model, with the inputs of the result.

    Returns:
        The dense layers, and held-out samples with the network's outputs.
    """
    extent = extent or Extent.full()
    first = next(iter(batches))
    known, largest = _first_pass(model, first)
    inputs, held_out = _samples(batches, min(extent.samples, extent.pass_bytes // (MEMORY_FACTOR * largest)))
    most = min(extent.rows, extent.row_bytes // (4 * max(1, sum(call.channels for call in known.values()))))
    found: dict[str, list[tuple[Tensor, int]]] = {}  # rows of each call, and its positions

    def record(call: DenseCall) -> None:
        if call.weight in known and call.channels <= LIMITS.reconstruction_channels:
            rows = call.rows(most // known[call.weight].calls)
            if rows.untyped_storage().data_ptr() == call.read.untyped_storage().data_ptr():
                rows = rows.clone()  # the model may change it in place
            found.setdefault(call.weight, []).append((rows, call.positions))

    try:
        run(model, inputs, record, call)
        expected = run(model, held_out, call=call)
    except (RuntimeError, ValueError, IndexError, AssertionError):  # the model accepts only the batch size of training
        inputs = held_out = first[0]
        found.clear()
        expected = run(model, inputs, record, call)
    layers = {name: _layer(known[name], calls) for name, calls in found.items()}
    usable = {name: x for name, x in layers.items() if x.positions >= x.rows.shape[1] and bool(x.rows.isfinite().all())}
    return Reference(inputs, usable, (held_out, expected))


@dataclass(frozen=True)
class DenseCall:
    """A call of a dense layer.

    `weight` and `bias` are parameter names, with "" for no bias. `dim` is the input dimension of the weight. `read` is the
    input, with its channels in dimension `axis`.
    """

    weight: str
    bias: str
    dim: int
    read: Tensor
    axis: int

    @property
    def channels(self) -> int:
        """Number of input channels."""
        return self.read.shape[self.axis]

    @property
    def positions(self) -> int:
        """Number of positions (batch and space) of the input."""
        return self.read.numel() // self.channels

    def rows(self, most: int) -> Tensor:
        """The input as (positions, channels): a random sample of `most` positions, the same for the same input size."""
        rows = self.read.movedim(self.axis, -1).reshape(-1, self.channels).float()
        if len(rows) <= most:
            return rows
        return rows[_drawn(len(rows), most)]


@lru_cache(maxsize=64)  # the layers of a network have few sizes
def _drawn(positions: int, most: int) -> Tensor:
    return torch.randperm(positions, generator=torch.Generator().manual_seed(0))[:most].clone()


def run(
    model: nn.Module,
    inputs: Inputs,
    on_call: Callable[[DenseCall], None] = lambda call: None,
    call: Callable[[nn.Module, Inputs], Any] = forward,
) -> Inputs:
    """Run a model in eval mode and return all tensors of its output.

    `on_call` gets every call of a dense layer before it executes, and may still change the layer's weight. `call` calls the
    model.
    """
    with torch.no_grad(), _Watch(model.eval(), on_call):
        return tuple(tensors(call(model, inputs)))


# Function -> positions of its input, weight and bias among the arguments, and the input dimension of the weight.
DENSE: Mapping[Callable[..., Tensor], tuple[int, int, int, int]] = {
    F.linear: (0, 1, 2, 1),
    F.conv1d: (0, 1, 2, 1),
    F.conv2d: (0, 1, 2, 1),
    F.conv3d: (0, 1, 2, 1),
    torch.addmm: (1, 2, 0, 0),
    torch.matmul: (0, 1, 2, 0),
    Tensor.matmul: (0, 1, 2, 0),
    Tensor.__matmul__: (0, 1, 2, 0),
    # as an exported graph calls them
    torch.ops.aten.linear.default: (0, 1, 2, 1),
    torch.ops.aten.conv1d.default: (0, 1, 2, 1),
    torch.ops.aten.conv2d.default: (0, 1, 2, 1),
    torch.ops.aten.conv3d.default: (0, 1, 2, 1),
    torch.ops.aten.addmm.default: (1, 2, 0, 0),
    torch.ops.aten.matmul.default: (0, 1, 2, 0),
}


class _Watch(TorchFunctionMode):
    """Report every call of a dense layer to `on_call`. Count the uses of parameters, and track the largest result."""

    def __init__(self, model: nn.Module, on_call: Callable[[DenseCall], None]) -> None:
        super().__init__()
        self.names = {id(parameter): name for name, parameter in model.named_parameters()}
        self.on_call = on_call
        self.uses = Counter[str]()
        self.largest = 1  # bytes

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in DENSE:
            self._report(*DENSE[func], args, bool(kwargs))
        result = func(*args, **(kwargs or {}))
        made = tensors(result)
        self.largest = max([self.largest, *(tensor.numel() * tensor.element_size() for tensor in made)])
        if made:  # reading a shape or a device is no use
            found = (self.names.get(id(leaf)) for leaf in tensors((args, kwargs)))
            self.uses.update(name for name in found if name is not None)
        return result

    def _report(self, read: int, weight: int, bias: int, dim: int, args: tuple[Any, ...], named: bool) -> None:
        if max(read, weight) >= len(args) or id(args[weight]) not in self.names:
            return
        x, w = args[read], args[weight]
        axis = x.ndim - 1 - (w.ndim - 2)  # a kernel's dimensions come after the channels
        if w.ndim != 2 and (dim == 0 or w.ndim < 2):  # a product with a vector, or with a stack of matrices
            return
        if axis < 0 or x.shape[axis] != w.shape[dim]:  # a grouped convolution
            return
        added = args[bias] if bias < len(args) and not named else None  # a keyword argument may scale the bias
        plain = isinstance(added, Tensor) and added.shape == (w.shape[1 - dim],)
        found = DenseCall(self.names[id(w)], self.names.get(id(added), "") if plain else "", dim, x, axis)
        with torch._C._DisableTorchDispatch():  # its operations are not the model's, see `network.replay`
            self.on_call(found)


@dataclass(frozen=True)
class _Seen:
    """What the first pass records of a dense layer."""

    bias: str
    channels: int
    dim: int
    calls: int = 0


def _layer(seen: _Seen, calls: Sequence[tuple[Tensor, int]]) -> DenseLayer:
    rows = [rows for rows, _ in calls]
    positions = sum(positions for _, positions in calls)
    return DenseLayer(rows[0] if len(rows) == 1 else torch.cat(rows), positions, seen.dim, seen.bias, len(calls))


def _first_pass(model: nn.Module, batch: tuple[Inputs, Tensor]) -> tuple[dict[str, _Seen], int]:
    """The dense layers whose weights have no other use, by weight; and the bytes per sample of the largest tensor.

    All calls of a layer must have the same bias. A bias that has another use counts as none.
    """
    inputs, targets = batch
    found: dict[str, Counter[_Seen]] = {}

    def record(call: DenseCall) -> None:
        found.setdefault(call.weight, Counter())[_Seen(call.bias, call.channels, call.dim)] += 1

    watch = _Watch(model.eval(), record)
    with torch.no_grad(), watch:
        model(*inputs)
    own: dict[str, _Seen] = {}
    for name, kinds in found.items():
        (seen, calls), *others = kinds.items()
        if not others and watch.uses[name] == calls:
            own[name] = replace(seen, calls=calls, bias=seen.bias if watch.uses[seen.bias] == calls else "")
    return own, -(-watch.largest // len(targets))


def _samples(batches: Iterable[tuple[Inputs, Tensor]], most: int) -> tuple[Inputs, Inputs]:
    """Inputs for one forward pass each, to refit on and held out.

    They are the first batches of one shape, up to `most` samples. If the rows of a batch are not its samples, that batch
    serves as both.
    """
    found: list[Inputs] = []
    count = 0
    for inputs, targets in batches:
        if any(len(tensor) != len(targets) for tensor in inputs):
            return inputs, inputs
        if found and [tensor.shape[1:] for tensor in inputs] != [tensor.shape[1:] for tensor in found[0]]:
            break
        found.append(inputs)
        count += len(targets)
        if count >= most:
            break
    columns = [torch.cat(column)[: max(2, most)] for column in zip(*found, strict=True)]
    held = -(-len(columns[0]) // HELD_OUT) if len(columns[0]) > 1 else 0
    fit = tuple(column[held:] for column in columns)
    return fit, tuple(column[:held] for column in columns) if held else fit
