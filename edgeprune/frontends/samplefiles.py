"""Files that hold samples of a model's inputs: arrays, images and sounds. Each sample is read when it is needed.

Nothing in a file is run or trusted: no pickle is loaded, and sizes are compared with the model's before anything is decoded.
"""

from __future__ import annotations

import glob
import warnings
import wave
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune.errors import RuntimeMissing, UsageError, first_line, quoted, usage_error
from edgeprune.frontends.sources import SKIPPED
from edgeprune.limits import LIMITS

FULL = 32768.0  # the number of a 16-bit sound that becomes 1
PCM = "save one channel of 16 bits: ffmpeg -i IN.wav -ac 1 -c:a pcm_s16le OUT.wav"
PIXELS: Mapping[int, str] = {
    1: "L",
    3: "RGB",
    4: "RGBA",
}  # pillow's name of a form of pixels, by the number of channels
MODES = "1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"  # of 8 bits
FORMATS = "PNG", "JPEG", "BMP", "PPM"
KEPT_FILES = 8  # .npz files in memory
# What the readers of numpy, wave, zipfile and pillow raise for a damaged file.
DAMAGED = (OSError, ValueError, EOFError, SyntaxError, KeyError, wave.Error, zipfile.BadZipFile, MemoryError)

Sample = tuple[np.ndarray, ...]  # an array for each input, without the dimension of the batch


@dataclass(frozen=True)
class Form:
    """The form of a sample: a name, a shape and a type for each input.

    Attributes:
        names: the arguments of the model, or the inputs of its file; empty if it has none.
        shapes: without the dimension of the batch.
        types: of numpy.
        raw: whether pixels keep their numbers from 0 to 255. Otherwise they are from 0 to 1.
        loose: whether samples may have other names, and then are in the model's order.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    types: tuple[np.dtype[Any], ...]
    raw: bool
    loose: bool = False


def found(pattern: str, folder: Path) -> list[Path]:
    """The files that a pattern matches, sorted. Of a folder, these are all files in it that hold samples.

    Args:
        pattern: a path or a glob pattern; "**" matches any number of folders.
        folder: what it is relative to.

    Raises:
        UsageError: there are none, or too many.
    """
    inside = (folder / pattern).is_dir()
    matches = glob.iglob(f"{glob.escape(pattern)}/**" if inside else pattern, root_dir=folder, recursive=True)
    paths = [folder / name for name in islice(matches, LIMITS.unlabelled_most + 1)]
    if len(paths) > LIMITS.unlabelled_most:
        raise UsageError(f"more than {LIMITS.unlabelled_most:,} files match; give fewer")
    if inside:
        paths = [
            path for path in paths if path.suffix.lower() in KINDS and not _is_made(path.relative_to(folder / pattern))
        ]
    files = [path for path in paths if path.is_file()]
    if not files:
        raise UsageError(f"no file of samples matches; give files of the kinds {', '.join(KINDS)}")
    return sorted(files)


def _is_made(path: Path) -> bool:
    """Whether a file in a folder is one that edgeprune or a tool made there."""
    return not SKIPPED.isdisjoint(path.parts)


class Files(Sequence[Sample]):
    """The samples in files of one kind.

    Args:
        where: names them in messages.
        paths: the files.
        form: what each sample must be.

    Raises:
        UsageError: a file is of an unknown kind, is damaged or does not fit. Images and sounds are read later.
    """

    def __init__(self, where: str, paths: Sequence[Path], form: Form) -> None:
        suffixes = dict.fromkeys(path.suffix.lower() for path in paths)
        kinds = {KINDS[suffix] for suffix in suffixes if suffix in KINDS}
        if len(kinds) != 1 or not suffixes.keys() <= KINDS.keys():
            raise usage_error(
                f"{where}: the files are of the kinds {quoted(', '.join(suffixes))}; give files of one of {', '.join(KINDS)}"
            )
        self._where, self._paths = where, paths
        try:
            self._read = kinds.pop()(form)
        except RuntimeMissing:
            raise
        except UsageError as error:
            raise usage_error(f"{where}: {error}") from error
        counts = [self._tried(path, self._read.count) for path in paths]
        self._ends = np.cumsum(counts)
        if self._ends[-1] > LIMITS.unlabelled_most:
            raise usage_error(
                f"{where}: {self._ends[-1]:,} samples are more than {LIMITS.unlabelled_most:,}; give fewer"
            )

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, number: Any) -> Any:
        place = int(np.searchsorted(self._ends, number, side="right"))
        first = int(self._ends[place - 1]) if place else 0
        return self._tried(self._paths[place], lambda path: self._read.sample(path, number - first))

    def _tried(self, path: Path, read: Callable[[Path], Any]) -> Any:
        """What is read of a file. Raises `UsageError`, with the file's name."""
        try:
            return read(path)
        except RuntimeMissing:
            raise
        except UsageError as error:
            raise usage_error(f"{self._where}: {path.name}: {error}") from error
        except DAMAGED as error:
            raise usage_error(
                f"{self._where}: {path.name} cannot be read: {first_line(error) or type(error).__name__}; replace or remove it"
            ) from error


