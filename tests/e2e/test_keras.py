"""Model files of Keras and of tf2onnx through the whole pipeline, on a real runtime and without labels."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from small import command, settled

from edgeprune.frontends.keras import files

RECORDED = Path(__file__).parents[1] / "recorded"
PROJECT = """
[model]
{key} = "{file}"

[data]
samples = "samples.npy"

[budget]
latency = "50%"
max_metric_drop = 1.0

[finetune]
epochs = 1
"""


def project(folder: Path, key: str, file: str, shape: tuple[int, ...]) -> Path:
    np.save(folder / "samples.npy", np.random.default_rng(0).random((256, *shape), np.float32))
    (folder / "edgeprune.toml").write_text(PROJECT.format(key=key, file=file))
    return folder / "edgeprune.toml"


@pytest.mark.nightly
def test_a_keras_model_becomes_a_verified_artifact_and_a_smaller_keras_model(tmp_path: Path) -> None:
    keras = files.require_keras()
    layers = keras.layers
    image = keras.Input((32, 32, 3))
    x = layers.Conv2D(32, 3, 2, "same", activation="relu")(image)
    for name in ("block_1", "block_2"):
        y = layers.Conv2D(96, 1, activation="relu", name=f"{name}_expand")(x)
        y = layers.DepthwiseConv2D(3, padding="same", activation="relu", name=f"{name}_depthwise")(y)
        x = layers.Add(name=f"{name}_add")([x, layers.Conv2D(32, 1, name=f"{name}_project")(y)])
    model = keras.Model(image, layers.Dense(5)(layers.GlobalAveragePooling2D()(x)))
    with files.silent():
        model.save(tmp_path / "net.keras")
    run = command("run", "--project", project(tmp_path, "keras", "net.keras", (32, 32, 3)), "--json")
    settled(run)
    assert run.json["pruned"]["macs"] < 0.7 * run.json["baseline"]["macs"]
    with files.silent():
        found = keras.saving.load_model(tmp_path / "runs" / "local" / "latest" / "net.keras")
    assert found.count_params() < 0.8 * model.count_params()


@pytest.mark.nightly
def test_a_keyword_spotter_of_tensorflow_becomes_a_verified_artifact(tmp_path: Path) -> None:
    shutil.copy(RECORDED / "keywords.onnx", tmp_path)
    run = command("run", "--project", project(tmp_path, "onnx", "keywords.onnx", (49, 10, 1)), "--json")
    settled(run)
    assert run.json["pruned"]["macs"] < 0.7 * run.json["baseline"]["macs"]
