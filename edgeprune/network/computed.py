"""Weights that a layer computes from its parameters, such as normalised ones. In eval mode they are constants.

They become plain parameters, so that a layer with a computed weight is cut, exported and refitted like any other layer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm, SpectralNormLoadStateDictPreHook, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from edgeprune.graph.rules.base import largest
from edgeprune.network.outputs import tensors

# Layer -> the function that it calls with its weight as the second argument.
PLAIN: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Conv1d: F.conv1d,
    nn.Conv2d: F.conv2d,
    nn.Conv3d: F.conv3d,
    nn.ConvTranspose1d: F.conv_transpose1d,
    nn.ConvTranspose2d: F.conv_transpose2d,
    nn.ConvTranspose3d: F.conv_transpose3d,
    nn.Linear: F.linear,
}
ALIKE = 1e-5  # of the largest output: how far two layers that compute the same may differ


def baked(model: nn.Module) -> nn.Module:
    """Replace every computed weight by a parameter with the value that it has in eval mode.

    The parameter has the name of the plain layer's. Three kinds of computed weights are known:

    - Parametrizations of `torch.nn.utils.parametrize`, such as the newer weight norm of torch.
    - The hooks of `torch.nn.utils.weight_norm` and `torch.nn.utils.spectral_norm`.
    - Subclasses of torch's layers whose forward computes the weight, as weight standardisation does, and nothing else.

    A parameter is trained if any of the parameters behind the weight was.

    Args:
        model: Any module. It stays unchanged.

    Returns:
        A copy, or `model` if no weight is computed.
    """
    own = [module for module in model.modules() if _plain_kind(module) is not None]
    plain = {id(module) for module in own if _acts_plainly(module)}
    if not plain and not any(parametrize.is_parametrized(m) or computed_by_hooks(m) for m in model.modules()):
        return model
    made = copied(model)
    modes = [(module, module.training) for module in made.modules()]
    made.eval()  # so that no normalisation updates its state
    for (module, _), before in zip(modes, list(model.modules()), strict=True):
        _without_parametrizations(module)
        _without_hooks(module)
        if id(before) in plain:
            _made_plain(module)
    for module, mode in modes:
        module.training = mode
    return made


def copied(module: nn.Module) -> nn.Module:
    """A deep copy. Tensors that were computed with a gradient are copied without it, since torch refuses such copies."""
    memo: dict[int, Any] = {id(tensor): tensor.detach().clone() for tensor in kept_with_gradient(module)}
    return copy.deepcopy(module, memo)


def kept_with_gradient(module: nn.Module) -> list[Tensor]:
    """The tensors that a model keeps from a call with gradients: weights that hooks computed, or its own features."""
    attributes = (value for each in module.modules() for value in vars(each).values())
    values = [v for v in attributes if isinstance(v, Tensor) or (isinstance(v, dict | list | tuple) and v)]
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor) and not leaf.is_leaf]


def computed_constants(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[tuple[str, Tensor]]:
    """The tensors that a model computes from parameters and buffers only, each with the name of the largest of these."""
    found = _Constants(model)
    with torch.no_grad(), found:
        model(*inputs)
    return found.made


def computed_by_hooks(module: nn.Module) -> tuple[str, ...]:
    """The names of the weights that torch's hooks compute before each forward of this module."""
    return tuple(hook.name for hook in _hooks(module))


def _hooks(module: nn.Module) -> list[WeightNorm | SpectralNorm]:
    return [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, WeightNorm | SpectralNorm)]


# -------------------------------------------------------------------------------------------- parametrizations, hooks


def _without_parametrizations(module: nn.Module) -> None:
    """Set parametrized tensors to their values, in place.

    torch's own function would also change the class, which the copy shares with the user's module.
    """
    if not parametrize.is_parametrized(module):
        return
    lists: dict[str, nn.Module] = dict(module.parametrizations.items())  # type: ignore[operator, union-attr]
    with torch.no_grad():
        values = {name: getattr(module, name).detach().clone() for name in lists}
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module._modules["parametrizations"]
    for name, behind in lists.items():
        parameters = list(behind.parameters())
        if parameters:
            trained = any(parameter.requires_grad for parameter in parameters)
            module.register_parameter(name, nn.Parameter(values[name], requires_grad=trained))
        else:
            module.register_buffer(name, values[name])


