"""What stays in a cut network takes over for what is gone: least squares, a layer at a time.

A dense layer (a convolution or a matrix product) reads channels. Where some are gone, the others predict them, and its weights
can absorb the prediction: they become those that come nearest what the layer gave before (He et al., Channel pruning, ICCV
2017). The same sums tell which units go best: those that the rest predicts, weighed by what the layer makes of them
(the optimal brain surgeon, Hassibi and Stork 1993, on whole units as in ZipLM, Kurtic et al., NeurIPS 2023).

A layer is seen as the call of a function with a parameter, however the model spells it. One whose weight is used twice in a
forward pass (tied to another layer's, say), or is computed, or that reads fewer positions than channels, is left as it is.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from edgeprune.limits import LIMITS
from edgeprune.network import surgery as network
from edgeprune.records import Group, Recipe, Slot

RIDGE = 1e-2  # of the channels' mean square: what generalises best from some hundred to some thousand small images
TINY = 1e-12  # of a ridge, where all channels are zero
ROUNDS = 64  # in which the units of a group are put in order
APPETITE = 4  # memory of a forward pass, over that of its largest tensor: about
HELD_OUT = 8  # of so many samples one is for judging

Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Sums:
    """Mean products of what a layer reads now, (k, k), and of that with what it read before, (k, channels); the means of both.
    Where the layer has a bias to put the means into, the products are of what is left without them."""

    now: Tensor
    cross: Tensor
    mean_now: Tensor
    mean_before: Tensor

    @staticmethod
    def of(now: Tensor, before: Tensor, bias: bool) -> Sums:
        """Of rows (positions, k) and (positions, channels)."""
        means = now.mean(0), before.mean(0)
        if bias:
            now, before = now - means[0], before - means[1]
        found = now.T @ now / len(now), now.T @ before / len(now), *means
        return Sums(*(tensor.double() for tensor in found))

    @staticmethod
    def of_all(rows: Tensor, bias: bool) -> Sums:
        """Where all is read as it was."""
        mean = rows.mean(0)
        rows = rows - mean if bias else rows
        products = (rows.T @ rows / len(rows)).double()
        return Sums(products, products, mean.double(), mean.double())

    def of_kept(self, kept: Sequence[int]) -> Sums:
        """Where only these of the channels that are read stay."""
        index = torch.tensor(kept, dtype=torch.long)
        return Sums(self.now[index][:, index], self.cross[index], self.mean_now[index], self.mean_before)

    @property
    def ridged(self) -> Tensor:
        """`now` with the ridge on its diagonal: (k, k)."""
        return self.now + (RIDGE * self.now.diagonal().mean() + TINY) * torch.eye(len(self.now), dtype=self.now.dtype)

    def fitted(
        self, weight: Tensor, dim: int, bias: Tensor | None, kept: Sequence[int]
    ) -> tuple[Tensor, Tensor | None]:
        """A weight, its inputs in `dim`, and its bias, for what is read now instead of what was read before.

        The ridge pulls towards the weights that the channels `kept` had.
        """
        target, ridged = self.cross.clone(), self.ridged
        target[torch.arange(len(kept)), torch.tensor(kept, dtype=torch.long)] += (ridged - self.now).diagonal()
        prediction = torch.linalg.solve(ridged, target)  # of what was read before from what is read now: (k, channels)
        by_input = weight.double().movedim(dim, -1)
        new = (by_input @ prediction.T).movedim(-1, dim).to(weight.dtype)
        if bias is None:
            return new, None
        missing = by_input @ (self.mean_before - self.mean_now @ prediction)
        return new, bias + missing.reshape(len(missing), -1).sum(1).to(bias.dtype)


@dataclass(frozen=True)
class Dense:
    """What a dense layer reads in an uncut network: `rows` (positions, channels), a part of them where there are many, of
    `positions`. `dim` is the dimension of its weight that its inputs are in, `bias` the name of what is added, "" for none."""

    rows: Tensor
    positions: int
    dim: int
    bias: str

    def sums(self) -> Sums:
        """Of what it reads."""
        return Sums.of_all(self.rows, bool(self.bias))


@dataclass(frozen=True)
class Reference:
    """An uncut network at work on `inputs`: its dense layers by the names of their weights; `held_out`, other samples with
    what it gives for them."""

    inputs: Inputs
    layers: Mapping[str, Dense]
    held_out: tuple[Inputs, tuple[Tensor, ...]]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of fitting all layers, about."""
        return sum((len(layer.rows) + layer.rows.shape[1]) * layer.rows.shape[1] ** 2 for layer in self.layers.values())

    def readers(self, group: Group) -> list[Slot]:
        """Where layers that can be fitted read the channels of a group."""
        return [s for s in group.slots if s.parameter in self.layers and self.layers[s.parameter].dim == s.dim]


