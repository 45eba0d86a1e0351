"""ncnn's .param, and its weights in the .bin beside it. The device reads the weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from edgeprune.errors import quoted, usage_error
from edgeprune.limits import LIMITS
from edgeprune.records import ModelFile, TensorSpec
from edgeprune.runtimes.ncnn.network import TAGS, Layer, parse
from edgeprune.storage.store import read_capped

HALF = next(tag.to_bytes(4, "little") for dtype, tag in TAGS.items() if dtype.name == "float16")
NO_OPERATORS = "Input", "MemoryData", "Split", "Noop"


def read(path: Path) -> ModelFile:
    """See `files.read`."""
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
