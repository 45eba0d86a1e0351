"""The way back: weights of a pruned network as those of Keras's layers, with the sizes in their configuration.

One function for each class of layers whose weights edgeprune cuts. Each is the inverse of the one in the table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from edgeprune.errors import UsageError
from edgeprune.frontends.keras.sequences import GATES, TORCH_GATES, reordered
from edgeprune.frontends.keras.table import of_class

State = Mapping[str, Tensor]  # of one module, by the names inside it


@dataclass(frozen=True)
class Restored:
    """What a layer of Keras becomes.

    Attributes:
        config: keys of its configuration that change.
        weights: by the name of the layer's attribute, such as "kernel"; "cell.kernel" is inside it.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, Tensor] = field(default_factory=dict)


Restore = Callable[[Any, State], Restored]
RESTORES: dict[str, Restore] = {}


def restores(*classes: str) -> Callable[[Restore], Restore]:
    """Put a function into the table for these classes of Keras."""

    def put(function: Restore) -> Restore:
        RESTORES.update(dict.fromkeys(classes, function))
        return function

    return put


def _with_bias(weights: dict[str, Tensor], state: State, name: str = "bias") -> dict[str, Tensor]:
    return weights | ({"bias": state[name]} if name in state else {})


@restores("Conv1D", "Conv2D", "Conv3D")
def _convolution(layer: Any, state: State) -> Restored:
    weight = state["weight"]
    kernel = torch.movedim(weight, (0, 1), (-1, -2))
    return Restored({"filters": weight.shape[0]}, _with_bias({"kernel": kernel}, state))


@restores("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose")
def _transposed(layer: Any, state: State) -> Restored:
    weight = state["weight"]
    kernel = torch.movedim(weight, (0, 1), (-1, -2))
    return Restored({"filters": weight.shape[1]}, _with_bias({"kernel": kernel}, state))


@restores("DepthwiseConv1D", "DepthwiseConv2D")
def _depthwise(layer: Any, state: State) -> Restored:
    return Restored({}, _with_bias({"kernel": _depthwise_kernel(layer, state["weight"])}, state))


def _depthwise_kernel(layer: Any, weight: Tensor) -> Tensor:
    """(*window, channels, multiplier) of (channels · multiplier, 1, *window)."""
    return torch.movedim(weight.reshape(-1, layer.depth_multiplier, *weight.shape[2:]), (0, 1), (-2, -1))


@restores("SeparableConv1D", "SeparableConv2D")
def _separable(layer: Any, state: State) -> Restored:
    pointwise = state["pointwise.weight"]
    kernels = {
        "depthwise_kernel": _depthwise_kernel(layer, state["depthwise.weight"]),
        "pointwise_kernel": torch.movedim(pointwise, (0, 1), (-1, -2)),
    }
    return Restored({"filters": pointwise.shape[0]}, _with_bias(kernels, state, "pointwise.bias"))


@restores("Dense")
def _dense(layer: Any, state: State) -> Restored:
    return Restored({"units": state["weight"].shape[0]}, _with_bias({"kernel": state["weight"].T}, state))


@restores("BatchNormalization")
def _batch_norm(layer: Any, state: State) -> Restored:
    return Restored(
        {"scale": True, "center": True},  # training gave it both
        {
            "gamma": state["weight"],
            "beta": state["bias"],
            "moving_mean": state["running_mean"],
            "moving_variance": state["running_var"],
        },
    )


@restores("LayerNormalization", "GroupNormalization")
def _norm(layer: Any, state: State) -> Restored:
    return Restored({"scale": True, "center": True}, {"gamma": state["weight"], "beta": state["bias"]})


@restores("RMSNormalization")
def _rms_norm(layer: Any, state: State) -> Restored:
    return Restored({}, {"scale": state["weight"]})


@restores("LayerScale")
def _layer_scale(layer: Any, state: State) -> Restored:
    return Restored({"projection_dim": state["gamma"].shape[0]}, {"gamma": state["gamma"]})


@restores("PReLU")
def _prelu(layer: Any, state: State) -> Restored:
    return Restored({}, {"alpha": state["weight"].reshape(*layer.alpha.shape[:-1], -1)})


