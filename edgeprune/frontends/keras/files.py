"""Keras files: `.keras` archives and `.h5`. Their description is checked before Keras reads it, so no file runs code.

A description names classes and functions. Only layers of the table, and Keras's own initializers and regularizers, are let
through. The number of weights that the layers need must fit the weights that the file holds.
"""

from __future__ import annotations

import importlib
import io
import json
import math
import os
import shutil
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgeprune.errors import RuntimeMissing, SecurityError, UsageError, first_line, quoted, usage_error
from edgeprune.frontends.keras.activations import FUNCTIONS, OVER_CHANNELS
from edgeprune.frontends.keras.table import FACTORY, TABLE
from edgeprune.limits import LIMITS

RUNS_CODE = {"Lambda", "__lambda__", "TorchModuleWrapper", "TFSMLayer", "JaxLayer", "FlaxLayer"}
CONTAINERS = {"InputLayer", "Functional", "Sequential", "Model", "DTypePolicy"}
VALUES = {"__keras_tensor__", "__tuple__", "__numpy__", "__tensor__", "__ellipsis__", "__slice__"}
SETTINGS = ("initializers", "regularizers", "constraints")  # modules of Keras whose classes a layer may name
# Arguments that Keras 2 wrote and that Keras 3 refuses. At this value they do nothing.
OLD: Mapping[str, tuple[str, Any]] = {
    **dict.fromkeys(("DepthwiseConv1D", "DepthwiseConv2D", "SeparableConv1D", "SeparableConv2D"), ("groups", 1)),
    **dict.fromkeys(("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"), ("groups", 1)),
    **dict.fromkeys(("LSTM", "GRU", "SimpleRNN"), ("time_major", False)),
}
EXPANDS = 4  # times the size of its file that a file's weights may have; Keras does not compress them
SLACK = 1 << 20  # bytes that count as nothing


