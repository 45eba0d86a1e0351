"""A project whose model is a Keras file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from kerasmodels import Input, L, keras, randomised

from edgeprune.errors import UsageError
from edgeprune.frontends import toml
from edgeprune.frontends.keras import files
from edgeprune.frontends.model import Network

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

PROJECT = """
[model]
keras = "net.keras"
{more}
[data]
valid = "data:valid"
"""


def project(folder: Path, *layers: object, more: str = "") -> Path:
    with files.silent():
        randomised(keras.Sequential([Input((6, 6, 2), name="image"), *layers])).save(folder / "net.keras")
    (folder / "data.py").write_text("def valid():\n    return []\n")
    (folder / "edgeprune.toml").write_text(PROJECT.format(more=more))
    return folder / "edgeprune.toml"


def test_a_file_gives_the_network_and_its_inputs(tmp_path: Path) -> None:
    path = project(tmp_path, L.Conv2D(4, 3), L.GlobalMaxPooling2D(), L.Dense(3))
    network = Network(toml.read_project(path))
    assert network.inputs[0].shape == (1, 6, 6, 2)
    assert network.module(*network.inputs).shape == (1, 3)


def test_bytes_are_made_floats_inside(tmp_path: Path) -> None:
    path = project(tmp_path, L.Rescaling(1 / 255), L.Conv2D(4, 3), L.Flatten(), more='inputs = "data:images"')
    code = "\nimport torch\ndef images():\n    return (torch.full((1, 6, 6, 2), 200, dtype=torch.uint8),)\n"
    (tmp_path / "data.py").write_text((tmp_path / "data.py").read_text() + code)
    network = Network(toml.read_project(path))
    (images,) = network.inputs
    assert images.dtype == torch.uint8
    assert torch.equal(network.module(images), network.module(images.float()))


def test_a_pruned_network_is_written_with_the_name_of_the_file(tmp_path: Path) -> None:
    network = Network(toml.read_project(project(tmp_path, L.Conv2D(4, 3), L.GlobalMaxPooling2D(), L.Dense(3))))
    (tmp_path / "model").mkdir()
    network.write(network.module, tmp_path / "model")
    found = keras.saving.load_model(tmp_path / "model" / "net.keras")
    assert torch.allclose(found(network.inputs[0]), network.module(*network.inputs), atol=1e-6)


def test_a_network_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    more = "[preprocess]\nmean = [0.5]\nstd = [0.5]"
    network = Network(toml.read_project(project(tmp_path, L.Conv2D(4, 3), L.Flatten(), L.Dense(3), more=more)))
    network.write(network.module, tmp_path)
    assert "[preprocess] is no part of it" in caplog.text and "edgeprune.load" in caplog.text


def test_a_factory_beside_a_file_and_a_missing_file_are_one_line(tmp_path: Path) -> None:
    path = project(tmp_path, L.Conv2D(4, 3), L.Flatten(), more='factory = "data:build"')
    with pytest.raises(UsageError, match=r"\[model\] keras and factory exclude each other"):
        toml.read_project(path)
    path = project(tmp_path, L.Conv2D(4, 3), L.Flatten())
    (tmp_path / "net.keras").unlink()
    with pytest.raises(UsageError, match=r"\[model\] keras = 'net\.keras'.*does not exist"):
        _ = Network(toml.read_project(path)).module


def test_the_key_covers_the_file(tmp_path: Path) -> None:
    path = project(tmp_path, L.Conv2D(4, 3), L.Flatten())
    before = toml.read_project(path).model.factory.sources()
    project(tmp_path, L.Conv2D(5, 3), L.Flatten())
    after = toml.read_project(path).model.factory.sources()
    assert before["file net.keras"] != after["file net.keras"] and "package keras" in after


def test_a_model_in_memory_makes_a_project(tmp_path: Path) -> None:
    import edgeprune

    model = randomised(keras.Sequential([Input((6, 6, 2)), L.Conv2D(4, 3), L.Flatten(), L.Dense(3)], name="mine"))
    batches = [(torch.zeros(2, 6, 6, 2).numpy(), torch.tensor([0, 1]).numpy())]
    project = edgeprune.Project.from_keras(model, valid=batches, folder=tmp_path / "runs")
    assert project.record.name == "mine"
    images = torch.rand(3, 6, 6, 2)
    assert torch.allclose(Network(project.record).module(images), model(images), atol=1e-6)
    with files.silent():
        model.save(tmp_path / "file.keras")
    project = edgeprune.Project.from_keras(tmp_path / "file.keras", valid=batches, folder=tmp_path / "runs")
    assert project.record.name == "file"


def test_a_model_with_open_sizes_needs_example_inputs(tmp_path: Path) -> None:
    import edgeprune

    model = randomised(keras.Sequential([Input((None, None, 2)), L.Conv2D(4, 3, 2, "same"), L.GlobalMaxPooling2D()]))
    with pytest.raises(UsageError, match=r"the Keras model: layer .* fixed size"):
        edgeprune.Project.from_keras(model, valid=[], folder=tmp_path)
    project = edgeprune.Project.from_keras(model, torch.zeros(1, 7, 7, 2), valid=[], folder=tmp_path)
    assert Network(project.record).inputs[0].shape == (1, 7, 7, 2)
