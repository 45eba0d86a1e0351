"""The module that a file becomes: each of its modules calls functions, layers and further modules in order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map


@dataclass(frozen=True)
class Ref:
    """A value in the calls of a module: its number, or the path of a parameter or buffer."""

    place: int | str

    def __deepcopy__(self, memo: object) -> Ref:
        return self


@dataclass(frozen=True)
class Call:
    """One call.

    Attributes:
        target: a function, or the path of a module.
        args: `Ref`, numbers, and lists of them.
        named: arguments by name.
        results: the numbers of the results.
    """

    target: Callable[..., Any] | str
    args: tuple[Any, ...]
    named: dict[str, Any]
    results: tuple[int, ...]

    def __deepcopy__(self, memo: object) -> Call:
        return self

    def __str__(self) -> str:
        target = self.target if isinstance(self.target, str) else self.target.__name__
        return f"{', '.join(f'v{n}' for n in self.results)} = {target}({', '.join(map(_shown, self.args))})"


def _shown(arg: Any) -> str:
    if isinstance(arg, Ref):
        return f"v{arg.place}" if isinstance(arg.place, int) else arg.place
    return f"[{', '.join(map(_shown, arg))}]" if isinstance(arg, list | tuple) else repr(arg)


class Part(nn.Module):
    """A module of the file. It takes and returns tensors by position."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: tuple[Call, ...] = ()
        self.takes: tuple[int, ...] = ()
        self.gives: tuple[Ref, ...] = ()

    def forward(self, *inputs: Tensor) -> Any:
        """The results of the calls; a single one is no tuple."""
        values: dict[int, Any] = dict(zip(self.takes, inputs, strict=True))

        def found(leaf: Any) -> Any:
            if not isinstance(leaf, Ref):
                return leaf
            return values[leaf.place] if isinstance(leaf.place, int) else _held(self, leaf.place)

        for call in self.calls:
            target = _held(self, call.target) if isinstance(call.target, str) else call.target
            made = target(*tree_map(found, call.args), **tree_map(found, call.named))
            values.update(zip(call.results, flat(made), strict=False))
        outputs = tuple(map(found, self.gives))
        return outputs if len(outputs) != 1 else outputs[0]

    def extra_repr(self) -> str:
        """The calls, as the module is printed."""
        return "\n".join(map(str, self.calls))


class OnnxNetwork(Part):
    """A network from a file.

    Attributes:
        names_in_file: of its inputs and outputs; the artifact has them, too.
        batch_dims: the dimension of each input that holds the samples; None if the network takes the batch of the file only.
    """

    names_in_file: tuple[tuple[str, ...], tuple[str, ...]]
    batch_dims: tuple[int, ...] | None = None


def flat(made: Any) -> list[Any]:
    """The tensors of a result, as a list: an LSTM returns a tensor and a pair."""
    if isinstance(made, Tensor):
        return [made]
    return [tensor for part in made for tensor in flat(part)]


def _held(module: nn.Module, path: str) -> Any:
    found: Any = module
    for name in path.split("."):
        found = getattr(found, name)
    return found