@contextmanager
def silent() -> Iterator[None]:
    """A context without the warnings of Keras and of the libraries that it calls."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def require_keras() -> Any:
    """The package keras, on its torch backend.

    Raises:
        RuntimeMissing: it is not installed.
        UsageError: this process uses it on another backend.
    """
    if "keras" not in sys.modules:
        os.environ["KERAS_BACKEND"] = "torch"  # Keras reads it once, while it is imported
    try:
        with silent():
            keras = importlib.import_module("keras")
    except ImportError as error:
        raise RuntimeMissing("keras is not installed; install it: pip install 'edgeprune[keras]'") from error
    backend = keras.config.backend()
    if backend != "torch":
        raise UsageError(
            f"Keras runs on {backend} in this process, and edgeprune needs torch;"
            " set KERAS_BACKEND=torch before keras is imported"
        )
    return keras


def load(path: Path) -> Any:
    """The Keras model of a file, with its weights, and not compiled.

    Args:
        path: a `.keras` or an `.h5`.

    Raises:
        UsageError: the file is no model, is cut short or too large, or has a layer that edgeprune does not know.
        SecurityError: loading it would run code, or read other files.
    """
    keras = require_keras()
    if not path.is_file():
        raise UsageError(f"{path} is no file; give the .keras or .h5 that model.save() wrote")
    if path.stat().st_size > LIMITS.weights_bytes:
        raise UsageError(f"{path} is over {LIMITS.weights_bytes} bytes; is it the right file?")
    config, size = _archive(path) if zipfile.is_zipfile(path) else _hdf5(path, path)
    names = {name for module in SETTINGS for name in dir(getattr(keras, module))}
    _require_known(path, config, TABLE.keys() | CONTAINERS | VALUES | names)
    is_old = _drop_old(config)
    try:
        with silent():
            with keras.device("meta"):  # shapes without memory
                needed = sum(math.prod(weight.shape) for weight in _model(keras, config).weights)
            if needed * 2 > size + SLACK:  # two bytes each at least
                raise usage_error(f"{path} holds fewer weights than its layers need; save it again")
            with tempfile.TemporaryDirectory() as folder:
                file = _renewed(path, Path(folder)) if is_old else path
                return keras.saving.load_model(file, compile=False, safe_mode=True)
    except (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        # Keras raises any of these for a file that is damaged.
        raise usage_error(f"{path} cannot be loaded by Keras: {first_line(error)}; save it again") from error


def _drop_old(config: Any) -> bool:
    """Remove the arguments of `OLD` from a description, in place. Returns whether there were any."""
    found = False
    for one in _objects(config):
        given = one.get("config")
        name, value = OLD.get(str(one["class_name"]), ("", None))
        if isinstance(given, dict) and name in given and given[name] == value:
            del given[name]
            found = True
    return found


def _renewed(path: Path, folder: Path) -> Path:
    """A copy of a file without the arguments of `OLD`."""
    import h5py

    copy = folder / path.name
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(copy, "w") as new:
            for name in old.namelist():
                text = old.read(name)
                new.writestr(name, _without_old(text) if name == "config.json" else text)
        return copy
    shutil.copyfile(path, copy)
    with h5py.File(copy, "a") as file:
        file.attrs["model_config"] = _without_old(file.attrs["model_config"])
    return copy


def _without_old(text: bytes | str) -> bytes:
    config = json.loads(text)
    _drop_old(config)
    return json.dumps(config).encode()


def _model(keras: Any, config: Mapping[str, Any]) -> Any:
    """The model of a description that was checked. Its weights are random."""
    return keras.saving.deserialize_keras_object(dict(config)) if "module" in config else _legacy(config)


def _legacy(config: Mapping[str, Any]) -> Any:
    from keras.src.legacy.saving import saving_utils

    return saving_utils.model_from_config(dict(config))


def _archive(path: Path) -> tuple[Mapping[str, Any], int]:
    """The description in a `.keras`, and the size of its weights."""
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {info.filename: info.file_size for info in archive.infolist()}
            held = "config.json" in sizes and "model.weights.h5" in sizes
            if not held:
                raise usage_error(f"{path} has no config.json and model.weights.h5; give the file of model.save()")
            if sizes["config.json"] > LIMITS.json_bytes or sum(sizes.values()) > _most(path):
                raise usage_error(f"{path} is larger inside than a model; is it the right file?")
            config = _parsed(path, archive.read("config.json"))
            return config, _hdf5(path, io.BytesIO(archive.read("model.weights.h5")))[1]
    except (zipfile.BadZipFile, EOFError, NotImplementedError, OSError, RuntimeError) as error:
        raise usage_error(f"{path} cannot be read: {first_line(error)}; save it again") from error


def _most(path: Path) -> int:
    return EXPANDS * path.stat().st_size + SLACK


def _parsed(path: Path, text: bytes | str) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise usage_error(f"{path}: its description is no JSON: {first_line(error)}; save it again") from error
    if not isinstance(found, dict):
        raise usage_error(f"{path}: its description is no model; save it again")
    return {name: value for name, value in found.items() if name not in ("compile_config", "build_config")}


def _hdf5(path: Path, source: Any) -> tuple[Mapping[str, Any], int]:
    """The description in an HDF5 file, which is empty in a `.keras`, and the bytes of its arrays."""
    import h5py

    try:
        with h5py.File(source, "r") as file:
            size = sum(_sizes(path, h5py, file))
            text = file.attrs.get("model_config", "" if source is path else "{}")
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise usage_error(f"{path} is no Keras file, or is cut short: {first_line(error)}; save it again") from error
    if not text:
        raise usage_error(f"{path} holds weights without their model; save it with model.save()")
    if size > _most(path):
        raise usage_error(f"{path} is larger inside than a model; is it the right file?")
    return _parsed(path, text), size


def _sizes(path: Path, h5py: Any, group: Any) -> Iterator[int]:
    """The bytes of every array. Raises `SecurityError` for a link to another file or an array that is in one."""
    for name in group:
        link = group.get(name, getlink=True)
        if isinstance(link, h5py.HardLink):
            item = group[name]
            if isinstance(item, h5py.Group):
                yield from _sizes(path, h5py, item)
                continue
            if not item.external and not item.is_virtual:
                yield item.nbytes
                continue
        raise SecurityError(f"{path} is refused: {quoted(name)} in it is a link to other data; give a file you trust")


def _require_known(path: Path, config: Any, known: set[str]) -> None:
    """Raises an error for the first class or function that a description may not name."""
    for one in _objects(config):
        _require_one(path, one, known)


def _objects(config: Any) -> Iterator[dict[str, Any]]:
    """All classes and functions that a description names, with their settings."""
    todo = [config]
    while todo:
        one = todo.pop()
        if isinstance(one, list):
            todo += one
        elif isinstance(one, dict):
            todo += one.values()
            if "class_name" in one:
                yield one


def _require_one(path: Path, one: Mapping[str, Any], known: set[str]) -> None:
    module, name, config = str(one.get("module") or ""), str(one["class_name"]), one.get("config")
    layer = config.get("name", name) if isinstance(config, dict) else name
    if name in RUNS_CODE:
        raise SecurityError(f"{path} is refused: layer {quoted(layer)} ({name}) holds code, which would run; {FACTORY}")
    if name == "function":
        if config not in FUNCTIONS.keys() | OVER_CHANNELS.keys() | {"linear"}:
            raise usage_error(f"{path}: the function {quoted(config)} is not of Keras; {FACTORY}")
        return
    if name.endswith("QuantizationConfig"):
        raise usage_error(f"{path} is quantised; save the model before quantize() is called")
    own = module in ("", "keras") or module.startswith("keras.")
    registered = str(one.get("registered_name") or name)
    if not own or registered != name:
        raise usage_error(f"{path}: {quoted(layer)} is a custom object ({quoted(registered)}); {FACTORY}")
    if (f"ops.{name}" if module.startswith("keras.src.ops.") else name) not in known:
        raise usage_error(f"{path}: layer {quoted(layer)} ({quoted(name)}): edgeprune does not know it; {FACTORY}")
