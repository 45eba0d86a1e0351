"""The inputs that a model file is run on: given arrays, or random ones of the file's shapes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeprune.errors import UsageError, quoted, usage_error
from edgeprune.limits import LIMITS
from edgeprune.records import ModelFile, TensorSpec

SEED = 0
SMALL_INTEGERS = 2  # random ones are 0 or 1: they may be indices into a table of any size
NO_NAME = ""


@dataclass(frozen=True)
class Given:
    """What the user gave for inputs, by name. The name "" stands for the only input of a file.

    Attributes:
        shapes: of inputs with dynamic dimensions.
        arrays: files of numpy arrays.
        batch: the size of the first dimension of all inputs.
    """

    shapes: dict[str, tuple[int, ...]]
    arrays: dict[str, Path]
    batch: int | None = None

    @staticmethod
    def parse(shapes: Sequence[str], arrays: Sequence[str], batch: int | None) -> Given:
        """Read texts such as "x=1x3x224x224" and "x=x.npy". Raises `UsageError` for another text, or a name given twice."""
        sizes = {}
        for name, text in _by_name("--shape", shapes).items():
            if not re.fullmatch(r"[1-9]\d{0,8}(x[1-9]\d{0,8})*", text):
                raise usage_error(f"--shape {quoted(text)} is no shape; write --shape NAME=1x3x224x224")
            sizes[name] = tuple(map(int, text.split("x")))
        return Given(sizes, {name: Path(text) for name, text in _by_name("--input", arrays).items()}, batch)

    def names(self) -> Iterator[tuple[str, str]]:
        """Pairs of option and name."""
        yield from (("--shape", name) for name in self.shapes)
        yield from (("--input", name) for name in self.arrays)


NOTHING = Given({}, {})


def _by_name(option: str, texts: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        name, _, value = text.rpartition("=")
        if name in found:
            what = f"for {quoted(name)}" if name else "without a name"
            raise usage_error(f"{option} is given twice {what}; write {option} NAME=VALUE, once for each input")
        found[name] = value
    return found


def require_known(given: Given, files: Sequence[ModelFile]) -> None:
    """Raises `UsageError` if an option names an input that no file has."""
    known = {one.name: None for file in files for one in file.inputs}
    for option, name in given.names():
        if name != NO_NAME and name not in known:
            names = ", ".join(map(quoted, known)) or "none"
            raise usage_error(f"{option} names {quoted(name)}, which is no input of {_paths(files)}; inputs: {names}")
        several = [file for file in files if len(file.inputs) > 1]
        if name == NO_NAME and several:
            names = ", ".join(quoted(one.name) for one in several[0].inputs)
            raise usage_error(
                f"{option} has no name, and {several[0].path} has several inputs; write {option} NAME=VALUE, of {names}"
            )


def _paths(files: Sequence[ModelFile]) -> str:
    return " or ".join(dict.fromkeys(str(file.path) for file in files))


def make(file: ModelFile, given: Given) -> list[np.ndarray]:
    """An array for each input of the file, in order. Random ones are the same each time.

    Raises:
        UsageError: an input has a dynamic dimension, or a given shape or array does not fit.
    """
    random = np.random.default_rng(SEED)
    return [_make(file, one, given, random) for one in file.inputs]


def _make(file: ModelFile, one: TensorSpec, given: Given, random: np.random.Generator) -> np.ndarray:
    path = given.arrays.get(one.name, given.arrays.get(NO_NAME))
    if path is not None:
        return _read(path, file, one, given.batch)
    shape = _shape(file, one, given)
    if math.prod(shape) * np.dtype(one.dtype).itemsize > LIMITS.input_bytes:
        text = f"of shape {_text(shape)} takes over {LIMITS.input_bytes >> 20} MB; give a smaller --shape"
        raise _error(file, one, text)
    return _random(shape, np.dtype(one.dtype), random)


def _error(file: ModelFile, one: TensorSpec, text: str) -> UsageError:
    return usage_error(f"{file.path}: the input {quoted(one.name)} {text}")


def _shape(file: ModelFile, one: TensorSpec, given: Given) -> tuple[int, ...]:
    """The shape in the file, with dynamic dimensions as given."""
    wanted = given.shapes.get(one.name, given.shapes.get(NO_NAME))
    if wanted is not None:
        if not _fits(one, wanted):
            raise _error(file, one, f"has the shape {_text(one.shape)}, and --shape gives {_text(wanted)}")
        return wanted
    if one.shape is None:
        raise _error(file, one, f"has no shape in the file; give one: --shape {one.name}=1x3x224x224")
    sizes = list(one.shape)
    if given.batch is not None and sizes:
        if sizes[0] != given.batch and isinstance(sizes[0], int):
            text = f"has the fixed shape {_text(sizes)}, so --batch {given.batch} cannot be run; export a dynamic batch"
            raise _error(file, one, text)
        sizes[0] = given.batch
    dynamic = [f"{size!r} (dimension {i})" for i, size in enumerate(sizes) if isinstance(size, str)]
    if dynamic:
        example = "x".join(str(size) if isinstance(size, int) else "1" for size in sizes)
        what = "the dynamic dimension" if len(dynamic) == 1 else "the dynamic dimensions"
        raise _error(file, one, f"has {what} {', '.join(dynamic)}; give its shape: --shape {one.name}={example}")
    return tuple(size for size in sizes if isinstance(size, int))


def _fits(one: TensorSpec, shape: Sequence[int]) -> bool:
    """Whether the file allows this shape."""
    if one.shape is None:
        return True
    pairs = zip(one.shape, shape, strict=False)
    return len(one.shape) == len(shape) and all(isinstance(own, str) or own == size for own, size in pairs)


def _text(shape: Sequence[int | str] | None) -> str:
    return "unknown" if shape is None else "x".join(map(str, shape)) or "of a single value"


def _random(shape: tuple[int, ...], dtype: np.dtype, random: np.random.Generator) -> np.ndarray:
    """Normal numbers, bytes of their whole range, and integers that are indices into any table."""
    if dtype.kind == "f":
        return np.asarray(random.standard_normal(shape), dtype)
    if dtype.kind in "iu" and dtype.itemsize == 1:
        limits = np.iinfo(dtype)
        return np.asarray(random.integers(limits.min, limits.max, shape, endpoint=True), dtype)
    return np.asarray(random.integers(0, SMALL_INTEGERS, shape), dtype)


def _read(path: Path, file: ModelFile, one: TensorSpec, batch: int | None) -> np.ndarray:
    """An array from a .npy file. It is mapped first: then a header cannot claim more than the file holds."""
    where = f"--input {path}"
    try:
        if path.stat().st_size > LIMITS.input_bytes:
            raise usage_error(f"{where}: is over {LIMITS.input_bytes >> 20} MB; give a smaller array")
        mapped = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise usage_error(
            f"{where}: cannot be read as a .npy file: {quoted(str(error), 200)}; save it by numpy.save"
        ) from error
    if mapped.dtype.name != one.dtype:
        raise usage_error(
            f"{where}: holds {mapped.dtype.name}, and {file.path} takes {one.dtype} as {quoted(one.name)};"
            f" save array.astype({one.dtype!r})"
        )
    if not _fits(one, mapped.shape):
        wanted = _text(one.shape)
        raise usage_error(
            f"{where}: has the shape {_text(mapped.shape)}, and {file.path} takes {wanted} as {quoted(one.name)}"
        )
    if batch is not None and mapped.shape[:1] != (batch,):
        raise usage_error(f"{where}: has the shape {_text(mapped.shape)}, and --batch is {batch}; give one of them")
    return np.array(mapped, order="C")
