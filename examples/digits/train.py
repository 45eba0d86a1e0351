"""Train the original network: python examples/digits/train.py, some minutes on one core."""

from __future__ import annotations

from pathlib import Path

import digits
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrize

EPOCHS = 30
RATE = 0.05
LARGE = 5_000  # numbers in a tensor
KEPT = 1 / 24  # of the numbers of a large tensor


class Rounded(nn.Module):
    """Rounds a weight to a step, its negative or zero, so that its file compresses well. Gradients pass through unchanged.

    Every filter keeps as many numbers that are not zero. Li et al., "Ternary Weight Networks", arXiv:1605.04711.
    """

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        size = weight.detach().abs().flatten(1)
        large = torch.zeros_like(size).scatter_(1, size.topk(round(size.shape[1] * KEPT)).indices, 1.0)
        step = 2.0 ** size[large > 0].mean().log2().round()
        return weight + (weight.sign() * step * large.view_as(weight) - weight).detach()


def stored(model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights as they are stored: the rounded ones in 8 bits, others in 16. torch turns them into 32 bits."""
    found = {}
    for name, tensor in model.state_dict().items():
        path, rounds, _ = name.partition(".parametrizations")
        if rounds:
            found[f"{path}.weight"] = model.get_submodule(path).weight.to(torch.float8_e4m3fn)
        else:
            found[name] = tensor.half() if tensor.is_floating_point() else tensor.clone()
    return found


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
    for module in list(model.modules()):
        if isinstance(module, nn.Conv2d) and module.weight.numel() > LARGE:
            parametrize.register_parametrization(module, "weight", Rounded())
    loaded = digits.build()
    best, state = 0.0, stored(model)
    for epoch in range(1, EPOCHS + 1):
        train.set_epoch(epoch)
        model.train()
        for images, labels in train:
            optimiser.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimiser.step()
        schedule.step()
        now = stored(model)
        loaded.load_state_dict(now)
        found = score(loaded, valid)
        if found > best:
            best, state = found, now
        print(f"epoch {epoch:2d}  valid {found:.4f}")
    loaded.load_state_dict(state)
    save_file(state, Path(__file__).with_name("digits.safetensors"))
    print(f"best valid {best:.4f}  test {score(loaded, digits.test_batches()):.4f}")


if __name__ == "__main__":
    main()