@dataclass(frozen=True)
class Reader:
    """How a kind of file is read: the number of its samples, and one of them."""

    count: Callable[[Path], int]
    sample: Callable[[Path, int], Sample]


# ------------------------------------------------------------------------------------------------------------ arrays


def _of_array(form: Form) -> Reader:
    """A .npy file: one sample, or many along its first dimension."""
    _require_one_input(form, "a .npz file with an array for each input")

    def array(path: Path) -> np.ndarray:
        return np.lib.format.open_memmap(path, mode="r")  # refuses objects

    return Reader(lambda path: _counted([array(path)], form), lambda path, number: _picked([array(path)], number, form))


def _of_archive(form: Form) -> Reader:
    """A .npz file: an array for each input, under its name or in its order."""

    @lru_cache(KEPT_FILES)
    def arrays(path: Path) -> list[np.ndarray]:
        with zipfile.ZipFile(path) as archive:
            _require_small(sum(entry.file_size for entry in archive.infolist()))
        with np.load(path, allow_pickle=False) as archive:
            known, held = set(form.names), set(archive.files)
            by_name = bool(known) and held >= known
            names = list(form.names) if by_name else archive.files
            mixed = bool(known) and not by_name and (not form.loose or bool(held & known))
            if len(archive.files) != len(form.shapes) or mixed:
                count = "one array" if len(form.shapes) == 1 else f"{len(form.shapes)} arrays"
                wanted = f"the arrays {', '.join(form.names)}" if form.names else count
                raise usage_error(
                    f"it holds {quoted(', '.join(archive.files))}, and the model takes {wanted}; save these only"
                )
            return [archive[name] for name in names]

    return Reader(lambda path: _counted(arrays(path), form), lambda path, number: _picked(arrays(path), number, form))


def _counted(arrays: Sequence[np.ndarray], form: Form) -> int:
    """How many samples the arrays hold together."""
    counts = set()
    for array, shape, kind in zip(arrays, form.shapes, form.types, strict=True):
        if array.dtype.kind not in "fiub" or (array.dtype.kind == "f" and kind.kind != "f"):
            raise usage_error(f"it holds numbers of the type {array.dtype}, and the model takes {kind}; convert them")
        if array.shape not in (shape, (*array.shape[:1], *shape)):
            wanted = ", ".join(map(str, ("samples", *shape)))
            last = len(shape) > 1 and array.shape[1:] == (*shape[1:], shape[0])
            how = "numpy.moveaxis(array, -1, 1) moves the channels" if last else f"save ({wanted}), or a file for each"
            raise usage_error(f"it has the shape {array.shape}, and a sample has {shape}; {how}")
        counts.add(1 if array.shape == shape else len(array))
    if len(counts) > 1:
        raise usage_error(f"its arrays hold {' and '.join(map(str, sorted(counts)))} samples; give each input as many")
    return int(counts.pop())


def _picked(arrays: Sequence[np.ndarray], number: int, form: Form) -> Sample:
    picked = (
        array if array.shape == shape else array[number] for array, shape in zip(arrays, form.shapes, strict=True)
    )
    return tuple(np.array(array, dtype=kind) for array, kind in zip(picked, form.types, strict=True))


class Held(Sequence[Sample]):
    """Samples in memory: an array for each input, (samples, ...), or a sequence of samples.

    Raises `UsageError` if they do not fit.
    """

    def __init__(self, where: str, given: Any, form: Form) -> None:
        columns = list(_columns(given, form))
        if len(columns) != len(form.shapes):
            raise usage_error(f"{where} gives {len(columns)} inputs, and the model takes {len(form.shapes)}")
        self._form = form
        try:
            self._arrays = [np.asarray(column) for column in columns]
            if any(array.shape == shape for array, shape in zip(self._arrays, form.shapes, strict=True)):
                raise UsageError("it is one sample; give (samples, ...)")
            self._count = _counted(self._arrays, form)
        except (UsageError, ValueError) as error:
            raise usage_error(f"{where}: {error}") from error

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: Any) -> Any:
        return _picked(self._arrays, number, self._form)


def _columns(given: Any, form: Form) -> Iterator[Any]:
    """The samples of each input."""
    if isinstance(given, Mapping):
        yield from (given[name] for name in form.names if name in given)
    elif isinstance(given, tuple):
        yield from given
    elif isinstance(given, list) and given:
        rows = [row if isinstance(row, tuple) else (row,) for row in given]
        yield from (
            [_without_batch(one, i, form) for one in column] for i, column in enumerate(zip(*rows, strict=True))
        )
    else:
        yield given


