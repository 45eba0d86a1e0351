"""Rules of element-wise operators, and of reductions: sums, means, norms, softmax."""

from __future__ import annotations

import torch
from torch import fx

from edgeprune.graph.labels import none
from edgeprune.graph.rules.base import Call, Value, broadcast, rule

ELEMENTWISE = """
    abs add addcdiv addcmul alias alpha_dropout __and__ atan bitwise_and bitwise_not bitwise_or ceil celu clamp
    clamp_max clamp_min clip clone contiguous cos detach div divide dropout elu eq erf exp expm1 feature_dropout
    floor fmod full_like ge gelu gt hardshrink hardsigmoid hardswish hardtanh isinf isnan le leaky_relu lerp
    lift_fresh_copy log log1p log2 log_sigmoid logical_and logical_not logical_or lt masked_fill maximum minimum
    mish mul multiply nan_to_num ne neg ones_like __or__ pow reciprocal relu relu6 remainder round rsqrt rsub selu
    sigmoid sign silu sin softplus softshrink softsign sqrt square sub subtract tanh threshold true_divide where
    zeros_like
""".split()


@rule(*ELEMENTWISE)
def _elementwise(call: Call) -> Value:
    tensors = [a for a in call.args.values() if isinstance(a, fx.Node) and a in call.values]
    return broadcast(call, [call.values[tensor] for tensor in tensors])  # type: ignore[misc]


@rule("new_empty", "new_full", "new_ones", "new_zeros")
def _constant(call: Call) -> Value:
    return [none(size) for size in call.shape]


@rule("mean", "sum", "amax", "amin", "prod", "argmax", "var", "std", "norm", "linalg_vector_norm", "logsumexp")
def _reduce(call: Call) -> Value:
    source = call.axes("self")
    given = call.args.get("dim")
    dims = range(len(source)) if given is None or given == [] else given if isinstance(given, list | tuple) else [given]
    reduced = {dim % len(source) for dim in dims}
    call.lock([source[dim] for dim in reduced], f"{call.node.target} reduces over these channels")
    if call.args.get("keepdim"):
        return [none(1) if dim in reduced else axis for dim, axis in enumerate(source)]
    return [axis for dim, axis in enumerate(source) if dim not in reduced]


@rule("max", "min")
def _extreme(call: Call) -> Value:
    """Of two tensors, along one dimension (with indices), or over all elements."""
    if "other" in call.args:
        return _elementwise(call)
    found = _reduce(call)
    return found if isinstance(call.node.meta["val"], torch.Tensor) else [found, found]  # type: ignore[return-value]


@rule("type_as", "to", "_to_copy")
def _retyped(call: Call) -> Value:
    return call.axes("self")


@rule("softmax", "log_softmax", "_softmax", "_log_softmax", "cumsum")
def _along(call: Call) -> Value:
    source = call.axes("self")
    call.lock([source[call.dim("dim", len(source))]], f"{call.node.target} mixes these channels")
    return source
