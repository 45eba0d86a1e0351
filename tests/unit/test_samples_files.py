"""Files of samples: arrays, images and sounds. What does not fit is one line that names the file; nothing in a file is run."""

from __future__ import annotations

import pickle
import struct
import wave
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeprune.errors import UsageError
from edgeprune.frontends import samplefiles
from edgeprune.frontends.samplefiles import Files, Form, Held, found
from edgeprune.limits import LIMITS

IMAGE = (3, 5, 6)  # channels, height, width


def form(*shapes: tuple[int, ...], names: tuple[str, ...] = (), kind: str = "float32", raw: bool = False) -> Form:
    return Form(names, shapes, (np.dtype(kind),) * len(shapes), raw)


def files(folder: Path, wanted: Form, pattern: str = "*") -> Files:
    return Files("edgeprune.toml: [data] samples", found(pattern, folder), wanted)


def picture(path: Path, size: tuple[int, int] = (6, 5), mode: str = "RGB") -> np.ndarray:
    """Write an image of random pixels, and return them."""
    from PIL import Image

    channels = {"RGB": 3, "L": 1, "RGBA": 4}[mode]
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    Image.fromarray(pixels.squeeze() if channels == 1 else pixels, mode=None).save(path)
    return pixels


def sound(path: Path, numbers: np.ndarray, rate: int = 16000, channels: int = 1, width: int = 2) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(numbers.astype("<i2").tobytes())


def refused(folder: Path, wanted: Form, pattern: str = "*") -> str:
    """The message of reading all samples. It is one line."""
    with pytest.raises(UsageError) as caught:
        list(files(folder, wanted, pattern))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------------------- arrays


def test_an_array_is_one_sample_or_many_along_its_first_dimension(tmp_path: Path) -> None:
    many, one = np.arange(12.0).reshape(3, 4), np.arange(4.0)
    np.save(tmp_path / "a.npy", many)
    np.save(tmp_path / "b.npy", one)
    np.save(tmp_path / "c.npy", np.array([[1, 2, 3, 4]], dtype=np.int16))
    read = [sample for (sample,) in files(tmp_path, form((4,)))]
    np.testing.assert_array_equal(read, [*many, one, [1, 2, 3, 4]])
    assert {sample.dtype for sample in read} == {np.dtype("float32")}


def test_an_archive_holds_an_array_for_each_input(tmp_path: Path) -> None:
    a, b = np.ones((5, 2)), np.arange(15.0).reshape(5, 3)
    np.savez(tmp_path / "x.npz", mask=a, ids=b)
    named = files(tmp_path, form((3,), (2,), names=("ids", "mask")))[4]
    np.testing.assert_array_equal(named[0], b[4])
    np.testing.assert_array_equal(files(tmp_path, form((2,), (3,)))[0][1], b[0])
    assert "'mask, ids', and the model takes the arrays ids, types" in refused(
        tmp_path, form((3,), (2,), names=("ids", "types"))
    )
    assert "and the model takes one array; save these only" in refused(tmp_path, form((2,)))


def test_names_of_a_model_file_s_inputs_count_where_samples_have_them(tmp_path: Path) -> None:
    """Otherwise arrays of one shape could be taken for each other. A model file's inputs may also be given in order."""
    mask, ids = np.zeros((5, 2)), np.ones((5, 2))
    wanted = replace(form((2,), (2,), names=("ids", "mask")), loose=True)
    np.savez(tmp_path / "x.npz", mask=mask, ids=ids)
    np.testing.assert_array_equal(files(tmp_path, wanted)[0], [ids[0], mask[0]])
    np.testing.assert_array_equal(Held("samples", {"mask": mask, "ids": ids}, wanted)[0], [ids[0], mask[0]])
    np.savez(tmp_path / "x.npz", ids, mask)
    np.testing.assert_array_equal(files(tmp_path, wanted)[0], [ids[0], mask[0]])
    np.savez(tmp_path / "x.npz", attention=mask, ids=ids)
    assert "it holds 'attention, ids', and the model takes the arrays ids, mask" in refused(tmp_path, wanted)


def test_channels_in_the_last_dimension_are_named(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((7, 5, 6, 3)))
    assert "a sample has (3, 5, 6); numpy.moveaxis(array, -1, 1) moves the channels" in refused(tmp_path, form(IMAGE))


@pytest.mark.parametrize(
    ("array", "kind", "message"),
    [
        (np.ones((5, 3)), "float32", r"it has the shape \(5, 3\), and a sample has \(4,\); save \(samples, 4\)"),
        (np.ones(()), "float32", r"it has the shape \(\)"),
        (np.ones((2, 4)), "int64", "it holds numbers of the type float64, and the model takes int64"),
        (np.ones((2, 4), complex), "float32", "it holds numbers of the type complex128"),
        (np.array(["a"] * 4), "float32", "it holds numbers of the type <U1"),
    ],
)
def test_an_array_that_does_not_fit_names_the_file_and_both_forms(
    tmp_path: Path, array: np.ndarray, kind: str, message: str
) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(UsageError, match=rf"\[data\] samples: a.npy: {message}"):
        files(tmp_path, form((4,), kind=kind))


