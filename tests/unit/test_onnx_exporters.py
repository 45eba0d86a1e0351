"""Files as other exporters write them: tf2onnx, PaddlePaddle, scikit-learn, and PyTorch without names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx_files import computed, exported, model, node, saved, weights
from torch import Tensor, nn

from edgeprune.frontends.onnx import network
from edgeprune.network.survey import survey

HWC, CHW = [0, 2, 3, 1], [0, 3, 1, 2]


def batch_norm(name: str, channels: int) -> dict[str, np.ndarray]:
    return {
        f"{name}.w_0": 1 + 0.1 * weights(channels),
        f"{name}.b_0": weights(channels, seed=1),
        f"{name}.w_1": weights(channels, seed=2),
        f"{name}.w_2": np.abs(weights(channels, seed=3)) + 0.5,
    }


def tensorflow(path: Path) -> Path:
    """Channels last around convolutions, weights with made-up names, and a residual block."""
    root = "StatefulPartitionedCall/model"
    nodes = [
        node("Transpose", "image:0", "t1", f"{root}/stem/Conv2D__6", perm=CHW),
        node("Conv", "t1 const_fold_opt__12", "t2", f"{root}/stem/Conv2D", pads=[1] * 4, kernel_shape=[3, 3]),
        node("Transpose", "t2", "t3", f"{root}/stem/Conv2D__8", perm=HWC),
        node("Add", "t3 bias_last", "t4", f"{root}/stem/BiasAdd"),
        node("Relu", "t4", "t5", f"{root}/stem/Relu"),
        node("Transpose", "t5", "t6", f"{root}/block_1_expand/Conv2D__9", perm=CHW),
        node("Conv", "t6 const_fold_opt__13", "t7", f"{root}/block_1_expand/Conv2D", kernel_shape=[1, 1]),
        node("Clip", "t7 low high", "t8", f"{root}/block_1_expand_relu/Relu6"),
        node("Conv", "t8 const_fold_opt__14", "t9", f"{root}/block_1_project/Conv2D", kernel_shape=[1, 1]),
        node("Transpose", "t9", "t10", f"{root}/block_1_project/Conv2D__11", perm=HWC),
        node("Add", "t5 t10", "t11", f"{root}/block_1_add/add"),
        node("ReduceMean", "t11", "t12", f"{root}/pool/Mean", axes=[1, 2], keepdims=0),
        node("MatMul", "t12 const_fold_opt__15", "t13", f"{root}/scores/MatMul"),
        node("Add", "t13 bias", "scores:0", f"{root}/scores/BiasAdd"),
    ]
    constants = {
        "const_fold_opt__12": weights(8, 3, 3, 3), "bias_last": weights(8), "const_fold_opt__13": weights(12, 8, 1, 1),
        "const_fold_opt__14": weights(8, 12, 1, 1), "const_fold_opt__15": weights(8, 5), "bias": weights(5),
        "low": np.float32(0), "high": np.float32(6),
    }  # fmt: skip
    return saved(path, model(nodes, {"image:0": ("unk__1", 8, 8, 3)}, ["scores:0"], constants, 13))


def paddle(path: Path) -> Path:
    """Numbered nodes, batch norms that are not folded, and an output that is scaled by one."""
    nodes = [
        node("Conv", "x conv2d_0.w_0", "conv2d_0.tmp_0", "Conv_0", pads=[1] * 4, kernel_shape=[3, 3]),
        node("BatchNormalization", "conv2d_0.tmp_0 bn_0.w_0 bn_0.b_0 bn_0.w_1 bn_0.w_2", "n", "BatchNormalization_0"),
        node("Relu", "n", "r", "Relu_0"),
        node("Shape", "r", "s", "Shape_0"),
        node("Slice", "s start end", "first", "Slice_0"),
        node("Concat", "first rest", "wanted", "Concat_0", axis=0),
        node("Reshape", "r wanted", "flat", "Reshape_0"),
        node("MatMul", "flat linear_0.w_0", "m", "MatMul_0"),
        node("Add", "m linear_0.b_0", "a", "Add_0"),
        node("Identity", "a", "save_infer_model/scale_0.tmp_0", "Identity_0"),
    ]
    constants = {
        "conv2d_0.w_0": weights(6, 3, 3, 3), **batch_norm("bn_0", 6),
        "linear_0.w_0": weights(6 * 64, 4), "linear_0.b_0": weights(4),
        "start": np.array([0]), "end": np.array([1]), "rest": np.array([-1]),
    }  # fmt: skip
    return saved(path, model(nodes, {"x": ("n", 3, 8, 8)}, ["save_infer_model/scale_0.tmp_0"], constants, 11))


def scikit_learn(path: Path) -> Path:
    """A perceptron after a scaler, as plain products, in the order that the converter found."""
    nodes = [
        node("Softmax", "add_result2", "probabilities", "Softmax", axis=1),
        node("Sub", "X mean", "centred", "Sub"),
        node("Div", "centred deviation", "scaled", "Div"),
        node("MatMul", "scaled coefficient", "mul_result", "MatMul"),
        node("Add", "mul_result intercepts", "add_result", "Add"),
        node("Relu", "add_result", "next_activations", "Relu"),
        node("MatMul", "next_activations coefficient1", "mul_result1", "MatMul1"),
        node("Add", "mul_result1 intercepts1", "add_result2", "Add1"),
    ]
    constants = {
        "mean": weights(1, 10), "deviation": np.abs(weights(1, 10)) + 0.5, "coefficient": weights(10, 16),
        "intercepts": weights(1, 16), "coefficient1": weights(16, 3), "intercepts1": weights(1, 3),
    }  # fmt: skip
    return saved(path, model(nodes, {"X": ("N", 10)}, ["probabilities"], constants))


WRITERS = {
    "tf2onnx": (tensorflow, (8, 8, 3)),
    "PaddlePaddle": (paddle, (3, 8, 8)),
    "scikit-learn": (scikit_learn, (10,)),
}


@pytest.mark.parametrize("exporter", WRITERS)
def test_a_file_of_another_exporter_computes_the_same_and_can_be_cut(exporter: str, tmp_path: Path) -> None:
    write, shape = WRITERS[exporter]
    path = write(tmp_path / "network.onnx")
    made, x = network(path), torch.randn(3, *shape)
    np.testing.assert_allclose(made(x).detach().numpy(), computed(path, (x,))[0], rtol=1e-4, atol=1e-5)
    groups = survey(made, (x[:1],))
    assert groups.free and groups.macs(groups.least()) < 0.3 * groups.macs(groups.full())


def test_weights_may_be_constant_nodes(tmp_path: Path) -> None:
    """Their names are those of the file, and what is no weight is not trained."""
    proto = onnx.load(paddle(tmp_path / "network.onnx"))
    constants = [onnx.helper.make_node("Constant", [], [one.name], value=one) for one in proto.graph.initializer]
    scale = onnx.helper.make_node("Constant", [], ["p2o.scale.0"], value_float=0.5)
    last = onnx.helper.make_node("Mul", [proto.graph.output[0].name, "p2o.scale.0"], ["scaled"])
    nodes = [*constants, *proto.graph.node, scale, last]
    proto.graph.output[0].name = "scaled"
    del proto.graph.initializer[:], proto.graph.node[:]
    proto.graph.node.extend(nodes)
    path, x = saved(tmp_path / "constants.onnx", proto), torch.randn(3, 3, 8, 8)
    made = network(path)
    np.testing.assert_allclose(made(x).detach().numpy(), computed(path, (x,))[0], rtol=1e-4, atol=1e-5)
    names = {name for name, _ in made.named_parameters()}
    assert names == {name for name, _ in network(tmp_path / "network.onnx").named_parameters()}


def test_transposes_between_channels_last_and_first_cancel(tmp_path: Path) -> None:
    made = network(tensorflow(tmp_path / "network.onnx"))
    assert sum(str(module).count("permuted(") for module in [made]) == 1  # of the input
    assert isinstance(made.get_submodule("stem"), nn.Conv2d) and made.get_submodule("stem").bias is not None


def test_residual_blocks_are_found_in_a_file_whose_names_have_no_hierarchy(tmp_path: Path) -> None:
    made = network(tensorflow(tmp_path / "network.onnx"))
    names = [name for name, _ in made.named_parameters()]
    assert names[:4] == ["stem.weight", "stem.bias", "block_1.block_1_expand.weight", "block_1.block_1_project.weight"]
    assert [block.name for block in survey(made, (torch.randn(1, 8, 8, 3),)).blocks] == ["block_1"]


def test_batch_norms_that_are_not_folded_learn_their_statistics(tmp_path: Path) -> None:
    made = network(paddle(tmp_path / "network.onnx"))
    norm = next(module for module in made.modules() if isinstance(module, nn.BatchNorm2d))
    before = norm.running_mean.clone()
    loss = made.train()(torch.randn(4, 3, 8, 8)).square().mean()
    loss.backward()
    assert not torch.equal(before, norm.running_mean)
    assert all(parameter.grad is not None for parameter in made.parameters())


class Spelled(nn.Module):
    """Layers that exporters spell as several operators."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.group = nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(4, 8)
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 12), nn.Linear(12, 8)
        self.place = nn.Parameter(torch.randn(1, 64, 8))
        for parameter in [*self.group.parameters(), *self.norm.parameters()]:
            nn.init.normal_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.silu(self.group(self.stem(x))).flatten(2).transpose(1, 2) + self.place
        return self.down(nn.functional.gelu(self.up(self.norm(y))))