def _without_batch(sample: Any, place: int, form: Form) -> np.ndarray:
    """A sample of a list, which may have a batch dimension of one."""
    array, shapes = np.asarray(sample), form.shapes
    return array[0] if place < len(shapes) and array.shape == (1, *shapes[place]) else array


# ------------------------------------------------------------------------------------------------- images and sounds


def _of_image(form: Form) -> Reader:
    """An image of the model's size, in the order of its input's dimensions."""
    _require_one_input(form, "arrays instead of images")
    shape, kind = form.shapes[0], form.types[0]
    first, last = (len(shape) == 3 and shape[at] in PIXELS for at in (0, -1))
    if not (first or last or len(shape) == 2):
        raise usage_error(f"images need an input (batch, channels, height, width), and a sample has the shape {shape}")
    channels = shape[0] if first else shape[-1] if last else 1
    height, width = shape[1:] if first else shape[:2]
    try:
        from PIL import Image
    except ImportError as error:
        raise RuntimeMissing("pillow is not installed; install it: pip install 'edgeprune[images]'") from error

    def sample(path: Path, number: int) -> Sample:
        _require_small(path.stat().st_size)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # its size is compared before it is decoded
            try:
                opened = Image.open(path, formats=FORMATS)
            except Image.DecompressionBombError as error:
                raise UsageError(f"it is far larger than the model's {width}×{height} pixels; resize it") from error
        with opened as image:
            if image.size != (width, height):
                shown = "×".join(map(str, image.size))
                raise UsageError(
                    f"it has {shown} pixels, and the model takes {width}×{height}; resize it as for training"
                )
            if image.mode not in MODES:
                raise UsageError(f"its pixels are of the form {image.mode}; save 8 bits a channel, or an array")
            pixels = np.asarray(image.convert(PIXELS[channels])).reshape(height, width, channels)
        array = (pixels.transpose(2, 0, 1) if first else pixels).reshape(shape)
        return (array.astype(kind) if form.raw else (array / 255).astype(kind),)

    return Reader(lambda path: 1, sample)


def _of_sound(form: Form) -> Reader:
    """A WAV file of 16 bits and one channel, from −1 to 1. It is cut or padded with silence to the input's length."""
    _require_one_input(form, "arrays instead of sounds")
    shape, kind = form.shapes[0], form.types[0]
    if shape not in ((shape[-1],), (1, shape[-1])) or kind.kind != "f":
        raise usage_error(
            f"WAV files need an input (batch, time) or (batch, 1, time), and a sample has the shape {shape}"
        )
    rates: dict[int, str] = {}

    def sample(path: Path, number: int) -> Sample:
        with _opened(path) as sound:
            if (sound.getnchannels(), sound.getsampwidth()) != (1, 2):
                channels = f"{sound.getnchannels()} channel{'s' * (sound.getnchannels() > 1)}"
                raise UsageError(f"it has {channels} of {8 * sound.getsampwidth()} bits; {PCM}")
            if not sound.getnframes():
                raise UsageError("it holds no sound; remove it")
            rates.setdefault(sound.getframerate(), path.name)
            data = sound.readframes(shape[-1])
        if len(rates) > 1:
            shown = " and ".join(f"{rate} Hz ({name})" for rate, name in rates.items())
            raise UsageError(f"the files have {shown}; save all at one rate")
        numbers = np.frombuffer(data[: len(data) // 2 * 2], "<i2") / FULL
        return (np.pad(numbers, (0, shape[-1] - len(numbers))).reshape(shape).astype(kind),)

    return Reader(lambda path: 1, sample)


def _opened(path: Path) -> wave.Wave_read:
    try:
        return wave.open(str(path), "rb")
    except wave.Error as error:
        if "unknown format" not in str(error):
            raise
        raise UsageError(f"it is no WAV file of whole numbers ({first_line(error)}); {PCM}") from error


def _require_one_input(form: Form, instead: str) -> None:
    if len(form.shapes) > 1:
        raise usage_error(f"the model takes {len(form.shapes)} inputs; give {instead}")


def _require_small(size: int) -> None:
    if size > LIMITS.unlabelled_file_bytes:
        raise UsageError(f"it holds {size:,} bytes, over {LIMITS.unlabelled_file_bytes:,}; save .npy, or several files")


Kind = Callable[[Form], Reader]
KINDS: Mapping[str, Kind] = {
    ".npy": _of_array,
    ".npz": _of_archive,
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".bmp", ".ppm"), _of_image),
    ".wav": _of_sound,
}