class Evil:
    """Would write a file if it were unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.write_text, (self.path, "run")


def test_no_pickle_is_loaded(tmp_path: Path) -> None:
    mark = tmp_path / "mark.txt"
    np.save(tmp_path / "a.npy", np.array([Evil(mark)], dtype=object), allow_pickle=True)
    assert "a.npy cannot be read: " in refused(tmp_path, form((4,)), "*.npy")
    np.savez(tmp_path / "a.npz", x=np.array([Evil(mark)], dtype=object))
    assert "a.npz cannot be read: " in refused(tmp_path, form((4,)), "*.npz")
    (tmp_path / "a.npy").write_bytes(pickle.dumps(Evil(mark)))
    assert "a.npy cannot be read: " in refused(tmp_path, form((4,)), "*.npy")
    assert not mark.exists()


def test_an_archive_that_unpacks_to_more_than_the_cap_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samplefiles, "LIMITS", replace(LIMITS, unlabelled_file_bytes=100_000))
    np.savez_compressed(tmp_path / "zeros.npz", x=np.zeros((100_000, 4)))
    assert (tmp_path / "zeros.npz").stat().st_size < 20_000
    assert "zeros.npz: it holds 3,200,128 bytes, over 100,000" in refused(tmp_path, form((4,)))


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.png", "a.jpg", "a.wav"])
@pytest.mark.parametrize(
    "content", [b"", b"\x00" * 100, b"\x93NUMPY\x01\x00\xff\xff", b"RIFF\xff\xff\xff\xffWAVE", b"PK\x03\x04"]
)
def test_a_file_of_anything_else_is_one_line(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    shape = {".wav": (8,), ".png": IMAGE, ".jpg": IMAGE}.get(Path(name).suffix, (4,))
    assert f"{name} cannot be read: " in refused(tmp_path, form(shape))


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.png", "a.bmp", "a.ppm", "a.wav"])
def test_a_truncated_file_is_one_line_or_silence(tmp_path: Path, name: str) -> None:
    path, suffix = tmp_path / name, Path(name).suffix
    if suffix == ".wav":
        sound(path, np.ones(8))
    elif suffix in (".npy", ".npz"):
        (np.save if suffix == ".npy" else np.savez)(path, np.ones((3, 4)))
    else:
        picture(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - (10 if suffix == ".wav" else len(content) // 2)])
    if suffix == ".wav":  # what is missing counts as silence
        ((numbers,),) = files(tmp_path, form((8,)))
        assert np.count_nonzero(numbers) == 3
    else:
        assert f"{name} " in refused(tmp_path, form(IMAGE if suffix not in (".npy", ".npz") else (4,)))


# ------------------------------------------------------------------------------------------------------------- images


def test_pixels_are_from_0_to_1_or_raw_and_in_the_order_of_the_models_input(tmp_path: Path) -> None:
    pixels = picture(tmp_path / "a.png")
    first, last = pixels.transpose(2, 0, 1), pixels
    for shape, expected in ((IMAGE, first), ((5, 6, 3), last)):
        ((scaled,),) = files(tmp_path, form(shape))
        np.testing.assert_allclose(scaled, expected / 255, rtol=1e-6)
        ((raw,),) = files(tmp_path, form(shape, raw=True))
        np.testing.assert_array_equal(raw, expected)
        ((whole,),) = files(tmp_path, form(shape, kind="uint8", raw=True))
        assert whole.dtype == np.uint8
    ((grey,),) = files(tmp_path, form((1, 5, 6)))
    ((flat,),) = files(tmp_path, form((5, 6)))
    np.testing.assert_array_equal(grey[0], flat)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".ppm", ".jpg", ".jpeg"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_all_kinds_of_images_are_read(tmp_path: Path, suffix: str, mode: str) -> None:
    pixels = picture(tmp_path / f"a{suffix}", mode=mode)
    ((read,),) = files(tmp_path, form((5, 6, pixels.shape[2])))
    if suffix not in (".jpg", ".jpeg"):
        np.testing.assert_allclose(read, pixels / 255, rtol=1e-6)


def test_an_image_of_another_size_names_both_sizes(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", (8, 4))
    assert "a.png: it has 8×4 pixels, and the model takes 6×5; resize it as for training" in refused(
        tmp_path, form(IMAGE)
    )


def test_the_pixels_of_a_bomb_are_never_decoded(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    for side in (20_000, 2_000_000_000):
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        content = (
            b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
        )
        (tmp_path / "bomb.png").write_bytes(content)
        assert "bomb.png: it " in refused(tmp_path, form(IMAGE))


def test_an_image_of_16_bits_is_not_cut_to_8(tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(np.full((5, 6), 40_000, dtype=np.uint16)).save(tmp_path / "a.png")
    assert "a.png: its pixels are of the form I;16; save 8 bits a channel, or an array" in refused(
        tmp_path, form((1, 5, 6))
    )


def test_images_need_an_input_of_images(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    assert "images need an input (batch, channels, height, width)" in refused(tmp_path, form((7, 5, 6)))
    assert "the model takes 2 inputs; give arrays instead of images" in refused(tmp_path, form(IMAGE, IMAGE))


# ------------------------------------------------------------------------------------------------------------- sounds


def test_a_sound_is_from_minus_1_to_1_and_has_the_inputs_length(tmp_path: Path) -> None:
    numbers = np.array([0, 16384, -32768, 32767])
    sound(tmp_path / "a.wav", numbers)
    ((padded,),) = files(tmp_path, form((6,)))
    np.testing.assert_allclose(padded, [0, 0.5, -1, 32767 / 32768, 0, 0])
    ((cut,),) = files(tmp_path, form((1, 3)))
    np.testing.assert_allclose(cut, [[0, 0.5, -1]])


def test_sounds_of_other_forms_are_one_line(tmp_path: Path) -> None:
    sound(tmp_path / "a.wav", np.ones(8), channels=2)
    assert "a.wav: it has 2 channels of 16 bits; save one channel of 16 bits" in refused(tmp_path, form((8,)))
    sound(tmp_path / "a.wav", np.ones(0))
    assert "a.wav: it holds no sound; remove it" in refused(tmp_path, form((8,)))
    sound(tmp_path / "a.wav", np.ones(8))
    content = bytearray((tmp_path / "a.wav").read_bytes())
    content[20:22] = struct.pack("<H", 3)  # floats
    (tmp_path / "a.wav").write_bytes(content)
    assert "a.wav: it is no WAV file of whole numbers (unknown format: 3); save one channel" in refused(
        tmp_path, form((8,))
    )
    sound(tmp_path / "a.wav", np.ones(8))
    sound(tmp_path / "b.wav", np.ones(8), rate=8000)
    assert "b.wav: the files have 16000 Hz (a.wav) and 8000 Hz (b.wav); save all at one rate" in refused(
        tmp_path, form((8,))
    )
    assert "WAV files need an input (batch, time) or (batch, 1, time)" in refused(tmp_path, form((2, 8)))


# -------------------------------------------------------------------------------------------------- which files count


def test_a_folder_stands_for_the_samples_in_it_and_in_its_folders(tmp_path: Path) -> None:
    folder = tmp_path / "a[1]"
    (folder / "cats").mkdir(parents=True)
    np.save(folder / "b.npy", np.ones(4))
    np.save(folder / "cats" / "a.npy", np.zeros(4))
    (folder / "notes.txt").write_text("")
    (folder / "runs" / "local").mkdir(parents=True)
    np.save(folder / "runs" / "local" / "input_0.npy", np.ones(4))  # of a run
    assert [path.name for path in found("a[1]", tmp_path)] == ["b.npy", "a.npy"]
    assert [path.name for path in found(str(folder), Path("/"))] == ["b.npy", "a.npy"]
    assert [path.name for path in found("a*/*.npy", tmp_path)] == ["b.npy"]
    assert [path.name for path in found("**/a.npy", tmp_path)] == ["a.npy"]


def test_files_of_several_kinds_and_no_files_are_one_line(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones(4))
    picture(tmp_path / "b.png")
    assert "the files are of the kinds '.npy, .png'; give files of one of .npy, .npz, .png" in refused(
        tmp_path, form((4,))
    )
    (tmp_path / "b.png").rename(tmp_path / "b.gif")
    assert "the kinds '.npy, .gif'" in refused(tmp_path, form((4,)))
    for pattern in ("nowhere", "*.wav", "../*.nothing"):
        assert "no file of samples matches" in refused(tmp_path, form((4,)), pattern)


def test_too_many_files_or_samples_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samplefiles, "LIMITS", replace(LIMITS, unlabelled_most=5))
    np.save(tmp_path / "a.npy", np.ones((6, 4)))
    assert "6 samples are more than 5; give fewer" in refused(tmp_path, form((4,)))
    for number in range(6):
        np.save(tmp_path / f"{number}.npy", np.ones(4))
    assert "more than 5 files match; give fewer" in refused(tmp_path, form((4,)))


def test_a_name_from_the_disk_cannot_forge_lines(tmp_path: Path) -> None:
    (tmp_path / "a\nb\x1b[31m.npy").write_bytes(b"")
    assert "\x1b" not in refused(tmp_path, form((4,)))


def test_a_zip_whose_sizes_lie_is_one_line(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros((1000, 4)))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        size = struct.pack("<I", archive.infolist()[0].file_size)
    for at in [i for i in range(len(content) - 4) if content[i : i + 4] == size]:
        content[at : at + 4] = struct.pack("<I", 200)
    (tmp_path / "a.npz").write_bytes(content)
    assert "a.npz" in refused(tmp_path, form((4,)))