def observe(model: nn.Module, batches: Iterable[tuple[Inputs, Tensor]]) -> Reference:
    """Run `model` on the first samples of `batches`, as many as `LIMITS` has memory for; keep what its dense layers read."""
    first = next(iter(batches))
    known, largest = _layers(model, first)
    inputs, held_out = _samples(batches, largest)
    most = LIMITS.reconstruction_bytes // (4 * max(1, sum(call.channels for call in known.values())))
    layers: dict[str, Dense] = {}

    def keep(call: _Call) -> None:
        if call.weight in known and call.positions >= call.channels <= LIMITS.reconstruction_channels:
            rows = call.rows(most).clone()  # which the model may change in place
            if bool(rows.isfinite().all()):
                layers[call.weight] = Dense(rows, call.positions, call.dim, known[call.weight].bias)

    try:
        _run(model, inputs, keep)
        expected = _run(model, held_out)
    except (RuntimeError, ValueError, IndexError, AssertionError):  # the model takes no batches but those of training
        inputs = held_out = first[0]
        layers.clear()
        expected = _run(model, inputs, keep)
    return Reference(inputs, layers, (held_out, expected))


def order(model: nn.Module, group: Group, reference: Reference, sums: Mapping[str, Sums]) -> dict[int, float]:
    """Units -> what is lost when each goes, in the order in which they go, least missed first.

    That is the rise of the squared error of the layers that read them, whose `sums` are given, fitted again every time,
    relative to what these give. Empty where no such layer is known.
    """
    weights = dict(model.named_parameters())
    readers = [_Reader(weights[s.parameter].detach(), s, sums[s.parameter]) for s in reference.readers(group)]
    lost: dict[int, float] = {}
    left = torch.arange(group.width if readers else 0)
    while len(left):
        rises = torch.stack([reader.rises(left) for reader in readers]).sum(0)
        going = rises.argsort(stable=True)[: max(1, group.width // ROUNDS)]
        lost |= zip(left[going].tolist(), rises[going].tolist(), strict=True)
        for reader in readers:
            reader.remove(left[going])
        left = left[~torch.isin(left, left[going])]
    return lost


def reconstruct(model: nn.Module, small: nn.Module, recipe: Recipe, reference: Reference) -> nn.Module:
    """`small`, the network that `recipe` cuts from `model`, with its dense layers fitted: to come nearest what they gave, from
    what they read now. Or as it is, where that does not bring its outputs nearer the model's.

    One forward pass: a layer is fitted when it is reached, to what the layers before it, already fitted, give. So each makes
    up for the errors of those before it.
    """
    fitted = copy.deepcopy(small)

    def fit(call: _Call) -> None:
        layer = reference.layers.get(call.weight)
        if layer is None or call.positions != layer.positions:  # channels may be positions elsewhere
            return
        sums = Sums.of(call.rows(len(layer.rows)), layer.rows, bool(layer.bias))
        _fit(call.weight, layer, sums, model, fitted, recipe)

    _run(fitted, reference.inputs, fit)
    return _nearer(fitted, small, reference)


def compensate(model: nn.Module, small: nn.Module, recipe: Recipe, reference: Reference) -> nn.Module:
    """`small` with the layers that read fewer channels fitted as if all before them were as it was; or as it is, likewise.

    Further from the model than `reconstruct`, and nearer what training is after: no layer is bent to make up for the errors
    of others, which training mends where they arise.
    """
    fitted = copy.deepcopy(small)
    left = {name for name, _ in fitted.named_parameters()}
    for name, layer in reference.layers.items():
        if name in left and layer.dim in recipe.get(name, {}):
            _fit(name, layer, layer.sums().of_kept(recipe[name][layer.dim]), model, fitted, recipe)
    return _nearer(fitted, small, reference)


def _fit(name: str, layer: Dense, sums: Sums, model: nn.Module, small: nn.Module, recipe: Recipe) -> None:
    """Put the weights that fit `sums` into one layer of `small`, for those that it has in `model`."""
    dims, dim, own = recipe.get(name, {}), layer.dim, small.get_parameter(name)
    weight = model.get_parameter(name).detach()
    for other, kept in dims.items():
        if other != dim:
            weight = weight.index_select(other, torch.tensor(kept, dtype=torch.long))
    bias = small.get_parameter(layer.bias) if layer.bias else None
    new, added = sums.fitted(weight, dim, bias, dims.get(dim, range(weight.shape[dim])))
    own.data.copy_(new)
    if bias is not None and added is not None:
        bias.data.copy_(added)


def _nearer(fitted: nn.Module, small: nn.Module, reference: Reference) -> nn.Module:
    return fitted if _distance(fitted, reference) < _distance(small, reference) else small


def _distance(candidate: nn.Module, reference: Reference) -> float:
    """Squared distance of a network's outputs from those of the uncut one, on samples that nothing was fitted to."""
    inputs, outputs = reference.held_out
    return sum(
        float((a.double() - b.double()).square().sum()) for a, b in zip(_run(candidate, inputs), outputs, strict=True)
    )


class _Reader:
    """A layer that reads a group's channels, as units go and it is fitted to those that stay.

    `inverse` is that of the mean products of its channels, `products` those of its weights, both (channels, channels).
    """

    def __init__(self, weight: Tensor, slot: Slot, sums: Sums) -> None:
        rows = weight.movedim(slot.dim, 0).flatten(1).double()
        self.indices = torch.tensor(slot.indices, dtype=torch.long)  # (units, channels of each)
        self.inverse = torch.linalg.inv(sums.ridged)
        self.products = rows @ rows.T
        self.energy = float((self.products * sums.now).sum()) + TINY

    def rises(self, units: Tensor) -> Tensor:
        """What is lost with each of `units` alone: w·H⁻¹⁻¹·w, relative to all that the layer gives."""
        own = self.indices[units]
        among = own[:, :, None], own[:, None, :]
        lost = torch.linalg.solve(self.inverse[among], self.products[among])
        rises: Tensor = lost.diagonal(dim1=1, dim2=2).sum(1) / self.energy
        return rises

    def remove(self, units: Tensor) -> None:
        """Let `units` go; what the others can do for them is added to their weights."""
        gone = self.indices[units].flatten()
        share = torch.linalg.solve(self.inverse[gone][:, gone], self.inverse[gone])  # (gone, channels)
        moved = share.T @ self.products[gone]
        self.products += share.T @ self.products[gone][:, gone] @ share - moved - moved.T
        self.inverse -= self.inverse[:, gone] @ share


# ------------------------------------------------------------------------------------------------- running, and watching


@dataclass(frozen=True)
class _Call:
    """A dense layer at work: the names of its weight and of its bias ("" where it has none), the weight's dimension of inputs,
    what it reads and the axis of that with the channels."""

    weight: str
    bias: str
    dim: int
    read: Tensor
    axis: int

    @property
    def channels(self) -> int:
        """How many it reads."""
        return self.read.shape[self.axis]

    @property
    def positions(self) -> int:
        """At how many it reads them."""
        return self.read.numel() // self.channels

    def rows(self, most: int) -> Tensor:
        """(positions, channels), at `most` positions by chance, the same for the same number of them."""
        rows = self.read.movedim(self.axis, -1).reshape(-1, self.channels).float()
        if len(rows) <= most:
            return rows
        return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:most]]


