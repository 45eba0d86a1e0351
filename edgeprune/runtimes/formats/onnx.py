"""ONNX files from PyTorch's exporter. It is the TorchScript one: node names are module paths, constants keep their names."""

from __future__ import annotations

import copy
import io
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import torch
from torch import Tensor, nn

from edgeprune.errors import UsageError
from edgeprune.graph import regions
from edgeprune.graph.trace import exported, exporting
from edgeprune.network.adapter import FileNames, file_names
from edgeprune.network.outputs import tensors
from edgeprune.records import Groups, Widths
from edgeprune.runtimes.base import silenced
from edgeprune.runtimes.formats import recurrence, symbolics
from edgeprune.runtimes.formats.assignments import assigns_parts, explicit
from edgeprune.runtimes.formats.base import Dims, Node, Origin, Origins, Template, pattern, refusal
from edgeprune.runtimes.formats.recurrence import Stacked
from edgeprune.runtimes.formats.sizes import Constants
from edgeprune.runtimes.onnxruntime.device import quiet

# A file has the first of these opsets that has all of the model's operators. A runtime that reads a later one reads the first,
# too, and an older runtime may read no other. Torch's exporter writes no later ones.
OPSETS = 17, 18, 19, 20
POOLS = "AveragePool", "MaxPool"


class OnnxTemplate(Template):
    """An ONNX file, sliced as a protobuf."""

    def __init__(self, model: nn.Module, inputs: tuple[Tensor, ...], groups: Groups) -> None:
        self._proto: onnx.ModelProto | None = None
        super().__init__(model, inputs, groups)

    @property
    def proto(self) -> onnx.ModelProto:
        """The exported file, parsed."""
        if self._proto is None:
            self._proto = onnx.load_from_string(self.exported)
            origins = Origins(self._folded, self._computed)
            self._weights = {t.name: onnx.numpy_helper.to_array(t) for t in self._proto.graph.initializer}
            found = {name: origins.find(value) for name, value in self._weights.items()}
            self.origins: dict[str, Origin | Stacked] = {
                name: origin for name, origin in found.items() if origin is not None
            }
            self.origins |= recurrence.stacked(self._proto, self._weights, origins)
            self._bare = onnx.ModelProto()  # without weights, which are most of the file
            self._bare.CopyFrom(self._proto)
            del self._bare.graph.initializer[:], self._bare.graph.value_info[:]
        return self._proto

    @staticmethod
    def written(model: nn.Module, inputs: tuple[Tensor, ...]) -> bytes:
        """See `Template.written`."""
        names = file_names(model)
        if isinstance(model, torch.fx.GraphModule):
            model = explicit(model)
        elif assigns_parts(model, inputs):
            with suppress(
                UsageError, RuntimeError
            ):  # such as an operator that only the model's code can be traced with
                return _simplified(_at_lowest_opset(_graph(model, inputs), inputs, names))
        try:
            content = _at_lowest_opset(model, inputs, names)
        except torch.onnx.errors.OnnxExporterError as error:
            raise refusal("ONNX", model, inputs, error) from error
        except Exception:  # noqa: BLE001 - the user's code: a size is a tensor here, which no dictionary has as its key
            try:
                content = _at_lowest_opset(_graph(model, inputs), inputs, names)
            except RuntimeError as error:
                raise refusal("ONNX", model, inputs, error) from error
        return _simplified(content)

    @staticmethod
    def operators(file: bytes) -> int:
        """See `Template.operators`."""
        return sum(node.op_type != "Constant" for node in onnx.load_from_string(file).graph.node)

    def nodes(self) -> Iterator[Node]:
        """A profiler uses the name of a node or of its output."""
        for node in self.proto.graph.node:
            origins = [self.origins[name] for name in node.input if name in self.origins]
            parameters = tuple(name for origin in origins for name in origin.parameters)
            yield Node((node.name, *node.output), tuple(node.input), tuple(node.output), parameters)

    @staticmethod
    def constants(file: bytes) -> Constants:
        """See `Template.constants`."""
        graph = onnx.load_from_string(file).graph
        values = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
        return {
            (number, position): values[name]
            for number, node in enumerate(graph.node)
            for position, name in enumerate(node.input)
            if name in values
        }

    def sliced(self, kept: Mapping[str, Dims], widths: Widths, filled: bool = False) -> bytes:
        """See `Template.sliced`."""
        proto = onnx.ModelProto()
        proto.CopyFrom(self._bare)
        shapes: dict[str, tuple[int, ...]] = {}
        for name, value in self._weights.items():
            origin = self.origins.get(name)
            if origin is not None:
                cut = origin.patterned(value, kept) if filled else origin.take(value, kept)
            else:
                cut = pattern(value) if filled else value
            proto.graph.initializer.append(onnx.numpy_helper.from_array(cut, name))
            shapes[name] = cut.shape
        grouped = {layer.weight: layer for layer in self._groups.layers if layer.per_group is not None}
        for number, node in enumerate(proto.graph.node):
            for position, name in enumerate(node.input):
                resized = self._sizes.get((number, position))
                if resized is None or resized.fits(shapes[name], widths):
                    continue
                value = resized.at(self._weights[name], widths)
                node.input[position] = f"{name}/{number}"  # other nodes may read the constant, too
                proto.graph.initializer.append(onnx.numpy_helper.from_array(value, node.input[position]))
            recurrence.resize(node, shapes)
            origin = self.origins.get(node.input[1]) if node.op_type in ("Conv", "ConvTranspose") else None
            if origin is not None and origin.parameters[0] in grouped:
                _regroup(node, grouped[origin.parameters[0]].convolution_groups(widths))
        return bytes(proto.SerializeToString())

    @staticmethod
    def filled(file: bytes) -> bytes:
        """See `Template.filled`."""
        proto = onnx.load_from_string(file)
        for tensor in proto.graph.initializer:
            value = onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(onnx.numpy_helper.from_array(pattern(value), tensor.name))
        return bytes(proto.SerializeToString())

    def agrees(self, kept: Mapping[str, Dims], widths: Widths, exported: bytes) -> bool:
        """See `Template.agrees`."""
        return _same(onnx.load_from_string(self.sliced(kept, widths)), onnx.load_from_string(exported))


