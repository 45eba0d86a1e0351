"""Read an ncnn network as objects and write it: the layers in a .param, and their weights in a .bin.

The .bin holds bare numbers. Which weights a layer has, and their shapes, follow from its kind and its parameters.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune.errors import quoted, usage_error
from edgeprune.limits import LIMITS
from edgeprune.records import ModelFile, TensorSpec
from edgeprune.storage.store import read_capped

MAGIC = "7767517"
ARRAY = -23300  # minus the number of a parameter that is an array
QUOTE = '"'  # of a text, such as the expression of a shape: "0w,0h,1n"
FEATURES = 31  # the parameter that says what a layer must not use
FP32 = 7  # its value in fp32: no arithmetic in fp16, no storage in fp16, no storage in bf16
TAGS: dict[np.dtype[Any], int] = {
    np.dtype(np.float32): 0,
    np.dtype(np.float16): 0x01306B47,
    np.dtype(np.int8): 0x000D4B38,
}

HALF = next(tag.to_bytes(4, "little") for dtype, tag in TAGS.items() if dtype.name == "float16")
NO_OPERATORS = "Input", "MemoryData", "Split", "Noop"

Numbers = tuple[int, ...]


@dataclass(frozen=True)
class Tensor:
    """A weight of a kind of layer.

    Attributes:
        dims: the parameter that each dimension is; None: it follows from the size.
        size: the parameter that counts the numbers.
        when: the parameter without which the layer has no such weight, and its default.
        tagged: a tag before the numbers says their type. Others are always fp32.
        turned: the file holds (outputs, inputs), and torch (inputs, outputs).
    """

    dims: tuple[int | None, ...]
    size: int | None = None
    when: tuple[int, int] | None = None
    tagged: bool = False
    turned: bool = False


def _layer(kernel: tuple[int, ...], size: int, bias: int, turned: bool = False) -> tuple[Tensor, ...]:
    return Tensor((0, None, *kernel), size, tagged=True, turned=turned), Tensor((0,), when=(bias, 0))


WEIGHTS: dict[str, tuple[Tensor, ...]] = {
    **{f"{kind}1D": _layer((1,), 6, 5) for kind in ("Convolution", "ConvolutionDepthWise")},
    **{kind: _layer((11, 1), 6, 5) for kind in ("Convolution", "ConvolutionDepthWise")},
    **{f"{kind}3D": _layer((21, 11, 1), 6, 5) for kind in ("Convolution", "ConvolutionDepthWise")},
    **{f"{kind}1D": _layer((1,), 6, 5, turned=True) for kind in ("Deconvolution", "DeconvolutionDepthWise")},
    **{kind: _layer((11, 1), 6, 5, turned=True) for kind in ("Deconvolution", "DeconvolutionDepthWise")},
    "InnerProduct": _layer((), 2, 1),
    "Embed": (Tensor((1, 0), 3, tagged=True), Tensor((0,), when=(2, 0))),
    "BatchNorm": (Tensor((0,)),) * 4,
    "LayerNorm": (Tensor((0,), when=(2, 1)),) * 2,
    "RMSNorm": (Tensor((0,), when=(2, 1)),),
    "GroupNorm": (Tensor((1,), when=(3, 1)),) * 2,
    "InstanceNorm": (Tensor((0,), when=(2, 1)),) * 2,
    "PReLU": (Tensor((0,)),),
    "Bias": (Tensor((0,)),),
    "Scale": (Tensor((0,)), Tensor((0,), when=(1, 0))),
    "Normalize": (Tensor((3,)),),
    "Padding": (Tensor((6,)),),
}
KERNEL = 1, 11, 21  # its width, height and depth
GATES = {"LSTM": (4, 4), "GRU": (3, 4), "RNN": (1, 1)}  # of the weights, and of the bias
SCALES = dict.fromkeys((*GATES, "Convolution", "ConvolutionDepthWise", "InnerProduct"), 8) | dict.fromkeys(
    ("Embed", "Gemm", "MultiHeadAttention"), 18
)  # the parameter that says which int8 scales follow the weights
UNREAD = "Deconvolution3D", "DeconvolutionDepthWise3D", "DeformableConv2D", "Quantize", "Dequantize", "Requantize"


@dataclass
class Layer:
    """One layer: its kind, its name, and the names of the blobs that it reads and makes.

    Attributes:
        params: whole numbers, arrays of them, or the text of anything else, by their numbers. An array's text has a comma.
        weights: pairs of the values and whether a tag says their type.
    """

    kind: str
    name: str
    inputs: list[str]
    outputs: list[str]
    params: dict[int, int | Numbers | str] = field(default_factory=dict)
    weights: list[tuple[np.ndarray, bool]] = field(default_factory=list)

    def number(self, key: int, default: int = 0) -> int:
        """A parameter that is a whole number."""
        found = self.params.get(key, default)
        return found if isinstance(found, int) else default

    def is_int8(self) -> bool:
        """Whether int8 scales follow the weights."""
        return self.kind in SCALES and bool(self.number(SCALES[self.kind]))

    def turned(self, value: np.ndarray) -> np.ndarray:
        """Exchange the first two dimensions in each group of a transposed convolution. Twice gives the same again."""
        groups = self.number(7, 1) if "DepthWise" in self.kind else 1
        split = value.reshape(groups, -1, *value.shape[1:])
        return split.swapaxes(1, 2).reshape(-1, split.shape[1], *value.shape[2:])

    def fit(self) -> None:
        """Make the parameters that count weights agree with them."""
        for known, (value, _) in zip(WEIGHTS.get(self.kind, ()), self.weights, strict=False):
            shape = self.turned(value).shape if known.turned else value.shape
            self.params |= {key: size for key, size in zip(known.dims, shape, strict=True) if key is not None}
            if known.size is not None:
                self.params[known.size] = value.size


def parse(text: str) -> list[Layer]:
    """The layers of a .param, without weights.

    Raises:
        ValueError: it is not a .param, is damaged or too large; the message says what is wrong.
    """
    lines = text.splitlines()
    counts = lines[1].split() if len(lines) > 1 else []
    if not lines or lines[0].strip() != MAGIC or len(counts) != 2 or not all(map(_is_count, counts)):
        raise ValueError(f"is no .param of ncnn: its first line is not {MAGIC}")
    if int(counts[0]) > LIMITS.onnx_nodes:
        raise ValueError(f"has over {LIMITS.onnx_nodes} layers")
    layers = [_parsed(number, line) for number, line in enumerate(lines[2:], 3) if line.strip()]
    if not layers or len(layers) != int(counts[0]):
        raise ValueError(f"has {len(layers)} layers and says {counts[0]}")
    return layers


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10


def _parsed(number: int, line: str) -> Layer:
    words = line.split()
    counts = words[2:4]
    if len(counts) != 2 or not all(map(_is_count, counts)):
        raise ValueError(f"line {number} is no layer")
    (reads, makes), blobs = map(int, counts), words[4:]
    if len(blobs) < reads + makes or reads + makes > LIMITS.model_tensors:
        raise ValueError(f"line {number} has fewer blobs than it says, or over {LIMITS.model_tensors}")
    layer = Layer(words[0], words[1], blobs[:reads], blobs[reads : reads + makes])
    for word in blobs[reads + makes :]:
        key, _, value = word.partition("=")
        if not re.fullmatch(r"-?\d{1,6}", key) or not value:
            raise ValueError(f"line {number} has a parameter that is no NUMBER=VALUE")
        if int(key) <= ARRAY:
            layer.params[ARRAY - int(key)] = _array(value.split(",")[1:])
        else:
            listed = "," in value and not value.startswith(QUOTE)
            layer.params[int(key)] = _array(value.split(",")) if listed else _value(value)
    return layer


def _value(text: str) -> int | str:
    return int(text) if re.fullmatch(r"-?\d{1,10}", text) else text


def _array(parts: list[str]) -> Numbers | str:
    values = [_value(part) for part in parts]
    numbers = tuple(value for value in values if isinstance(value, int))
    if len(numbers) == len(values):
        return numbers
    return ",".join(parts) if len(parts) > 1 else f"{parts[0]},"  # the comma says that it is an array


def read(param: str, weights: bytes) -> list[Layer]:
    """The layers of a .param with their weights, which must be fp32 or fp16.

    Raises:
        ValueError: as `parse`; a layer's weights are unknown, or the .bin has another size.
    """
    layers, at = parse(param), 0
    for layer in layers:
        if layer.kind in UNREAD or layer.is_int8():
            raise ValueError(f"the weights of {layer.kind} {layer.name} cannot be read")
        for shape, tagged, turned in _shapes(layer):
            dtype, skip = (_tagged(weights[at : at + 4]), 4) if tagged else (_untagged(layer), 0)
            end = at + skip + _padded(math.prod(shape) * (dtype.itemsize if dtype else 0))
            if dtype is None or end > len(weights):
                raise ValueError(f"the .bin has no weights for {layer.kind} {layer.name}; is it of another .param?")
            value = np.frombuffer(weights, dtype, math.prod(shape), at + skip).reshape(shape)
            layer.weights.append((layer.turned(value) if turned else value, tagged))
            at = end
    if at != len(weights):
        raise ValueError(f"the .bin has {len(weights)} bytes, and {at} are read")
    return layers


def _tagged(tag: bytes) -> np.dtype[Any] | None:
    """The type of floats after a tag; None for any other tag."""
    number = int.from_bytes(tag, "little")
    return next((dtype for dtype, own in TAGS.items() if own == number and dtype.kind == "f"), None)


def _untagged(layer: Layer) -> np.dtype[Any]:
    """The type of weights without a tag: a constant, such as a mask, may say another one than fp32."""
    kinds = {2: np.float16, 3: np.int8} if layer.kind == "MemoryData" else {}
    return np.dtype(kinds.get(layer.number(21), np.float32))


def _shapes(layer: Layer) -> Iterator[tuple[tuple[int, ...], bool, bool]]:
    """Shape, whether a tag comes first, and whether torch has inputs first: of each weight, in the order of the file."""
    if layer.kind in GATES:
        gates, biases = GATES[layer.kind]
        made = layer.number(0)
        hidden = layer.number(3, made) if layer.kind == "LSTM" else made
        directions = 2 if layer.number(2) == 2 else 1
        size = layer.number(1) // max(1, directions * hidden * gates)
        yield (directions, gates * hidden, size), True, False
        yield (directions, biases, hidden), True, False
        yield (directions, gates * hidden, made), True, False
        if made != hidden:
            yield (directions, made, hidden), True, False
    elif layer.kind == "MultiHeadAttention":
        width = layer.number(0)
        whole = layer.number(2) // max(1, width)
        for inputs in (whole, layer.number(3, width), layer.number(4, width)):
            yield (width, inputs), True, False
            yield (width,), False, False
        yield (whole, width), True, False
        yield (whole,), False, False
    elif layer.kind == "Gemm":
        rows, columns, inner = (layer.number(key) for key in (7, 8, 9))
        if layer.number(4):
            yield ((inner, rows) if layer.number(2) else (rows, inner)), True, False
        if layer.number(5):
            yield ((columns, inner) if layer.number(3) else (inner, columns)), True, False
        shapes = {0: (1,), 1: (rows,), 2: (rows, 1), 3: (rows, columns), 4: (1, columns)}
        if layer.number(6) and layer.number(10) in shapes:
            yield shapes[layer.number(10)], True, False
    elif layer.kind == "MemoryData":
        if 0 in [layer.params.get(key) for key in (2, 11, 1, 0)]:  # ncnn reads it as a dimension that is not there
            raise ValueError(f"the constant {layer.name} has no numbers, and ncnn has no empty tensors")
        shape = tuple(size for size in (layer.number(key) for key in (2, 11, 1, 0)) if size)
        if shape:
            yield shape, not layer.number(21, 1), False
    else:
        yield from _declared(layer)


def _declared(layer: Layer) -> Iterator[tuple[tuple[int, ...], bool, bool]]:
    for known in WEIGHTS.get(layer.kind, ()):
        # A kernel's height is its width, if there is none. All other sizes are zero then.
        width = layer.number(1, 1)
        dims = [None if key is None else layer.number(key, width if key in KERNEL else 0) for key in known.dims]
        if known.when is not None and not layer.number(*known.when):
            continue
        if known.size is not None:
            rest = layer.number(known.size) // max(1, math.prod(size for size in dims if size is not None))
            dims = [rest if size is None else size for size in dims]
        shape = tuple(size for size in dims if size is not None)
        if min(shape) > 0:
            yield shape, known.tagged, known.turned


def write(layers: Sequence[Layer]) -> tuple[str, bytes]:
    """The text of the .param, and the .bin."""
    blobs = sum(len(layer.outputs) for layer in layers)
    lines = [MAGIC, f"{len(layers)} {blobs}"]
    for layer in layers:
        params = [_written(key, value) for key, value in layer.params.items()]
        counts = [str(len(layer.inputs)), str(len(layer.outputs))]
        lines.append(
            " ".join([f"{layer.kind:24} {layer.name:24}", *counts, *layer.inputs, *layer.outputs, *params]).rstrip()
        )
    parts: list[bytes] = []
    for layer in layers:
        turned = [known.turned for known in WEIGHTS.get(layer.kind, ())]
        for position, (value, tagged) in enumerate(layer.weights):
            stored = layer.turned(value) if position < len(turned) and turned[position] else value
            content = np.ascontiguousarray(stored).tobytes()
            parts += [TAGS[value.dtype].to_bytes(4, "little")] if tagged else []
            parts += [content, bytes(_padded(len(content)) - len(content))]
    return "\n".join(lines) + "\n", b"".join(parts)


def _written(key: int, value: int | Numbers | str) -> str:
    text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    if isinstance(value, tuple) or ("," in text and not text.startswith(QUOTE)):
        parts = [part for part in text.split(",") if part]
        return f"{ARRAY - key}={len(parts)},{','.join(parts)}"
    return f"{key}={value}"


def _padded(count: int) -> int:
    return -(-count // 4) * 4


def save(layers: Sequence[Layer], path: Path) -> None:
    """Write the .param, and the .bin beside it."""
    text, weights = write(layers)
    path.write_text(text)
    path.with_suffix(".bin").write_bytes(weights)


def pack(layers: Sequence[Layer]) -> bytes:
    """Both files as one: the .param, a zero byte, the .bin."""
    param, weights = write(layers)
    return param.encode() + b"\0" + weights


def unpack(content: bytes) -> list[Layer]:
    """See `pack`."""
    param, _, weights = content.partition(b"\0")
    return read(param.decode(), weights)


def model_file(path: Path) -> ModelFile:
    """See `Runtime.model_file`."""
    try:
        layers = parse(read_capped(path, LIMITS.ir_bytes).decode("utf-8", "backslashreplace"))
    except ValueError as error:
        raise usage_error(f"{path}: {quoted(str(error))}; get the file again") from error
    weights = path.with_suffix(".bin")
    if not weights.is_file():
        raise usage_error(f"{path}: its weights {weights.name} are missing; put them beside it")
    with weights.open("rb") as stream:
        is_half = stream.read(len(HALF)) == HALF
    read_in = {blob for layer in layers for blob in layer.inputs}
    return ModelFile(
        path=path,
        files=(path, weights),
        inputs=tuple(_spec(layer, layers) for layer in layers if layer.kind == "Input" and layer.outputs),
        outputs=tuple(blob for layer in layers for blob in layer.outputs if blob not in read_in),
        operators=dict(Counter(layer.kind for layer in layers if layer.kind not in NO_OPERATORS)),
        precision="int8" if any(layer.is_int8() for layer in layers) else "fp16" if is_half else "fp32",
    )


def _spec(layer: Layer, layers: Sequence[Layer]) -> TensorSpec:
    """An input of one sample, which is in the first dimension. Its sizes may be missing."""
    sizes = tuple(size for size in (layer.number(key) for key in (2, 11, 1, 0)) if size)
    is_whole = any(other.kind == "Embed" and layer.outputs[0] in other.inputs for other in layers)
    return TensorSpec(layer.outputs[0], "int32" if is_whole else "float32", (1, *sizes) if sizes else None)
