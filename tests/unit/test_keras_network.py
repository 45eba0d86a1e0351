"""A Keras file in a project: channels first inside, the groups of the same network in torch, and a Keras file again."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from kerasmodels import Input, L, keras, randomised
from torch import Tensor, nn

from edgeprune.errors import UsageError
from edgeprune.frontends import keras as frontend
from edgeprune.frontends.keras import files
from edgeprune.graph.groups import make_recipe
from edgeprune.network.cut import cut
from edgeprune.network.survey import survey
from edgeprune.records import Groups
from edgeprune.runtimes.formats import FORMATS

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


@pytest.mark.parametrize(("kind", "count"), [("onnx", 1), pytest.param("tflite", 0, marks=pytest.mark.slow)])
def test_an_artifact_has_one_transpose_and_none_where_channels_are_last(kind: str, count: int, file: Path) -> None:
    with files.silent():
        content = FORMATS[kind].export(frontend.network(file), frontend.example_inputs(file), [])
    if kind == "onnx":
        found = [node.op_type for node in onnx.load_from_string(content).graph.node]
    else:
        interpreter = pytest.importorskip("ai_edge_litert.interpreter").Interpreter(model_content=content)
        assert interpreter.get_input_details()[0]["shape"].tolist() == [1, 12, 12, 3]
        found = [operator["op_name"] for operator in interpreter._get_ops_details()]
    assert sum(name.lower() == "transpose" for name in found) == count


def test_the_artifact_names_its_inputs_and_outputs_as_keras_does(file: Path) -> None:
    graph = onnx.load_from_string(
        FORMATS["onnx"].export(frontend.network(file), frontend.example_inputs(file), [])
    ).graph
    assert [value.name for value in (*graph.input, *graph.output)] == ["image", "classes"]


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


def test_a_layer_of_each_step_is_cut_and_written(tmp_path: Path) -> None:
    video, path = Input((3, 10, 10, 2)), tmp_path / "video.keras"
    x = L.TimeDistributed(L.Conv2D(8, 3, activation=L.LeakyReLU(0.2)), name="frames")(video)
    x = L.Bidirectional(L.LSTM(6), merge_mode="sum")(L.TimeDistributed(L.GlobalAveragePooling2D())(x))
    with files.silent():
        randomised(keras.Model(video, L.Dense(3)(L.RMSNormalization()(x)))).save(path)
    network, inputs = frontend.network(path), frontend.example_inputs(path)
    groups = survey(network, inputs)
    kept = {group.name: list(range(0, group.width, 2)) for group in groups.free}
    pruned = cut(network, make_recipe(groups, kept), inputs)
    frontend.write(path, pruned, tmp_path / "cut.keras")
    found, given = keras.saving.load_model(tmp_path / "cut.keras"), torch.rand(2, 3, 10, 10, 2)
    assert np.allclose(keras.ops.convert_to_numpy(found(given)), pruned(given).detach().numpy(), atol=1e-5)
    assert found.get_layer("frames").layer.filters == 4


@pytest.mark.parametrize("suffix", ["h5", "keras"])
def test_arguments_of_keras_2_that_keras_3_refuses_are_left_out(suffix: str, tmp_path: Path) -> None:
    layers = [L.DepthwiseConv2D(3), L.Conv2DTranspose(4, 2), L.GroupNormalization(1), L.Reshape((9, -1)), L.LSTM(3)]
    model, path = keras.Sequential([Input((4, 4, 3)), *layers]), tmp_path / f"old.{suffix}"
    with files.silent():
        randomised(model).save(path)
    marks = (
        (b'"depth_multiplier": 1', b'"groups": 1, "depth_multiplier": 1'),
        (b'"return_state"', b'"time_major": false, "return_state"'),
    )
    rewrite_description(path, marks)
    with pytest.raises((TypeError, ValueError), match="groups"):
        keras.saving.load_model(path)
    given = torch.rand(2, 4, 4, 3)
    expected = keras.ops.convert_to_numpy(model(given))
    assert np.allclose(frontend.network(path)(given).detach().numpy(), expected, atol=1e-5)


def rewrite_description(path: Path, marks: Iterable[tuple[bytes, bytes]]) -> None:
    """Replace texts in a Keras file's description."""
    import h5py

    def rewritten(text: bytes) -> bytes:
        return reduce(lambda found, mark: found.replace(*mark), marks, text)

    if path.suffix == ".h5":
        with h5py.File(path, "a") as file:
            file.attrs["model_config"] = rewritten(file.attrs["model_config"].encode())
        return
    with zipfile.ZipFile(path) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, content in parts.items():
            new.writestr(name, rewritten(content) if name == "config.json" else content)