# Function -> where its input, weight and bias are among the arguments, and the weight's dimension of inputs.
DENSE: Mapping[Callable[..., Tensor], tuple[int, int, int, int]] = {
    F.linear: (0, 1, 2, 1),
    F.conv1d: (0, 1, 2, 1),
    F.conv2d: (0, 1, 2, 1),
    F.conv3d: (0, 1, 2, 1),
    torch.addmm: (1, 2, 0, 0),
    torch.matmul: (0, 1, 2, 0),
    Tensor.matmul: (0, 1, 2, 0),
    Tensor.__matmul__: (0, 1, 2, 0),
}


class _Watch(TorchFunctionMode):
    """Tells of every dense layer before it works, when its weight may still be changed; counts what uses each parameter, and
    knows the bytes of the largest result."""

    def __init__(self, model: nn.Module, told: Callable[[_Call], None]) -> None:
        super().__init__()
        self.names = {id(parameter): name for name, parameter in model.named_parameters()}
        self.told = told
        self.uses = Counter[str]()
        self.largest = 1

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in DENSE:
            self._see(*DENSE[func], args, bool(kwargs))
        result = func(*args, **(kwargs or {}))
        tensors = network.tensors(result)
        self.largest = max([self.largest, *(tensor.numel() * tensor.element_size() for tensor in tensors)])
        if tensors:  # not its shape, or where it is
            found = (self.names.get(id(leaf)) for leaf in network.tensors((args, kwargs)))
            self.uses.update(name for name in found if name is not None)
        return result

    def _see(self, read: int, weight: int, bias: int, dim: int, args: tuple[Any, ...], named: bool) -> None:
        if max(read, weight) >= len(args) or id(args[weight]) not in self.names:
            return
        x, w = args[read], args[weight]
        axis = x.ndim - 1 - (w.ndim - 2)  # a kernel's dimensions come after the channels
        if w.ndim != 2 and (dim == 0 or w.ndim < 2):  # a product with a vector, or with a stack of matrices
            return
        if axis < 0 or x.shape[axis] != w.shape[dim]:  # a grouped convolution
            return
        added = args[bias] if bias < len(args) and not named else None  # what has a name may be a factor of it
        plain = isinstance(added, Tensor) and added.shape == (w.shape[1 - dim],)
        self.told(_Call(self.names[id(w)], self.names.get(id(added), "") if plain else "", dim, x.detach(), axis))


