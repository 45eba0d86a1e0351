"""A Keras file in a project: channels first inside, the groups of the same network in torch, and a Keras file again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_keras_layers import Input, L, keras, randomised
from torch import Tensor, nn

from edgeprune.errors import UsageError
from edgeprune.frontends import keras as frontend
from edgeprune.frontends.keras import files
from edgeprune.graph.groups import make_recipe
from edgeprune.network.cut import cut
from edgeprune.network.survey import survey
from edgeprune.records import Groups

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def bottleneck(x: Any, name: str) -> Any:
    y = L.ReLU(6.0, name=f"{name}_expand_relu")(L.Conv2D(24, 1, name=f"{name}_expand")(x))
    y = L.DepthwiseConv2D(3, padding="same", use_bias=False, name=f"{name}_depthwise")(y)
    y = L.BatchNormalization(name=f"{name}_bn")(y)
    return L.Add(name=f"{name}_add")([x, L.Conv2D(8, 1, name=f"{name}_project")(y)])


def small() -> Any:
    """A MobileNetV2 of two residual blocks, with a stride, an activation inside a layer, and a nested model."""
    image = Input((12, 12, 3), name="image")
    x = L.Conv2D(8, 3, 2, "same", use_bias=False, name="stem")(image)
    x = L.ReLU(6.0)(L.BatchNormalization(scale=False, name="stem_bn")(x))
    x = bottleneck(bottleneck(x, "block_1"), "block_2")
    head = keras.Sequential([Input((6, 6, 8)), L.Conv2D(16, 3, activation="silu", name="conv")], name="head")
    x = L.GlobalAveragePooling2D()(head(x))
    return randomised(keras.Model(image, L.Dense(5, name="classes")(x), name="small"))


class Bottleneck(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.expand, self.project = nn.Conv2d(8, 24, 1), nn.Conv2d(24, 8, 1)
        self.depthwise, self.bn = nn.Conv2d(24, 24, 3, 1, 1, groups=24, bias=False), nn.BatchNorm2d(24)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.project(self.bn(self.depthwise(nn.functional.relu6(self.expand(x)))))


class InTorch(nn.Module):
    """The same network as a user of torch writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.blocks = nn.Sequential(Bottleneck(), Bottleneck())
        self.head, self.fc = nn.Conv2d(8, 16, 3), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(nn.functional.relu6(self.bn(self.stem(x))))
        return self.fc(nn.functional.adaptive_avg_pool2d(nn.functional.silu(self.head(x)), 1).flatten(1))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keras") / "small.keras"
    with files.silent():
        small().save(path)
    return path


@pytest.fixture(scope="module")
def surveyed(file: Path) -> Groups:
    return survey(frontend.network(file), frontend.example_inputs(file))


def share(groups: Groups) -> float:
    return groups.macs(groups.least()) / groups.macs(groups.full())


def test_the_groups_and_blocks_are_those_of_the_network_in_torch(surveyed: Groups) -> None:
    expected = survey(InTorch().eval(), (torch.zeros(1, 3, 12, 12),))
    assert surveyed.macs(surveyed.full()) == expected.macs(expected.full())
    assert share(surveyed) == pytest.approx(share(expected), rel=0.01)
    assert [group.width for group in surveyed.free] == [group.width for group in expected.free]
    assert [block.name for block in surveyed.blocks] == ["block_1", "block_2"]
    assert surveyed.form == "module"


def test_layers_keep_their_names(file: Path) -> None:
    names = dict(frontend.network(file).named_parameters())
    assert {"stem.weight", "block_1.block_1_depthwise.weight", "head.conv.weight", "classes.bias"} <= names.keys()


def test_the_input_is_reordered_once_and_nothing_else_is(file: Path) -> None:
    exported = torch.export.export(frontend.network(file), frontend.example_inputs(file))
    targets = [str(node.target) for node in exported.graph.nodes]
    assert sum("permute" in target or "transpose" in target for target in targets) == 1
    assert not any("_to_copy" in target for target in targets)


