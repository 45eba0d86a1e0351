"""Make the original network: python examples/image/train.py WEIGHTS, five minutes on one core, with the data at hand.

Training starts from the public weights in WEIGHTS: pretrained_models/resnet20-12fca82f.th of
https://github.com/akamaster/pytorch_resnet_cifar10 at commit d5489e8995e81e91ce6b1d69dcc98ad579b0b153.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import image
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

EPOCHS = 8
RATE = 0.02


def pretrained(path: Path) -> nn.Module:
    """The network that computes the same as the public network.

    The public shortcuts have no weights: they take every other pixel, between channels of zeros. Here they become projections
    with ones at the right places.
    """
    given = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    state = {name.removeprefix("module."): tensor for name, tensor in given.items()}
    for name in ("layer2.0", "layer3.0"):
        outputs, inputs = state[f"{name}.conv1.weight"].shape[:2]
        ahead = (outputs - inputs) // 2
        state[f"{name}.shortcut.weight"] = F.pad(torch.eye(inputs), (0, 0, ahead, ahead))[:, :, None, None]
    model = image.build()
    model.load_state_dict(state)
    return model


class Preprocess:
    """The step that [preprocess] in edgeprune.toml puts into the artifact."""

    def __init__(self) -> None:
        given = tomllib.loads(Path(__file__).with_name("edgeprune.toml").read_text())["preprocess"]
        self.scale = given["scale"]
        self.mean, self.std = (torch.tensor(given[key])[:, None, None] for key in ("mean", "std"))

    def __call__(self, pixels: Tensor) -> Tensor:
        return (pixels * self.scale - self.mean) / self.std


def score(model: nn.Module, batches: image.Batches) -> float:
    model.eval()
    preprocess = Preprocess()
    with torch.no_grad():
        pairs = [(model(preprocess(pixels)), labels) for pixels, labels in batches]
    return image.accuracy(torch.cat([outputs for outputs, _ in pairs]), torch.cat([labels for _, labels in pairs]))


def main() -> None:
    model = pretrained(Path(sys.argv[1]))
    train, valid, preprocess = image.train_batches(), image.valid_batches(), Preprocess()
    optimiser = torch.optim.SGD(model.parameters(), RATE, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, EPOCHS)
    best, state = score(model, valid), model.state_dict()
    print(f"before     valid {best:.4f}", flush=True)
    for epoch in range(1, EPOCHS + 1):
        train.set_epoch(epoch)
        model.train()
        for pixels, labels in train:
            optimiser.zero_grad()
            F.cross_entropy(model(preprocess(pixels)), labels).backward()
            optimiser.step()
        schedule.step()
        found = score(model, valid)
        if found > best:
            best, state = found, {name: tensor.clone() for name, tensor in model.state_dict().items()}
        print(f"epoch {epoch:2d}  valid {found:.4f}", flush=True)
    model.load_state_dict(state)
    save_file(state, Path(__file__).with_name("image.safetensors"))
    print(f"best valid {best:.4f}  test {score(model, image.test_batches()):.4f}")


if __name__ == "__main__":
    main()
