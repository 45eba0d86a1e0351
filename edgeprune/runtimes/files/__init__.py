"""Read what a model file says about itself: inputs, outputs and operators. Files are hostile: they are capped, and not run.

.onnx              onnx.py
.xml, with .bin    ir.py: OpenVINO's intermediate representation
.param, with .bin  ncnn.py
.pte               executorch.py
.tflite            tflite.py
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from edgeprune.errors import usage_error
from edgeprune.limits import LIMITS
from edgeprune.records import ModelFile

READERS = {".onnx": "onnx", ".xml": "ir", ".param": "ncnn", ".pte": "executorch", ".tflite": "tflite"}
DTYPES = frozenset(
    "bool int8 uint8 int16 uint16 int32 uint32 int64 uint64 float16 float32 float64".split()
)  # of inputs that can be made


def read(path: Path) -> ModelFile:
    """What the file says about itself.

    Raises:
        UsageError: it is no model file, it is damaged or too large, or a file that belongs to it is missing.
        SecurityError: it names a file outside its folder.
        RuntimeMissing: the package that reads this format is not installed.
    """
    if path.suffix not in READERS:
        raise usage_error(f"{path}: is no model file that edgeprune measures; give one of {', '.join(READERS)}")
    found: ModelFile = import_module(f"{__name__}.{READERS[path.suffix]}").read(path)
    _require_usable(found)
    return found


def _require_usable(found: ModelFile) -> None:
    if max(len(found.inputs), len(found.outputs)) > LIMITS.model_tensors:
        raise usage_error(f"{found.path}: has over {LIMITS.model_tensors} inputs or outputs")
    for one in found.inputs:
        where = f"{found.path}: the input {one.name!r}"
        if one.dtype not in DTYPES:
            raise usage_error(
                f"{where} is of type {one.dtype}, which edgeprune cannot feed; give a file with numeric inputs"
            )
        if any(isinstance(size, int) and size < 1 for size in one.shape or ()):
            shape = "x".join(map(str, one.shape or ()))
            raise usage_error(
                f"{where} has the shape {shape}, which holds no values; export the model with its real shapes"
            )
