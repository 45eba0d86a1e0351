"""Write a pruned network as a Keras file again: the same layers, with other sizes and without the removed blocks."""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from edgeprune.errors import UsageError, first_line, usage_error
from edgeprune.frontends.keras import files
from edgeprune.frontends.keras.build import Network, build, functional
from edgeprune.frontends.keras.compare import difference
from edgeprune.frontends.keras.restore import RESTORES, Restored
from edgeprune.frontends.keras.table import of_class


def write(path: Path, tuned: nn.Module, target: Path) -> None:
    """Write the Keras model of a pruned network.

    Args:
        path: the Keras file that the network was made from.
        tuned: the pruned network. Its tensors have the names of the original ones.
        target: the file to write.

    Raises:
        UsageError: the model cannot be rebuilt from its configuration. The message says why.
    """
    model = files.load(path)
    try:
        with files.silent():
            found = rebuilt(model, build(model), tuned.state_dict())
            wrong = difference(found, tuned)
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError, UsageError) as error:
        # Keras raises any of these for a configuration that does not fit.
        raise usage_error(f"{path} cannot be rebuilt with the new sizes: {first_line(error)}") from error
    if wrong is not None:
        raise usage_error(f"{path} cannot be rebuilt with the new sizes: {wrong}")
    with files.silent():
        found.save(target)


def rebuilt(model: Any, network: Network, state: Mapping[str, Tensor]) -> Any:
    """A Keras model with the sizes and weights of `state`. A removed block passes its input through."""
    from keras import models, tree

    removed = _removed(network.module, state)
    gone = {id(layer) for path, layer in network.layers if any(_within(path, block) for block in removed)}
    changes = {id(layer): _restored(layer, path, state) for path, layer in network.layers if id(layer) not in gone}
    made: dict[int, tuple[Any, Any]] = {}  # by the identity of the new layer: it, and the layer that it replaces

    def cloned(layer: Any) -> Any:
        change = changes.get(id(layer), Restored())
        new = type(layer).from_config(layer.get_config() | dict(change.config))
        made[id(new)] = new, layer
        return new

    def called(layer: Any, *given: Any, **keywords: Any) -> Any:
        _, original = made.get(id(layer), (None, None))
        return tree.flatten(given)[0] if id(original) in gone else layer(*given, **keywords)

    found = models.clone_model(functional(model), clone_function=cloned, call_function=called, recursive=True)
    for new, layer in made.values():
        change = changes.get(id(layer), Restored())
        if not change.weights and id(layer) not in gone and getattr(layer, "weights", None):
            new.set_weights(layer.get_weights())
        for name, tensor in change.weights.items():
            attrgetter(name)(new).assign(tensor.detach().contiguous())
    return found


def _within(path: str, block: str) -> bool:
    return path == block or path.startswith(f"{block}.")


def _removed(module: nn.Module, state: Mapping[str, Tensor]) -> set[str]:
    """The paths of the modules of which nothing is in `state`, although they have weights."""
    held = {name[:end] for name in state for end, letter in enumerate(name) if letter == "."}
    return {path for path, one in module.named_modules() if path and path not in held and one.state_dict()}


def _restored(layer: Any, path: str, state: Mapping[str, Tensor]) -> Restored:
    """What a layer becomes. Layers without trained weights stay as they are."""
    if of_class(layer) in RESTORES:
        own = {name.removeprefix(f"{path}."): tensor for name, tensor in state.items() if name.startswith(f"{path}.")}
        return RESTORES[of_class(layer)](layer, own)
    if getattr(layer, "trainable_weights", None):
        raise UsageError(f"layer {layer.name!r} ({type(layer).__name__}) has no way back to Keras")
    return Restored()
