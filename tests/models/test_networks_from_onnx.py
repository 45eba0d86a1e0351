"""As much of a network from an .onnx file can be cut as of its original: all small networks, and some architectures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import zoo
from nets import NETS, inputs_of
from onnx_files import exported
from test_onnx_networks import require_alike, shares

from edgeprune.frontends.onnx import network
from edgeprune.network.survey import survey

ARCHITECTURES = "MobileNetV3", "DenseNet", "RegNetY", "YOLO11", "keyword spotting (DS-CNN)", "DeiT in timm's form"


@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize("name", sorted(NETS.keys() - {"Blocks"}))
def test_as_much_can_be_cut_by_either_exporter(name: str, dynamo: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    original, inputs = NETS[name]().eval(), inputs_of(name)
    made = network(exported(tmp_path / "net.onnx", original, inputs, dynamo))
    if name == "HardCoded":  # the original's code locks a group, and the file has no code
        return
    (macs, share), (ours, left) = shares(survey(original, inputs)), shares(survey(made, inputs))
    assert abs(left - share) < 0.01
    # The newer exporter folds the first product of a state of zeros.
    assert abs(ours / macs - 1) < 0.01 or name == "Cells"


@pytest.mark.parametrize("title", ARCHITECTURES)
def test_as_much_of_an_architecture_can_be_cut(title: str, tmp_path: Path) -> None:
    original, inputs = zoo.ZOO[title]()
    made = network(exported(tmp_path / "net.onnx", original.eval(), inputs))
    require_alike(survey(original, inputs), survey(made, inputs))
