"""TFLite on the host: the artifact is the .tflite file.

Its Python module has no profiler, so the device times each operator in a file that holds only this operator.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune.errors import UsageError
from edgeprune.records import ModelFile, Precision
from edgeprune.runtimes.base import Calls, NodeTimes, Runtime, reason, silenced
from edgeprune.runtimes.tflite import flatbuffer
from edgeprune.runtimes.timing import NodeTime

FLAT = 1e-6  # a range below which a tensor counts as always zero
AVERAGED = 100  # calls: the quantiser's ranges are moving averages, and each call replaces a twentieth of them


class TfLite(Runtime):
    """LiteRT on the CPU, with XNNPACK."""

    name = "tflite"
    own = ".tflite"
    loads = (".tflite",)
    format = "tflite"
    separate_profile = True
    packages = ("ai-edge-litert", "numpy")
    converter = "litert-torch"
    quantizer = "ai-edge-quantizer"
    install = "pip install 'edgeprune[tflite]'"
    # Fixed ranges are faster for convolutions. Ranges of each run (dynamic) are faster for some transformers.
    precisions: Mapping[str, tuple[Precision, ...]] = {
        "fp32": ("fp32",),
        "fp16": ("fp16",),
        "int8": ("int8", "int8-dynamic"),
    }

    def convert(
        self, exported: Path, folder: Path, precision: str = "fp32", samples: Calls = (), exact: bool = True
    ) -> tuple[Path, ...]:
        """See `Runtime.convert`."""
        path = folder / "model.tflite"
        if precision == "fp32":
            return (exported.rename(path),)
        self.require(precision)
        path.write_bytes(_lowered(exported.read_bytes(), precision, samples, exact))
        exported.unlink()
        return (path,)

    def model_file(self, path: Path) -> ModelFile:
        """See `Runtime.model_file`."""
        from edgeprune.runtimes.tflite import file

        return file.read(path)

    def instrument(self, model: Path) -> Path:
        """A file of the model's operators: a line of JSON, then a .tflite file for each operator.

        The sum of their times is within 3 % of the network's time (measured on ResNet-18, MobileNetV2 and a transformer).
        """
        path = model.parent / "operators" / "operators.bin"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            parts = _cut(model.read_bytes())
            index = [{"name": name, "bytes": len(content)} for name, content in parts]
            path.write_bytes(b"".join([json.dumps(index).encode(), b"\n", *(content for _, content in parts)]))
        return path

    def node_times(self, nodes: Sequence[NodeTime]) -> NodeTimes:
        """The device reports operators by number and kind, which is what the host names them."""
        return tuple((node.name, node.ns) for node in nodes)


def _lowered(content: bytes, precision: str, samples: Calls, exact: bool) -> bytes:
    """The file in another precision. Inputs and outputs keep their types."""
    with silenced():
        from ai_edge_litert.interpreter import Interpreter
        from ai_edge_quantizer import quantizer

        try:
            work = quantizer.Quantizer(bytearray(content), _recipe(precision))
            ranges = None
            if work.need_calibration:
                interpreter = Interpreter(model_content=content)
                (key,) = interpreter.get_signature_list()
                inputs = interpreter.get_signature_runner(key).get_input_details()
                calls = [
                    {
                        name: array.astype(known["dtype"])
                        for (name, known), array in zip(inputs.items(), call, strict=True)
                    }
                    for call in islice(cycle(samples), max(len(samples), AVERAGED if exact else 1))
                ]
                found = work.calibrate({key: calls})
                ranges = {name: _sane(seen, exact) for name, seen in found.items()}
            return bytes(work.quantize(ranges).quantized_model)
        except Exception as error:
            raise UsageError(f"ai-edge-quantizer cannot make the model {precision}: {reason(error)}") from error


def _sane(seen: dict[str, Any], exact: bool) -> dict[str, Any]:
    """The range of a tensor, for the quantiser.

    It is −1 to 1 where only speed matters, and where the tensor was always zero, as after a ReLU that is never active.
    XNNPACK refuses the scale of an empty range.
    """
    flat = not exact or float(np.max(seen["max"]) - np.min(seen["min"])) < FLAT
    return {**seen, "min": -np.ones_like(seen["min"]), "max": np.ones_like(seen["max"])} if flat else seen


def _recipe(precision: str) -> Any:
    from ai_edge_quantizer import algorithm_manager, qtyping, recipe_manager

    algorithm, operators = algorithm_manager.AlgorithmName, qtyping.TFLOperationName
    recipe = recipe_manager.RecipeManager()
    if precision == "fp16":
        recipe.add_weight_only_config(".*", operators.ALL_SUPPORTED, 16, algorithm_key=algorithm.FLOAT_CASTING)
    elif precision == "int8-dynamic":
        recipe.add_dynamic_config(".*", operators.ALL_SUPPORTED, 8)
    else:
        recipe.add_static_config(".*", operators.ALL_SUPPORTED, activation_num_bits=8, weight_num_bits=8)
        for end in (operators.INPUT, operators.OUTPUT):
            recipe.add_quantization_config(".*", end, algorithm_key=algorithm.NO_QUANTIZE)
    return recipe.get_quantization_recipe()


def _cut(content: bytes) -> list[tuple[str, bytes]]:
    """Pairs of name and file, in order; each file holds one operator.

    The operator's inputs become the file's inputs, except constants. A constant that is stored in fp16 keeps the operator that
    makes it fp32: the runtime executes that operator once, when it loads the file.
    """
    model = flatbuffer.read(content)
    tensors, stored = model.subgraphs[0].tensors, {}
    parts = []
    for name, operator in flatbuffer.operators(model):
        if name == "DEQUANTIZE" and model.buffers[tensors[operator.inputs[0]].buffer].data is not None:
            stored[int(operator.outputs[0])] = operator
        else:
            before = [stored[int(i)] for i in operator.inputs if int(i) in stored]
            parts.append((name, _alone(model, [*before, operator])))
    return parts


def _alone(model: Any, operators: Sequence[Any]) -> bytes:
    """A file of these operators. The last one gives the outputs."""
    from ai_edge_litert import schema_py_generated as schema

    used = list(dict.fromkeys(int(i) for o in operators for i in [*o.inputs, *o.outputs] if i >= 0))
    place = {old: new for new, old in enumerate(used)}
    buffers, tensors = [schema.BufferT()], []
    for old in used:
        tensor = model.subgraphs[0].tensors[old]
        known = _copy(tensor, buffer=0)
        if model.buffers[tensor.buffer].data is not None:
            known.buffer = len(buffers)
            buffers.append(model.buffers[tensor.buffer])
        tensors.append(known)
    made = {place[int(i)] for operator in operators for i in operator.outputs}
    read = [place[int(i)] for operator in operators for i in operator.inputs if i >= 0]
    subgraph = schema.SubGraphT()
    subgraph.tensors = tensors
    subgraph.operators = [
        _copy(
            operator,
            opcodeIndex=number,
            inputs=np.array([place.get(int(i), -1) for i in operator.inputs], np.int32),
            outputs=np.array([place[int(i)] for i in operator.outputs], np.int32),
        )
        for number, operator in enumerate(operators)
    ]
    free = [i for i in dict.fromkeys(read) if tensors[i].buffer == 0 and i not in made]
    subgraph.inputs, subgraph.outputs = np.array(free, np.int32), subgraph.operators[-1].outputs
    cut = schema.ModelT()
    cut.version, cut.subgraphs, cut.buffers = model.version, [subgraph], buffers
    cut.operatorCodes = [model.operatorCodes[operator.opcodeIndex] for operator in operators]
    return flatbuffer.pack(cut)


def _copy(part: Any, **changed: Any) -> Any:
    """A part of a .tflite file with changed values."""
    copy = type(part)()
    copy.__dict__.update(vars(part), **changed)
    return copy


RUNTIME = TfLite()
