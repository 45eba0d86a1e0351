"""A network as its exported graph. The constants of the graph that are sizes of channels follow a cut.

The user's Python code may fix such sizes: `torch.split(x, 16)`, `reshape(batch, 49, 64)`. After a cut it fails, or computes
something else. In the exported graph they are constants, and the labels say which channels each of them counts. So every
cut that the mathematics allows can be made.

Prior art: TinyNeuralNetwork rewrites a traced model's source. Here the graph of `torch.export` is edited.
"""

from __future__ import annotations

import copy
import operator
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses import FakeTensorMode
from torch.export import Dim, ShapesCollection
from torch.fx.passes.fake_tensor_prop import FakeTensorProp
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights
from torch.utils._pytree import tree_leaves

from edgeprune.errors import CutError, first_line
from edgeprune.graph import batches, places, regions
from edgeprune.graph.constants import bake
from edgeprune.graph.rules import bind
from edgeprune.graph.trace import Trace, called, canonical_names, collected, exporting, propagate
from edgeprune.records import Groups, Recipe

TOLERANCE = 1e-4  # of the largest output; fp32 rounding is near 1e-6

_TRAINING = {"batch_norm": "training", "dropout": "train", "alpha_dropout": "train", "feature_dropout": "train"}


@dataclass(frozen=True)
class Source:
    """What a graph was exported from, and its labels. Copies of the network share it.

    Attributes:
        inputs: shape and type of every example input.
        traced: the labels of all tensors, and which constants are sizes.
    """

    inputs: tuple[tuple[tuple[int, ...], str], ...]
    traced: Trace

    def __deepcopy__(self, memo: object) -> Source:
        return self


class GraphNetwork(fx.GraphModule):
    """A network that executes its exported graph, for any batch size.

    Parameters and buffers have the names of the original model. Batch-norm and dropout follow `training`. Other code that
    the model executes in training mode only is not in the graph.
    """

    exported_from: Source
    takes_any_batch: bool

    def __deepcopy__(self, memo: dict[int, Any]) -> GraphNetwork:
        copied: GraphNetwork = super().__deepcopy__(memo)  # type: ignore[assignment] # torch's says GraphModule
        copied._non_persistent_buffers_set = set(self._non_persistent_buffers_set)  # torch forgets these three
        copied._forward_hooks = copy.deepcopy(self._forward_hooks, memo)
        copied.exported_from, copied.takes_any_batch = self.exported_from, self.takes_any_batch
        return copied


def reserved(model: nn.Module) -> list[str]:
    """The names of a model's own modules and tensors that graph modules use themselves, such as `code` or `meta`.

    A graph module of such a model cannot be made.
    """
    named = [*model.named_modules(remove_duplicate=False), *model.named_parameters(remove_duplicate=False)]
    named += model.named_buffers(remove_duplicate=False)
    taken = set(dir(fx.GraphModule(nn.Module(), fx.Graph()))) - set(dir(nn.Module()))
    taken |= GraphNetwork.__annotations__.keys()
    return sorted({name.partition(".")[0] for name, _ in named} & taken)