@pytest.mark.parametrize("opset", [11, 13, 17])
def test_layers_that_are_spelled_as_operators_are_layers_again(opset: int, tmp_path: Path) -> None:
    """Layer norm, group norm, SiLU, GELU and the linear layers; a position is a parameter."""
    original = Spelled().eval()
    made = network(exported(tmp_path / "net.onnx", original, (torch.randn(1, 3, 8, 8),), opset_version=opset))
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(made(x), original(x), rtol=1e-4, atol=1e-5)
    assert {name: type(made.get_submodule(name)) for name in ("stem", "group", "norm", "up", "down")} == {
        "stem": nn.Conv2d, "group": nn.GroupNorm, "norm": nn.LayerNorm, "up": nn.Linear, "down": nn.Linear,
    }  # fmt: skip
    assert {name: p.shape for name, p in made.named_parameters()} == {
        n: p.shape for n, p in original.named_parameters()
    }
    assert "silu(" in str(made) and "gelu(" in str(made) and "erf(" not in str(made)


def test_weights_that_are_tied_stay_tied(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x).relu())

    made = network(exported(tmp_path / "net.onnx", Tied(), (torch.randn(1, 6),)))
    assert len(list(made.parameters())) == 3


def test_names_become_names_of_modules(tmp_path: Path) -> None:
    """No name of a file can be code, or hide what a module has."""
    odd = ["/forward/Conv", '/a");print(1)#/Conv', "/../x y/Conv", "/train/type/Conv"]
    nodes = [node("Conv", f"v{i} w{i}", f"v{i + 1}", name) for i, name in enumerate(odd)]
    constants = {f"w{i}": weights(3, 3, 1, 1, seed=i) for i in range(4)}
    made = network(saved(tmp_path / "net.onnx", model(nodes, {"v0": (1, 3, 2, 2)}, ["v4"], constants)))
    assert [name for name, _ in made.named_parameters()] == [
        "forward_.weight", "a_print_1.weight", "x_y.weight", "train_.type_.weight",
    ]  # fmt: skip
