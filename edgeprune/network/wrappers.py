"""Modules of torch that wrap the user's network: they are removed, since a cut changes the network itself."""

from __future__ import annotations

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from edgeprune.network.computed import copied

COMPILED = "_orig_mod"  # the name that torch.compile gives to the module inside


def unwrapped(model: nn.Module) -> nn.Module:
    """The network without `DataParallel`, `DistributedDataParallel`, `torch.compile` and, around it, `AveragedModel`.

    Args:
        model: stays unchanged.

    Returns:
        The module inside, or a copy of it if one of its own modules is wrapped.
    """
    model = outermost(model)
    if any(_inside(module) is not module for module in model.modules()):
        model = copied(model)
        for module in list(model.modules()):
            for name, child in module._modules.items():
                while child is not None and (inner := _inside(child)) is not child:
                    module._modules[name] = child = inner
    return model


def outermost(model: nn.Module) -> nn.Module:
    """The network without the wrappers around it. Modules inside it may be wrapped."""
    while (inner := _inside(model)) is not model or isinstance(model, AveragedModel):
        model = model.module if isinstance(model, AveragedModel) else inner
    return model


def _inside(module: nn.Module) -> nn.Module:
    """The module in a wrapper; any other module itself."""
    if isinstance(module, DataParallel | DistributedDataParallel):
        found: nn.Module = module.module
        return found
    return getattr(module, COMPILED, module)
