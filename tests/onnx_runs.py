"""Runs from .onnx files of PyTorch's exporters and samples without labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import torch
import zoo
from onnx_files import computed, exported
from small import command, settled
from torch import Tensor, nn

import edgeprune
from edgeprune.frontends.onnx import network as read

PROJECT = """
[model]
onnx = "net.onnx"

[data]
samples = "samples.npy"

[budget]
latency = "50%"
max_metric_drop = 2.0    # the network's weights are random

[finetune]
epochs = 1
"""


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.short = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return (self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())) + self.short(x)).relu()


def resnet() -> tuple[nn.Module, tuple[int, ...]]:
    blocks = Block(32, 32, 1), Block(32, 64, 2), Block(64, 64, 1)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)
    ), (3, 32, 32)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(24, 96)
        layer = nn.TransformerEncoderLayer(96, 4, 192, batch_first=True, norm_first=True, activation="gelu")
        self.layers, self.head = (
            nn.ModuleList([layer, nn.TransformerEncoderLayer(96, 4, 192, batch_first=True)]),
            nn.Linear(96, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))


def encoder() -> tuple[nn.Module, tuple[int, ...]]:
    return Encoder(), (48, 24)


def yolo() -> tuple[nn.Module, tuple[int, ...]]:
    model, inputs = zoo.ZOO["YOLO11"]()
    return model, tuple(inputs[0].shape[1:])


MAKERS: dict[str, tuple[Callable[[], tuple[nn.Module, tuple[int, ...]]], bool]] = {
    "ResNet": (resnet, False),
    "transformer encoder, newer exporter": (encoder, True),
    "YOLO11": (yolo, False),
}


def check_run(name: str, target: str, folder: Path) -> None:
    """A file goes to a verified artifact at half its latency, with the names of the file's inputs."""
    make, dynamo = MAKERS[name]
    torch.manual_seed(0)
    network, shape = make()
    options = {} if dynamo else {"input_names": ["image:0"], "output_names": ["out"]}
    exported(folder / "net.onnx", network, (torch.randn(1, *shape),), dynamo, **options)
    np.save(folder / "samples.npy", torch.randn(160, *shape).numpy())
    (folder / "edgeprune.toml").write_text(PROJECT)
    run = command("run", "--project", folder / "edgeprune.toml", "--target", target, "--json", timeout=900)
    settled(run)
    found = run.json
    assert found["pruned"]["macs"] < found["baseline"]["macs"]
    if target == "local":
        artifact = Path(found["artifact"])
        names = [value.name for value in onnx.load(artifact).graph.input]
        assert names == [value.name for value in onnx.load(folder / "net.onnx").graph.input]
        pruned = edgeprune.load(next(folder.glob("runs/local/finetune-*/tuned.safetensors")), read(folder / "net.onnx"))
        x = torch.randn(1, *shape)
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(computed(artifact, (x,))[0]), pruned(x), rtol=1e-3, atol=1e-4)
