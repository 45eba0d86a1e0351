"""TFLite files from litert-torch. Constants are channels-last, and the file states every shape."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgeprune.errors import RuntimeMissing
from edgeprune.records import Groups, Widths
from edgeprune.runtimes.base import silenced
from edgeprune.runtimes.formats import decompositions
from edgeprune.runtimes.formats.base import Dims, Node, Origin, Origins, Template, pattern, refusal
from edgeprune.runtimes.formats.simplified import simplified
from edgeprune.runtimes.formats.sizes import Constants
from edgeprune.runtimes.tflite import flatbuffer

SLICED = 2  # the input of SLICE that holds the size of the slice


class TfliteTemplate(Template):
    """A TFLite file, sliced as a flatbuffer. The interpreter infers the intermediate shapes."""

    singles_differ = True  # with one head, its product of queries and keys is another operator, and slower

    def __init__(self, model: nn.Module, inputs: tuple[Tensor, ...], groups: Groups) -> None:
        self._origins: dict[int, Origin] | None = None
        self._absorbing: set[int] = set()  # biases that hold a product of the next weight and a layer norm's bias
        super().__init__(model, inputs, groups)

    @staticmethod
    def written(model: nn.Module, inputs: tuple[Tensor, ...]) -> bytes:
        """See `Template.written`."""
        with torch.no_grad(), silenced():
            try:
                return _converted(model, inputs)
            except RuntimeMissing:
                raise
            except Exception as error:  # noqa: BLE001 - the converter raises many types, all of them about the model
                try:
                    return _converted(simplified(model, inputs), inputs)
                except Exception:  # noqa: BLE001 - the first error is about the model as the user wrote it
                    raise refusal("TFLite", model, inputs, error) from error

    @property
    def origins(self) -> dict[int, Origin]:
        """The origin of each constant, by tensor number."""
        if self._origins is None:
            model, origins = flatbuffer.read(self.exported), Origins(self._folded, self._computed)
            found = {
                i: origins.find(value) for i, value in flatbuffer.constants(model).items() if value.dtype == np.float32
            }
            self._origins = {i: origin for i, origin in found.items() if origin is not None}
            self._origins |= self._scaled(model)
        return self._origins

    def _scaled(self, model: Any) -> dict[int, Origin]:
        """Linear layers with scaled inputs: the converter folds a layer norm's weight and bias into the next layer."""
        constants = flatbuffer.constants(model)
        known = {origin.parameter for origin in (self._origins or {}).values()}
        unknown = {
            name: p.detach().numpy() for name, p in self._folded.named_parameters() if p.ndim == 2 and name not in known
        }
        found: dict[int, Origin] = {}
        for name, operator in flatbuffer.operators(model):
            if not name.endswith(":FULLY_CONNECTED") or operator.inputs[1] not in constants:
                continue
            value = constants[int(operator.inputs[1])]
            parameter = next((name for name, weight in unknown.items() if _columns_scaled(weight, value)), None)
            if parameter is not None:
                found[int(operator.inputs[1])] = Origin(parameter, (0, 1))
                if len(operator.inputs) > 2 and operator.inputs[2] in constants:
                    found[int(operator.inputs[2])] = Origin(parameter.removesuffix("weight") + "bias", (0,))
                    self._absorbing.add(int(operator.inputs[2]))
        return found

    @staticmethod
    def operators(file: bytes) -> int:
        """See `Template.operators`."""
        return sum(1 for _ in flatbuffer.operators(flatbuffer.read(file)))

    def nodes(self) -> Iterator[Node]:
        """Operators by number and kind, as in `runtimes.tflite`."""
        model = flatbuffer.read(self.exported)
        for name, operator in flatbuffer.operators(model):
            inputs = [int(i) for i in operator.inputs if i >= 0]
            parameters = tuple(self.origins[i].parameter for i in inputs if i in self.origins)
            yield Node((name,), tuple(inputs), tuple(int(i) for i in operator.outputs), parameters)

    @staticmethod
    def constants(file: bytes) -> Constants:
        """See `Template.constants`."""
        model = flatbuffer.read(file)
        values = flatbuffer.constants(model)
        return {
            (number, position): values[int(i)]
            for number, (_, operator) in enumerate(flatbuffer.operators(model))
            for position, i in enumerate(operator.inputs)
            if int(i) in values
        }

    def sliced(self, kept: Mapping[str, Dims], widths: Widths, filled: bool = False) -> bytes:
        """See `Template.sliced`."""
        model = flatbuffer.read(self.exported)
        constants = flatbuffer.constants(model)
        layers = {layer.weight: layer for layer in self._groups.layers}
        for i, origin in self.origins.items():
            if filled or origin.parameter in kept:
                take = origin.patterned if filled else origin.take
                flatbuffer.store(model, i, take(constants[i], kept))
        for number, (name, operator) in enumerate(flatbuffer.operators(model)):
            filters = self.origins.get(operator.inputs[1]) if name.endswith(":DEPTHWISE_CONV_2D") else None
            if filters is not None and filters.parameter in layers:
                layer = layers[filters.parameter]
                multiplier = layer.outputs.size(widths) // layer.convolution_groups(widths)
                operator.builtinOptions.depthMultiplier = multiplier
            for position, i in enumerate(operator.inputs):
                resized = self._sizes.get((number, position))
                if resized is None or resized.fits(flatbuffer.shape(model.subgraphs[0].tensors[i]), widths):
                    continue
                value = resized.at(constants[int(i)], widths)
                flatbuffer.store(model, flatbuffer.own(model, operator, position), value)
                if name.endswith(":SLICE") and position == SLICED:
                    model.subgraphs[0].tensors[operator.outputs[0]].shape = value  # the interpreter does not infer it
        return _with_inferred_shapes(model)

    @staticmethod
    def filled(file: bytes) -> bytes:
        """See `Template.filled`."""
        model = flatbuffer.read(file)
        for i, value in flatbuffer.constants(model).items():
            flatbuffer.store(model, i, pattern(value))
        return flatbuffer.pack(model)

    def agrees(self, kept: Mapping[str, Dims], widths: Widths, exported: bytes) -> bool:
        """See `Template.agrees`."""
        fresh = flatbuffer.read(exported)
        try:
            ours = flatbuffer.read(self.sliced(kept, widths))
        except (RuntimeError, ValueError):  # a size that the file states does not fit
            return False
        return _same(ours, fresh, self._absorbing)