def _run(model: nn.Module, inputs: Inputs, told: Callable[[_Call], None] = lambda call: None) -> tuple[Tensor, ...]:
    """All tensors that a model gives, in evaluation."""
    with torch.no_grad(), _Watch(model.eval(), told):
        return tuple(network.tensors(model(*inputs)))


@dataclass(frozen=True)
class _Seen:
    """What a first look at a dense layer tells."""

    bias: str
    channels: int


def _layers(model: nn.Module, batch: tuple[Inputs, Tensor]) -> tuple[dict[str, _Seen], int]:
    """The dense layers whose weights nothing else uses, by their weights (a bias that something else uses is none), and the
    bytes of the largest tensor of a forward pass, a sample."""
    inputs, targets = batch
    found: dict[str, _Seen] = {}

    def see(call: _Call) -> None:
        found[call.weight] = _Seen(call.bias, call.channels)

    watch = _Watch(model.eval(), see)
    with torch.no_grad(), watch:
        model(*inputs)
    own = {name: layer for name, layer in found.items() if watch.uses[name] == 1}
    own = {name: layer if watch.uses[layer.bias] == 1 else replace(layer, bias="") for name, layer in own.items()}
    return own, -(-watch.largest // len(targets))


def _samples(batches: Iterable[tuple[Inputs, Tensor]], largest: int) -> tuple[Inputs, Inputs]:
    """Inputs for one forward pass each, to fit to and to judge by: the first batches, while they are of one shape and memory
    lasts, of which a sample's largest tensor takes `largest` bytes. A batch whose rows are not its samples serves for both.
    """
    found: list[Inputs] = []
    most = min(LIMITS.reconstruction_samples, LIMITS.reconstruction_bytes // (APPETITE * largest))
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
