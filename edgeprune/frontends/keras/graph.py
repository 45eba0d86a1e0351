"""A network of layers: the graph of a Keras model with modules of torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, count
from typing import Literal

from torch import Tensor, nn

Order = Literal["last", "first"]  # where a tensor's channels are. "last" is the order that the tensor has in Keras


@dataclass(frozen=True)
class Value:
    """A tensor of the graph.

    Attributes:
        key: names it.
        shape: as Keras writes it, with the batch first; None is a size that the file leaves open.
        order: where the channels are in the torch tensor.
    """

    key: int
    shape: tuple[int | None, ...]
    order: Order = "last"

    @property
    def rank(self) -> int:
        """The number of dimensions, with the batch."""
        return len(self.shape)


@dataclass(frozen=True)
class Step:
    """One call of a layer.

    Attributes:
        layer: the name of the child module; a shared layer is in several steps.
        inputs: the keys of its arguments.
        outputs: the keys of what it returns.
    """

    layer: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


class LayerGraph(nn.Module):
    """Calls its children one after the other. Each is a layer, or a graph of layers: a block or a nested model.

    Args:
        layers: the children by name.
        steps: the calls, in an order in which they can be made.
        inputs: the keys of the arguments.
        outputs: the keys of what is returned: a tensor if there is one, else a tuple.

    Attributes:
        names_in_file: of the inputs and outputs of a whole model; the artifact has them, too. A part of a model has none.
    """

    names_in_file: tuple[tuple[str, ...], tuple[str, ...]] | None = None

    def __init__(
        self,
        layers: Iterable[tuple[str, nn.Module]],
        steps: Sequence[Step],
        inputs: Sequence[int],
        outputs: Sequence[int],
    ) -> None:
        super().__init__()
        for name, layer in layers:
            self.add_module(name, layer)
        self.steps, self.inputs, self.outputs = tuple(steps), tuple(inputs), tuple(outputs)

    def forward(self, *given: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The outputs for these inputs, by position."""
        values = dict(zip(self.inputs, given, strict=True))
        for step in self.steps:
            found = self.get_submodule(step.layer)(*(values[key] for key in step.inputs))
            values |= zip(step.outputs, found if isinstance(found, tuple) else (found,), strict=True)
        results = tuple(values[key] for key in self.outputs)
        return results[0] if len(results) == 1 else results


def attribute(name: str, taken: Iterable[str]) -> str:
    """A layer's name as the name of a child module: without the separators of paths, and not yet `taken`."""
    plain = name.replace("/", "_").replace(".", "_") or "layer"
    used = {*taken, "steps", "inputs", "outputs"}
    numbered = (f"{plain}_{number}" for number in count(2))
    return next(found for found in chain([plain], numbered) if found not in used and not hasattr(LayerGraph, found))
