"""What model files say about themselves, and which files are refused."""

from __future__ import annotations

import inspect
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from modelfiles import save, with_external, write_ir, write_onnx, write_tflite
from onnx import TensorProto, helper

from edgeprune import runtimes
from edgeprune.cli import options
from edgeprune.errors import SecurityError, UsageError
from edgeprune.frontends import toml
from edgeprune.limits import Limits
from edgeprune.records import TensorSpec
from edgeprune.runtimes import files


def test_an_onnx_file_gives_inputs_outputs_and_operators(tmp_path: Path) -> None:
    found = files.read(write_onnx(tmp_path / "m.onnx", shape=("batch", 3, 8, 8)))
    assert found.inputs == (TensorSpec("x", "float32", ("batch", 3, 8, 8)),)
    assert (found.outputs, found.operators, found.precision) == (("y",), {"Conv": 1, "Relu": 1}, "fp32")
    assert found.size_bytes == (tmp_path / "m.onnx").stat().st_size


def test_openvinos_format_gives_inputs_and_its_weights(tmp_path: Path) -> None:
    found = files.read(write_ir(tmp_path / "m.xml", shape="?,3,8..16,8", element="i64"))
    assert found.inputs == (TensorSpec("x", "int64", ("?", 3, "?", 8)),)
    assert found.operators == {"ReLU": 1} and found.outputs == ("y",)
    assert found.files == (tmp_path / "m.xml", tmp_path / "m.bin")


def test_a_tflite_file_gives_open_dimensions(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    found = files.read(write_tflite(tmp_path / "m.tflite", (1, 16), (-1, 16)))
    assert found.inputs == (TensorSpec("x", "float32", ("?", 16)),) and found.operators == {"TANH": 1}
    assert files.read(write_tflite(tmp_path / "n.tflite")).inputs[0].shape == (1, 16)


def test_weights_beside_an_onnx_file_belong_to_it(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(192))
    found = files.read(with_external(tmp_path / "m.onnx", "w.bin"))
    assert found.files == (tmp_path / "m.onnx", tmp_path / "w.bin")
    assert found.size_bytes == (tmp_path / "m.onnx").stat().st_size + 192


def test_links_to_one_folder_are_followed(tmp_path: Path) -> None:
    """Caches of models link each file to a store."""
    store = tmp_path / "store"
    store.mkdir()
    with_external(store / "1234", "w.bin")
    (store / "5678").write_bytes(bytes(192))
    (tmp_path / "m.onnx").symlink_to(store / "1234")
    (tmp_path / "w.bin").symlink_to(store / "5678")
    assert files.read(tmp_path / "m.onnx").files == (tmp_path / "m.onnx", tmp_path / "w.bin")


@pytest.mark.parametrize("location", ["../w.bin", "/etc/passwd", "a/../../w.bin", "", "link.bin", "w\x00.bin"])
def test_weights_outside_the_folder_are_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(192))
    folder = tmp_path / "model"
    (folder / "a").mkdir(parents=True)
    (folder / "link.bin").symlink_to(tmp_path / "w.bin")
    with pytest.raises(SecurityError, match="outside the file's folder") as refused:
        files.read(with_external(folder / "m.onnx", location))
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    ("location", "length", "reason"),
    [
        ("none.bin", "192", "is missing"),
        ("w.bin", "1000", "is truncated"),
        ("w.bin", "many", "no valid offset"),
        ("sub/w.bin", "192", "export it to a file beside the model"),
    ],
)
def test_weights_that_cannot_be_used_are_named(tmp_path: Path, location: str, length: str, reason: str) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(192))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "w.bin").write_bytes(bytes(192))
    with pytest.raises(UsageError, match=reason):
        files.read(with_external(tmp_path / "m.onnx", location, length=length))


def test_a_truncated_file_is_one_line(tmp_path: Path) -> None:
    content = write_onnx(tmp_path / "m.onnx").read_bytes()
    (tmp_path / "m.onnx").write_bytes(content[:-20])
    write_ir(tmp_path / "m.xml").write_text((tmp_path / "m.xml").read_text()[:-9])
    for name in ("m.onnx", "m.xml"):
        with pytest.raises(UsageError, match="truncated") as refused:
            files.read(tmp_path / name)
        assert str(refused.value).startswith(str(tmp_path / name)) and str(refused.value).isprintable()


