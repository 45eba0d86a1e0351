"""ExecuTorch's .pte. Its inputs and outputs have no names, and its first method is the one that runs."""

from __future__ import annotations

import struct
from collections import Counter
from pathlib import Path

from edgeprune.errors import UsageError, usage_error
from edgeprune.limits import LIMITS
from edgeprune.records import ModelFile, Precision, TensorSpec
from edgeprune.runtimes.executorch.program import CHANNELS_INT8, HALF, IDENTIFIER, INT8, TENSOR, Program
from edgeprune.runtimes.executorch.table import Table
from edgeprune.storage.store import read_capped

DTYPES = {  # by their number in torch
    **dict(enumerate("uint8 int8 int16 int32 int64 float16 float32 float64".split())),
    11: "bool",
    15: "bfloat16",
}


def read(path: Path) -> ModelFile:
    """See `files.read`."""
    content = read_capped(path, LIMITS.model_bytes)
    if content[4:8] != IDENTIFIER:
        raise usage_error(f"{path}: is not an ExecuTorch file of version 12; give the .pte that ExecuTorch wrote")
    try:
        program = Program(content)
        values, taken, made = program.plan.tables(2), program.plan.numbers(3), program.plan.vector(4)
        if max(len(taken), len(made)) > LIMITS.model_tensors:
            raise usage_error(f"{path}: has over {LIMITS.model_tensors} inputs or outputs")
        inputs = tuple(_spec(f"input_{number}", values[index]) for number, index in enumerate(taken))
        outputs = tuple(f"output_{number}" for number in range(len(made)))
        return ModelFile(path, (path,), inputs, outputs, dict(Counter(program.operators)), _precision(program))
    except UsageError:
        raise
    except (struct.error, ValueError, LookupError, OverflowError) as error:
        raise usage_error(f"{path}: is damaged or truncated; get the file again") from error


def _spec(name: str, value: Table) -> TensorSpec:
    tensor = value.table(1)
    if value.number(0, "B") != TENSOR or tensor is None:
        return TensorSpec(name, "number", ())
    dtype = tensor.number(0, "b")
    return TensorSpec(name, DTYPES.get(dtype, f"type {dtype}"), tuple(tensor.numbers(2, "i")))


def _precision(program: Program) -> Precision:
    types = {value.type for graph in program.graphs for value in graph.values.values()}
    return "int8" if types & {INT8, CHANNELS_INT8} else "fp16" if HALF in types else "fp32"
