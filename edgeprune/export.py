"""A network as an ONNX file: exported once, then cut to any widths in milliseconds.

The exporter is torch's own (TorchScript based: node names are module paths, initialisers keep parameter names). A
variant for measuring needs the right shapes, not the right weights, so the template is exported with random parameters:
every initialiser can then be told from its values, whatever the exporter renamed or transposed.
"""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx.numpy_helper
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from edgeprune import graph, network
from edgeprune.errors import UsageError
from edgeprune.types import Groups, Layer, Recipe, Widths

OPSET = 17


def input_names(inputs: Sequence[Tensor]) -> list[str]:
    """Names of the artifact's inputs, in order."""
    return [f"input_{i}" for i in range(len(inputs))]


def fold(model: nn.Module, folds: Sequence[tuple[str, str]]) -> nn.Module:
    """A copy of `model` in eval mode with these (layer, batch-norm) pairs folded into the layer."""
    model = copy.deepcopy(model).eval()
    for layer_path, norm_path in folds:
        layer, norm = model.get_submodule(layer_path), model.get_submodule(norm_path)
        fuse = fuse_linear_bn_eval if isinstance(layer, nn.Linear) else fuse_conv_bn_eval
        model.set_submodule(layer_path, fuse(layer, norm))  # type: ignore[arg-type, type-var]
        model.set_submodule(norm_path, nn.Identity())
    return model


def to_onnx(model: nn.Module, inputs: tuple[Tensor, ...], folds: Sequence[tuple[str, str]]) -> bytes:
    """The ONNX file of `model` for inputs of exactly these shapes, batch-norm folded first.

    Raises `UsageError` when the exporter cannot express the model.
    """
    with torch.no_grad():
        folded = fold(model, folds)
        outputs = len(network.tensors(folded(*inputs)))
        buffer = io.BytesIO()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the exporter warns about itself and about every traced constant
                torch.onnx.export(
                    folded,
                    inputs,
                    buffer,  # type: ignore[arg-type]
                    dynamo=False,
                    opset_version=OPSET,
                    input_names=input_names(inputs),
                    output_names=[f"output_{i}" for i in range(outputs)],
                )
        except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
            raise UsageError(f"the model cannot be exported to ONNX: {network.first_line(error)}") from error
    return buffer.getvalue()


@dataclass(frozen=True)
class _Origin:
    """Which parameter an initialiser came from, and the order of its dimensions there."""

    parameter: str
    dims: tuple[int, ...]