def test_no_damage_of_a_tflite_file_is_more_than_one_line(tmp_path: Path) -> None:
    """Every cut, and many bytes that point elsewhere."""
    pytest.importorskip("ai_edge_litert")
    path = write_tflite(tmp_path / "m.tflite")
    content, random = path.read_bytes(), np.random.default_rng(0)
    damaged = [content[:size] for size in range(0, len(content), 7)]
    for _ in range(300):
        bytes_ = bytearray(content)
        bytes_[int(random.integers(8, len(bytes_)))] = int(random.integers(256))
        damaged.append(bytes(bytes_))
    refused = []
    for one in damaged:
        path.write_bytes(one)
        with suppress(UsageError):
            files.read(path)
            continue
        refused.append(one)
    assert len(refused) > 100


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "run git lfs pull"),
        (b"\n<!DOCTYPE html><html><body>404</body></html>", "is a web page; download the file itself"),
        (b"PK\x03\x04" + bytes(30), r"is a zip archive, such as a .pt of PyTorch or a .keras; export"),
        (bytes(1000), "is not ONNX, or is truncated; get the file again"),
    ],
)
def test_another_file_under_the_name_of_an_onnx_is_named(content: bytes, text: str, tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(content)
    with pytest.raises(UsageError, match=rf"net\.onnx: .*{text}"):
        files.read(tmp_path / "net.onnx")


def test_a_file_of_a_training_framework_is_exported_first(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"give one of \.onnx, .*; export the model first"):
        files.read(tmp_path / "net.pt")


def test_names_that_are_no_text_are_one_line(tmp_path: Path) -> None:
    """Protobuf stores any bytes as a text."""
    path = with_external(tmp_path / "m.onnx", "weights")
    path.write_bytes(path.read_bytes().replace(b"weights", b"we\xff\xfehts"))
    with pytest.raises(UsageError, match=r"we\\\\xff\\\\xfehts' is missing"):
        files.read(path)


@pytest.mark.parametrize(
    ("element", "reason"),
    [(TensorProto.STRING, "string"), (TensorProto.BFLOAT16, "bfloat16"), (TensorProto.INT4, "int4")],
)
def test_inputs_that_no_array_can_feed_are_refused(tmp_path: Path, element: int, reason: str) -> None:
    with pytest.raises(UsageError, match=f"of type {reason}"):
        files.read(write_onnx(tmp_path / "m.onnx", element=element))


def test_an_input_that_is_a_sequence_is_refused(tmp_path: Path) -> None:
    value = helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, [1])
    output = helper.make_tensor_value_info("y", TensorProto.INT64, [])
    with pytest.raises(UsageError, match="is sequence, not a tensor"):
        files.read(save(tmp_path / "m.onnx", helper.make_graph([], "g", [value], [output])))


def test_an_input_without_values_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="1x0x8x8, which holds no values"):
        files.read(write_onnx(tmp_path / "m.onnx", shape=(1, 0, 8, 8)))


def test_xml_with_a_document_type_is_refused_before_it_grows(tmp_path: Path) -> None:
    entities = "".join(f'<!ENTITY e{i + 1} "{f"&e{i};" * 10}">' for i in range(9))
    head = f'<!DOCTYPE net [<!ENTITY e0 "x">{entities}]>'
    with pytest.raises(UsageError, match="document type"):
        files.read(write_ir(tmp_path / "m.xml", head=head))


def test_a_file_over_the_cap_is_refused_without_reading_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_onnx(tmp_path / "m.onnx")
    monkeypatch.setattr("edgeprune.runtimes.files.onnx.LIMITS", Limits(model_bytes=100))
    monkeypatch.setattr("edgeprune.runtimes.files.onnx.read_capped", lambda *_: pytest.fail("it was read"))
    with pytest.raises(UsageError, match=r"over 100 bytes.*; save its weights as external data"):
        files.read(tmp_path / "m.onnx")


@pytest.mark.parametrize("name", ["model.pt", "model", "model.tflite"])
def test_other_files_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"no model")
    with pytest.raises(UsageError, match=r"model file|TFLite"):
        files.read(tmp_path / name)


OWN = {runtimes.host(name).own: name for name in runtimes.names() if runtimes.host(name).own}


@pytest.mark.parametrize("suffix", OWN)
def test_the_help_the_page_and_the_targets_know_the_files_of_every_runtime(suffix: str) -> None:
    name = OWN[suffix]
    assert suffix in runtimes.host(name).loads
    assert suffix in inspect.getsource(options.OfBench)
    target = "local" if name == "onnxruntime" else f"local-{name}"
    assert toml.read_target(toml.find_target(target, Path.cwd())).runtime == name
    rows = (Path(__file__).parents[2] / "docs" / "bench.md").read_text().splitlines()
    (row,) = (row for row in rows if row.startswith(f"| `{suffix}`"))
    assert f"`{name}`" in row and f"`{target}`" in row


def test_bench_imports_no_torch_to_know_the_files_of_runtimes() -> None:
    script = "import sys; from edgeprune import runtimes; print(runtimes.reading('.pte').name, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=600, check=True)
    assert done.stdout == "executorch False\n"
