"""Every operator of ONNX that has a converter computes what ONNX Runtime computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx_files import computed, model, node, saved, weights
from torch import nn

from edgeprune.errors import UsageError
from edgeprune.frontends.onnx import network
from edgeprune.frontends.onnx.operators import OPERATORS
from edgeprune.network.adapter import file_names

IMAGE = (1, 4, 6, 8)
I64 = np.int64


@dataclass(frozen=True)
class Case:
    """An operator, its first input, and its other inputs."""

    op: str
    shape: tuple[int, ...] = IMAGE
    constants: tuple[Any, ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)
    opset: int = 17
    outputs: int = 1
    positive: bool = False  # the input

    def __str__(self) -> str:
        return "-".join([self.op, *(str(value) for value in self.attributes.values())])[:60].replace(" ", "")


def of(
    op: str, *constants: Any, shape: tuple[int, ...] = IMAGE, opset: int = 17, outputs: int = 1, **given: Any
) -> Case:
    positive = op in ("Log", "Sqrt", "Acosh", "Pow", "ReduceLogSum")
    return Case(op, shape, constants, given, opset, outputs, positive)


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, I64)


LSTM = weights(1, 20, 8), weights(1, 20, 5, seed=1), weights(1, 40, seed=2)
GRU = weights(2, 15, 8), weights(2, 15, 5, seed=1), weights(2, 30, seed=2)
RNN = weights(1, 5, 8), weights(1, 5, 5, seed=1), weights(1, 10, seed=2)
CHANNELS = tuple(weights(4, seed=seed) for seed in range(3))

UNARY = [
    *(
        "Abs",
        "Asinh",
        "Atan",
        "Ceil",
        "Cos",
        "Erf",
        "Exp",
        "Floor",
        "HardSwish",
        "Identity",
        "Log",
        "Neg",
        "Reciprocal",
        "Relu",
    ),
    *("Round", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Tan", "Tanh", "Mish"),
]
BINARY = "Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean"
REDUCED = [name for name in OPERATORS if name.startswith("Reduce")]
CASES = [
    *(of(op, opset=18 if op == "Mish" else 17) for op in UNARY),
    *(of(op, weights(4, 1, 1)) for op in BINARY),
    *(of(op, axes=[2, 3], keepdims=0) for op in REDUCED if op != "ReduceSum"),
    *(of(op, axes=[-1]) for op in REDUCED if op != "ReduceSum"),
    of("ReduceSum", ints(1), keepdims=0),
    of("ReduceMean", ints(2, 3), opset=18),
    of("ReduceMean", shape=(1, 5), axes=[1]),
    of("Pow", np.float32(2.5)),
    of("PRelu", weights(4, 1, 1)),
    of("PRelu", weights(1)),
    of("LeakyRelu", alpha=0.2),
    of("Elu", alpha=0.7),
    of("Celu", alpha=0.7),
    of("Selu"),
    of("HardSigmoid"),
    of("HardSigmoid", alpha=1 / 6, beta=0.5),
    of("ThresholdedRelu", alpha=0.3),
    of("Gelu", opset=20),
    of("Gelu", opset=20, approximate="tanh"),
    of("Clip", np.float32(0), np.float32(6)),
    of("Clip", np.float32(-0.5)),
    of("Clip", "-", np.float32(0.2)),
    of("Dropout"),
    of("Cast", to=6),
    of("Softmax", axis=1),
    of("Softmax", axis=1, opset=12),
    of("LogSoftmax"),
    of("Hardmax"),
    of("ArgMax", axis=1),
    of("ArgMin", axis=2, keepdims=0),
    of("CumSum", np.int64(1)),
    of("TopK", ints(2), outputs=2, axis=1),
    of("LpNormalization", axis=1, p=2),
    of("LRN", size=3),
    of("Shape"),
    of("Size"),
    of("Reshape", ints(0, -1)),
    of("Reshape", ints(1, 2, 2, 6, 8)),
    of("Reshape", ints(1, 4, 48)),
    of("Reshape", ints(1, 8, 24)),
    of("Flatten"),
    of("Flatten", axis=2, shape=(1, 4, 6)),
    of("Transpose", perm=[0, 2, 3, 1]),
    of("Squeeze", ints(1), shape=(1, 1, 5)),
    of("Unsqueeze", ints(1, -1)),
    of("Concat", weights(1, 2, 6, 8), axis=1),
    of("Split", outputs=2, axis=1),
    of("Split", ints(1, 3), outputs=2, axis=1),
    of("Slice", ints(1), ints(5), ints(3), ints(2)),
    of("Slice", ints(-1), ints(-(2**62)), ints(2), ints(-1)),
    of("Slice", ints(-2, 1), ints(2**62, 3), ints(1, 2)),
    of("Slice", ints(4), ints(0), ints(2), ints(-2)),
    of("Slice", ints(0, 0), ints(9, 3)),
    of("Gather", np.int64(1), axis=1),
    of("Gather", ints(0, -1, 2), axis=1),
    of("Expand", ints(1, 4, 6, 8)),
    of("Expand", ints(3, 1, 4, 6, 8)),
    of("Tile", ints(1, 2, 1, 1)),
    of("Pad", ints(0, 0, 1, 2, 0, 0, 0, 1)),
    of("Pad", ints(0, 0, 1, 1, 0, 0, 1, 1), mode="reflect"),
    of("Pad", ints(0, 0, 1, 1, 0, 0, 1, 1), mode="edge"),
    of("Trilu", upper=0, shape=(1, 5, 5)),
    of("DepthToSpace", blocksize=2),
    of("DepthToSpace", blocksize=2, mode="CRD"),
    of("SpaceToDepth", blocksize=2),
    of("Where"),
    of("Einsum", weights(8, 5), equation="bchw,wd->bchd"),
    of("Conv", weights(6, 4, 3, 3), weights(6)),
    of("Conv", weights(6, 2, 3, 3), group=2, pads=[1, 1, 1, 1], strides=[2, 1]),
    of("Conv", weights(4, 1, 3, 3), group=4, pads=[0, 0, 1, 1]),
    of("Conv", weights(6, 4, 3, 3), auto_pad="SAME_UPPER", strides=[2, 2]),
    of("Conv", weights(6, 4, 3, 3), auto_pad="SAME_LOWER", strides=[2, 2]),
    of("Conv", weights(6, 4, 2, 2), auto_pad="VALID"),
    of("Conv", weights(6, 4, 3), shape=(1, 4, 9), dilations=[2]),
    of("Conv", weights(3, 4, 1, 1, 1), shape=(1, 4, 3, 4, 5)),
    of("ConvTranspose", weights(4, 5, 3, 3), weights(5)),
    of("ConvTranspose", weights(4, 2, 3, 3), group=2, strides=[2, 2]),
    of("ConvTranspose", weights(4, 5, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1]),
    of("ConvTranspose", weights(4, 5, 3, 3), strides=[2, 2], auto_pad="SAME_UPPER"),
    of("ConvTranspose", weights(4, 5, 4, 4), strides=[2, 2], pads=[0, 0, 1, 1]),
    of("Gemm", weights(8, 5), weights(5), shape=(1, 8)),
    of("Gemm", weights(5, 8), weights(1, 5), shape=(1, 8), transB=1, alpha=0.5, beta=2.0),
    of("MatMul", weights(8, 5)),
    of("MatMul", weights(4, 8, 5)),
    of("BatchNormalization", *CHANNELS, np.abs(weights(4, seed=3)) + 0.1),
    of("InstanceNormalization", *CHANNELS[:2]),
    of("LayerNormalization", weights(8), weights(8)),
    of("LayerNormalization", weights(6, 8), axis=2),
    of("LayerNormalization", weights(1)),
    of("GroupNormalization", *CHANNELS[:2], opset=21, num_groups=2),
    of("MaxPool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2]),
    of("MaxPool", kernel_shape=[2, 2], auto_pad="SAME_UPPER"),
    of("MaxPool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    of("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    of("AveragePool", kernel_shape=[3, 3], pads=[0, 0, 1, 1], count_include_pad=1),
    of("AveragePool", kernel_shape=[2, 2], auto_pad="SAME_UPPER"),
    of("GlobalAveragePool"),
    of("GlobalMaxPool"),
    of(
        "Resize",
        "-",
        np.array([1, 1, 2, 2], np.float32),
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    ),
    of("Resize", "-", np.array([1, 1, 2, 2], np.float32), mode="nearest"),
    of("Resize", "-", "-", ints(1, 4, 9, 5), mode="linear"),
    of(
        "Resize", "-", np.array([1, 1, 2, 3], np.float32), mode="linear", coordinate_transformation_mode="align_corners"
    ),
    of("LSTM", *LSTM, shape=(3, 1, 8), outputs=3, hidden_size=5),
    of("LSTM", *LSTM, shape=(3, 1, 8), outputs=1, hidden_size=5, direction="reverse"),
    of("RMSNormalization", weights(8), opset=23),
    of("Swish", opset=24),
    of("Swish", opset=24, alpha=0.5),
    of("Attention", weights(1, 2, 6, 4), weights(1, 2, 6, 4), shape=(1, 2, 6, 4), opset=23),
    of(
        "Attention",
        weights(1, 6, 8),
        weights(1, 6, 8),
        shape=(1, 6, 8),
        opset=23,
        q_num_heads=2,
        kv_num_heads=2,
        is_causal=1,
    ),
    of("GRU", *GRU, shape=(3, 1, 8), outputs=2, hidden_size=5, direction="bidirectional", linear_before_reset=1),
    of("RNN", *RNN, shape=(3, 1, 8), outputs=2, hidden_size=5, activations=["Relu"]),
]


def written(case: Case, path: Path) -> Path:
    constants = {
        f"c{place}": np.asarray(value) for place, value in enumerate(case.constants) if not isinstance(value, str)
    }
    names = [f"c{place}" if f"c{place}" in constants else "-" for place in range(len(case.constants))]
    outputs = [f"y{place}" for place in range(case.outputs)]
    first = ["x"] if case.op != "Where" else ["positive", "x", "zero"]
    nodes = [node(case.op, " ".join([*first, *names]), " ".join(outputs), **case.attributes)]
    if case.op == "Where":
        constants["zero"] = np.zeros((), np.float32)
        nodes.insert(0, node("Greater", "x zero", "positive"))
    return saved(path, model(nodes, {"x": case.shape}, outputs, constants, case.opset))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_operator_computes_what_onnx_runtime_computes(case: Case, tmp_path: Path) -> None:
    path = written(case, tmp_path / "one.onnx")
    made = network(path)
    inputs = (torch.randn(case.shape).abs() if case.positive else torch.randn(case.shape),)
    with torch.no_grad():
        found = made(*inputs)
    got = [found] if isinstance(found, torch.Tensor) else found
    expected = computed(path, inputs)
    assert len(got) == len(expected) == case.outputs
    for theirs, ours in zip(expected, got, strict=True):
        assert theirs.shape == tuple(ours.shape) and theirs.dtype == ours.numpy().dtype
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-4, atol=1e-5)
    assert file_names(made) == (("x",), tuple(f"y{place}" for place in range(case.outputs)))


LEFT_OUT = {
    *("Acos", "Acosh", "Asin", "Atanh", "Cosh", "IsInf", "IsNaN", "Not"),  # of torch under the same name
    *("And", "Or", "Xor", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"),  # likewise
    *(
        "Loop",
        "Scan",
        "SequenceAt",
        "SequenceConstruct",
        "ConcatFromSequence",
        "SplitToSequence",
        "Optional",
    ),  # refused
    *("Constant", "ConstantOfShape", "Range", "EyeLike", "NonZero", "CastLike", "If", "Mod", "OneHot"),  # tested below
    *("GatherElements", "GatherND", "ScatterElements", "ScatterND"),
}


def test_every_operator_of_the_table_has_a_case() -> None:
    assert {case.op for case in CASES} == OPERATORS.keys() - LEFT_OUT


def test_shapes_and_constants_are_folded(tmp_path: Path) -> None:
    """The network that remains has one step: a linear layer."""
    nodes = [
        node("Shape", "x", "shape"), node("Gather", "shape zero", "batch"), node("Unsqueeze", "batch axis", "first"),
        node("Concat", "first rest", "wanted", axis=0), node("Reshape", "x wanted", "flat"), node("MatMul", "flat w", "y"),
        node("ConstantOfShape", "two", "ones", value=onnx.helper.make_tensor("v", 1, [1], [1.0])),
        node("NonZero", "ones", "places"),
        node("Range", "zero three one", "range"), node("Cast", "range", "real", to=1), node("Mod", "range three", "again"),
        node("EyeLike", "square", "eye"), node("ReduceSum", "eye", "trace", keepdims=0), node("Mul", "trace real", "bias"),
        node("OneHot", "again three pair", "hot"), node("ReduceMax", "hot", "largest", keepdims=0),
        node("CastLike", "places real", "likewise"), node("ReduceMin", "likewise", "least", keepdims=0),
        node("Add", "y bias", "sum"), node("Add", "sum least", "more"), node("Mul", "more largest", "z"),
    ]  # fmt: skip
    constants = {
        "zero": np.int64(0), "axis": ints(0), "rest": ints(-1), "w": weights(8, 3), "two": ints(2), "three": np.int64(3),
        "one": np.int64(1), "square": np.ones((2, 2), np.float32), "pair": np.array([0, 1], np.float32),
    }  # fmt: skip
    path = saved(tmp_path / "folded.onnx", model(nodes, {"x": ("n", 2, 4)}, ["z"], constants))
    made = network(path)
    x = torch.randn(5, 2, 4)
    np.testing.assert_allclose(made(x).detach().numpy(), computed(path, (x,))[0], rtol=1e-4, atol=1e-5)
    assert [type(module) for module in made.children()] == [nn.Linear]


@pytest.mark.parametrize("taken", [True, False])
def test_a_branch_whose_condition_is_a_constant_is_part_of_the_network(tmp_path: Path, taken: bool) -> None:
    branches = {
        name: onnx.helper.make_graph([node(op, "x", name)], name, [], [onnx.ValueInfoProto(name=name)])
        for name, op in (("then", "Relu"), ("else", "Neg"))
    }
    chosen = node("If", "condition", "y", then_branch=branches["then"], else_branch=branches["else"])
    path = saved(tmp_path / "if.onnx", model([chosen], {"x": (1, 3)}, ["y"], {"condition": np.array(taken)}))
    x = torch.randn(1, 3)
    assert torch.equal(network(path)(x), x.relu() if taken else -x)


INDEXED = [
    of("GatherElements", np.abs(weights(1, 4, 6, 8)).astype(I64) % 4, axis=1),
    of("ScatterElements", np.zeros((1, 1, 6, 8), I64), weights(1, 1, 6, 8), axis=1),
    of("GatherND", np.array([[0, 1], [0, 2]], I64)),
    of("GatherND", np.array([[1], [2]], I64), shape=(3, 4)),
    of("ScatterND", np.array([[0, 1]], I64), weights(1, 6, 8)),
    of("ScatterND", np.array([[0, 1]], I64), weights(1, 6, 8), reduction="add"),
]


@pytest.mark.parametrize("case", INDEXED, ids=str)
def test_operators_that_index_elements_take_one_batch_size_if_their_indices_do(case: Case, tmp_path: Path) -> None:
    path = written(case, tmp_path / "one.onnx")
    x = torch.randn(case.shape)
    np.testing.assert_allclose(network(path)(x).detach().numpy(), computed(path, (x,))[0], rtol=1e-4, atol=1e-5)


def test_an_unknown_operator_is_named_with_its_node_and_what_to_do(tmp_path: Path) -> None:
    path = saved(tmp_path / "det.onnx", model([node("Det", "x", "y", name="/head/Det")], {"x": (1, 2, 2)}, ["y"]))
    with pytest.raises(UsageError, match=r"node '/head/Det' \(Det\) has no converter; export .* or add one function"):
        network(path)


def test_a_converter_that_computes_something_else_is_found_when_the_network_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(OPERATORS, "Relu", lambda b, node, x: b.call(torch.abs, x))
    nodes = [node("Neg", "x", "a", "first"), node("Relu", "a", "b", "second"), node("Sqrt", "b", "y", "third")]
    path = saved(tmp_path / "net.onnx", model(nodes, {"x": (1, 8)}, ["y"]))
    with pytest.raises(
        UsageError, match=r"node 'second' \(Relu\) computes something else in torch than in ONNX Runtime"
    ):
        network(path)


@pytest.mark.parametrize("opset", [11, 12, 13, 15, 18, 19, 20, 21, 23])
def test_the_same_network_is_read_in_every_opset(opset: int, tmp_path: Path) -> None:
    nodes = [
        node("Conv", "x w", "c", pads=[1] * 4),
        node("Softmax", "c", "s", axis=1),
        node("Clip", "s low high", "t"),
        node("Flatten", "t", "f"),
        node("Gemm", "f v", "y", transB=1),
    ]
    constants = {"w": weights(4, 3, 3, 3), "low": np.float32(0.1), "high": np.float32(0.4), "v": weights(5, 64)}
    path = saved(tmp_path / "net.onnx", model(nodes, {"x": ("n", 3, 4, 4)}, ["y"], constants, opset))
    x = torch.randn(2, 3, 4, 4)
    np.testing.assert_allclose(network(path)(x).detach().numpy(), computed(path, (x,))[0], rtol=1e-4, atol=1e-5)
