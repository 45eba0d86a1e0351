"""TensorFlow models as networks of torch: `[model] tensorflow`. tf2onnx makes an ONNX file, in a separate process.

The model is a folder of `tf.saved_model.save`, or a `.tflite`. TensorFlow executes parts of a SavedModel while it converts it.
So it must be trusted as a program is.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor, nn

from edgeprune.errors import RuntimeMissing, UsageError, usage_error
from edgeprune.frontends import onnx
from edgeprune.frontends.modelfile import files
from edgeprune.limits import LIMITS
from edgeprune.storage.store import digest_of

SIGNATURES = """
import sys
from tensorflow.core.protobuf import saved_model_pb2
with open(sys.argv[1], "rb") as file:
    model = saved_model_pb2.SavedModel.FromString(file.read())
print(*(name for graph in model.meta_graphs for name in graph.signature_def), sep="\\n")
"""
OPSET = "17"
DEFAULT = "serving_default"  # what TensorFlow and Keras call a model's own signature
INITIALISES = "__saved_model_init_op"  # a signature that every SavedModel has


def network(path: Path, inputs: Any = None) -> nn.Module:
    """The network of a SavedModel or a `.tflite`; see `frontends.onnx.network`.

    Args:
        path: the folder, or the file.
        inputs: example inputs. They give a size to dimensions that the model leaves open.

    Raises:
        RuntimeMissing: TensorFlow or tf2onnx is not installed.
        UsageError: the model cannot be converted, or has several signatures.
    """
    with _converted(path) as file:
        return onnx.network(file, inputs)


def example_inputs(path: Path) -> tuple[Tensor, ...]:
    """Example inputs; see `frontends.onnx.example_inputs`. Raises errors as `network`."""
    with _converted(path) as file:
        found: tuple[Tensor, ...] = onnx.example_inputs(file)
        return found


@contextmanager
def _converted(path: Path) -> Iterator[Path]:
    """A context with the ONNX file that tf2onnx makes. Messages about it name the original."""
    content = _onnx(path, digest_of([*files(path).values()]))
    with TemporaryDirectory() as scratch:
        file = Path(scratch) / "model.onnx"
        file.write_bytes(content)
        try:
            yield file
        except UsageError as error:
            raise type(error)(str(error).replace(str(file), str(path))) from error


@lru_cache(maxsize=1)
def _onnx(path: Path, digest: str) -> bytes:
    """The ONNX file of a model. `digest` makes a changed model another one."""
    missing = [name for name in ("tensorflow", "tf2onnx") if find_spec(name) is None]
    if missing:
        raise RuntimeMissing(f"{missing[0]} is not installed; install it: pip install 'edgeprune[tensorflow]'")
    saved = path.is_dir()
    source = ["--saved-model", str(path), "--signature_def", _signature(path)] if saved else ["--tflite", str(path)]
    with TemporaryDirectory() as scratch:
        file = Path(scratch) / "model.onnx"
        _run(path, "-m", "tf2onnx.convert", *source, "--output", str(file), "--opset", OPSET)
        return file.read_bytes()


def _signature(path: Path) -> str:
    """The signature of a SavedModel that is converted: "serving_default", or the only one."""
    file = path / "saved_model.pb"
    if not file.is_file():
        raise usage_error(f"{path} holds no saved_model.pb; give the folder of a SavedModel, or a .tflite")
    names = [name for name in _run(path, "-c", SIGNATURES, str(file)).splitlines() if name != INITIALISES]
    if DEFAULT in names:
        return DEFAULT
    if len(names) != 1:
        found = f"the signatures {', '.join(names)}" if names else "no signature"
        raise usage_error(f"{path} has {found}; name one of them {DEFAULT!r} when you save it")
    return names[0]


def _run(path: Path, *arguments: str) -> str:
    """What a Python process prints. Raises `UsageError` with its last line if it fails."""
    try:
        done = subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, errors="replace", timeout=LIMITS.convert_s
        )
    except subprocess.TimeoutExpired as error:
        raise UsageError(f"{path} is not converted after {LIMITS.convert_s:.0f} s; convert it with tf2onnx") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it printed nothing"]
        raise usage_error(f"{path} cannot be converted by tf2onnx: {lines[-1][:200]}")
    return done.stdout
