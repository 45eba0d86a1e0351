"""Assignments to a part of a tensor in a graph, `x[:, 1:] = y`: each becomes an operator that returns the whole tensor.

Torch's exporter to ONNX silently drops such assignments in a graph of operators. In a module's code, it does not see that a
part that was taken before has changed, too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

_PARTS = "slice", "select"
# Operators whose result shares the memory of their argument.
_VIEWS = {*_PARTS, *"view reshape unsqueeze squeeze transpose permute expand narrow detach alias t".split()}


def assigns_parts(model: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    """Whether a model assigns to a part of a tensor. It is called once."""
    found = _Assignments()
    with torch.no_grad(), torch.random.fork_rng(devices=[]), found:
        model(*(x.clone() for x in inputs))
    return found.any


class _Assignments(TorchFunctionMode):
    """Notes whether the code assigns to an index of a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.any = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.any = self.any or func is Tensor.__setitem__
        return func(*args, **(kwargs or {}))


def explicit(module: fx.GraphModule) -> fx.GraphModule:
    """Make all assignments to parts of tensors explicit, in place. Returns the module."""
    changed = False
    for node in list(module.graph.nodes):
        if node.op == "call_function" and _changes_a_part(node):
            _explicit(module.graph, node)
            changed = True
    if changed:
        module.recompile()
    return module


def _changes_a_part(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    mutable = schema is not None and schema.is_mutable and _name(node).endswith("_")
    return mutable and isinstance(node.args[0], fx.Node) and _name(node.args[0]) in _PARTS


def _explicit(graph: fx.Graph, node: fx.Node) -> None:
    """Compute the whole tensor after an assignment, and let all later nodes read that."""
    part: Any = node.args[0]
    base, later = part, _after(node)
    plain = _FILL if node.target is torch.ops.aten.fill_.Tensor else _out_of_place(node)
    graph.inserting_before(node.next)
    made = graph.call_function(plain, node.args, node.kwargs)
    node.replace_all_uses_with(made, delete_user_cb=lambda user: user is not made)
    while _name(base) in _PARTS:
        source, *place = base.args
        made = graph.call_function(_SCATTER[_name(base)], (source, made, *place), base.kwargs)
        base = source
    seen = {base: made}
    for view in _before(node):  # views that were taken before show the new values, too
        if view.args and view.args[0] in seen and _name(view) in _VIEWS and not later.isdisjoint(view.users):
            seen[view] = graph.call_function(view.target, (seen[view.args[0]], *view.args[1:]), view.kwargs)  # type: ignore[arg-type]
    for old, new in seen.items():
        old.replace_all_uses_with(new, delete_user_cb=later.__contains__)
    graph.erase_node(node)


def _out_of_place(node: fx.Node) -> Any:
    return getattr(getattr(torch.ops.aten, _name(node)[:-1]), node.target._overloadname)  # type: ignore[union-attr]


def _name(node: fx.Node) -> str:
    return getattr(node.target, "_opname", "") if node.op == "call_function" else ""


def _before(node: fx.Node) -> list[fx.Node]:
    nodes = list(node.graph.nodes)
    return nodes[: nodes.index(node)]


def _after(node: fx.Node) -> set[fx.Node]:
    nodes = list(node.graph.nodes)
    return set(nodes[nodes.index(node) + 1 :])


_SCATTER: dict[str, Any] = {
    "slice": torch.ops.aten.slice_scatter.default,
    "select": torch.ops.aten.select_scatter.default,
}
_FILL: Any = torch.ops.aten.copy.default  # torch's tracer fails at a fill with a tensor
