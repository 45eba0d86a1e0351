"""A whole run of a network whose code counts its samples, fixes a size and takes its positions from a convolution."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small import FILE, command, settled
from test_layers import built, with_layers

import edgeprune

LAYERS = """
        self.a, self.moved, self.width = nn.Conv2d(1, 48, 3, 1, 1), nn.Conv2d(48, 2, 1), 24
        self.b, self.fc = nn.Conv2d(48, 64, 3, 1, 1, groups=4), nn.Linear(64 * 4, 4)

    def forward(self, x):
        n, line = len(x), torch.linspace(-1, 1, 24)
        first, second = torch.split(torch.relu(self.a(x)), self.width, 1)
        x = torch.cat([second, first.sigmoid()], 1)
        grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)
        x = nn.functional.grid_sample(x, grid + 0.1 * self.moved(x).tanh().permute(0, 2, 3, 1), align_corners=True)
        x = torch.relu(self.b(x)).reshape(n, 64, 24, 24)
"""


@pytest.mark.nightly
def test_such_a_network_is_pruned_verified_and_loaded_for_any_batch(tmp_path: Path) -> None:
    code, project = tmp_path / "blobs.py", tmp_path / "edgeprune.toml"
    code.write_text(with_layers(LAYERS))
    settings = FILE.replace('weights = "blobs.safetensors"\n', "").replace("epochs = 2", "epochs = 1")
    project.write_text(settings.replace("max_metric_drop = 0.02", "max_metric_drop = 1.0"))
    run = command("run", "--project", project, "--json", timeout=600)
    settled(run)
    assert run.json["pruned"]["macs"] < run.json["baseline"]["macs"]
    (tuned,) = tmp_path.glob("runs/local/finetune-*/tuned.safetensors")
    network = edgeprune.load(tuned, built(code))
    assert sum(parameter.numel() for parameter in network.parameters()) == run.json["pruned"]["parameters"]
    assert network(torch.zeros(5, 1, 24, 24)).shape == (5, 4)