def _graph(model: nn.Module, inputs: tuple[Tensor, ...]) -> torch.fx.GraphModule:
    """A model as its graph, without regions and with explicit assignments."""
    graph: Any = exported(copy.deepcopy(model), inputs).module(check_guards=False)
    regions.inline(graph, regions.constants_of(graph))
    return explicit(torch.fx.GraphModule(graph, graph.graph))


def _at_lowest_opset(model: nn.Module, inputs: tuple[Tensor, ...], names: FileNames | None) -> bytes:
    """The model as torch's exporter writes it. Inputs and outputs have these names, or else numbers."""
    with torch.no_grad():
        outputs = len(tensors(model.eval()(*inputs)))
    given, made = names or ([f"input_{i}" for i in range(len(inputs))], [f"output_{i}" for i in range(outputs)])
    for opset in OPSETS:
        buffer = io.BytesIO()
        try:
            with exporting(), silenced(), symbolics.registered():
                torch.onnx.export(
                    model,
                    inputs,
                    buffer,  # type: ignore[arg-type]
                    dynamo=False,
                    opset_version=opset,
                    input_names=given,
                    output_names=made,
                )
            break
        except torch.onnx.errors.OnnxExporterError:
            if opset == OPSETS[-1]:
                raise
    return _with_inputs(buffer.getvalue(), dict(zip(given, inputs, strict=True)))


def _with_inputs(file: bytes, given: Mapping[str, Tensor]) -> bytes:
    """The file with all its inputs. Torch's exporter leaves out those that no output depends on, and callers pass them all."""
    proto = onnx.load_from_string(file)
    known = {value.name: value for value in proto.graph.input}
    if known.keys() >= given.keys():
        return file
    del proto.graph.input[:]
    for name, tensor in given.items():
        kind = onnx.helper.np_dtype_to_tensor_dtype(tensor.numpy().dtype)
        proto.graph.input.append(known.get(name) or onnx.helper.make_tensor_value_info(name, kind, tensor.shape))
    return bytes(proto.SerializeToString())


def _simplified(file: bytes) -> bytes:
    """Remove identities, unused nodes and constant subgraphs from a file.

    This is ONNX Runtime's basic optimisation level, whose output is standard ONNX. Fusions that would fix sizes are off. A
    file that it cannot load is returned unchanged, and the runtime reports the error later.
    """
    onnxruntime = quiet()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
        options.optimized_model_filepath = f"{folder}/simplified.onnx"
        try:
            onnxruntime.InferenceSession(
                file, options, providers=["CPUExecutionProvider"], disabled_optimizers=["MatMulAddFusion"]
            )
        except Exception:  # noqa: BLE001 - the binding's exceptions have no base of their own
            return file
        proto = onnx.load(options.optimized_model_filepath)
    for known in [known for known in proto.opset_import if known.domain]:
        proto.opset_import.remove(known)
    return bytes(_fitting(proto).SerializeToString())


def _fitting(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Pooling windows larger than what they pool become as large. `ceil_mode` allows them, and OpenVINO refuses them."""
    pools = [(node, {one.name: one for one in node.attribute}) for node in proto.graph.node if node.op_type in POOLS]
    pools = [(node, given) for node, given in pools if "ceil_mode" in given and given["ceil_mode"].i]
    if not pools:
        return proto
    known = onnx.shape_inference.infer_shapes(proto).graph
    shapes = {value.name: value.type.tensor_type.shape.dim for value in (*known.input, *known.value_info)}
    for node, given in pools:
        sizes = [one.dim_value for one in shapes.get(node.input[0], ())][2:]
        kernel = given["kernel_shape"].ints
        if len(sizes) == len(kernel) and all(sizes) and not any(given["pads"].ints if "pads" in given else ()):
            kernel[:] = [min(pair) for pair in zip(kernel, sizes, strict=True)]
    return proto


def _regroup(node: onnx.NodeProto, groups: int) -> None:
    """Set the number of groups of a convolution."""
    for attribute in node.attribute:
        if attribute.name == "group":
            attribute.i = groups


def _same(first: onnx.ModelProto, second: onnx.ModelProto) -> bool:
    """Whether operators, attributes and initialisers are the same."""

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
