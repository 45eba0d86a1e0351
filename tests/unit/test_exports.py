"""What a format can express, and one line for what it cannot: the operator and the user's line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from nets import image
from torch import Tensor, nn

from edgeprune import runtimes
from edgeprune.errors import UsageError
from edgeprune.graph.editable import as_graph
from edgeprune.runtimes import device
from edgeprune.runtimes.formats import FORMATS
from edgeprune.runtimes.formats.base import refusal
from edgeprune.runtimes.formats.onnx import OnnxTemplate


class After(nn.Module):
    """A convolution, then an operator."""

    def __init__(self, operator: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.operator = nn.Conv2d(3, 8, 1), operator

    def forward(self, x: Tensor) -> Tensor:
        return self.operator(self.a(x))


def written(operator: Callable[[Tensor], Tensor], kind: str = "onnx") -> bytes:
    return FORMATS[kind].export(After(operator).eval(), image(), ())


def opset(file: bytes) -> int:
    (known,) = onnx.load_from_string(file).opset_import
    return known.version


def test_a_file_has_the_lowest_opset_that_expresses_the_model() -> None:
    assert opset(written(torch.relu)) == 17
    assert opset(written(lambda x: F.fold(F.unfold(x, 2, stride=2), 8, 2, stride=2))) == 18


def test_an_operator_that_onnx_lacks_is_named_with_its_line(capfd: pytest.CaptureFixture[str]) -> None:
    """Torch's exporter would print its whole graph."""
    with pytest.raises(
        UsageError, match=r"^test_exports\.py:\d+: histc cannot be written as ONNX; use other operators$"
    ):
        written(lambda x: torch.histc(x, 5))
    assert capfd.readouterr() == ("", "")


def test_a_model_that_cannot_be_traced_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    from edgeprune.network.survey import survey

    with pytest.raises(UsageError, match=r"^torch\.export cannot trace") as caught:
        survey(After(lambda x: x if x.sum() > 0 else -x), image())
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    assert capfd.readouterr() == ("", "")


