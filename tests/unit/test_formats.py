"""A variant sliced from the exported file is what a fresh export of the cut network would be, in every format."""

from __future__ import annotations

import zlib

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from nets import NETS, image
from torch import nn

from edgeprune import flatbuffer, graph, network
from edgeprune.formats import FORMATS
from edgeprune.formats.base import Origins
from edgeprune.formats.onnx import OnnxTemplate

SLICED = ["Plain", "Residual", "OptionA", "Concat", "Chunk", "Depthwise", "SqueezeExcite", "Normalised"]
TFLITE = ["Plain", "Residual", "Depthwise"]  # a conversion takes seconds


def run_onnx(file: bytes) -> np.ndarray:
    onnx.checker.check_model(onnx.load_from_string(file))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"input_0": image()[0].numpy()})[0]


def run_tflite(file: bytes) -> np.ndarray:
    interpreter = pytest.importorskip("ai_edge_litert.interpreter").Interpreter(model_content=file)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image()[0].numpy())
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


RUN = {"onnx": run_onnx, "tflite": run_tflite}


@pytest.mark.parametrize(("kind", "name"), [*(("onnx", n) for n in NETS), *(("tflite", n) for n in TFLITE)])
def test_a_variant_computes_what_the_cut_network_computes_and_its_nodes_have_owners(kind: str, name: str) -> None:
    if kind == "tflite":
        pytest.importorskip("litert_torch")
    model = NETS[name]()
    groups = network.survey(model, image())
    template = FORMATS[kind](model, image(), groups)
    assert template.slices or name not in SLICED
    widths = {group.name: max(1, group.width // 2) for group in groups.free}
    recipe = graph.recipe(groups, graph.first_units(groups, widths))
    expected = network.sliced(network.randomised(model), recipe)(*image()).detach().numpy()
    kept = template._kept(recipe)
    file = template.sliced(kept) if template.slices else template._exported(recipe)
    np.testing.assert_allclose(RUN[kind](file), expected, rtol=1e-3, atol=1e-5)
    assert RUN[kind](template.variant(widths)).shape == expected.shape

    owners = template.owners(groups.layers)
    assert set(owners.values()) <= {layer.name for layer in groups.layers}
    if name in SLICED:
        assert set(owners.values()) == {layer.name for layer in groups.layers}


def test_batch_norm_is_folded() -> None:
    model = NETS["Residual"]()
    groups = network.survey(model, image())
    kinds = {node.op_type for node in OnnxTemplate(model, image(), groups).proto.graph.node}
    assert "BatchNormalization" not in kinds


def test_a_tflite_file_survives_reading_and_writing() -> None:
    pytest.importorskip("litert_torch")
    model = NETS["Plain"]()
    groups = network.survey(model, image())
    file = FORMATS["tflite"].export(model.eval(), image(), groups.folds)
    np.testing.assert_array_equal(run_tflite(flatbuffer.pack(flatbuffer.read(file))), run_tflite(file))


def test_a_variant_compresses_to_next_to_nothing() -> None:
    model = nn.Sequential(nn.Conv2d(3, 256, 3), nn.ReLU(), nn.Conv2d(256, 256, 3))
    groups = network.survey(model, image())
    file = OnnxTemplate(model, image(), groups).variant(groups.full())
    assert len(file) > 2_000_000
    assert len(zlib.compress(file, 1)) < 40_000


def test_a_constant_is_known_in_any_order_of_its_dimensions() -> None:
    weight = torch.randn(4, 3, 2, 5)
    layer = nn.ParameterDict({"w": nn.Parameter(weight)})
    origin = Origins(layer).find(weight.permute(0, 2, 3, 1).contiguous().numpy())
    assert origin is not None
    assert origin.dims == (0, 2, 3, 1)
    taken = origin.take(weight.permute(0, 2, 3, 1).numpy(), {"w": {0: (1, 3), 1: (0, 2)}})
    np.testing.assert_array_equal(taken, weight[[1, 3]][:, [0, 2]].permute(0, 2, 3, 1).numpy())
    assert Origins(layer).find(np.zeros((4, 3, 2, 5), "float32")) is None
