"""Bad .onnx files: every error is one line that names the file, the place, and what to do."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnx.helper as oh
import pytest
import torch
from onnx_files import model, node, saved, weights

from edgeprune.errors import SecurityError, UsageError
from edgeprune.frontends.onnx import example_inputs, network
from edgeprune.limits import LIMITS

X = {"x": (1, 3)}


def linear(**changes: object) -> onnx.ModelProto:
    return model([node("MatMul", "x w", "y", "/fc/MatMul")], X, ["y"], {"w": weights(3, 3)})


def external(location: str, **entries: str) -> onnx.ModelProto:
    proto = linear()
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=value)
    return proto


def with_opset(version: int) -> onnx.ModelProto:
    proto = linear()
    proto.opset_import[0].version = version
    return proto


def with_input(kind: int, shape: list[int | str] | None) -> onnx.ModelProto:
    proto = linear()
    proto.graph.input[0].CopyFrom(oh.make_tensor_value_info("x", kind, shape))
    return proto


def with_custom_domain() -> onnx.ModelProto:
    proto = linear()
    proto.graph.node[0].domain = "com.microsoft"
    return proto


def with_a_label() -> onnx.ModelProto:
    label = oh.make_node("ArrayFeatureExtractor", ["classes", "best"], ["label"], domain="ai.onnx.ml")
    nodes = [*linear().graph.node, node("ArgMax", "y", "best"), label]
    return model(nodes, X, ["label"], {"w": weights(3, 3), "classes": np.arange(3)})


def with_batch_norm(outputs: str, opset: int, **attributes: int) -> onnx.ModelProto:
    ones = {name: np.ones(3, np.float32) for name in "abcd"}
    return model([node("BatchNormalization", "x a b c d", outputs, **attributes)], X, ["y"], ones, opset)


def peepholes(length: int | None = None) -> onnx.ModelProto:
    given = "x w r - n" if length else "x w r - - - - p"
    constants = {
        "w": weights(1, 4, 3),
        "r": weights(1, 4, 1),
        "n": np.array([length or 0], np.int32),
        "p": weights(1, 3),
    }
    return model([node("LSTM", given, "y", hidden_size=1)], {"x": (4, 1, 3)}, ["y"], constants)


def sparse() -> onnx.ModelProto:
    values, places = (onnx.numpy_helper.from_array(np.array([1], kind)) for kind in (np.float32, np.int64))
    value = oh.make_sparse_tensor(values, places, [3, 3])
    return model([node("Constant", "", "w", sparse_value=value), node("MatMul", "x w", "y")], X, ["y"])


def with_strings() -> onnx.ModelProto:
    proto = linear()
    proto.graph.initializer.append(oh.make_tensor("names", onnx.TensorProto.STRING, [1], [b"cat"]))
    return proto


def with_a_sequence() -> onnx.ModelProto:
    proto = linear()
    proto.graph.input[0].CopyFrom(oh.make_tensor_sequence_value_info("x", onnx.TensorProto.FLOAT, [1]))
    return proto


def with_two_weights() -> onnx.ModelProto:
    proto = linear()
    proto.graph.initializer.append(proto.graph.initializer[0])
    return proto


def with_a_wrong_size() -> onnx.ModelProto:
    proto = linear()
    proto.graph.initializer[0].dims[0] = 2**40
    return proto


def quantised() -> onnx.ModelProto:
    nodes = [node("QuantizeLinear", "x s", "q"), node("DequantizeLinear", "q s", "y")]
    return model(nodes, X, ["y"], {"s": np.float32(0.1)})


def filled(size: int) -> onnx.ModelProto:
    return model(
        [node("ConstantOfShape", "n", "c"), node("Add", "x c", "y")], X, ["y"], {"n": np.array([size], np.int64)}
    )


def expanded() -> onnx.ModelProto:
    nodes = [node("Expand", "w n", "c"), node("ReduceSum", "c", "s", keepdims=0), node("Add", "x s", "y")]
    return model(nodes, X, ["y"], {"w": np.ones(1, np.float32), "n": np.array([10**6, 10**6], np.int64)})


def doubled() -> onnx.ModelProto:
    """Each constant is as large as the one before it and itself."""
    nodes = [node("Concat", f"c{i} c{i}", f"c{i + 1}", axis=0) for i in range(40)]
    return model(
        [*nodes, node("Gather", "c40 zero", "g"), node("Add", "x g", "y")],
        X,
        ["y"],
        {"c0": np.ones(1, np.float32), "zero": np.int64(0)},
    )


def branches(op: str, given: str) -> dict[str, onnx.GraphProto]:
    names = {"then_branch": "a", "else_branch": "b"}
    return {key: oh.make_graph([node(op, given, n)], n, [], [onnx.ValueInfoProto(name=n)]) for key, n in names.items()}


def dynamic_branch() -> onnx.ModelProto:
    nodes = [
        node("ReduceSum", "x", "sum", keepdims=0), node("Greater", "sum zero", "positive"),
        node("If", "positive", "y", "/choose/If", **branches("Relu", "x")),
    ]  # fmt: skip
    return model(nodes, X, ["y"], {"zero": np.float32(0)})


def looping(count: str) -> onnx.ModelProto:
    names = [[onnx.ValueInfoProto(name=name) for name in given] for given in (("i", "go", "h"), ("go", "h"))]
    nodes = [
        node("ReduceSum", "x", "sum", keepdims=0), node("Cast", "sum", "n", to=7),
        node("Loop", f"{count} - x", "y", body=oh.make_graph([], "body", *names)),
    ]  # fmt: skip
    return model(nodes, X, ["y"])


def calling(*names: str) -> onnx.ModelProto:
    """Each function calls the next one twice."""
    own = [oh.make_opsetid("", 17), oh.make_opsetid("own", 1)]
    proto = model([oh.make_node(names[0], ["x"], ["y"], domain="own")], X, ["y"])
    proto.opset_import.append(own[1])
    for name, after in pairwise(names):
        calls = [oh.make_node(after, ["x"], ["h"], domain="own"), oh.make_node(after, ["h"], ["y"], domain="own")]
        proto.functions.append(oh.make_function("own", name, ["x"], ["y"], calls, own))
    return proto


def doubling() -> onnx.ModelProto:
    return calling(*(f"F{place}" for place in range(40)))


FILES: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "no network": (onnx.ModelProto, "holds no network; "),
    "an old opset": (lambda: with_opset(6), r"export .* opset 7 to \d+; or convert it: onnx.version_converter"),
    "a future opset": (lambda: with_opset(99), "opset 99 is not known"),
    "a custom domain": (
        with_custom_domain,
        r"node '/fc/MatMul' \(MatMul\) is of the domain 'com.microsoft'.*standard operators",
    ),
    "scikit-learn's own domain": (
        with_a_label,
        r"\(ArrayFeatureExtractor\) is of the domain 'ai.onnx.ml'.*or cut it off: onnx.utils.extract_model",
    ),
    "a batch norm in training form": (
        lambda: with_batch_norm("y m v", 11),
        r"node 'y' \(BatchNormalization\) is in training form; export the network in eval mode",
    ),
    "statistics of single positions": (
        lambda: with_batch_norm("y", 8, spatial=0),
        r"\(BatchNormalization\) has statistics of single positions",
    ),
    "peepholes": (peepholes, r"\(LSTM\) has options without a converter: .*peepholes"),
    "sequences of unequal length": (lambda: peepholes(2), r"\(LSTM\) has sequences of unequal length"),
    "a sparse constant": (sparse, r"node 'w' \(Constant\) is a sparse tensor; export it as a dense one"),
    "int8": (quantised, r"\(QuantizeLinear\) is int8 arithmetic; give the float file"),
    "strings": (with_strings, "the weight 'names' holds strings"),
    "an input of strings": (lambda: with_input(onnx.TensorProto.STRING, [1]), "the input 'x' holds strings"),
    "an input that is a sequence": (with_a_sequence, "the input 'x' is no tensor"),
    "an input without a shape": (lambda: with_input(1, None), "the input 'x' has no shape"),
    "an empty dimension": (lambda: with_input(1, [1, 0]), "the input 'x' has a dimension of 0"),
    "a negative dimension": (lambda: with_input(1, [1, -3]), "the input 'x' has a dimension of -3"),
    "sizes that are not fixed": (
        lambda: with_input(1, ["n", "width"]),
        r"shape \(n, width\), whose sizes are not fixed; give \[model\] inputs",
    ),
    "a huge input": (lambda: with_input(1, [1, 10**12]), "the input 'x' holds more than"),
    "two weights of one name": (with_two_weights, "two weights are called 'w'"),
    "a weight of a wrong size": (with_a_wrong_size, "the weight 'w' has the shape .* too large"),
    "a huge constant": (lambda: filled(10**12), r"\(ConstantOfShape\) makes a tensor of 1000000000000 numbers"),
    "a constant of negative size": (lambda: filled(-5), r"\(ConstantOfShape\) cannot be computed"),
    "a huge broadcast": (expanded, r"\(Expand\) makes a tensor of"),
    "constants that double": (doubled, r"\(Concat\) makes (a tensor|constants) of"),
    "a branch by value": (
        dynamic_branch,
        r"node '/choose/If' \(If\) chooses by values of the inputs; export .* without control flow",
    ),
    "a loop": (
        lambda: model([node("Loop", "- - x", "y", body=oh.make_graph([], "b", [], []))], X, ["y"]),
        r"\(Loop\) has attributes or inputs that do not fit",
    ),
    "a loop without an end": (lambda: looping("-"), r"\(Loop\) makes more than \d+ nodes; export .* a shorter loop"),
    "a loop by value": (lambda: looping("n"), r"\(Loop\) depends on the values of the inputs; export .* written out"),
    "a branch that reads what is not there": (
        lambda: model([node("If", "yes", "y", **branches("Relu", "z"))], X, ["y"], {"yes": np.array(True)}),
        r"\(Relu\) reads 'z', which nothing makes",
    ),
    "a function that calls itself": (lambda: calling("F", "F"), "the function 'F' calls itself"),
    "functions that double": (doubling, "its functions make more than"),
    "a sequence as output": (
        lambda: model([node("SequenceConstruct", "x x", "y")], X, ["y"]),
        "the output 'y' is a sequence; export its tensors",
    ),
    "boxes that are chosen": (
        lambda: model([node("NonMaxSuppression", "x x", "y")], X, ["y"]),
        r"\(NonMaxSuppression\) chooses by values of the inputs; export .* without its post-processing",
    ),
    "random numbers": (
        lambda: model([node("RandomNormalLike", "x", "y")], X, ["y"]),
        r"\(RandomNormalLike\) is random; export the network in eval mode",
    ),
    "dropout that drops": (
        lambda: model([node("Dropout", "x half yes", "y")], X, ["y"], {"half": np.float32(0.5), "yes": np.array(True)}),
        r"\(Dropout\) drops values at random; export the network in eval mode",
    ),
    "a cycle": (lambda: model([node("Add", "x b", "a"), node("Relu", "a", "b")], X, ["b"]), "reads its own result"),
    "a value that nothing makes": (lambda: model([node("Relu", "z", "y")], X, ["y"]), "reads 'z', which nothing makes"),
    "an output that nothing makes": (lambda: model([node("Relu", "x", "y")], X, ["z"]), "no node makes the output 'z'"),
    "a result that exists": (
        lambda: model([node("Relu", "x", "y"), node("Neg", "x", "y")], X, ["y"]),
        "makes 'y', which exists",
    ),
    "an attribute that is missing": (
        lambda: model([node("Cast", "x", "y")], X, ["y"]),
        r"\(Cast\) has attributes or inputs that do not fit",
    ),
    "an input that is missing": (
        lambda: model([node("MatMul", "x", "y")], X, ["y"]),
        r"\(MatMul\) has attributes or inputs that do not fit",
    ),
    "shapes that do not fit": (
        lambda: model([node("MatMul", "x w", "y")], X, ["y"], {"w": weights(4, 4)}),
        r"\(MatMul\) cannot be computed",
    ),
    "a shape that follows from values": (
        lambda: model([node("NonZero", "x", "y")], X, ["y"]),
        "depends on the values of the inputs",
    ),
    "complex numbers": (lambda: with_input(onnx.TensorProto.COMPLEX64, [1, 3]), "the input 'x' is COMPLEX64"),
    "types that do not fit": (
        lambda: with_input(onnx.TensorProto.INT64, [1, 3]),
        "the network fails with random inputs|cannot be computed",
    ),
    "external data that is missing": (
        lambda: external("w.bin"),
        "its external data 'w.bin' is missing; put it beside the model",
    ),
    "external data without an offset": (lambda: external("w.bin", offset="many"), "has no valid offset"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_bad_file_is_refused_in_one_line_that_names_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smaller = replace(LIMITS, onnx_nodes=500, onnx_computed_bytes=1 << 20)  # the real ones take seconds to reach
    monkeypatch.setattr("edgeprune.frontends.onnx.build.LIMITS", smaller)
    make, message = FILES[name]
    path = saved(tmp_path / "bad.onnx", make())
    with pytest.raises(UsageError, match=message) as raised:
        network(path)
    text = str(raised.value)
    assert text.startswith(str(path)) and text.isprintable()


@pytest.mark.parametrize("location", ["../w.bin", "/etc/hostname", "a/../../w.bin", ""])
def test_external_data_outside_the_folder_is_refused(location: str, tmp_path: Path) -> None:
    folder = tmp_path / "inside"
    folder.mkdir()
    (tmp_path / "w.bin").write_bytes(bytes(36))
    with pytest.raises(SecurityError, match="outside the file's folder") as raised:
        network(saved(folder / "bad.onnx", external(location)))
    assert raised.value.exit_code == 6


def test_external_data_behind_a_link_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "inside"
    folder.mkdir()
    (tmp_path / "w.bin").write_bytes(bytes(36))
    (folder / "w.bin").symlink_to(tmp_path / "w.bin")
    with pytest.raises(SecurityError, match="outside the file's folder"):
        network(saved(folder / "bad.onnx", external("w.bin")))


def test_external_data_beside_the_file_is_read(tmp_path: Path) -> None:
    values = weights(3, 3)
    (tmp_path / "w.bin").write_bytes(b"head" + values.tobytes())
    path = saved(tmp_path / "good.onnx", external("w.bin", offset="4", length="36"))
    torch.testing.assert_close(network(path).get_submodule("fc").weight.detach(), torch.from_numpy(values).T)
    (tmp_path / "w.bin").write_bytes(b"short")
    with pytest.raises(UsageError, match=r"'w.bin' is truncated; get the file again"):
        network(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused(share: float, tmp_path: Path) -> None:
    whole = linear().SerializeToString()
    path = tmp_path / "bad.onnx"
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UsageError, match=r"truncated|no network|export"):
        network(path)


def test_a_file_over_two_gigabytes_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "large.onnx"
    with path.open("wb") as stream:
        os.truncate(stream.fileno(), 3 << 30)  # it takes no space
    with pytest.raises(UsageError, match=r"save its weights as external data"):
        network(path)


def test_other_files_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"name the \.onnx file in it"):
        network(tmp_path)
    (tmp_path / "text.onnx").write_text("[model]\nonnx = 'text.onnx'\n")
    with pytest.raises(UsageError, match="is not ONNX"):
        network(tmp_path / "text.onnx")


def test_control_characters_of_a_file_are_not_printed(tmp_path: Path) -> None:
    path = saved(tmp_path / "bad.onnx", model([node("Det", "x", "y", "\x1b[31m\nred")], {"x": (1, 2, 2)}, ["y"]))
    with pytest.raises(UsageError) as raised:
        network(path)
    assert str(raised.value).isprintable()


def test_half_precision_is_converted_with_a_note(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "edgeprune")
    proto = model(
        [node("MatMul", "x w", "y")], X, ["y"], {"w": weights(3, 3).astype(np.float16)}, kind=onnx.TensorProto.FLOAT16
    )
    path = saved(tmp_path / "half.onnx", proto)
    made = network(path)
    assert made(*example_inputs(path)).dtype == torch.float32
    assert "2 tensors in half precision were converted to float32" in caplog.text


def test_nodes_in_any_order_are_read(tmp_path: Path) -> None:
    path = saved(tmp_path / "net.onnx", model([node("Neg", "a", "y"), node("Relu", "x", "a")], X, ["y"]))
    x = torch.randn(1, 3)
    assert torch.equal(network(path)(x), -x.relu())
