"""Train the original policy: python examples/control/train.py, about three minutes on a free core."""

from __future__ import annotations

from pathlib import Path

import control
import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

EPOCHS = 40
RATE = 1e-3


def error(model: nn.Module, batches: control.Batches) -> float:
    """The mean squared error over a split."""
    model.eval()
    with torch.no_grad():
        pairs = [(model(observations), actions) for observations, actions in batches]
    outputs, targets = (torch.cat(part) for part in zip(*pairs, strict=True))
    return float(control.loss(outputs, targets))


def policy(model: nn.Module) -> control.Policy:
    """The network as a policy."""

    def act(observations: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model(torch.from_numpy(observations)).numpy()

    return act


def main() -> None:
    torch.manual_seed(0)
    model = control.build()
    train, valid = control.train_batches(), control.valid_batches()
    optimiser = torch.optim.AdamW(model.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, EPOCHS)
    for epoch in range(1, EPOCHS + 1):
        train.set_epoch(epoch)
        model.train()
        for observations, actions in train:
            optimiser.zero_grad()
            control.loss(model(observations), actions).backward()
            optimiser.step()
        schedule.step()
        if epoch % 5 == 0:
            print(
                f"epoch {epoch:3d}  valid {error(model, valid):.5f}  {control.report(policy(model), 'valid')}",
                flush=True,
            )
    save_file(model.state_dict(), Path(__file__).with_name("control.safetensors"))
    print(f"valid {error(model, valid):.5f}  test {error(model, control.test_batches()):.5f}")
    for split in control.EPISODE_SEEDS:
        print(f"closed loop, {split}: {control.closed_loop(policy(model), split):.3f}")


if __name__ == "__main__":
    main()
