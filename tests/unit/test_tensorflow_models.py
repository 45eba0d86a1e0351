"""SavedModels and .tflite files: converted by an extra, whose absence is one line; a signature that is not clear is named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from edgeprune.errors import RuntimeMissing, UsageError
from edgeprune.frontends import tensorflow
from edgeprune.frontends.modelfile import FileModel

MAKE = """
import os, sys
os.environ["KERAS_BACKEND"] = "tensorflow"
import keras, numpy, tensorflow
image = keras.Input((20, 10, 1))
x = keras.layers.Conv2D(8, 3, 2, "same", activation="relu")(image)
x = keras.layers.BatchNormalization()(keras.layers.DepthwiseConv2D(3, padding="same")(x))
x = keras.layers.Conv2D(12, 1, activation="relu")(x)
model = keras.Model(image, keras.layers.Dense(4)(keras.layers.GlobalAveragePooling2D()(x)))
model.export(sys.argv[1])
content = tensorflow.lite.TFLiteConverter.from_saved_model(sys.argv[1]).convert()
open(sys.argv[1] + "/keywords.tflite", "wb").write(content)
images = numpy.random.default_rng(0).random((1, 20, 10, 1), numpy.float32)
numpy.savez(sys.argv[1] + "/expected.npz", images=images, outputs=model(images))
"""


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    (tmp_path / "saved" / "variables").mkdir(parents=True)
    (tmp_path / "saved" / "saved_model.pb").write_bytes(b"")
    return tmp_path / "saved"


@pytest.mark.parametrize("package", ["tensorflow", "tf2onnx"])
def test_without_the_extra_its_name_is_given(package: str, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorflow, "find_spec", lambda name: None if name == package else object())
    with pytest.raises(RuntimeMissing, match=rf"{package} is not installed; .*'edgeprune\[tensorflow\]'"):
        tensorflow.network(saved)


@pytest.mark.parametrize(
    ("printed", "message"),
    [
        (
            "__saved_model_init_op\nencode\ndecode\n",
            "has the signatures encode, decode; name one of them 'serving_default'",
        ),
        ("__saved_model_init_op\n", "has no signature"),
    ],
)
def test_a_signature_that_is_not_clear_is_one_line(
    printed: str, message: str, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorflow, "find_spec", lambda name: object())
    monkeypatch.setattr(tensorflow, "_run", lambda *arguments: printed)
    with pytest.raises(UsageError, match=message):
        tensorflow.network(saved)


def test_a_folder_that_is_no_model_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorflow, "find_spec", lambda name: object())
    with pytest.raises(UsageError, match=r"holds no saved_model\.pb"):
        tensorflow.network(tmp_path)


def test_a_converter_that_fails_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be converted by tf2onnx: ValueError: no such operator"):
        tensorflow._run(tmp_path, "-c", "raise ValueError('no such operator')")


def test_weights_in_folders_inside_are_part_of_the_key(saved: Path) -> None:
    model = FileModel("[model] tensorflow", "tensorflow", saved, "network")
    (saved / "variables" / "variables.data").write_bytes(b"1")
    before = model.sources()
    (saved / "variables" / "variables.data").write_bytes(b"2")
    assert "file variables/variables.data" in before and model.sources() != before


@pytest.mark.slow
def test_a_network_of_tensorflow_computes_the_same(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    pytest.importorskip("tf2onnx")
    pytest.importorskip("tensorflow")
    folder = tmp_path / "model"
    subprocess.run([sys.executable, "-c", MAKE, str(folder)], check=True, capture_output=True)
    known = numpy.load(folder / "expected.npz")
    images, expected = torch.from_numpy(known["images"]), torch.from_numpy(known["outputs"])
    for path in (folder, folder / "keywords.tflite"):
        found = tensorflow.network(path, (images,))(images).detach()
        assert float((found - expected).abs().max()) <= 1e-4 * float(expected.abs().max())
