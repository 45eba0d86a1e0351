"""Train the original network: python examples/segmentation/train.py, half a minute of one core."""

from __future__ import annotations

import tomllib
from pathlib import Path

import segmentation
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

EPOCHS = 16
RATE = 3e-3
DECAY = 1e-2


class Preprocess:
    """The step that [preprocess] in edgeprune.toml puts into the artifact."""

    def __init__(self) -> None:
        given = tomllib.loads(Path(__file__).with_name("edgeprune.toml").read_text())["preprocess"]
        self.scale = given["scale"]
        self.mean, self.std = (torch.tensor(given[key])[:, None, None] for key in ("mean", "std"))

    def __call__(self, pixels: Tensor) -> Tensor:
        return (pixels * self.scale - self.mean) / self.std


def score(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> float:
    model.eval()
    preprocess = Preprocess()
    with torch.no_grad():
        pairs = [(model(preprocess(pixels)), classes) for pixels, classes in batches]
    return segmentation.nucleus_iou(torch.cat([found for found, _ in pairs]), torch.cat([true for _, true in pairs]))


def threshold() -> int:
    """The brightness that best separates the nuclei of the training part: what the network must beat."""
    pixels, classes = segmentation.region("train")
    return max(range(1, 255), key=lambda level: overlap(pixels >= level, classes == 1))


def overlap(found: Tensor, wanted: Tensor) -> float:
    return float((found & wanted).sum() / (found | wanted).sum())


def main() -> None:
    torch.manual_seed(0)
    pixels, classes = segmentation.region("test")
    print(f"a threshold on the brightness: test {overlap(pixels >= threshold(), classes == 1):.4f}", flush=True)
    model = segmentation.build()
    train, preprocess = segmentation.train_batches(), Preprocess()
    optimiser = torch.optim.AdamW(model.parameters(), RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, EPOCHS * len(train), pct_start=0.2)
    for epoch in range(1, EPOCHS + 1):
        train.set_epoch(epoch)
        model.train()
        for tiles, wanted in train:
            optimiser.zero_grad()
            segmentation.loss(model(preprocess(tiles)), wanted).backward()
            optimiser.step()
            schedule.step()
        print(f"epoch {epoch:2d}  valid {score(model, segmentation.valid_batches()):.4f}", flush=True)
    save_file(model.state_dict(), Path(__file__).with_name("segmentation.safetensors"))
    valid, test = (score(model, batches()) for batches in (segmentation.valid_batches, segmentation.test_batches))
    print(f"valid {valid:.4f}  test {test:.4f}")


if __name__ == "__main__":
    main()
