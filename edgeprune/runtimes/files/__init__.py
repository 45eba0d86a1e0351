"""Read what a model file says about itself: inputs, outputs and operators. Its runtime reads it."""

from __future__ import annotations

from pathlib import Path

from edgeprune import runtimes
from edgeprune.errors import usage_error
from edgeprune.limits import LIMITS
from edgeprune.records import ModelFile

DTYPES = frozenset(
    "bool int8 uint8 int16 uint16 int32 uint32 int64 uint64 float16 float32 float64".split()
)  # of inputs that can be made

TRAINED = frozenset(".pt .pth .ckpt .safetensors .keras .h5 .hdf5 .pb .pkl .joblib".split())  # of training frameworks


def read(path: Path) -> ModelFile:
    """See `Runtime.model_file`. Raises `UsageError` also where no runtime has such files, or inputs cannot be made."""
    runtime = runtimes.reading(path.suffix)
    if runtime is None:
        known = ", ".join(sorted(filter(None, (runtimes.host(name).own for name in runtimes.names()))))
        first = "; export the model first" if path.suffix.lower() in TRAINED else ""
        raise usage_error(f"{path}: is no model file that edgeprune measures; give one of {known}{first}")
    found = runtime.model_file(path)
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
