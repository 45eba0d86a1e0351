"""Runs from model files, as exporters write them, and samples without labels."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx_files import computed, exported
from small import Command, command, settled
from torch import Tensor, nn

import edgeprune
from edgeprune.frontends.keras import files
from edgeprune.frontends.onnx import network as read

PROJECT = """
[model]
{key} = "{file}"

[data]
samples = "samples.npy"

[budget]
latency = "50%"
max_metric_drop = 2.0    # the network's weights are random

[finetune]
epochs = 1
"""
RECORDED = Path(__file__).parent / "recorded"


@dataclass(frozen=True)
class Subject:
    """A network, and the file that an exporter makes of it.

    Attributes:
        exporter: in words.
        file: its name in the folder that it is written to.
        shape: of one sample.
        write: makes the file.
    """

    exporter: str
    file: str
    shape: tuple[int, ...]
    write: Callable[[Path], object]

    @property
    def key(self) -> str:
        """The key of `[model]`."""
        return self.file.partition(".")[2]


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.short = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return (self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())) + self.short(x)).relu()


def resnet() -> nn.Module:
    blocks = Block(32, 32, 1), Block(32, 64, 2), Block(64, 64, 1)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)
    )


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


def conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs), nn.SiLU()
    )


class Split(nn.Module):
    """C2f of YOLOv8: half of the channels go through a residual block, and all are joined."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first, self.last = conv(inputs, outputs), conv(outputs // 2 * 3, outputs)
        self.body = nn.Sequential(conv(outputs // 2, outputs // 2, 3), conv(outputs // 2, outputs // 2, 3))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(x).chunk(2, 1)
        return self.last(torch.cat((a, b, b + self.body(b)), 1))


class Pyramid(nn.Module):
    """SPPF of YOLOv5: pools of three sizes, joined."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.last, self.pool = (
            conv(channels, channels // 2),
            conv(channels * 2, channels),
            nn.MaxPool2d(5, 1, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        found = [self.first(x)]
        for _ in range(3):
            found.append(self.pool(found[-1]))
        return self.last(torch.cat(found, 1))


class Yolo(nn.Module):
    """A small detector of YOLO's form: backbone, neck, and two heads whose boxes are decoded."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 16, 3, 2), conv(16, 32, 3, 2), Split(32, 32))
        self.deep = nn.Sequential(conv(32, 64, 3, 2), Pyramid(64))
        self.up, self.neck = nn.Upsample(scale_factor=2), Split(96, 32)
        self.heads = nn.ModuleList(nn.Sequential(conv(c, c, 3), nn.Conv2d(c, 4 + 10, 1)) for c in (32, 64))

    def forward(self, x: Tensor) -> Tensor:
        low = self.stem(x)
        high = self.deep(low)
        low = self.neck(torch.cat((low, self.up(high)), 1))
        boxes, scores = torch.cat(
            [head(y).flatten(2) for head, y in zip(self.heads, (low, high), strict=True)], 2
        ).split((4, 10), 1)
        near, far = boxes.chunk(2, 1)
        return torch.cat(((far - near) / 2, near + far, scores.sigmoid()), 1)


def of_torch(exporter: str, make: Callable[[], nn.Module], shape: tuple[int, ...]) -> Subject:
    """`exporter` is "older" or "newer"."""

    def write(path: Path) -> None:
        torch.manual_seed(0)
        options = {} if exporter == "newer" else {"input_names": ["image:0"], "output_names": ["out"]}
        exported(path, make(), (torch.randn(1, *shape),), exporter == "newer", **options)

    return Subject(f"torch, {exporter}", "net.onnx", shape, write)


def mobilenet(path: Path) -> None:
    keras: Any = files.require_keras()
    keras.utils.set_random_seed(0)
    with files.silent():
        keras.applications.MobileNetV2((64, 64, 3), 0.35, weights=None, classes=10, classifier_activation=None).save(
            path
        )


SUBJECTS = {
    "MobileNetV2": Subject("Keras", "net.keras", (64, 64, 3), mobilenet),
    "ResNet": of_torch("older", resnet, (3, 32, 32)),
    "transformer encoder": of_torch("newer", Encoder, (48, 24)),
    "YOLO-like": of_torch("older", Yolo, (3, 96, 96)),
    "keyword spotting": Subject(
        "tf2onnx", "net.onnx", (49, 10, 1), lambda path: shutil.copy(RECORDED / "keywords.onnx", path)
    ),
}


def check_run(name: str, target: str, folder: Path, run_command: Command = command) -> dict[str, Any]:
    """A file goes to a verified artifact at half its latency, with the names of the file's inputs. Returns the answer."""
    subject = SUBJECTS[name]
    subject.write(folder / subject.file)
    torch.manual_seed(1)
    np.save(folder / "samples.npy", torch.randn(160, *subject.shape).numpy())
    (folder / "edgeprune.toml").write_text(PROJECT.format(key=subject.key, file=subject.file))
    run = run_command("run", "--project", folder / "edgeprune.toml", "--target", target, "--json", timeout=900)
    settled(run)
    found = run.json
    assert found["pruned"]["macs"] < found["baseline"]["macs"]
    if target == "local" and subject.key == "onnx":
        artifact = Path(found["artifact"])
        names = [value.name for value in onnx.load(artifact).graph.input]
        assert names == [value.name for value in onnx.load(folder / "net.onnx").graph.input]
        pruned = edgeprune.load(next(folder.glob("runs/local/finetune-*/tuned.safetensors")), read(folder / "net.onnx"))
        x = torch.randn(1, *subject.shape)
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(computed(artifact, (x,))[0]), pruned(x), rtol=1e-3, atol=1e-4)
    return found