def as_graph(model: nn.Module, inputs: tuple[Tensor, ...], free_batch: bool = True) -> GraphNetwork:
    """Export a network as a graph.

    Args:
        model: Takes tensors by position and returns tensors. It stays unchanged.
        inputs: Example inputs, (batch, ...) each.
        free_batch: Whether the graph takes any batch size. If not, it takes that of the example inputs.

    Raises:
        CutError: The model cannot be exported, or the graph computes something else than the model.
    """
    if names := reserved(model):
        raise CutError(f"torch's graph modules have an attribute {names[0]!r} of their own; give yours another name")
    doubled = _repeated(inputs, 2) if free_batch else inputs  # the exporter takes a size of one as fixed
    try:
        user, model = model, called(model, doubled)
        with exporting():
            module = _exported(model, doubled, free_batch)
            if free_batch and batches.is_fixed(module.graph):
                module = _exported(called(user, doubled), doubled, free_batch=False)
                tripled = _repeated(inputs, 3)  # a model may keep what it computes from the shape of its input
                batches.generalise(module, _exported(called(user, tripled), tripled, free_batch=False))
    except Exception as error:  # the exporter raises many types, all of them about the user's model
        raise CutError(f"the model has no graph for any batch size: {places.of_failure(error)}") from error
    _plain(module.graph)
    network = GraphNetwork(module, module.graph).eval()
    _take_all(network, model)
    _follow_training(network.graph)
    network.recompile()
    try:
        with exporting(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
            FakeTensorProp(network, mode).propagate(*inputs)
    except Exception as error:  # the graph's own code, which the batch size of the example inputs does not fit
        raise CutError(f"the exported graph does not take these inputs: {first_line(error)}") from error
    bake(network)
    _normalise(network.graph)
    network.recompile()
    traced = propagate(network.graph, _stored(network), editable=True)
    network.exported_from = Source(tuple((tuple(x.shape), str(x.dtype).removeprefix("torch.")) for x in inputs), traced)
    network.takes_any_batch = free_batch
    for batch in (inputs, doubled) if free_batch else (inputs,):
        _require_equal(model, network, noisy(batch))
    return network


def _repeated(inputs: tuple[Tensor, ...], times: int) -> tuple[Tensor, ...]:
    return tuple(torch.cat([tensor] * times) for tensor in inputs)


def _exported(model: nn.Module, inputs: tuple[Tensor, ...], free_batch: bool) -> fx.GraphModule:
    """The exported graph of a model as a module, without regions."""
    shapes = ShapesCollection() if free_batch else None  # type: ignore[no-untyped-call]
    for tensor in inputs if shapes is not None else ():
        shapes[tensor] = {0: Dim.AUTO}  # type: ignore[index]
    program = torch.export.export(model, inputs, dynamic_shapes=shapes)  # type: ignore[arg-type] # it may be this
    module: Any = program.module(check_guards=False)
    regions.inline(module, regions.constants_of(module))
    return module  # type: ignore[no-any-return]


def trace_graph(network: GraphNetwork, patterns: Sequence[str] = ()) -> Groups:
    """The channel groups and layers of a network as its graph; see `graph.trace.trace`."""
    found = collected(network.exported_from.traced, network.graph, patterns, folds=_folds(network))
    return replace(found, form="graph")


def _stored(network: GraphNetwork) -> dict[fx.Node, str]:
    """The nodes that read a parameter or a buffer of real numbers. Constants of the code are buffers here, and can be cut."""
    names = canonical_names(network)
    read = ((node, _value(network, node)) for node in network.graph.nodes if node.op == "get_attr")
    return {
        node: names[str(node.target)] for node, value in read if isinstance(value, Tensor) and value.is_floating_point()
    }


def _require_equal(model: nn.Module, network: GraphNetwork, inputs: tuple[Tensor, ...]) -> None:
    try:
        got = answer(network, inputs)
    except RuntimeError as error:
        raise CutError(f"the exported graph has a fixed batch size: {first_line(error)}") from error
    for a, b in zip(_tensors(answer(model, inputs)), _tensors(got), strict=True):
        scale = float(a.double().nan_to_num(0, 0, 0).abs().amax()) if a.numel() else 0.0
        if a.shape != b.shape or not torch.allclose(a.double(), b.double(), 0, TOLERANCE * scale, equal_nan=True):
            raise CutError("the exported graph computes something else than the model")


def noisy(inputs: tuple[Tensor, ...], seed: int = 0) -> tuple[Tensor, ...]:
    """Real-valued inputs with noise: example inputs may all be zero, which hides differences."""
    random = torch.Generator().manual_seed(seed)
    return tuple(x + torch.randn(x.shape, generator=random).to(x) if x.is_floating_point() else x for x in inputs)


def answer(model: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    """What a model returns, with the same random numbers at every call. It may change its inputs in place."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return model(*(x.clone() for x in inputs))


def _tensors(outputs: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]


def _take_all(network: GraphNetwork, model: nn.Module) -> None:
    """Give the network the parameters and buffers that its graph does not read, too, so that the state dicts are alike."""
    kept = model.state_dict().keys()
    for name, tensor in [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]:
        path, _, own = name.rpartition(".")
        module: nn.Module = network
        for part in path.split(".") if path else ():
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        if isinstance(tensor, nn.Parameter):
            if own not in module._parameters:
                module.register_parameter(own, tensor)
        else:
            module._buffers.setdefault(own, tensor)
    for path, module in network.named_modules():
        for own, value in list(vars(module).items()):  # constants of the code
            if isinstance(value, Tensor):
                delattr(module, own)
                module.register_buffer(own, value)
        names = (f"{path}.{name}" if path else name for name in module._buffers)
        module._non_persistent_buffers_set = {name.rpartition(".")[2] for name in names if name not in kept}


# --------------------------------------------------------------------------------------------------- normal form


def _plain(graph: fx.Graph) -> None:
    """Make a graph take tensors and return a tensor or a tuple of tensors."""
    graph.set_codegen(fx.graph.CodeGen())
    end = graph.output_node()
    made = [node for node in tree_leaves(end.args) if isinstance(node, fx.Node)]
    end.args = (made[0] if len(made) == 1 else tuple(made),)


def _follow_training(graph: fx.Graph) -> None:
    """Make batch-norm and dropout follow the network's mode."""
    first = next(iter(graph.nodes))
    with graph.inserting_before(first), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is no parameter
        training = graph.get_attr("training")
    for node in list(graph.nodes):
        argument = _TRAINING.get(getattr(node.target, "_opname", ""))
        if node.op == "call_function" and argument and bind(node)[argument] is False:
            set_argument(node, argument, training)
    if not training.users:
        graph.erase_node(training)


def _normalise(graph: fx.Graph) -> None:
    """Spell sizes out, so that each can follow a cut on its own."""
    aten: Any = torch.ops.aten
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        given = bind(node)
        match getattr(node.target, "_opname", ""):
            case "chunk" | "split" | "unsafe_chunk" | "unsafe_split" | "tensor_split":
                dim = given["dim"] % given["self"].meta["val"].ndim
                sizes = [part.shape[dim] for part in node.meta["val"]]
                node.target, node.args, node.kwargs = aten.split_with_sizes.default, (given["self"], sizes, dim), {}
            case "view" | "_unsafe_view" | "reshape" if "dtype" not in given:
                sizes = given["shape" if "shape" in given else "size"]
                node.target, node.args, node.kwargs = aten.reshape.default, (given["self"], _free(sizes)), {}
            case "expand":
                before = given["self"].meta["val"].shape
                offset = len(given["size"]) - len(before)
                sizes = [
                    -1 if i >= offset and before[i - offset] != 1 else size for i, size in enumerate(given["size"])
                ]
                node.args, node.kwargs = (given["self"], sizes), {}
            case "scaled_dot_product_attention" if given["scale"] is None:
                node.kwargs = {**node.kwargs, "scale": given["query"].meta["val"].shape[-1] ** -0.5}
    graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output") or _mutates(node))


def _mutates(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def _free(sizes: Sequence[Any]) -> list[Any]:
    """Sizes of a reshape. The size that follows from the batch, if there is one, is left to torch."""
    computed = [i for i, size in enumerate(sizes) if isinstance(size, fx.Node)]
    return [-1 if computed == [i] and -1 not in sizes else size for i, size in enumerate(sizes)]


def set_argument(node: fx.Node, name: str, value: Any, place: int | None = None) -> None:
    """Set an argument of a call, or one number of an argument that is a list."""
    schema: Any = node.target._schema  # type: ignore[union-attr]
    if place is not None:
        value = [*(before := bind(node)[name])[:place], value, *before[place + 1 :]]
    index = next(i for i, argument in enumerate(schema.arguments) if argument.name == name)
    if index < len(node.args):
        node.update_arg(index, value)
    else:
        node.update_kwarg(name, value)


# ---------------------------------------------------------------------------------------------------------- cuts


def resize(network: GraphNetwork, recipe: Recipe) -> None:
    """Make the constants of a graph follow a cut of its parameters, and bypass removed blocks; in place.

    Raises:
        CutError: A block has several inputs or outputs.
    """
    nodes = {node.name: node for node in network.graph.nodes}
    for size, count in network.exported_from.traced.resized(recipe):
        set_argument(nodes[size.node], size.argument, count, size.place)
    for path in (name for name, dims in recipe.items() if not dims):
        _bypass(network.graph, path)
    network.recompile()


def _bypass(graph: fx.Graph, path: str) -> None:
    """Replace the result of the module at `path` by its input."""
    inside = [node for node in graph.nodes if path in _stack(node)]
    made = [node for node in inside if any(user not in inside for user in node.users)]
    if len(made) != 1:
        raise CutError(f"{path} has {len(made)} results in the graph, so it cannot be removed")
    shape = made[0].meta["val"].shape
    read = dict.fromkeys(
        node
        for reader in inside
        for node in reader.all_input_nodes
        if node not in inside and node.op != "get_attr" and getattr(node.meta.get("val"), "shape", None) == shape
    )
    if len(read) != 1:
        raise CutError(f"{path} has {len(read)} inputs in the graph, so it cannot be removed")
    made[0].replace_all_uses_with(next(iter(read)), delete_user_cb=lambda user: user not in inside)
    for node in reversed(inside):
        graph.erase_node(node)
    for node in [node for node in graph.nodes if node.op == "get_attr" and not node.users]:
        graph.erase_node(node)


def _stack(node: fx.Node) -> list[str]:
    """The paths of the modules that a node belongs to."""
    return [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]


# --------------------------------------------------------------------------------------------------------- folds

_TRANSPOSED = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
_LAYERS = ("conv1d", "conv2d", "conv3d", "linear", *_TRANSPOSED)


def _folds(network: GraphNetwork) -> tuple[tuple[str, str], ...]:
    return tuple((_owner(layer), _owner(norm)) for (layer, norm), *_ in _foldable(network.graph))


def _owner(node: fx.Node) -> str:
    """The path of the module whose weight a call reads."""
    return str(bind(node)["weight"].target).rpartition(".")[0]


def _foldable(graph: fx.Graph) -> list[list[tuple[fx.Node, fx.Node]]]:
    """All (layer, batch-norm) calls of a pair whose parameters nothing else reads. Only the norm reads the layer's output."""
    found: dict[tuple[fx.Node, ...], list[tuple[fx.Node, fx.Node]]] = {}
    for norm in graph.nodes:
        if norm.op != "call_function" or getattr(norm.target, "_opname", "") != "batch_norm":
            continue
        given = bind(norm)
        layer = given["input"]
        own = [given[name] for name in ("weight", "bias", "running_mean", "running_var")]
        if layer.op != "call_function" or getattr(layer.target, "_opname", "") not in _LAYERS or len(layer.users) > 1:
            continue
        own.append(bind(layer)["weight"])
        if layer.target._opname in _TRANSPOSED and bind(layer)["groups"] != 1:
            continue
        if all(isinstance(node, fx.Node) and node.op == "get_attr" for node in own):
            found.setdefault(tuple(own), []).append((layer, norm))
    return [calls for own, calls in found.items() if all(len(node.users) == len(calls) for node in own)]


def fold_graph(network: GraphNetwork, folds: Sequence[tuple[str, str]]) -> GraphNetwork:
    """A copy with batch-norms folded into the layers before them; see `runtimes.formats.base.fold`."""
    network = copy.deepcopy(network).eval()
    graph, wanted = network.graph, set(folds)
    for calls in _foldable(graph):
        layer, norm = calls[0]
        if (_owner(layer), _owner(norm)) not in wanted:
            continue
        of_norm, of_layer = bind(norm), bind(layer)
        module, weight = network.get_submodule(_owner(layer)), _value(network, of_layer["weight"])
        statistics = [_value(network, of_norm[name]) for name in ("running_mean", "running_var")]
        scale = [_value(network, of_norm[name]) for name in ("weight", "bias")]
        kind, bias = layer.target._opname, _value(network, of_layer["bias"])  # type: ignore[union-attr]
        fuse: Any = fuse_linear_bn_weights
        if kind != "linear":
            fuse = partial(fuse_conv_bn_weights, transpose=kind in _TRANSPOSED)
        fused = fuse(weight, bias, *statistics, of_norm["eps"], *scale)
        module.weight, module.bias = (nn.Parameter(tensor.detach()) for tensor in fused)
        for layer, norm in calls:
            with graph.inserting_before(layer):
                set_argument(layer, "bias", graph.get_attr(f"{_owner(layer)}.bias"))
            norm.replace_all_uses_with(layer)
            graph.erase_node(norm)
    network.recompile()
    return network


def _value(network: GraphNetwork, node: fx.Node | None) -> Any:
    return None if node is None else operator.attrgetter(str(node.target))(network)


def recorded_inputs(shapes: Sequence[tuple[Sequence[int], str]]) -> tuple[Tensor, ...]:
    """Inputs of these shapes and types: random numbers, or zeros of other types."""
    random = torch.Generator().manual_seed(0)
    made = []
    for shape, name in shapes:
        kind: torch.dtype = getattr(torch, name)
        made.append(
            torch.randn(tuple(shape), generator=random).to(kind)
            if kind.is_floating_point
            else torch.zeros(tuple(shape), dtype=kind)
        )
    return tuple(made)
