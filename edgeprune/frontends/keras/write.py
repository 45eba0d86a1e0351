"""Write a pruned network as a Keras file again: the same layers, with other sizes and without the removed blocks."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from edgeprune.errors import UsageError
from edgeprune.frontends.keras.build import Network, build, functional, is_model
from edgeprune.frontends.keras.compare import difference
from edgeprune.frontends.keras.restore import RESTORES, Restored
from edgeprune.frontends.keras.table import of_class


def rewritten(model: Any, tuned: nn.Module, target: Path) -> None:
    """Write the Keras model of a pruned network, after it was compared with the network.

    Args:
        model: the Keras model that the network was made from.
        tuned: the pruned network. Its tensors have the names of the original ones.
        target: the file to write.

    Raises:
        UsageError: the model cannot be rebuilt from its configuration.
        ValueError: the same, found by Keras.
    """
    found = rebuilt(model, build(model), tuned.state_dict())
    wrong = difference(found, tuned)
    if wrong is not None:
        raise UsageError(f"the model cannot be rebuilt with the new sizes: {wrong}")
    found.save(target)


def rebuilt(model: Any, network: Network, state: Mapping[str, Tensor]) -> Any:
    """A Keras model with the sizes and weights of `state`. A removed block passes its input through."""
    removed = _removed(network.module, state)
    gone = {id(layer) for path, layer in network.layers if any(_within(path, block) for block in removed)}
    changes = {id(layer): _restored(layer, path, state) for path, layer in network.layers if id(layer) not in gone}
    rebuilding = _Rebuilding(changes, gone)
    found = rebuilding.model(model, None)
    rebuilding.fill()
    return found


class _Rebuilding:
    """Clones a model with other sizes.

    Args:
        changes: what a layer becomes, by its identity.
        gone: the identities of layers that are removed.
    """

    def __init__(self, changes: Mapping[int, Restored], gone: Collection[int]) -> None:
        self._changes, self._gone = changes, gone
        self._made: dict[int, tuple[Any, Any]] = {}  # by the identity of a layer: it, and the new one
        self._replaced: dict[int, Any] = {}  # by the identity of a new layer: the old one
        self._nested: dict[int, Any] = {}  # by the identity of a model inside: the new one

    def model(self, model: Any, inputs: Any) -> Any:
        """A clone of a model, of the same name. `inputs` may have other sizes than its own; None keeps these."""
        from keras import models

        graph = functional(model)
        found = models.clone_model(graph, inputs, clone_function=self._cloned, call_function=self._called)
        found.name = model.name
        return found

    def fill(self) -> None:
        """Give the new layers their weights."""
        for layer, new in self._made.values():
            change = self._changes.get(id(layer), Restored())
            if not change.weights and id(layer) not in self._gone and getattr(layer, "weights", None):
                new.set_weights(layer.get_weights())
            for name, tensor in change.weights.items():
                attrgetter(name)(new).assign(tensor.detach().contiguous())

    def _cloned(self, layer: Any) -> Any:
        if is_model(layer):  # it is cloned when it is called, since its inputs may be smaller
            return layer
        if id(layer) not in self._made:
            change = self._changes.get(id(layer), Restored())
            new = type(layer).from_config(layer.get_config() | dict(change.config))
            self._made[id(layer)], self._replaced[id(new)] = (layer, new), layer
        return self._made[id(layer)][1]

    def _called(self, layer: Any, *given: Any, **keywords: Any) -> Any:
        from keras import Input, tree

        if is_model(layer):
            if id(layer) not in self._nested:
                inputs = tree.map_structure(lambda tensor: Input(tensor.shape[1:], dtype=tensor.dtype), given[0])
                self._nested[id(layer)] = self.model(layer, inputs)
            return self._nested[id(layer)](given[0])
        is_gone = id(self._replaced.get(id(layer))) in self._gone
        return tree.flatten(given)[0] if is_gone else layer(*given, **keywords)


def _within(path: str, block: str) -> bool:
    return path == block or path.startswith(f"{block}.")


def _removed(module: nn.Module, state: Mapping[str, Tensor]) -> set[str]:
    """The paths of the modules of which nothing is in `state`, although they have weights."""
    held = {name[:end] for name in state for end, letter in enumerate(name) if letter == "."}
    return {path for path, one in module.named_modules() if path and path not in held and one.state_dict()}


def _restored(layer: Any, path: str, state: Mapping[str, Tensor]) -> Restored:
    """What a layer becomes. Layers without trained weights stay unchanged."""
    if of_class(layer) in RESTORES:
        own = {name.removeprefix(f"{path}."): tensor for name, tensor in state.items() if name.startswith(f"{path}.")}
        return RESTORES[of_class(layer)](layer, own)
    if getattr(layer, "trainable_weights", None):
        raise UsageError(f"layer {layer.name!r} ({type(layer).__name__}) has no way back to Keras")
    return Restored()
