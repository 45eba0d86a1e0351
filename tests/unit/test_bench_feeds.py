"""The inputs that a model file is run on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeprune.errors import UsageError
from edgeprune.frontends import feeds
from edgeprune.limits import Limits
from edgeprune.records import ModelFile, Shape, TensorSpec


def model(*specs: TensorSpec) -> ModelFile:
    return ModelFile(Path("m.onnx"), (), specs, ("y",), {})


def image(shape: Shape | None = (1, 3, 8, 8), dtype: str = "float32") -> ModelFile:
    return model(TensorSpec("x", dtype, shape))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bool", "uint8", "int8", "int32", "int64"])
def test_random_inputs_have_the_files_shape_and_type_and_repeat(dtype: str) -> None:
    (first,), (again,) = feeds.make(image(dtype=dtype), feeds.NOTHING), feeds.make(image(dtype=dtype), feeds.NOTHING)
    assert first.shape == (1, 3, 8, 8) and first.dtype.name == dtype
    np.testing.assert_array_equal(first, again)
    assert len(np.unique(first)) > 1


def test_random_integers_are_indices_into_any_table() -> None:
    (found,) = feeds.make(image((1, 1000), "int64"), feeds.NOTHING)
    assert set(found.flat) == {0, 1}


def test_an_input_may_be_a_single_value() -> None:
    (found,) = feeds.make(image((), "int64"), feeds.NOTHING)
    assert found.shape == ()


def test_dynamic_dimensions_are_named_with_an_example() -> None:
    with pytest.raises(UsageError) as refused:
        feeds.make(image(("batch", 3, "height", 8)), feeds.NOTHING)
    expected = "m.onnx: the input 'x' has the dynamic dimensions 'batch' (dimension 0), 'height' (dimension 2);"
    assert str(refused.value) == f"{expected} give its shape: --shape x=1x3x1x8"
    with pytest.raises(UsageError, match="has no shape in the file"):
        feeds.make(image(None), feeds.NOTHING)


@pytest.mark.parametrize("text", ["x=2x3x8x8", "2x3x8x8"])
def test_a_shape_is_given_by_name_or_for_the_only_input(text: str) -> None:
    given = feeds.Given.parse([text], [], None)
    feeds.require_known(given, [image(("n", 3, 8, 8))])
    assert feeds.make(image(("n", 3, 8, 8)), given)[0].shape == (2, 3, 8, 8)


def test_a_batch_fills_the_first_dimension() -> None:
    given = feeds.Given.parse([], [], 4)
    assert feeds.make(image(("n", 3, 8, 8)), given)[0].shape == (4, 3, 8, 8)
    with pytest.raises(UsageError, match="fixed shape 1x3x8x8, so --batch 4 cannot be run"):
        feeds.make(image(), given)


@pytest.mark.parametrize(
    ("shapes", "arrays", "reason"),
    [
        (["x=0x3"], [], "is no shape"),
        (["x=axb"], [], "is no shape"),
        (["x=1x2", "x=1x3"], [], "given twice for 'x'"),
        (["y=1x3x8x8"], [], "names 'y', which is no input of m.onnx; inputs: 'x'"),
        (["x=1x3x8"], [], "has the shape nx3x8x8, and --shape gives 1x3x8"),
        (["x=1x4x8x8"], [], "and --shape gives 1x4x8x8"),
        ([], ["x=no.npy"], "cannot be read as a .npy file"),
    ],
)
def test_wrong_options_are_one_line(shapes: list[str], arrays: list[str], reason: str) -> None:
    def inputs() -> None:
        given = feeds.Given.parse(shapes, arrays, None)
        feeds.require_known(given, [image(("n", 3, 8, 8))])
        feeds.make(image(("n", 3, 8, 8)), given)

    with pytest.raises(UsageError, match=reason) as refused:
        inputs()
    assert str(refused.value).isprintable()


def test_several_inputs_need_names() -> None:
    two = model(TensorSpec("a", "float32", ("n",)), TensorSpec("b", "float32", ("n",)))
    with pytest.raises(UsageError, match="has several inputs; write --shape NAME=VALUE, of 'a', 'b'"):
        feeds.require_known(feeds.Given.parse(["3"], [], None), [two])
    given = feeds.Given.parse(["a=3", "b=4"], [], None)
    assert [array.shape for array in feeds.make(two, given)] == [(3,), (4,)]


def test_an_array_is_used_as_it_is(tmp_path: Path) -> None:
    array = np.arange(192, dtype="float32").reshape(1, 3, 8, 8)
    np.save(tmp_path / "x.npy", array)
    given = feeds.Given.parse([], [f"x={tmp_path / 'x.npy'}"], None)
    np.testing.assert_array_equal(feeds.make(image(("n", 3, 8, 8)), given)[0], array)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((1, 3, 8, 8)), r"holds float64, and m.onnx takes float32 .*; save array\.astype\('float32'\)"),
        (np.zeros((1, 3, 9, 8), "float32"), "has the shape 1x3x9x8, and m.onnx takes nx3x8x8"),
        (np.array([{}], object), "cannot be read as a .npy file"),
    ],
)
def test_an_array_that_does_not_fit_is_one_line(tmp_path: Path, array: np.ndarray, reason: str) -> None:
    np.save(tmp_path / "x.npy", array, allow_pickle=True)
    given = feeds.Given.parse([], [f"x={tmp_path / 'x.npy'}"], None)
    with pytest.raises(UsageError, match=reason):
        feeds.make(image(("n", 3, 8, 8)), given)


def test_an_array_whose_header_promises_more_than_the_file_holds_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((1, 3, 8, 8), "float32"))
    content = (tmp_path / "x.npy").read_bytes().replace(b"(1, 3, 8, 8), ", b"(1, 3, 8, 8000000000), ".ljust(14))
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(UsageError, match="cannot be read"):
        feeds.make(image(("n", 3, 8, "w")), feeds.Given.parse([], [f"x={tmp_path / 'x.npy'}"], None))


def test_a_huge_input_is_refused_before_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="takes over 1024 MB"):
        feeds.make(image((100_000, 100_000)), feeds.NOTHING)
    monkeypatch.setattr("edgeprune.frontends.feeds.LIMITS", Limits(input_bytes=100))
    with pytest.raises(UsageError, match="takes over"):
        feeds.make(image(), feeds.NOTHING)
