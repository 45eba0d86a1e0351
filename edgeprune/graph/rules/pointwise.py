"""Rules of element-wise operators, and of reductions: sums, means, norms, softmax."""

from __future__ import annotations

import operator

import torch
from torch import fx

from edgeprune.graph.labels import Axes, none
from edgeprune.graph.rules.base import Call, Value, broadcast, rule

ELEMENTWISE = """
    abs absolute acos acosh add addcdiv addcmul alias alpha_dropout __and__ angle asin asinh atan atan2 atanh
    bitwise_and bitwise_not bitwise_or bitwise_xor ceil celu clamp clamp_max clamp_min clip clone complex conj
    contiguous copy cos cosh detach div divide dropout elu empty_like eq erf erfc exp exp2 expm1 feature_dropout fill
    float_power floor floor_divide fmod frac full_like ge gelu greater greater_equal gt hardshrink hardsigmoid
    hardswish hardtanh hypot imag isfinite isinf isnan le leaky_relu lerp less less_equal lift_fresh_copy log log10
    log1p log2 log_sigmoid logaddexp logical_and logical_not logical_or logical_xor logit lt masked_fill maximum
    minimum mish mul multiply nan_to_num ne neg negative not_equal ones_like __or__ polar pow real reciprocal relu
    relu6 remainder round rrelu rsqrt rsub selu sigmoid sign silu sin sinh softplus softshrink softsign sqrt square
    sub subtract tan tanh threshold true_divide trunc where xlogy __xor__ zeros_like
""".split()


@rule(*ELEMENTWISE)
def _elementwise(call: Call) -> Value:
    """Aligned channels are cut in all tensors alike. A channel that is aligned with a constant or an input is locked."""
    tensors = [a for a in call.args.values() if isinstance(a, fx.Node) and a in call.values]
    return broadcast(call, [call.values[tensor] for tensor in tensors])  # type: ignore[misc]


@rule(*"mean sum amax amin prod argmax argmin any all var std norm linalg_vector_norm logsumexp".split())
def _reduce(call: Call) -> Axes:
    """A sum, norm, mean, variance or extreme over channels lets them be cut, and is taken over what remains. Others lock them.

    A channel must be zero where a cut masks it: then it changes neither a sum nor a norm.
    """
    source = call.axes("self")
    given = call.args.get("dim")
    dims = range(len(source)) if given is None or given == [] else given if isinstance(given, list | tuple) else [given]
    reduced = {dim % len(source) for dim in dims}
    if _ignores_zeros(call) or _is_taken_over_remaining(call):
        call.reduces("self", reduced, _is_taken_over_remaining(call))
    else:
        call.lock([source[dim] for dim in reduced], _CHANGED)
    if call.args.get("keepdim"):
        return [none(1) if dim in reduced else axis for dim, axis in enumerate(source)]
    return [axis for dim, axis in enumerate(source) if dim not in reduced]


@rule("var_mean", "std_mean")
def _moments(call: Call) -> Value:
    """As a mean."""
    found = _reduce(call)
    return [found, found]


_CHANGED = (
    "its result over these channels depends on a zero among them;"
    " a sum, a norm, a mean, a largest value or std(correction=0) does not"
)


def _is_taken_over_remaining(call: Call) -> bool:
    """Whether it is a mean, a variance that a single channel has, too, or an extreme whose place is not used."""
    if call.name in ("max", "min"):
        return not any(user.args[1] == 1 and user.users for user in call.node.users if user.target is operator.getitem)
    biased = call.args.get("correction") == 0 or call.args.get("unbiased") is False
    moment = call.name in ("var", "std", "var_mean", "std_mean") and biased
    return moment or call.name in ("mean", "amax", "amin", "logsumexp")


def _ignores_zeros(call: Call) -> bool:
    order = call.args.get("p" if call.name == "norm" else "ord")
    return call.name == "sum" or (call.name in ("norm", "linalg_vector_norm") and order is not None and order > 0)


@rule("broadcast_tensors")
def _broadcast(call: Call) -> Value:
    """Aligned channels are cut in all tensors alike."""
    made = broadcast(call, [call.values[tensor] for tensor in call.args["tensors"]])  # type: ignore[misc]
    return [made] * len(call.args["tensors"])


@rule("bernoulli", "normal", "rand_like", "randint_like", "randn_like")
def _random(call: Call) -> Value:
    """Channels with random numbers of their own are locked, since after a cut other numbers are drawn."""
    for node in call.node.all_input_nodes:
        call.lock(call.values[node], "it draws random numbers for these channels")  # type: ignore[arg-type]
    return [none(size) for size in call.shape]


@rule("cosine_similarity", "pairwise_distance")
def _similarity(call: Call) -> Value:
    """Channels are cut in both tensors alike."""
    aligned = broadcast(call, [call.axes("x1"), call.axes("x2")])
    dim = int(call.args.get("dim", -1)) % len(aligned)
    aligned[dim : dim + 1] = [none(1)] if call.args.get("keepdim") else []
    return aligned


@rule("max", "min")
def _extreme(call: Call) -> Value:
    """Of two tensors: aligned channels are cut alike. Over channels: as a mean, if the code does not use their numbers."""
    if "other" in call.args:
        return _elementwise(call)
    found = _reduce(call)
    return found if isinstance(call.node.meta["val"], torch.Tensor) else [found, found]


@rule("type_as", "to", "_to_copy")
def _retyped(call: Call) -> Value:
    """Channels pass."""
    return call.axes("self")


@rule("softmax", "log_softmax", "_softmax", "_log_softmax")
def _along(call: Call) -> Value:
    """Along channels it locks them. Along other dimensions they pass."""
    source = call.axes("self")
    call.lock([source[call.dim("dim", len(source))]], "it normalises over these channels, so each changes the others")
    return source


@rule("cumsum")
def _cumulative(call: Call) -> Value:
    """Channels pass. Along channels this needs that a cut channel is zero there."""
    return call.axes("self")


@rule("fake_quantize_per_tensor_affine", "fake_quantize_per_channel_affine")
def _fake_quantised(call: Call) -> Value:
    """A channel is cut with its scale, if every channel has one."""
    source = call.axes("self")
    for name in ("scale", "zero_point"):
        if isinstance(call.args[name], fx.Node) and "axis" in call.args:
            call.labels.unite(source[call.dim("axis", len(source))], call.axes(name)[0], call.reason)
    return source


@rule("view_as_complex")
def _paired(call: Call) -> Value:
    """Channels pass. The last dimension, of real and imaginary parts, stays whole."""
    *source, parts = call.axes("self")
    call.lock([parts], "it takes these channels as real and imaginary parts")
    return source


@rule("view_as_real")
def _parted(call: Call) -> Value:
    """Channels pass."""
    return [*call.axes("self"), none(2)]


@rule(*(f"fft_{kind}{dims}" for kind in ("fft", "ifft", "rfft", "irfft") for dims in ("", "2", "n")))
def _transformed(call: Call) -> Value:
    """A Fourier transform along channels locks them. Along other dimensions they pass."""
    source = list(call.axes("self"))
    given = call.args.get("dim")
    dims = range(len(source)) if given is None else given if isinstance(given, list | tuple) else [given]
    for dim in dims:
        call.lock([source[dim]], "a Fourier transform mixes these channels")
        source[dim] = none(call.shape[dim])
    return source
