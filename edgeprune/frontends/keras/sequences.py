"""Layers for vectors and sequences: dense layers, embeddings, recurrences, attention. The channels are last."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeprune.frontends.keras.activations import activation, function_name
from edgeprune.frontends.keras.modules import Apply
from edgeprune.frontends.keras.table import Built, Call, converts, filled, values

GATES = {"LSTM": ("i", "f", "g", "o"), "GRU": ("z", "r", "n"), "SimpleRNN": ("n",)}  # as Keras orders them
TORCH_GATES = {"LSTM": ("i", "f", "g", "o"), "GRU": ("r", "z", "n"), "SimpleRNN": ("n",)}
NEVER = 1e9  # taken from a score, it makes a weight of exactly zero
MERGES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {  # of two directions
    "concat": lambda a, b: torch.cat((a, b), -1),
    "sum": lambda a, b: a + b,
    "ave": lambda a, b: (a + b) / 2,
    "mul": lambda a, b: a * b,
}
RECURRENCES: dict[str, Any] = {"LSTM": nn.LSTM, "GRU": nn.GRU, "SimpleRNN": nn.RNN}


@converts("Dense")
def dense(call: Call) -> Built:
    """A matrix product over the last dimension."""
    layer = call.layer
    weight = values(layer.kernel).T
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=layer.use_bias)
    filled(made, weight=weight, bias=values(layer.bias) if layer.use_bias else None)
    return Built(made, after=activation(call, "last"))


@converts("TimeDistributed")
def time_distributed(call: Call) -> Built:
    """A dense layer at every step: one of torch does the same. `build` converts others."""
    return dense(Call(call.layer.layer, call.given, call.keywords, call.arguments))


class Lookup(nn.Embedding):
    """An embedding whose indices may be of any type, as in Keras."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - its name in nn.Embedding
        """(batch, ...) indices to (batch, ..., channels)."""
        return super().forward(input.long())


@converts("Embedding")
def embedding(call: Call) -> Built:
    """A vector for each index."""
    weight = values(call.layer.embeddings)
    return Built(filled(Lookup(*weight.shape), weight=weight))


@converts("Masking")
def masking(call: Call) -> Built:
    """Steps of one value become zero."""
    return Built(Apply(_without, absent=float(call.layer.mask_value)))


def _without(given: Tensor, absent: float) -> Tensor:
    return given * (given != absent).to(given.dtype).amax(-1, keepdim=True)


# ------------------------------------------------------------------------------------------------- recurrences