def test_sizes_may_be_keys_of_a_dictionary() -> None:
    """They are tensors while torch's exporter traces the model."""
    scales = {8: 0.5}
    assert opset(written(lambda x: x * scales[x.shape[-1]])) == 17


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_model_without_a_kernel_is_refused_before_a_device_is_used(runtime: str, tmp_path: Path) -> None:
    pytest.importorskip(runtime)
    node = onnx.helper.make_node("Missing", ["x"], ["y"], "net/missing", domain="none")
    values = [onnx.helper.make_tensor_value_info(name, 1, [1]) for name in "xy"]
    graph = onnx.helper.make_graph([node], "g", values[:1], values[1:])
    sets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("none", 1)]
    exported = tmp_path / "exported.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=sets, ir_version=8), exported)
    with pytest.raises(UsageError, match=rf"^{runtime} cannot (run|convert) the model: .*Missing") as caught:
        runtimes.host(runtime).convert(exported, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("exponent", [2, 3, 0.5, -0.5, -1])
def test_tflite_has_powers_of_tensors_with_many_dimensions(exponent: float) -> None:
    pytest.importorskip("litert_torch")
    assert written(lambda x: x.abs().view(1, 2, 4, 8, 8) ** exponent, "tflite")


@pytest.mark.slow
def test_constants_in_double_precision_are_stored_in_a_tflite_file() -> None:
    """LiteRT has no power in double precision, as many position embeddings are computed."""
    pytest.importorskip("litert_torch")
    assert written(lambda x: x * (10000 ** (torch.arange(8, dtype=torch.float64) / 8)).float(), "tflite")


@pytest.mark.slow
@pytest.mark.parametrize("operator", [lambda x: torch.histc(x, 5), lambda x: torch.sort(x, 1)[0]])
def test_an_operator_that_tflite_lacks_is_named_with_its_line(operator: Callable[[Tensor], Tensor]) -> None:
    """The converter refuses the first. It writes the second, but the interpreter has no kernel for it."""
    pytest.importorskip("litert_torch")
    with pytest.raises(UsageError, match=r"^test_exports\.py:\d+: (histc|sort) cannot be written as TFLite"):
        written(operator, "tflite")


class Windows(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.unfold(-1, 3, 2), x.unfold(1, 2, 1)


def test_windows_along_any_dimension_are_exported() -> None:
    x = torch.arange(60.0).view(1, 3, 4, 5)
    session = onnxruntime.InferenceSession(OnnxTemplate.written(Windows(), (x,)), providers=["CPUExecutionProvider"])
    for got, expected in zip(session.run(None, {"input_0": x.numpy()}), Windows()(x), strict=True):
        np.testing.assert_array_equal(got, expected.numpy())


class Parts(nn.Module):
    """Assignments to parts of a tensor. One reads a part that was taken before."""

    def forward(self, x: Tensor) -> Tensor:
        made = torch.zeros_like(x)
        first = made[:, :2]
        made[:, :2, :-1] = x[:, :2, 1:]
        made[:, 2] = x[:, 0]
        made[:, 1:, ::2] += x[:, 1:, ::2].exp()
        made[..., 1].mul_(2)
        made[:, :, 3] = 0.5
        whole = torch.empty_like(made)
        whole.copy_(made[:, :1])
        return torch.cat([made, first, whole], 1)


class Condition(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda y: y * 2, lambda y: y - 1, (x,))


class Moved(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x.moveaxis(-1, -2).mT + x.movedim((0, -1), (-1, 0)).permute(3, 1, 2, 0)).mT


@pytest.mark.parametrize("of_graph", [False, True])
@pytest.mark.parametrize("kind", [Parts, Condition, Moved])
def test_a_file_computes_what_the_model_does(kind: type[nn.Module], of_graph: bool) -> None:
    """Torch's exporter lacks rules of these operators, or drops assignments of a graph."""
    model, x = kind().eval(), torch.randn(1, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    exported = as_graph(model, (x,), free_batch=False) if of_graph else model
    session = onnxruntime.InferenceSession(OnnxTemplate.export(exported, (x,), ()), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"input_0": x.numpy()})[0], model(x).numpy(), rtol=1e-5, atol=1e-6)


def test_a_pooling_window_that_is_larger_than_its_input_loads_in_every_runtime(tmp_path: Path) -> None:
    """EfficientNet of transformers pools 2x2 positions with a window of the hidden size."""
    openvino = pytest.importorskip("openvino")
    pool, x = nn.AvgPool2d(512, ceil_mode=True), torch.randn(1, 3, 4, 5)
    (tmp_path / "pool.onnx").write_bytes(OnnxTemplate.written(nn.Sequential(nn.ReLU(), pool), (x,)))
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(tmp_path / "pool.onnx"), "CPU")
    np.testing.assert_allclose(compiled([x.numpy()])[0], pool(x.relu()).numpy(), rtol=1e-6)


def test_a_file_that_openvino_cannot_convert_is_refused_with_the_operator_and_the_reason(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    window = onnx.helper.make_node("AveragePool", ["x"], ["y"], kernel_shape=[9, 9])
    x, y = (onnx.helper.make_tensor_value_info(name, 1, [1, 3, 4, 4]) for name in "xy")
    graph = onnx.helper.make_graph([window], "net", [x], [y])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)]), tmp_path / "net.onnx")
    with pytest.raises(UsageError, match=r"cannot convert the model: AveragePool-\d+: Kernel after dilation has size"):
        runtimes.host("openvino").convert(tmp_path / "net.onnx", tmp_path)


def test_an_error_of_a_converter_names_files_without_their_folders() -> None:
    error = ValueError("Failed to run passes: /opt/venv/lib/nets/conv.py:565:0: error: 'tfl.mul' op has no shape")
    found = refusal("TFLite", nn.ReLU(), (), error)
    assert str(found).endswith("Failed to run passes: conv.py:565: error: 'tfl.mul' op has no shape")


class SecondOnly(nn.Module):
    """A network that does not use its first input."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return second + 1


@pytest.mark.parametrize("kind", ["onnx", pytest.param("tflite", marks=pytest.mark.slow)])
def test_a_file_has_all_inputs_of_the_model(kind: str, tmp_path: Path) -> None:
    inputs = torch.zeros(1, 2), torch.ones(1, 3)
    file = tmp_path / f"model.{kind}"
    file.write_bytes(FORMATS[kind].written(SecondOnly(), inputs))
    loaded = device.find("onnxruntime" if kind == "onnx" else kind).load(str(file), device.Options(1))
    assert loaded.call([tensor.numpy() for tensor in inputs])[0].tolist() == [[2, 2, 2]]
