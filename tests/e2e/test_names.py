"""A model that takes its inputs by name and returns a data class runs through the whole pipeline."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
from safetensors.torch import load_file
from small import command, settled

import edgeprune

MODULE = '''
"""Blobs in one of four corners, beside a gate that switches every image off or on."""
from dataclasses import dataclass
from torch import nn
import torch

@dataclass
class Answer:
    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    hidden: tuple = ()

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.bn = nn.Conv2d(1, 48, 3, 1, 1, bias=False), nn.BatchNorm2d(48)
        self.b, self.fc = nn.Conv2d(48, 64, 3, 1, 1), nn.Linear(64 * 4, 4)

    def forward(self, *, gate, image, labels=None):
        hidden = torch.relu(self.b(torch.relu(self.bn(self.a(image * gate[:, None, None, None])))))
        hidden = nn.functional.adaptive_avg_pool2d(hidden, 2).flatten(1)
        return Answer(logits=self.fc(hidden), hidden=(hidden.mean(1, keepdim=True),))

build = Net

def inputs():
    return {"image": torch.zeros(1, 1, 24, 24), "gate": torch.ones(1)}

def _data(seed, count):
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (count,), generator=random)
    images = 0.1 * torch.randn(count, 1, 24, 24, generator=random)
    for image, label in zip(images, labels.tolist()):
        row, column = divmod(label, 2)
        image[0, 12 * row : 12 * row + 12, 12 * column : 12 * column + 12] += 1.0
    parts = ((labels[i : i + 32], images[i : i + 32]) for i in range(0, count, 32))
    return [{"labels": y, "image": x, "gate": torch.ones(len(y)), "name": ["blob"] * len(y)} for y, x in parts]

def train():
    return _data(0, 256)

def valid():
    return _data(1, 96)

def metric(outputs, targets):
    assert isinstance(outputs, Answer) and outputs.loss is None and outputs.hidden[0].shape == (len(targets), 1)
    return float((outputs.logits.argmax(1) == targets).float().mean())
'''
FILE = """
[model]
factory = "named:build"
inputs = "named:inputs"
[data]
train = "named:train"
valid = "named:valid"
metric = "named:metric"
[budget]
latency = "60%"
max_metric_drop = 0.9
[finetune]
epochs = 2
"""


@pytest.mark.nightly
def test_inputs_by_name_and_outputs_in_a_data_class(tmp_path: Path, alone: None) -> None:
    project = tmp_path / "named" / "edgeprune.toml"
    project.parent.mkdir()
    project.write_text(FILE)
    project.with_name("named.py").write_text(MODULE)
    done = command("run", "--project", project, "--json")
    settled(done)
    assert "outputs logits, hidden.0" in done.err
    notes = [check["note"] for check in done.json["checks"] if check["name"].startswith("output_")]
    assert notes and all(note.startswith("output logits") for note in notes)
    (tuned,) = sorted((project.parent / "runs" / "local").glob("finetune-*/tuned.safetensors"))
    assert set(load_file(tuned)) == {
        "a.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var", "bn.num_batches_tracked",
        "b.weight", "b.bias", "fc.weight", "fc.bias",
    }  # fmt: skip
    history = json.loads(tuned.with_name("finetune.json").read_text())["history"]
    assert history[-1]["metric"] > 0.9, history
    names = runpy.run_path(str(project.with_name("named.py")))
    network, batch = edgeprune.load(tuned, names["build"]()), names["valid"]()[0]
    assert network(gate=batch["gate"], image=batch["image"]).logits.shape == (32, 4), "called as the original is"
    checked = command("check", "--project", project, "--json")
    assert {check["name"] for check in checked.json["checks"]} >= {"output_max_abs_error", "top1_agreement"}
