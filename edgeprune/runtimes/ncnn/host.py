"""ncnn on the host: the artifact is the .param, and the .bin beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgeprune.records import ModelFile
from edgeprune.runtimes.base import Calls, NodeTimes, Runtime
from edgeprune.runtimes.device import Options
from edgeprune.runtimes.ncnn import network
from edgeprune.runtimes.ncnn.device import NcnnModel
from edgeprune.runtimes.ncnn.network import FEATURES, SCALES, Layer, save, unpack
from edgeprune.runtimes.timing import NodeTime

WHOLE = 127  # the largest value of a signed byte that ncnn uses; the smallest is its negative
CLIPPED = np.linspace(1.0, 0.3, 15)  # shares of the largest value that are tried as the end of a range
SCALED = {
    "Convolution": 2,
    "InnerProduct": 2,
    "Gemm": 2,
    "ConvolutionDepthWise": 1,
}  # kinds in int8, and their scale term
CHAINED = "Convolution", "ConvolutionDepthWise"  # kinds that may pass bytes to each other
BYTES = 100  # what the scale term is larger by if the output is bytes
OBSERVED = 4096  # numbers of a blob that each call contributes


class Ncnn(Runtime):
    """The CPU."""

    name = "ncnn"
    own = ".param"
    loads = (".param",)
    format = "ncnn"
    packages = ("ncnn", "numpy")
    complete_packages = True  # the others are of its zoo of models
    converter = "pnnx"
    quantizer = "ncnn"
    install = "pip install 'edgeprune[ncnn]'"

    def convert(
        self, exported: Path, folder: Path, precision: str = "fp32", samples: Calls = (), exact: bool = True
    ) -> tuple[Path, ...]:
        """See `Runtime.convert`. What a layer must not use is in the file, so ncnn's own options are right everywhere.

        fp16 means weights and blobs of 16 bits. A CPU that has arithmetic in fp16 also uses this.
        """
        path = folder / "model.param"
        layers = unpack(exported.read_bytes())
        if precision == "fp16":
            for layer in layers:
                del layer.params[FEATURES]
                layer.weights = [(value.astype(np.float16) if own else value, own) for value, own in layer.weights]
        if precision == "int8":
            ends = _ends(layers, samples, path) if exact else {}
            for layer in filter(_is_scaled, layers):
                _quantize(layer, ends.get(layer.inputs[0], 1.0))
            _chain(layers)
        save(layers, path)
        exported.unlink()
        return self.files(path)

    def model_file(self, path: Path) -> ModelFile:
        """See `Runtime.model_file`. The device reads the weights, in the .bin beside it."""
        return network.model_file(path)

    def files(self, model: Path) -> tuple[Path, ...]:
        """The network, and its weights beside it."""
        return model, model.with_suffix(".bin")

    def node_times(self, nodes: Sequence[NodeTime]) -> NodeTimes:
        """Layers keep their names."""
        return tuple((node.name, node.ns) for node in nodes)


def _is_scaled(layer: Layer) -> bool:
    """Whether a layer can be in int8. A Gemm must be a linear layer: its second matrix is a weight, (outputs, inputs)."""
    is_linear = layer.kind != "Gemm" or [layer.number(key) for key in (4, 5, 3)] == [0, 1, 1]
    return layer.kind in SCALED and len(layer.inputs) == 1 and bool(layer.weights) and is_linear


def _quantize(layer: Layer, end: float) -> None:
    """Store a layer's weights as bytes, with a scale for each output, and the scale of its input; in place."""
    (value, _), *rest = layer.weights
    groups = {"Gemm": 1, "ConvolutionDepthWise": layer.number(7, 1)}  # with a scale each
    rows = value.reshape(groups.get(layer.kind, len(value)), -1)
    scales = WHOLE / np.maximum(np.abs(rows).max(1), 1e-12)
    weights = np.clip(np.rint(rows * scales[:, None]), -WHOLE, WHOLE).astype(np.int8).reshape(value.shape)
    layer.params[SCALES[layer.kind]] = SCALED[layer.kind]
    # A Gemm finds the range of its input in every run.
    extra = (scales,) if layer.kind == "Gemm" else (scales, np.array([WHOLE / max(end, 1e-6)]))
    layer.weights = [(weights, True), *rest, *((array.astype(np.float32), False) for array in extra)]


def _chain(layers: Sequence[Layer]) -> None:
    """Let a convolution pass bytes to the only layer that reads it, if this is a convolution, too; in place."""
    readers: dict[str, list[Layer]] = {}
    for layer in layers:
        for blob in layer.inputs:
            readers.setdefault(blob, []).append(layer)
    for layer in filter(_can_chain, layers):  # before its reader, whose last scale is still that of its input
        following = readers.get(layer.outputs[0], [])
        if len(following) == 1 and _can_chain(following[0]):
            layer.params[SCALES[layer.kind]] = SCALED[layer.kind] + BYTES
            layer.weights.append(following[0].weights[-1])


def _can_chain(layer: Layer) -> bool:
    return layer.kind in CHAINED and layer.is_int8()


def _ends(layers: Sequence[Layer], samples: Calls, path: Path) -> dict[str, float]:
    """The ends of the ranges of the blobs that layers in int8 read, from a run of each call in fp32."""
    blobs = list(dict.fromkeys(layer.inputs[0] for layer in layers if _is_scaled(layer)))
    save(layers, path)
    model = NcnnModel(str(path), Options(1))
    model.net.opt.lightmode = False  # it would drop blobs that were read
    seen: dict[str, list[np.ndarray]] = {blob: [] for blob in blobs}
    random = np.random.default_rng(0)
    for call in samples:
        model.feed(call)
        extractor = model.begin()
        for blob in blobs:
            values = np.abs(extractor.extract(blob)[1].numpy()).ravel()
            few = values if values.size <= OBSERVED else random.choice(values, OBSERVED)
            seen[blob].append(np.append(few, values.max()))
    return {blob: _end(np.concatenate(values)) for blob, values in seen.items()}


def _end(values: np.ndarray) -> float:
    """The end of a range of bytes that rounds these values with the least square error."""
    ends = values.max() * CLIPPED

    def error(end: float) -> float:
        scale = WHOLE / max(end, 1e-12)
        return float(np.square(np.minimum(np.rint(values * scale), WHOLE) / scale - values).sum())

    return float(min(ends, key=error))


RUNTIME = Ncnn()