def _converted(model: nn.Module, inputs: tuple[Tensor, ...]) -> bytes:
    """The model as litert-torch writes it. Raises an error if the interpreter cannot load the file."""
    try:
        import litert_torch
        from litert_torch.fx_infra import decomp
    except ImportError as error:
        raise RuntimeMissing("litert-torch is not installed; pip install 'edgeprune[tflite]'") from error
    for operator, decomposed in decompositions.TFLITE.items():
        decomp.add_pre_convert_decomp(operator, decomposed)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.tflite"
        litert_torch.convert(model, inputs).export(str(path))
        file = path.read_bytes()
    _interpreter(file)
    return file


def _columns_scaled(weight: np.ndarray, value: np.ndarray) -> bool:
    """Whether `value` is `weight` (outputs, inputs) with each column multiplied by a factor."""
    if weight.shape != value.shape or not weight.all():
        return False
    factors = value / weight
    return bool(np.allclose(factors, factors[:1], rtol=1e-3))


def _interpreter(file: bytes) -> Any:
    """The interpreter of a file, without delegates. It raises an error for an operator that it does not have."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(
        model_content=file, experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    )
    interpreter.allocate_tensors()
    return interpreter


def _with_inferred_shapes(model: Any) -> bytes:
    """The file with the shapes that the interpreter infers without delegates, including targets of reshapes."""
    subgraph = model.subgraphs[0]
    with silenced():
        interpreter = _interpreter(flatbuffer.pack(model))
    for detail in interpreter.get_tensor_details():
        if detail["index"] < len(subgraph.tensors):
            subgraph.tensors[detail["index"]].shape = detail["shape"].astype(np.int32)
    constants = flatbuffer.constants(model)
    for name, operator in flatbuffer.operators(model):
        if name.endswith(":RESHAPE") and len(operator.inputs) > 1:
            shape = constants.get(int(operator.inputs[1]))
            if shape is not None and -1 in shape:
                flatbuffer.store(model, operator.inputs[1], subgraph.tensors[operator.outputs[0]].shape)
    return flatbuffer.pack(model)


def _same(first: Any, second: Any, absorbing: set[int]) -> bool:
    """Whether operators, options, shapes and constants are the same. The values of some constants of `first` do not count."""

    def parts(model: Any) -> list[tuple[str, dict[str, Any], list[list[int]]]]:
        tensors = model.subgraphs[0].tensors
        return [
            (
                name,
                vars(operator.builtinOptions) if operator.builtinOptions else {},
                [flatbuffer.shape(tensors[i]) for i in [*operator.inputs, *operator.outputs] if i >= 0],
            )
            for name, operator in flatbuffer.operators(model)
        ]

    def values(model: Any) -> list[tuple[int, np.ndarray]]:
        found = flatbuffer.constants(model)
        read = [int(i) for _, operator in flatbuffer.operators(model) for i in operator.inputs]
        return [(i, found[i]) for i in read if i in found]

    if [str(part) for part in parts(first)] != [str(part) for part in parts(second)]:
        return False
    ours, theirs = values(first), values(second)
    return len(ours) == len(theirs) and all(
        a.shape == b.shape and (i in absorbing or np.allclose(a, b, rtol=1e-5, atol=1e-7))
        for (i, a), (_, b) in zip(ours, theirs, strict=True)
    )
