"""Residual blocks: layers whose result is added to their input become one module, so that edgeprune can remove it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from torch import nn

from edgeprune.frontends.keras.graph import LayerGraph, Step, attribute
from edgeprune.frontends.keras.modules import Merge, Permute


@dataclass(frozen=True)
class Parts:
    """What a `LayerGraph` is made of."""

    layers: Mapping[str, nn.Module]
    steps: tuple[Step, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def with_blocks(parts: Parts) -> Parts:
    """The same graph with a module for each residual block. An inner block is a module of the outer one."""
    for step in parts.steps:
        merge = parts.layers[step.layer]
        if isinstance(merge, Merge) and merge.adds and len(step.inputs) == 2:
            for start, end in (step.inputs, step.inputs[::-1]):
                body = _body(parts, start, end, step)
                if body:
                    parts = _grouped(parts, start, body, step)
                    break
    return parts


def _body(parts: Parts, start: int, end: int, last: Step) -> tuple[Step, ...]:
    """The steps from the value `start` to the value `end`; none if another value or another layer is involved."""
    makers = {key: step for step in parts.steps for key in step.outputs}
    found, todo = set[Step](), [end]
    while todo:
        key = todo.pop()
        if key == start:
            continue
        if key not in makers:
            return ()
        if makers[key] not in found:
            found.add(makers[key])
            todo += makers[key].inputs
    outside = [step for step in parts.steps if step not in found and step != last]
    used = {key for step in outside for key in step.inputs} | set(parts.outputs)
    shared = {step.layer for step in outside} & {step.layer for step in (*found, last)}
    if shared or any(key in used for step in found for key in step.outputs):
        return ()
    return tuple(step for step in parts.steps if step in found)


def _grouped(parts: Parts, start: int, body: Sequence[Step], last: Step) -> Parts:
    """The graph with a block in the place of these steps."""
    inside = {step.layer: parts.layers[step.layer] for step in (*body, last)}
    others = {name: layer for name, layer in parts.layers.items() if name not in inside}
    name = attribute(_name(inside, last.layer), others)
    block = LayerGraph(inside.items(), (*body, last), (start,), last.outputs)
    steps = [Step(name, (start,), last.outputs) if step == last else step for step in parts.steps if step not in body]
    layers: dict[str, nn.Module] = {}
    for place, layer in parts.layers.items():  # in the order of the file
        if place == last.layer:
            layers[name] = block
        elif place in others:
            layers[place] = layer
    return replace(parts, layers=layers, steps=tuple(steps))


def _name(inside: Mapping[str, nn.Module], merge: str) -> str:
    """What the names of a block's layers begin with, such as "block_3"; else the name of its sum."""
    names = [name for name, layer in inside.items() if name != merge and not isinstance(layer, Permute)]
    alike = takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    prefix = "".join(letters[0] for letters in alike).rpartition("_")[0]
    rest = [name[len(prefix) + 1 :] for name in names]
    plain = len(names) > 1 and prefix and not all(text.isdigit() for text in rest)
    return prefix if plain else f"{merge}_block"
