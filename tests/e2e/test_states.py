"""A recurrent model whose time comes first, and whose state is an input and an output, runs through the whole pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest
from small import command, settled

MODULE = '''
"""The sum of a series with a mask, from a state that goes in and out. Time is the first dimension."""
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.into, self.lstm = nn.Linear(4, 512), nn.LSTM(512, 24, 2)
        self.out, self.last = nn.Linear(24, 256), nn.Linear(256, 1)

    def forward(self, x, mask, h, c):
        y, state = self.lstm(torch.relu(self.into(x * mask.unsqueeze(-1))), (h, c))
        return {"sum": self.last(torch.relu(self.out(y))), "state": state}

build = Net

def inputs():
    return torch.zeros(6, 1, 4), torch.ones(6, 1, dtype=torch.bool), torch.zeros(2, 1, 24), torch.zeros(2, 1, 24)

def _data(seed, count):
    random = torch.Generator().manual_seed(seed)
    for n in [32] * (count // 32) + [5]:
        x, mask = torch.randn(6, n, 4, generator=random), torch.rand(6, n, generator=random) > 0.2
        state = torch.zeros(2, n, 24)
        yield (x, mask, state, state), (x.sum(2) * mask).t()

def train():
    return list(_data(0, 128))

def valid():
    return list(_data(1, 64))

def loss(outputs, targets):
    return nn.functional.mse_loss(outputs["sum"].squeeze(2).t(), targets)

def metric(outputs, targets):
    h, c = outputs["state"]
    assert h.shape == c.shape == (2, len(targets), 24) and outputs["sum"].shape == (6, len(targets), 1)
    return -float(loss(outputs, targets))
'''
FILE = """
[model]
factory = "summed:build"
inputs = "summed:inputs"
[data]
train = "summed:train"
valid = "summed:valid"
loss = "summed:loss"
metric = "summed:metric"
batch_dims = [1, 1, 1, 1, 0]
[budget]
latency = "90%"
max_metric_drop = 9.0
[finetune]
epochs = 1
"""


@pytest.mark.nightly
def test_time_first_and_a_state_that_goes_in_and_out(tmp_path: Path, alone: None) -> None:
    project = tmp_path / "summed" / "edgeprune.toml"
    project.parent.mkdir()
    project.write_text(FILE)
    project.with_name("summed.py").write_text(MODULE)
    done = command("run", "--project", project, "--json")
    settled(done)
    assert "outputs sum, state.0, state.1" in done.err and "on 69 validation samples" in done.err
    checked = command("check", "--project", project, "--json")
    assert {check["name"] for check in checked.json["checks"]} >= {"output_max_abs_error"}
