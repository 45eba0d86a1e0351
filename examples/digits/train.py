"""Train the original network: python examples/digits/train.py, about half a minute on two free cores."""

from __future__ import annotations

from pathlib import Path

import digits
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

EPOCHS = 12
RATE = 0.05
LARGE = 10_000  # numbers in a tensor


def rounded(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights as they are stored: large tensors in 8 bits. torch turns them into 32 bits when it loads them."""
    return {name: t.to(torch.float8_e4m3fn) if t.numel() > LARGE else t.clone() for name, t in state.items()}


def score(model: nn.Module, batches: digits.Batches) -> float:
    model.eval()
    with torch.no_grad():
        pairs = [(model(images), labels) for images, labels in batches]
    return digits.accuracy(torch.cat([outputs for outputs, _ in pairs]), torch.cat([labels for _, labels in pairs]))


def main() -> None:
    torch.manual_seed(0)
    model = digits.build()
    train, valid = digits.train_batches(), digits.valid_batches()
    optimiser = torch.optim.SGD(model.parameters(), RATE, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, EPOCHS)
    stored = digits.build()
    best, state = 0.0, rounded(model.state_dict())
    for epoch in range(1, EPOCHS + 1):
        train.set_epoch(epoch)
        model.train()
        for images, labels in train:
            optimiser.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimiser.step()
        schedule.step()
        now = rounded(model.state_dict())
        stored.load_state_dict(now)
        found = score(stored, valid)
        if found > best:
            best, state = found, now
        print(f"epoch {epoch:2d}  valid {found:.4f}")
    stored.load_state_dict(state)
    save_file(state, Path(__file__).with_name("digits.safetensors"))
    print(f"best valid {best:.4f}  test {score(stored, digits.test_batches()):.4f}")


if __name__ == "__main__":
    main()
