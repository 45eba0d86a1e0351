"""Train the original network: python examples/detection/train.py, four minutes of one core."""

from __future__ import annotations

import tomllib
from pathlib import Path

import detection
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

EPOCHS = 60
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


def stored(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights as the file holds them: in 16 bits. edgeprune converts them to 32 bits."""
    return {name: tensor.half() if tensor.is_floating_point() else tensor.clone() for name, tensor in state.items()}


def score(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> float:
    model.eval()
    preprocess = Preprocess()
    with torch.no_grad():
        pairs = [(model(preprocess(pixels)), digits) for pixels, digits in batches]
    outputs = {name: torch.cat([found[name] for found, _ in pairs]) for name in detection.STRIDES}
    return detection.mean_average_precision(outputs, torch.cat([digits for _, digits in pairs]))


def main() -> None:
    torch.manual_seed(0)
    model = detection.build()
    train, preprocess = detection.train_batches(), Preprocess()
    optimiser = torch.optim.AdamW(model.parameters(), RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, EPOCHS * len(train), pct_start=0.2)
    for epoch in range(1, EPOCHS + 1):
        train.set_epoch(epoch)
        model.train()
        for pixels, digits in train:
            optimiser.zero_grad()
            detection.loss(model(preprocess(pixels)), digits).backward()
            optimiser.step()
            schedule.step()
        print(f"epoch {epoch:2d}  valid {score(model, detection.valid_batches()):.4f}", flush=True)
    state = stored(model.state_dict())
    model.load_state_dict(state)
    save_file(state, Path(__file__).with_name("detection.safetensors"))
    print(f"valid {score(model, detection.valid_batches()):.4f}  test {score(model, detection.test_batches()):.4f}")


if __name__ == "__main__":
    main()
