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
from edgeprune.records import Groups, Layer, Span, Widths
from edgeprune.runtimes.base import silenced
from edgeprune.runtimes.formats.base import Dims, Node, Origin, Origins, Template, pattern, refusal
from edgeprune.runtimes.formats.constants import with_stored_constants
from edgeprune.runtimes.tflite import flatbuffer


class TfliteTemplate(Template):
    """A TFLite file, sliced as a flatbuffer. The interpreter infers the intermediate shapes."""

    def __init__(self, model: nn.Module, inputs: tuple[Tensor, ...], groups: Groups) -> None:
        self._origins: dict[int, Origin] | None = None
        # Reshape operator -> position in its target shape -> size. None: inferred from the others.
        self._derived: dict[int, dict[int, Span | None]] = {}
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
                    return _converted(with_stored_constants(model, inputs), inputs)
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
            if number in self._derived:
                shape = constants[operator.inputs[1]].copy()
                for position, span in self._derived[number].items():
                    shape[position] = -1 if span is None else span.size(widths)
                flatbuffer.store(model, flatbuffer.own(model, operator, 1), shape)
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
        self._derived = self._follow(flatbuffer.read(self.exported), fresh, widths)
        try:
            ours = flatbuffer.read(self.sliced(kept, widths))
        except (RuntimeError, ValueError):  # a size that the file states does not fit
            return False
        return _same(ours, fresh)

    def _follow(self, full: Any, cut: Any, widths: Widths) -> dict[int, dict[int, Span | None]]:
        """Find the reshapes whose target shape changes with the widths.

        One changed position can be inferred from the others. Every other one must match exactly one size of the preceding
        layer's groups.
        """
        owners = self.owners(self._groups.layers)
        layers = {layer.name: layer for layer in self._groups.layers}
        values, others = flatbuffer.constants(full), flatbuffer.constants(cut)
        found: dict[int, dict[int, Span | None]] = {}
        pairs = zip(flatbuffer.operators(full), flatbuffer.operators(cut), strict=False)
        for number, ((name, one), (_, other)) in enumerate(pairs):
            if not name.endswith(":RESHAPE") or min(len(one.inputs), len(other.inputs)) < 2:
                continue
            shape, cut_shape = values.get(int(one.inputs[1])), others.get(int(other.inputs[1]))
            if shape is None or cut_shape is None or shape.shape != cut_shape.shape:
                continue
            changed: dict[int, Span | None] = dict.fromkeys(np.flatnonzero(shape != cut_shape).tolist())
            sizes = _sizes(layers[owners[name]], self._groups) if name in owners else ()
            for position in list(changed)[1:]:
                wanted = int(shape[position]), int(cut_shape[position])
                fitting = {s for s in sizes if (s.size(self._groups.full()), s.size(widths)) == wanted}
                changed[position] = fitting.pop() if len(fitting) == 1 else None
            if list(changed.values()).count(None) == 1:
                found[number] = changed
        return found


def _converted(model: nn.Module, inputs: tuple[Tensor, ...]) -> bytes:
    """The model as litert-torch writes it. Raises an error if the interpreter cannot load the file."""
    try:
        import litert_torch
        from litert_torch.fx_infra import decomp
    except ImportError as error:
        raise RuntimeMissing("litert-torch is not installed; pip install 'edgeprune[tflite]'") from error
    decomp.add_pre_convert_decomp(torch.ops.aten.pow.Tensor_Scalar, _power)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.tflite"
        litert_torch.convert(model, inputs).export(str(path))
        file = path.read_bytes()
    _interpreter(file)
    return file


def _power(x: Tensor, exponent: float) -> Any:
    """Common powers as other operators: TFLite has no power of tensors with more than four dimensions."""
    match exponent:
        case 2:
            return x * x
        case 3:
            return x * x * x
        case 0.5:
            return x.sqrt()
        case -0.5:
            return x.rsqrt()
        case -1:
            return x.reciprocal()
    return NotImplemented


def _sizes(layer: Layer, groups: Groups) -> set[Span]:
    """The channel counts that a dimension may have after a layer: its outputs, and their factors."""
    names = {group.name for group in groups.free}
    terms = {(part, 1) for own, _ in layer.outputs.terms for part in [own, *((name,) for name in own)]}
    return {Span(0, (term,)) for term in terms if set(term[0]) <= names} | {layer.outputs}


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


def _same(first: Any, second: Any) -> bool:
    """Whether operators, options, shapes and constants are the same."""

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

    def values(model: Any) -> list[np.ndarray]:
        found = flatbuffer.constants(model)
        return [
            found[int(i)] for _, operator in flatbuffer.operators(model) for i in operator.inputs if int(i) in found
        ]

    if [str(part) for part in parts(first)] != [str(part) for part in parts(second)]:
        return False
    ours, theirs = values(first), values(second)
    return len(ours) == len(theirs) and all(
        a.shape == b.shape and np.allclose(a, b, rtol=1e-5, atol=1e-7) for a, b in zip(ours, theirs, strict=True)
    )