class Recurrent(nn.Module):
    """A recurrence of torch that returns what Keras's layer returns.

    Args:
        core: reads (batch, steps, channels). With two directions, the second one reads backwards.
        sequences: whether to return the outputs of all steps.
        state: whether to return the last states, too.
        backwards: whether to read from the end.
        zeros: whether the output is zero at a step that does not count. Otherwise it is that of the step before.

    Attributes:
        firsts: how many first states are inputs of its own.
        merge: joins the outputs of two directions.
    """

    def __init__(
        self, core: nn.Module, sequences: bool, state: bool = False, backwards: bool = False, zeros: bool = False
    ) -> None:
        super().__init__()
        self.core, self.sequences, self.state, self.backwards, self.zeros = core, sequences, state, backwards, zeros
        self.firsts, self.merge = 0, "concat"

    def forward(self, given: Tensor, *others: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The outputs, and the last states if they are asked for. Others are the first states, or a mask."""
        given = given.flip(1) if self.backwards else given
        if len(others) > self.firsts:
            return self._masked(given, others[-1].flip(1) if self.backwards else others[-1])
        firsts = tuple(first[None] for first in others)
        found, last = self.core(given, *([firsts if len(firsts) > 1 else firsts[0]] if firsts else []))
        states = last if isinstance(last, tuple) else (last,)
        if not self.sequences:
            found = torch.cat(tuple(states[0].unbind(0)), -1)
        if self.merge != "concat":
            found = MERGES[self.merge](*found.chunk(2, -1))
        return (found, *(state[0] for state in states)) if self.state else found

    def _masked(self, given: Tensor, mask: Tensor) -> Tensor:
        """The steps that count are moved to the front, since torch's recurrences read all steps, and the outputs back."""
        steps = torch.arange(given.shape[1], device=given.device, dtype=mask.dtype)
        place = mask.cumsum(1) - 1  # in front, of the last step that counts
        front = ((place[:, None] == steps[:, None]) * mask[:, None]) @ given
        read = place if self.sequences else place[:, -1:]
        found: Tensor = (read[:, :, None] == steps).to(given.dtype) @ self.core(front)[0]
        if not self.sequences:
            return found.squeeze(1)
        return found * mask[:, :, None] if self.zeros else found


class BothWays(nn.Module):
    """Two recurrences, the second one from the end, whose outputs stand side by side.

    torch's own recurrence of two directions would read the steps that do not count first.
    """

    def __init__(self, ahead: Recurrent, back: Recurrent, merge: str) -> None:
        super().__init__()
        self.ahead, self.back, self.merge = ahead, back, merge

    def forward(self, given: Tensor, mask: Tensor) -> Tensor:
        """(batch, steps, channels), or (batch, channels)."""
        found = self.back(given, mask)
        return MERGES[self.merge](self.ahead(given, mask), found.flip(1) if self.back.sequences else found)


@converts(*RECURRENCES)
def recurrence(call: Call) -> Built:
    """An LSTM, a GRU or a plain recurrence."""
    layer, zeros = call.layer, bool(call.layer.zero_output_for_mask)
    if call.masks and (layer.return_state or (zeros and not layer.return_sequences)):
        raise call.missing("a mask is not supported with return_state=True, nor with zero_output_for_mask=True")
    made = Recurrent(_core(call, [layer]), layer.return_sequences, layer.return_state, layer.go_backwards, zeros)
    made.firsts = len(call.given) - 1
    if made.firsts and call.masks:
        raise call.missing("a mask is not supported with a given first state")
    return Built(made, masks=tuple(call.masks.values()))


@converts("Bidirectional")
def bidirectional(call: Call) -> Built:
    """A recurrence that reads in both directions."""
    layer = call.layer
    forward, backward = layer.forward_layer, layer.backward_layer
    states = forward.return_state or len(call.given) > 1
    if layer.merge_mode not in MERGES or states or not backward.go_backwards or forward.go_backwards:
        raise call.missing("states, merge_mode=None and layers that read in other directions are not supported")
    if type(forward) is not type(backward) or type(forward).__name__ not in RECURRENCES:
        raise call.missing("only two layers of LSTM, GRU or SimpleRNN are supported")
    sequences = forward.return_sequences
    if not call.masks:
        made = Recurrent(_core(call, [forward, backward]), sequences)
        made.merge = layer.merge_mode
        return Built(made)
    ahead = Recurrent(_core(call, [forward]), sequences, zeros=sequences)  # Keras sets it so for both layers
    back = Recurrent(_core(call, [backward]), sequences, backwards=True, zeros=sequences)
    return Built(BothWays(ahead, back, layer.merge_mode), masks=tuple(call.masks.values()))


def _core(call: Call, layers: list[Any]) -> nn.Module:
    """The recurrence of torch with the weights of one layer, or of a layer for each direction."""
    first, kind = layers[0], type(layers[0]).__name__
    if any(layer.stateful for layer in layers):
        raise call.missing("states that stay between calls are not supported")
    usual: dict[str, tuple[str, ...]] = {"activation": ("tanh",), "recurrent_activation": ("sigmoid",)}
    if kind == "SimpleRNN":
        usual = {"activation": ("tanh", "relu")}
    found = {name: {function_name(call, getattr(layer, name)) for layer in layers} for name in usual}
    for name, known in usual.items():
        if len(found[name]) > 1 or not found[name] <= {*known}:
            raise call.missing(f"only {name}={' or '.join(map(repr, known))} is supported")
    if kind == "GRU" and not all(layer.reset_after for layer in layers):
        raise call.missing("only reset_after=True is supported")
    cells = [layer.cell for layer in layers]
    size = cells[0].kernel.shape[0]
    options = {"nonlinearity": found["activation"].pop()} if kind == "SimpleRNN" else {}
    core: nn.Module = RECURRENCES[kind](
        size, first.units, bias=first.use_bias, batch_first=True, bidirectional=len(layers) > 1, **options
    )
    for cell, suffix in zip(cells, ("", "_reverse"), strict=False):
        filled(core, **{f"{name}_l0{suffix}": tensor for name, tensor in _cell(kind, cell).items()})
    return core


def _cell(kind: str, cell: Any) -> dict[str, Tensor]:
    """The tensors of a cell, as torch names and orders them."""
    found = {"weight_ih": values(cell.kernel).T, "weight_hh": values(cell.recurrent_kernel).T}
    if cell.use_bias:
        bias = values(cell.bias)
        found["bias_ih"], found["bias_hh"] = bias if bias.ndim == 2 else (bias, torch.zeros_like(bias))
    return {name: reordered(tensor, GATES[kind], TORCH_GATES[kind]) for name, tensor in found.items()}


def reordered(tensor: Tensor, order: tuple[str, ...], wanted: tuple[str, ...]) -> Tensor:
    """The tensor with its gates, which lie behind each other in dimension 0, in another order."""
    gates = dict(zip(order, tensor.chunk(len(order)), strict=True))
    return torch.cat([gates[name] for name in wanted])


# --------------------------------------------------------------------------------------------------- attention


class Attention(nn.Module):
    """Attention of several heads, with a linear layer for each of its four products.

    Attributes:
        causal: whether a step attends to no later step.
        keyed: whether the key is an input of its own.
        masks: the names of the masks, which come behind the inputs.
    """

    def __init__(self, query: nn.Linear, key: nn.Linear, value: nn.Linear, output: nn.Linear, heads: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.output = query, key, value, output
        self.heads = heads
        self.causal = self.keyed = False
        self.masks: tuple[str, ...] = ()

    def forward(self, query: Tensor, value: Tensor, *others: Tensor) -> Tensor:
        """(batch, steps, channels), in Keras's order of arguments, then the masks."""
        key, masks = (others[0], others[1:]) if self.keyed else (value, others)
        parts = self.query(query), self.key(key), self.value(value)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        plain = F.scaled_dot_product_attention
        found = self._masked(q, k, v, masks) if masks else plain(q, k, v, is_causal=self.causal)
        return self.output(found.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _masked(self, q: Tensor, k: Tensor, v: Tensor, masks: tuple[Tensor, ...]) -> Tensor:
        """A step that attends to none, since none counts, gets zero."""
        counts = torch.ones(1, q.shape[2], k.shape[2], device=q.device)
        counts = counts.tril() if self.causal else counts
        for name, mask in zip(self.masks, masks, strict=True):
            counts = counts * (mask[:, :, None] if name == "query_mask" else mask[:, None] if mask.ndim == 2 else mask)
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=((counts - 1) * NEVER)[:, None])
        return found * counts.amax(-1)[:, None, :, None]

    def extra_repr(self) -> str:
        """The number of heads, and which masks there are."""
        return f"heads={self.heads}, causal={self.causal}, keyed={self.keyed}, masks={self.masks}"


@converts("MultiHeadAttention")
def attention(call: Call) -> Built:
    """Attention of several heads over one dimension."""
    layer = call.layer
    if any(value.rank != 3 for value in call.given) or len(call.given) not in (2, 3):
        raise call.missing("only attention over one dimension is supported")
    if call.keywords.get("return_attention_scores"):
        raise call.missing("the scores of the attention cannot be returned")
    query, key, value = (_projection(part, 1) for part in (layer._query_dense, layer._key_dense, layer._value_dense))
    made = Attention(query, key, value, _projection(layer._output_dense, 2), layer.num_heads)
    made.causal, made.keyed = bool(call.keywords.get("use_causal_mask")), len(call.given) == 3
    made.masks = tuple(call.masks)
    return Built(made, masks=tuple(call.masks.values()))


def _projection(dense: Any, inputs: int) -> nn.Linear:
    """A product over the first `inputs` dimensions of Keras's kernel, such as (channels, heads, size)."""
    kernel = values(dense.kernel)
    weight = kernel.flatten(0, inputs - 1).flatten(1)
    made = nn.Linear(weight.shape[0], weight.shape[1], bias=dense.bias is not None)
    filled(made, weight=weight.T, bias=values(dense.bias).flatten() if dense.bias is not None else None)
    return made