def test_an_h5_file_is_the_same_network(file: Path, tmp_path: Path) -> None:
    with files.silent():
        files.load(file).save(tmp_path / "small.h5")
    old, new = frontend.network(tmp_path / "small.h5"), frontend.network(file)
    image = torch.rand(1, 12, 12, 3)
    assert torch.equal(old(image), new(image))


@pytest.mark.parametrize("removed", [False, True])
def test_a_cut_network_is_a_keras_model_again(file: Path, surveyed: Groups, removed: bool, tmp_path: Path) -> None:
    network, inputs = frontend.network(file), frontend.example_inputs(file)
    kept = {group.name: list(range(0, group.width, 2)) for group in surveyed.free}
    if removed:
        kept |= {name: [] for name in surveyed.blocks[0].groups}
    pruned = cut(network, make_recipe(surveyed, kept), inputs)
    frontend.write(file, pruned, tmp_path / "cut.keras")
    found = keras.saving.load_model(tmp_path / "cut.keras")
    images = torch.rand(3, 12, 12, 3)
    expected = pruned(images).detach().numpy()
    assert np.allclose(keras.ops.convert_to_numpy(found(images)), expected, atol=1e-5)
    assert found.get_layer("stem").filters == 4
    assert found.get_layer("head").get_layer("conv").filters == 8
    assert ("block_1_expand" in [layer.name for layer in found.layers]) is not removed


def test_weights_that_were_trained_are_written(file: Path, tmp_path: Path) -> None:
    network = frontend.network(file)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.01
    frontend.write(file, network, tmp_path / "tuned.keras")
    found = keras.saving.load_model(tmp_path / "tuned.keras")
    images = torch.rand(2, 12, 12, 3)
    difference = keras.ops.convert_to_numpy(found(images)) - network(images).detach().numpy()
    assert np.abs(difference).max() < 1e-5


def test_recurrences_and_attention_are_written(tmp_path: Path) -> None:
    sound = Input((9, 6))
    x = L.GRU(8, return_sequences=True)(L.LSTM(8, return_sequences=True)(sound))
    x = L.Bidirectional(L.LSTM(5, return_sequences=True))(x)
    x = L.LayerNormalization()(x + L.MultiHeadAttention(2, 4)(x, x))
    model = randomised(keras.Model(sound, L.TimeDistributed(L.Dense(3))(x)))
    with files.silent():
        model.save(tmp_path / "sound.keras")
    frontend.write(tmp_path / "sound.keras", frontend.network(tmp_path / "sound.keras"), tmp_path / "again.keras")
    given = torch.rand(2, 9, 6)
    one, other = (
        keras.ops.convert_to_numpy(m(given)) for m in (model, keras.saving.load_model(tmp_path / "again.keras"))
    )
    assert np.allclose(one, other, atol=1e-6)


def test_preprocessing_of_the_project_is_not_written_silently(file: Path, tmp_path: Path) -> None:
    from edgeprune.network.preprocessing import preprocessed
    from edgeprune.records import Preprocess

    network = preprocessed(frontend.network(file), Preprocess((0.5,), (0.5,), 1.0))
    with pytest.raises(UsageError, match=r"\[preprocess\] is no part of it"):
        frontend.write(file, network, tmp_path / "cut.keras")


def test_open_sizes_come_from_the_example_inputs(tmp_path: Path) -> None:
    path = tmp_path / "open.keras"
    with files.silent():
        layers = [Input((None, None, 3)), L.Conv2D(4, 3, 2, "same"), L.GlobalMaxPooling2D(), L.Dense(2)]
        randomised(keras.Sequential(layers)).save(path)
    with pytest.raises(UsageError, match="fixed size"):
        frontend.network(path)
    images = torch.rand(1, 9, 10, 3)
    with files.silent():
        expected = keras.saving.load_model(path)(images)
    assert torch.allclose(frontend.network(path, (images,))(images), expected, atol=1e-6)