def _without_hooks(module: nn.Module) -> None:
    """Set weights that torch's hooks compute to their values, in place."""
    for hook in _hooks(module):
        weight_norm = isinstance(hook, WeightNorm)
        behind = ("_g", "_v") if weight_norm else ("_orig",)
        trained = any(getattr(module, hook.name + part).requires_grad for part in behind)
        (remove_weight_norm if weight_norm else remove_spectral_norm)(module, hook.name)
        getattr(module, hook.name).requires_grad_(trained)
    loading = module._load_state_dict_pre_hooks  # torch 2 wraps these hooks, and no longer finds its own
    own = SpectralNormLoadStateDictPreHook
    for key in [key for key, hook in loading.items() if isinstance(getattr(hook, "hook", hook), own)]:
        del loading[key]


# ------------------------------------------------------------------------------------------------- layers' own forward


def _plain_kind(module: nn.Module) -> type[nn.Module] | None:
    """The layer of torch that a module's class extends by its own forward, or None."""
    kind = next((kind for kind in PLAIN if isinstance(module, kind)), None)
    return kind if kind is not None and type(module).forward is not kind.forward else None


def _acts_plainly(module: nn.Module) -> bool:
    """Whether a layer with its own forward is the plain layer with a computed weight.

    Both are compared on random inputs of two sizes. The parameters are random, so the answer depends on the code only.
    """
    trial = copied(module).eval()
    _without_parametrizations(trial)
    _without_hooks(trial)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trial.parameters():
            parameter.copy_(0.5 + torch.rand(parameter.shape, generator=random))
    inputs = [torch.rand(shape, generator=random) for shape in _shapes(trial)]
    try:
        before = [_answer(trial, x) for x in inputs]
        if not _made_plain(trial):
            return False
        after = [_answer(trial, x) for x in inputs]
    except Exception:  # noqa: BLE001 - any error of the user's forward: the layer cannot stand alone
        return False
    return all(
        a.shape == b.shape and bool((a - b).abs().max() <= ALIKE * a.abs().max())
        for a, b in zip(before, after, strict=True)
    )


def _answer(layer: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = layer.forward(x.clone())  # without hooks, which stay
    return found


def _shapes(layer: nn.Module) -> Iterator[tuple[int, ...]]:
    """Shapes of inputs of a layer: two sizes, one odd and one even."""
    if isinstance(layer, nn.Linear):
        yield from ((2, layer.in_features), (3, 2, layer.in_features))
        return
    assert isinstance(layer, nn.modules.conv._ConvNd)
    reach = [d * (k - 1) + 2 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    for more in (0, 1):
        yield 2, layer.in_channels, *(size + more for size in reach)


def _made_plain(layer: nn.Module) -> bool:
    """Make a layer the plain one with the weight that its forward computes, in place. False if it computes none."""
    kind = _plain_kind(layer)
    assert kind is not None
    with _Weights(PLAIN[kind]) as used:
        _answer(layer, torch.ones(next(_shapes(layer))))
    weight = layer.get_parameter("weight")
    if len(used.found) != 1 or used.found[0] is weight or used.found[0].shape != weight.shape:
        return False
    trained = any(p.requires_grad for name, p in layer.named_parameters() if name != "bias")
    layer.__class__ = kind
    layer._parameters = {
        "weight": nn.Parameter(used.found[0].detach().clone(), requires_grad=trained),
        "bias": layer._parameters["bias"],
    }
    layer._buffers.clear()
    layer._modules.clear()
    return True


class _Weights(TorchFunctionMode):
    """Collects the weights that a function is called with."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self._function = function
        self.found: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is self._function:
            self.found.append(args[1] if len(args) > 1 else (kwargs or {})["weight"])
        return func(*args, **(kwargs or {}))


class _Constants(TorchFunctionMode):
    """Collects the tensors that depend on no input, with the largest parameter or buffer behind each."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        stored = [*model.named_parameters(), *model.named_buffers()]
        self._elements = {name: tensor.numel() for name, tensor in stored}
        self._behind = {id(tensor): {name} for name, tensor in stored}
        self.made: list[tuple[str, Tensor]] = []  # it also keeps them alive, so that no other tensor gets their number

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        read = [id(tensor) for tensor in tensors((args, kwargs))]
        if read and all(number in self._behind for number in read):
            behind = set[str]().union(*(self._behind[number] for number in read))
            name = largest({name: self._elements[name] for name in behind})
            assert name is not None
            for tensor in tensors(result):
                self._behind.setdefault(id(tensor), behind)
                self.made.append((name, tensor))
        return result
