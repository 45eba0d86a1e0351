"""Train the original network: EDGEPRUNE_DATA=DIR python examples/language/train.py, 2.5 minutes of one core."""

from __future__ import annotations

import os
from pathlib import Path

import language
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

FOLDER = Path(__file__).parent
EPOCHS = 6
RATE = 2e-3
DECAY = 0.05
SMOOTHING = 0.1  # of the labels
CLIP = 1.0  # largest gradient norm


def score(model: nn.Module, batches: language.Batches) -> float:
    model.eval()
    with torch.no_grad():
        pairs = [(model(*inputs), labels) for inputs, labels in batches]
    return language.accuracy(torch.cat([outputs for outputs, _ in pairs]), torch.cat([labels for _, labels in pairs]))


def main() -> None:
    if not os.environ.get("EDGEPRUNE_DATA"):
        raise SystemExit("set EDGEPRUNE_DATA, as README.md says: the built-in samples are too few to train on")
    torch.manual_seed(0)
    data = language.items()
    known = language.frequent(data["text"][data["part"] == "train"])
    FOLDER.joinpath("vocabulary.txt").write_text("\n".join(known) + "\n", encoding="utf-8")
    model = language.build()
    train, valid = language.train_batches(), language.valid_batches()
    optimiser = torch.optim.AdamW(model.parameters(), RATE, weight_decay=DECAY)
    steps = EPOCHS * sum(1 for _ in train)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, steps, pct_start=0.2)
    best, state = 0.0, model.state_dict()
    for epoch in range(1, EPOCHS + 1):
        train.set_epoch(epoch)
        model.train()
        for inputs, labels in train:
            optimiser.zero_grad()
            F.cross_entropy(model(*inputs), labels, label_smoothing=SMOOTHING).backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimiser.step()
            schedule.step()
        found = score(model, valid)
        if found >= best:
            best, state = found, {name: tensor.clone() for name, tensor in model.state_dict().items()}
        print(f"epoch {epoch:2d}  valid {found:.4f}", flush=True)
    model.load_state_dict(state)
    save_file(state, FOLDER / "language.safetensors")
    print(f"best valid {best:.4f}  test {score(model, language.test_batches()):.4f}")


if __name__ == "__main__":
    main()
