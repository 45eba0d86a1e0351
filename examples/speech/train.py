"""Train the original networks: python examples/speech/train.py, five minutes each on one core, with the data at hand."""

from __future__ import annotations

from pathlib import Path

import speech
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

EPOCHS = 16
RATE = 0.05
SPLITS = {
    "speech": (speech.train_batches, speech.valid_batches, speech.test_batches),
    "speakers": (speech.train_speakers, speech.valid_speakers, speech.test_speakers),
}


def score(model: nn.Module, batches: speech.Batches) -> float:
    model.eval()
    with torch.no_grad():
        pairs = [(model(samples), labels) for samples, labels in batches]
    return speech.accuracy(torch.cat([outputs for outputs, _ in pairs]), torch.cat([labels for _, labels in pairs]))


def fit(name: str, train: speech.Batches, valid: speech.Batches, test: speech.Batches) -> None:
    torch.manual_seed(0)
    model = speech.build()
    optimiser = torch.optim.SGD(model.parameters(), RATE, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, EPOCHS)
    best, state = 0.0, model.state_dict()
    for epoch in range(1, EPOCHS + 1):
        train.set_epoch(epoch)
        model.train()
        for samples, labels in train:
            optimiser.zero_grad()
            F.cross_entropy(model(samples), labels).backward()
            optimiser.step()
        schedule.step()
        found = score(model, valid)
        if found > best:
            best, state = found, {key: tensor.clone() for key, tensor in model.state_dict().items()}
        print(f"{name}  epoch {epoch:2d}  valid {found:.4f}", flush=True)
    model.load_state_dict(state)
    save_file(state, Path(__file__).with_name(f"{name}.safetensors"))
    print(f"{name}  best valid {best:.4f}  test {score(model, test):.4f}", flush=True)


def main() -> None:
    for name, split in SPLITS.items():
        fit(name, *(batches() for batches in split))


if __name__ == "__main__":
    main()