class Template:
    """One export of a network, from which the ONNX file of any widths is sliced.

    Where an initialiser cannot be told from its values, or the file fixes a size that a cut changes, `variant` exports
    the cut network anew: slower, and right.
    """

    def __init__(self, model: nn.Module, inputs: tuple[Tensor, ...], groups: Groups) -> None:
        self._model = network.randomised(model)
        self._inputs = inputs
        self._groups = groups
        self.onnx = to_onnx(self._model, inputs, groups.folds)
        self.proto = onnx.load_from_string(self.onnx)
        self.origins = _origins(self.proto, fold(self._model, groups.folds))
        self.slices = self._can_slice()

    def variant(self, widths: Widths) -> bytes:
        """The ONNX file at these widths (units kept a group); weights are random."""
        recipe = graph.recipe(self._groups, graph.first_units(self._groups, widths))
        return self._sliced(recipe) if self.slices else self._exported(recipe)

    def _exported(self, recipe: Recipe) -> bytes:
        return to_onnx(network.sliced(self._model, recipe), self._inputs, self._groups.folds)

    def _sliced(self, recipe: Recipe) -> bytes:
        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)
        folded = _with_folded_biases(recipe, self._groups.folds)
        outputs: dict[str, tuple[int, int]] = {}
        for tensor in proto.graph.initializer:
            origin = self.origins.get(tensor.name)
            kept = folded.get(origin.parameter) if origin else None
            if origin is None or not kept:
                continue
            value = onnx.numpy_helper.to_array(tensor)
            for axis, dim in enumerate(origin.dims):
                if dim in kept:
                    value = value.take(kept[dim], axis=axis)
            outputs[tensor.name] = tensor.dims[0], value.shape[0]
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(value), tensor.name))
        for node in proto.graph.node:
            _regroup(node, outputs)
        del proto.graph.value_info[:]
        return bytes(proto.SerializeToString())

    def _can_slice(self) -> bool:
        """Whether slicing the file gives what a fresh export gives, on a cut of every group (compared as graphs)."""
        keep = {group.name: tuple(range((group.width + 1) // 2)) for group in self._groups.free}
        recipe = graph.recipe(self._groups, keep)
        touched = {name for name in _with_folded_biases(recipe, self._groups.folds)}
        stored = {origin.parameter for origin in self.origins.values()}
        named = set(dict(fold(self._model, self._groups.folds).named_parameters(remove_duplicate=False)))
        if not (touched & named) <= stored:
            return False
        return _same(onnx.load_from_string(self._sliced(recipe)), onnx.load_from_string(self._exported(recipe)))


def _with_folded_biases(recipe: Recipe, folds: Sequence[tuple[str, str]]) -> dict[str, dict[int, tuple[int, ...]]]:
    """Folding gives every layer a bias, cut as its outputs are."""
    result = {name: dict(dims) for name, dims in recipe.items()}
    for layer, _ in folds:
        outputs = result.get(f"{layer}.weight", {}).get(0)
        if outputs is not None:
            result.setdefault(f"{layer}.bias", {})[0] = outputs
    return result


def _origins(proto: onnx.ModelProto, folded: nn.Module) -> dict[str, _Origin]:
    """Match initialisers with the network's tensors by value: as they are, or transposed."""
    known: dict[tuple[tuple[int, ...], bytes], _Origin] = {}
    for name, tensor in [*folded.named_parameters(), *folded.named_buffers()]:
        array = tensor.detach().numpy()
        dims = tuple(range(array.ndim))
        for order in {dims, dims[::-1]}:
            turned = np.ascontiguousarray(array.transpose(order))
            known.setdefault((turned.shape, turned.tobytes()), _Origin(name, order))
    origins = {}
    for tensor in proto.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        origin = known.get((array.shape, array.tobytes()))
        if origin is not None:
            origins[tensor.name] = origin
    return origins


def _regroup(node: onnx.NodeProto, outputs: Mapping[str, tuple[int, int]]) -> None:
    """A grouped convolution keeps its channels a group, so its number of groups shrinks with its outputs."""
    if node.op_type != "Conv" or node.input[1] not in outputs:
        return
    before, after = outputs[node.input[1]]
    for attribute in node.attribute:
        if attribute.name == "group" and attribute.i > 1:
            attribute.i = attribute.i * after // before


def _same(first: onnx.ModelProto, second: onnx.ModelProto) -> bool:
    """Same operators with the same attributes, and the same values in their initialisers."""

    def parts(proto: onnx.ModelProto) -> list[tuple[str, bytes, list[np.ndarray]]]:
        values = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
        return [
            (
                node.op_type,
                b"".join(sorted(a.SerializeToString() for a in node.attribute)),
                [values[name] for name in node.input if name in values],
            )
            for node in proto.graph.node
        ]

    ours, theirs = parts(first), parts(second)
    return [part[:2] for part in ours] == [part[:2] for part in theirs] and all(
        a.shape == b.shape and np.allclose(a, b, rtol=1e-5)
        for (*_, mine), (*_, other) in zip(ours, theirs, strict=True)
        for a, b in zip(mine, other, strict=True)
    )


def attribution(template: Template, layers: Sequence[Layer]) -> dict[str, str]:
    """`{name of an ONNX node or of its output: layer}`: whose time a node's time is.

    A node with a layer's weight is that layer's; any other (activation, addition, pooling) is counted with the last
    layer before it, whose channels it works on. A node before any layer is nobody's.
    """
    by_weight = {layer.weight: layer.name for layer in layers}
    order = {layer.name: i for i, layer in enumerate(layers)}
    owner: dict[str, str] = {}
    names: dict[str, str] = {}
    for node in template.proto.graph.node:
        origins = (template.origins[name].parameter for name in node.input if name in template.origins)
        own = next((by_weight[parameter] for parameter in origins if parameter in by_weight), None)
        before = [owner[name] for name in node.input if name in owner]
        layer = own or max(before, key=order.__getitem__, default=None)
        if layer is not None:
            owner.update(dict.fromkeys(node.output, layer))
            names.update(dict.fromkeys([node.name, *node.output], layer))
    return names
