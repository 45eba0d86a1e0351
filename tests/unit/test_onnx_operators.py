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


def resized(scales: str, **given: Any) -> Case:
    return of("Resize", "-", np.array([1, 1, *map(float, scales.split())], np.float32), **given)


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
    of("Selu", alpha=1.2, gamma=0.7),
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
    of("ArgMax", axis=1, select_last_index=1),
    of("CumSum", np.int64(1)),
    of("CumSum", np.int64(1), exclusive=1),
    of("CumSum", np.int64(-1), reverse=1),
    of("CumSum", np.int64(2), exclusive=1, reverse=1),
    of("MeanVarianceNormalization"),
    of("Shrink", lambd=0.3, bias=0.1),
    of("Compress", np.array([True, False, True, True]), axis=1),
    of("ReverseSequence", ints(6), shape=(1, 6, 8), batch_axis=0, time_axis=1),
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
    of("ConvTranspose", weights(4, 5, 3, 3), strides=[2, 2], output_shape=[12, 16]),
    of("ConvTranspose", weights(4, 5, 3, 3), strides=[3, 2], auto_pad="SAME_LOWER"),
    of("ConvTranspose", weights(4, 5, 3), shape=(1, 4, 9), strides=[2], dilations=[2], output_padding=[1]),
    of("Gemm", weights(8, 5), weights(5), shape=(1, 8)),
    of("Gemm", weights(4, 5), weights(6, 1), shape=(4, 6), transA=1),
    of("Gemm", weights(8, 5), weights(5, 1), shape=(5, 8)),
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
    of("MaxPool", kernel_shape=[3, 3], pads=[2, 2, 2, 2]),
    of("AveragePool", kernel_shape=[3, 3], pads=[2, 2, 2, 2]),
    of("AveragePool", kernel_shape=[3, 3], pads=[2, 2, 2, 2], count_include_pad=1),
    of("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    of("AveragePool", kernel_shape=[3, 3], pads=[0, 0, 1, 1], count_include_pad=1),
    of("AveragePool", kernel_shape=[2, 2], auto_pad="SAME_UPPER"),
    of("GlobalAveragePool"),
    of("GlobalMaxPool"),
    resized("2 2", mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
    resized("2 2", mode="nearest"),
    *(
        resized("1.7 0.6", mode="nearest", coordinate_transformation_mode=where, nearest_mode=how)
        for where in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
        for how in ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")
    ),
    of("Resize", "-", "-", ints(1, 4, 9, 5), mode="linear"),
    of("Resize", "-", "-", ints(9, 5), mode="cubic", axes=[2, 3], opset=18),
    *(
        resized("1.7 0.6", mode=mode, coordinate_transformation_mode=where)
        for mode in ("linear", "cubic")
        for where in ("half_pixel", "asymmetric", "align_corners")
    ),
    resized("2 3", mode="linear", coordinate_transformation_mode="align_corners"),
    resized(
        "0.7 0.7",
        shape=(1, 4, 16, 20),
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    ),
    resized("2 3", mode="linear", coordinate_transformation_mode="asymmetric"),
    resized("2 2", mode="cubic", cubic_coeff_a=-0.5, exclude_outside=1),
    resized("1.3 1.6", mode="linear", coordinate_transformation_mode="half_pixel_symmetric", opset=19),
    of("GridSample", np.tanh(weights(1, 5, 7, 2)), opset=16),
    of("GridSample", np.tanh(weights(1, 5, 7, 2)), opset=20, mode="nearest", padding_mode="border", align_corners=1),
    of("AffineGrid", ints(1, 4, 6, 8), shape=(1, 2, 3), opset=20),
    of("Col2Im", ints(5, 5), ints(2, 3), shape=(1, 12, 12), opset=18),
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
    of("LSTM", *LSTM, np.array([3], np.int32), shape=(3, 1, 8), outputs=3, hidden_size=5),
    of("LSTM", *LSTM, shape=(3, 1, 8), outputs=3, hidden_size=5, activations=["sigmoid", "tanh", "tanh"]),
    of("SimplifiedLayerNormalization", weights(8)),
    of("Resize", "-", np.array([1, 2, 2, 1], np.float32), mode="linear"),
    of(
        "Resize",
        np.zeros(0, np.float32),
        np.array([1, 1, 2, 3], np.float32),
        opset=11,
        coordinate_transformation_mode="tf_half_pixel_for_nn",
        nearest_mode="floor",
    ),
    # before opset 11
    of("Resize", np.array([1, 1, 2, 2], np.float32), opset=10, mode="linear"),
    of("Upsample", np.array([1, 1, 2, 3], np.float32), opset=9),
    of("Upsample", opset=7, scales=[1.0, 1.0, 2.0, 2.0], mode="linear"),
    of("Slice", opset=9, axes=[3, 1], starts=[1, -3], ends=[2**31, 4]),
    of("Slice", opset=7, starts=[0, 1], ends=[1, 3]),
    of("Pad", opset=10, pads=[0, 0, 1, 2, 0, 0, 0, 1], value=0.5),
    of("TopK", opset=9, outputs=2, axis=1, k=2),
    of("Squeeze", opset=8, axes=[1], shape=(1, 1, 5)),
    of("Clip", opset=7, min=0.0, max=6.0),
    of("BatchNormalization", *CHANNELS, np.abs(weights(4, seed=3)) + 0.1, opset=8),
    of("Softmax", opset=7, axis=1),
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


LEFT_OUT = set(
    # of torch under the same name:
    "Acos Acosh Asin Atanh Cosh IsInf IsNaN Not And Or Xor Equal Greater GreaterOrEqual Less LessOrEqual"
    # tested below:
    " Constant ConstantOfShape Range EyeLike NonZero CastLike If Mod OneHot GatherElements GatherND ScatterElements ScatterND"
    " BitwiseNot BitwiseAnd BitwiseOr BitwiseXor Loop Scan SequenceAt SequenceConstruct SequenceEmpty SequenceInsert"
    " SequenceErase SequenceLength ConcatFromSequence SplitToSequence"
    # under an earlier name:
    " Scatter"
    # refused:
    " Optional OptionalGetElement OptionalHasElement SequenceMap NonMaxSuppression RoiAlign MaxRoiPool Unique"
    " RandomNormal RandomNormalLike RandomUniform RandomUniformLike Bernoulli Multinomial".split()
)


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


def require_same(path: Path, *shape: int) -> None:
    x = torch.randn(*shape)
    np.testing.assert_allclose(network(path)(x).detach().numpy(), computed(path, (x,))[0], rtol=1e-4, atol=1e-5)


def graph(nodes: list[onnx.NodeProto], inputs: str, outputs: str) -> onnx.GraphProto:
    """The body of a loop. ONNX Runtime needs the types of its inputs."""
    kinds = {"i": (onnx.TensorProto.INT64, []), "go": (onnx.TensorProto.BOOL, [])}
    given = [
        onnx.helper.make_tensor_value_info(n, *kinds.get(n, (onnx.TensorProto.FLOAT, None))) for n in inputs.split()
    ]
    return onnx.helper.make_graph(nodes, "body", given, [onnx.ValueInfoProto(name=name) for name in outputs.split()])


def looping(count: str, condition: str, body_condition: str = "i") -> list[onnx.NodeProto]:
    """h = relu(h w) in each pass, and all of them."""
    inside = [
        node("MatMul", "h w", "m"), node("Relu", "m", "next"), node("Identity", "next", "each"),
        node("Less", f"{body_condition} two", "more"),
    ]  # fmt: skip
    return [node("Loop", f"{count} {condition} x", "last all", body=graph(inside, "i go h", "more next each"))]


LOOPED = {"w": weights(5, 5), "two": np.int64(2), "many": np.int64(9), "yes": np.array(True)}


@pytest.mark.parametrize(("count", "condition", "passes"), [("two", "-", 2), ("-", "yes", 3), ("many", "yes", 3)])
def test_a_loop_is_written_out_and_its_passes_share_their_weights(
    count: str, condition: str, passes: int, tmp_path: Path
) -> None:
    nodes = [*looping(count, condition), node("ReduceSum", "all first", "s", keepdims=0), node("Add", "s last", "y")]
    constants = LOOPED | {"first": ints(0)}
    path = saved(tmp_path / "loop.onnx", model(nodes, {"x": (1, 5)}, ["y"], constants))
    require_same(path, 1, 5)
    made = network(path)
    assert [tuple(p.shape) for p in made.parameters()] == [(5, 5)] and str(made).count("relu(") == passes
    assert made(torch.randn(3, 5)).shape == (3, 5)


def test_a_scan_is_written_out(tmp_path: Path) -> None:
    """Sums from the first step on, and products from the last one on."""
    inside = [node("Add", "h x1", "sum"), node("Mul", "h x2", "product"), node("Identity", "sum", "each")]
    body = graph(inside, "h x1 x2", "sum each product")
    given = {
        "num_scan_inputs": 2,
        "scan_input_axes": [1, 1],
        "scan_input_directions": [0, 1],
        "scan_output_axes": [1, 1],
    }
    nodes = [
        node("Scan", "h0 x x", "last sums products", body=body, scan_output_directions=[0, 1], **given),
        node("Concat", "sums products", "y", axis=1),
    ]
    path = saved(tmp_path / "scan.onnx", model(nodes, {"x": (1, 4, 3)}, ["y"], {"h0": weights(1, 3)}))
    require_same(path, 1, 4, 3)


def test_sequences_of_a_known_length_are_their_tensors(tmp_path: Path) -> None:
    nodes = [
        node("SplitToSequence", "x two", "halves", axis=1), node("SplitToSequence", "x", "rows", axis=2, keepdims=0),
        node("SequenceAt", "halves last", "half"), node("SequenceAt", "rows one", "r"),
        node("Unsqueeze", "r place", "row"),
        node("SequenceEmpty", "", "none"), node("SequenceInsert", "none half", "one_half"),
        node("SequenceInsert", "one_half half zero", "twice"), node("SequenceErase", "twice last", "left"),
        node("SequenceConstruct", "half half", "pair"), node("SequenceLength", "pair", "length"),
        node("ConcatFromSequence", "twice", "wide", axis=1), node("ConcatFromSequence", "left", "stacked", axis=1, new_axis=1),
        node("Squeeze", "stacked place", "flat"), node("Add", "wide row", "a"), node("Concat", "flat flat", "b", axis=1),
        node("Cast", "length", "number", to=1), node("Mul", "b number", "c"), node("Add", "a c", "y"),
    ]  # fmt: skip
    constants = {"two": np.int64(2), "last": np.int64(-1), "one": np.int64(1), "zero": np.int64(0), "place": ints(1)}
    path = saved(tmp_path / "sequences.onnx", model(nodes, {"x": (1, 4, 4)}, ["y"], constants))
    made, x = network(path), torch.randn(2, 4, 4)
    half = x[:, 2:]
    torch.testing.assert_close(
        made(x), torch.cat([half, half], 1) + x[:, :, 1][:, None] + 2 * torch.cat([half, half], 1)
    )


def test_a_sequence_of_the_samples_takes_their_number(tmp_path: Path) -> None:
    """A negative place counts from the end."""
    nodes = [
        node("SplitToSequence", "x", "rows", axis=0, keepdims=0), node("SequenceAt", "rows place", "last"),
        node("SequenceInsert", "rows last place", "three"), node("ConcatFromSequence", "three", "y", axis=0, new_axis=1),
    ]  # fmt: skip
    path = saved(tmp_path / "samples.onnx", model(nodes, {"x": (2, 3)}, ["y"], {"place": np.int64(-1)}))
    made, x = network(path), torch.randn(2, 3)
    assert made.batch_dims is None and torch.equal(made(x), x[[0, 1, 1]])
    np.testing.assert_array_equal(computed(path, (x,))[0], x[[0, 1, 1]].numpy())
    four = node("SequenceInsert", "three first minus", "four")
    nodes = [*nodes[:3], node("SequenceAt", "rows zero", "first"), four]
    nodes.append(node("ConcatFromSequence", "four", "y", axis=0, new_axis=1))
    constants = {"place": np.int64(-1), "zero": np.int64(0), "minus": np.int64(-2)}
    path = saved(tmp_path / "four.onnx", model(nodes, {"x": (2, 3)}, ["y"], constants))
    assert torch.equal(network(path)(x), x[[0, 0, 1, 1]])


def test_functions_of_a_file_are_written_out(tmp_path: Path) -> None:
    """As torch 2.1 to 2.5 wrote layers. One function may call another."""
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("own", 1)]
    linear = onnx.helper.make_function("own", "Linear", ["x", "w"], ["y"], [node("MatMul", "x w", "y")], opsets[:1])
    calls = [onnx.helper.make_node("Linear", ["x", "w"], ["m"], domain="own"), node("Relu", "m", "y")]
    layer = onnx.helper.make_function("own", "Layer", ["x", "w"], ["y"], calls, opsets)
    nodes = [onnx.helper.make_node("Layer", ["x", "w"], ["h"], domain="own"), node("Neg", "h", "y")]
    proto = model(nodes, {"x": (1, 5)}, ["y"], {"w": weights(5, 5)})
    proto.opset_import.append(opsets[1])
    proto.functions.extend([layer, linear])
    require_same(saved(tmp_path / "functions.onnx", proto), 1, 5)


@pytest.mark.parametrize("extra", [{}, {"outputs": "y mean deviation"}])
def test_results_that_nothing_reads_need_no_converter(extra: dict[str, str], tmp_path: Path) -> None:
    nodes = [node("LayerNormalization", "x w", extra.get("outputs", "y"))]
    require_same(saved(tmp_path / "norm.onnx", model(nodes, {"x": (2, 5)}, ["y"], {"w": weights(5)})), 2, 5)


@pytest.mark.parametrize("op", ["BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot"])
def test_bits_are_computed(op: str, tmp_path: Path) -> None:
    nodes = [
        node("Mul", "x hundred", "large"), node("Cast", "large", "i", to=7),
        node(op, "i" if op == "BitwiseNot" else "i mask", "b"), node("Cast", "b", "y", to=1),
    ]  # fmt: skip
    constants = {"hundred": np.float32(100), "mask": np.int64(21)}
    require_same(saved(tmp_path / "bits.onnx", model(nodes, {"x": (1, 5)}, ["y"], constants, 18)), 1, 5)


def test_an_input_may_be_a_number(tmp_path: Path) -> None:
    path = saved(tmp_path / "scaled.onnx", model([node("Mul", "x s", "y")], {"x": (1, 5), "s": ()}, ["y"]))
    made, x, s = network(path), torch.randn(3, 5), torch.tensor(2.0)
    assert torch.equal(made(x, s), 2 * x)


def test_half_precision_between_casts_is_left_out_with_a_note(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "edgeprune")
    nodes = [node("Cast", "x", "h", to=10), node("Exp", "h", "e"), node("Cast", "e", "y", to=1)]
    x = torch.randn(2, 5)
    path = saved(tmp_path / "half.onnx", model(nodes, {"x": ("n", 5)}, ["y"]))
    torch.testing.assert_close(network(path)(x), x.exp())
    assert "half.onnx: 1 casts to half precision were left out" in caplog.text


INDEXED = [
    of("GatherElements", weights(1, 4, 6, 8).astype(I64) % 4 - 4, axis=1),
    of("ScatterElements", np.full((1, 1, 6, 8), -1), weights(1, 1, 6, 8), axis=1),
    *(
        of("ScatterElements", np.full((1, 1, 6, 8), 2), weights(1, 1, 6, 8), axis=1, reduction=how, opset=18)
        for how in ("add", "mul", "max", "min")
    ),
    of("GatherElements", np.abs(weights(1, 4, 6, 8)).astype(I64) % 4, axis=1),
    of("ScatterElements", np.zeros((1, 1, 6, 8), I64), weights(1, 1, 6, 8), axis=1),
    of("GatherND", np.array([[0, 1], [0, 2]], I64)),
    of("GatherND", np.array([[1], [2]], I64), shape=(3, 4)),
    of("GatherND", np.array([[0, 1], [2, 3], [1, 0]], I64), shape=(3, 4, 5), batch_dims=1),
    of("GatherND", np.array([[[1], [0]]], I64), shape=(1, 2, 4, 5), batch_dims=2),
    of("Scatter", np.zeros((1, 1, 6, 8), I64), weights(1, 1, 6, 8), axis=1, opset=9),
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


def test_an_output_may_be_a_weight(tmp_path: Path) -> None:
    path = saved(
        tmp_path / "net.onnx", model([node("MatMul", "x w", "y")], {"x": (1, 4)}, ["y", "w"], {"w": weights(4, 3)})
    )
    assert torch.equal(network(path)(torch.randn(1, 4))[1].detach(), torch.from_numpy(weights(4, 3)))


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