def test_a_model_with_masks_is_cut_and_written(tmp_path: Path) -> None:
    words = Input((9,), dtype="int32")
    x = L.Embedding(8, 12, mask_zero=True)(words)
    x = L.Bidirectional(L.LSTM(6, return_sequences=True))(L.Dense(16, activation="relu", name="wide")(x))
    path = tmp_path / "words.keras"
    with files.silent():
        randomised(keras.Model(words, L.Dense(3)(L.GRU(8)(x)))).save(path)
    network, inputs = frontend.network(path), frontend.example_inputs(path)
    groups = survey(network, inputs)
    kept = {group.name: list(range(0, group.width, 2)) for group in groups.free}
    pruned = cut(network, make_recipe(groups, kept), inputs)
    frontend.write(path, pruned, tmp_path / "cut.keras")
    found, given = keras.saving.load_model(tmp_path / "cut.keras"), torch.tensor([[0, 3, 1, 0, 2, 0, 0, 0, 0]])
    assert np.allclose(keras.ops.convert_to_numpy(found(given)), pruned(given).detach().numpy(), atol=1e-5)
    assert found.get_layer("wide").units == 8


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


# The channels of keras.applications.MobileNetV2 with alpha 0.35: (blocks, channels, stride of the first).
MOBILE = [(1, 8, 1), (2, 8, 2), (3, 16, 2), (4, 24, 2), (3, 32, 1), (3, 56, 2), (1, 112, 1)]


class Inverted(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, factor: int) -> None:
        super().__init__()
        wide = inputs * factor
        self.expand = nn.Sequential(nn.Conv2d(inputs, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6())
        self.depthwise = nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False)
        self.bn, self.project = nn.BatchNorm2d(wide), nn.Conv2d(wide, outputs, 1, bias=False)
        self.bn2, self.adds = nn.BatchNorm2d(outputs), stride == 1 and inputs == outputs
        if factor == 1:
            self.expand = nn.Sequential()

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.project(nn.functional.relu6(self.bn(self.depthwise(self.expand(x))))))
        return x + y if self.adds else y


class MobileNetV2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        stem = [nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6()]
        blocks, inputs = list[nn.Module](), 16
        for count, outputs, stride in MOBILE:
            for number in range(count):
                blocks.append(Inverted(inputs, outputs, 1 if number else stride, 6 if blocks else 1))
                inputs = outputs
        head = [nn.Conv2d(inputs, 1280, 1, bias=False), nn.BatchNorm2d(1280), nn.ReLU6(), nn.AdaptiveAvgPool2d(1)]
        self.body = nn.Sequential(*stem, *blocks, *head, nn.Flatten(), nn.Linear(1280, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).softmax(-1)


@pytest.mark.slow
def test_mobilenet_v2_of_keras_can_be_cut_as_that_of_torch(tmp_path: Path) -> None:
    path = tmp_path / "mobile.keras"
    with files.silent():
        model = keras.applications.MobileNetV2((96, 96, 3), alpha=0.35, weights=None, classes=10)
        randomised(model).save(path)
    network, inputs = frontend.network(path), frontend.example_inputs(path)
    found = survey(network, inputs)
    expected = survey(MobileNetV2().eval(), (torch.zeros(1, 3, 96, 96),))
    assert found.macs(found.full()) == expected.macs(expected.full())
    assert share(found) == pytest.approx(share(expected), rel=0.01)
    assert len(found.free) == len(expected.free) == 25
    assert len(found.blocks) == len(expected.blocks) == 10
    half = {group.name: list(range(0, group.width, 2)) for group in found.free}
    half |= {name: [] for name in found.blocks[0].groups}
    pruned = cut(network, make_recipe(found, half), inputs)
    frontend.write(path, pruned, tmp_path / "half.keras")
    again = keras.saving.load_model(tmp_path / "half.keras")
    assert np.allclose(keras.ops.convert_to_numpy(again(inputs[0])), pruned(*inputs).detach().numpy(), atol=1e-5)