@restores("Embedding")
def _embedding(layer: Any, state: State) -> Restored:
    return Restored({"output_dim": state["weight"].shape[1]}, {"embeddings": state["weight"]})


@restores("LSTM", "GRU", "SimpleRNN")
def _recurrence(layer: Any, state: State) -> Restored:
    kind = type(layer).__name__
    found = {name: reordered(tensor, TORCH_GATES[kind], GATES[kind]) for name, tensor in state.items()}
    weights = {"cell.kernel": found["core.weight_ih_l0"].T, "cell.recurrent_kernel": found["core.weight_hh_l0"].T}
    if layer.use_bias:
        given, recurrent = found["core.bias_ih_l0"], found["core.bias_hh_l0"]
        weights["cell.bias"] = torch.stack([given, recurrent]) if kind == "GRU" else given + recurrent
    return Restored({"units": weights["cell.recurrent_kernel"].shape[0]}, weights)


@restores("Bidirectional")
def _bidirectional(layer: Any, state: State) -> Restored:
    config = layer.get_config()
    weights: dict[str, Tensor] = {}
    changes: dict[str, Any] = {}
    for side, key, suffix, module in (
        ("forward_layer", "layer", "", "ahead."),
        ("backward_layer", "backward_layer", "_reverse", "back."),
    ):
        own = {n.removeprefix(module): t for n, t in state.items() if n.startswith(module)} or {
            name.removesuffix("_reverse"): tensor for name, tensor in state.items() if name.endswith(f"_l0{suffix}")
        }
        found = _recurrence(getattr(layer, side), own)
        weights |= {f"{side}.{name}": tensor for name, tensor in found.weights.items()}
        changes[key] = _inner(config[key], found)
    return Restored(changes, weights)


@restores("TimeDistributed")
def _time_distributed(layer: Any, state: State) -> Restored:
    kind, inner = of_class(layer.layer), layer.get_config()["layer"]
    if not layer.layer.weights:
        return Restored()
    if kind != "Dense":  # the only layer with weights in the network of a step
        state = {name.split(".", 2)[2]: tensor for name, tensor in state.items()}
    if kind not in RESTORES:
        raise UsageError(f"layer {layer.name!r} (TimeDistributed) has no way back to Keras")
    found = RESTORES[kind](layer.layer, state)
    weights = {f"layer.{name}": tensor for name, tensor in found.weights.items()}
    return Restored({"layer": _inner(inner, found)}, weights)


def _inner(layer: Mapping[str, Any], found: Restored) -> dict[str, Any]:
    """The description of a layer inside a layer, without the shapes that it was built for."""
    kept = {name: value for name, value in layer.items() if name != "build_config"}
    return kept | {"config": layer["config"] | dict(found.config)}


@restores("MultiHeadAttention")
def _attention(layer: Any, state: State) -> Restored:
    heads, outputs = layer.num_heads, state["output.weight"].shape[0]
    if any(state[f"{name}.weight"].shape[0] % heads for name in ("query", "value")):
        raise UsageError(f"layer {layer.name!r} (MultiHeadAttention) has fewer heads")
    weights = {"_output_dense.kernel": state["output.weight"].T.reshape(heads, -1, outputs)}
    for name in ("query", "key", "value"):
        weights[f"_{name}_dense.kernel"] = state[f"{name}.weight"].T.reshape(
            -1, heads, len(state[f"{name}.weight"]) // heads
        )
        if f"{name}.bias" in state:
            weights[f"_{name}_dense.bias"] = state[f"{name}.bias"].reshape(heads, -1)
    if "output.bias" in state:
        weights["_output_dense.bias"] = state["output.bias"]
    sizes = {f"{name}_dim": state[f"{name}.weight"].shape[0] // heads for name in ("key", "value")}
    return Restored(sizes | {"output_shape": outputs}, weights)


@restores("Reshape")
def _reshape(layer: Any, state: State) -> Restored:
    *others, last = layer.target_shape
    return Restored({"target_shape": (*others, last if -1 in others else -1)})
