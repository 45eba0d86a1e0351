"""A variant sliced from the exported file is what a fresh export of the cut network would be."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from nets import NETS, image

from edgeprune import export, graph, network

SLICED = ["Plain", "Residual", "OptionA", "Concat", "Chunk", "Depthwise", "SqueezeExcite", "Normalised"]


def run(file: bytes) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"input_0": image()[0].numpy()})[0]


@pytest.mark.parametrize("name", NETS)
def test_a_variant_computes_what_the_cut_network_computes(name: str) -> None:
    model = NETS[name]()
    groups = network.survey(model, image())
    template = export.Template(model, image(), groups)
    assert template.slices or name not in SLICED
    widths = {group.name: max(1, group.width // 2) for group in groups.free}
    file = template.variant(widths)
    onnx.checker.check_model(onnx.load_from_string(file))
    recipe = graph.recipe(groups, graph.first_units(groups, widths))
    expected = network.sliced(network.randomised(model), recipe)(*image()).detach().numpy()
    np.testing.assert_allclose(run(file), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", NETS)
def test_every_node_after_the_first_layer_belongs_to_a_layer(name: str) -> None:
    model = NETS[name]()
    groups = network.survey(model, image())
    template = export.Template(model, image(), groups)
    owners = export.attribution(template, groups.layers)
    assert set(owners.values()) <= {layer.name for layer in groups.layers}
    if name in SLICED:
        assert set(owners.values()) == {layer.name for layer in groups.layers}


def test_batch_norm_is_folded() -> None:
    model = NETS["Residual"]()
    groups = network.survey(model, image())
    kinds = {node.op_type for node in export.Template(model, image(), groups).proto.graph.node}
    assert "BatchNormalization" not in kinds
