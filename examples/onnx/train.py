"""Train the network and export it: python examples/onnx/train.py, about a minute on two busy cores.

The project does not import this file. It stands for the training that somebody else did, and left an .onnx of.
"""

from __future__ import annotations

from pathlib import Path

import digits
import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPOCHS = 12
RATE = 0.05


class Block(nn.Module):
    """Two 3×3 convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


def build() -> nn.Module:
    """A residual network for 16×16 grey images."""
    stem = nn.Sequential(nn.Conv2d(1, 24, 3, 1, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU())
    blocks = nn.Sequential(Block(24, 40), Block(40, 40), Block(40, 48, stride=2))
    return nn.Sequential(stem, blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10))


def score(model: nn.Module, batches: digits.Batches) -> float:
    model.eval()
    with torch.no_grad():
        pairs = [(model(images), labels) for images, labels in batches]
    return digits.accuracy(torch.cat([outputs for outputs, _ in pairs]), torch.cat([labels for _, labels in pairs]))


def main() -> None:
    torch.manual_seed(0)
    model = build()
    train, valid = digits.train_batches(), digits.valid_batches()
    optimiser = torch.optim.SGD(model.parameters(), RATE, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, EPOCHS)
    for epoch in range(1, EPOCHS + 1):
        train.set_epoch(epoch)
        model.train()
        for images, labels in train:
            optimiser.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimiser.step()
        schedule.step()
        print(f"epoch {epoch:2d}  valid {score(model, valid):.4f}")
    print(f"test {score(model, digits.test_batches()):.4f}, {sum(p.numel() for p in model.parameters()):,} parameters")
    torch.onnx.export(
        model.eval(),
        (torch.zeros(1, 1, 16, 16),),
        str(Path(__file__).with_name("digits.onnx")),
        dynamo=False,
        opset_version=17,
        input_names=["image"],
        output_names=["scores"],
        dynamic_axes={"image": {0: "batch"}, "scores": {0: "batch"}},
    )


if __name__ == "__main__":
    main()
