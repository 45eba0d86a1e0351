"""Whole runs of networks whose layers compute their weights, or are called several times."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file
from small import FILE, MODULE, command, settled
from torch import nn

import edgeprune

COMPUTED = """
        self.a = nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 48, 3, 1, 1))
        self.b = nn.utils.spectral_norm(nn.Conv2d(48, 64, 3, 1, 1))
        self.fc = nn.Linear(64 * 4, 4)

    def forward(self, x):
        x = torch.relu(self.b(torch.relu(self.a(x))))
"""
SEVERAL = """
        self.a, self.bn, self.b = nn.Conv2d(1, 48, 3, 1, 1, bias=False), nn.BatchNorm2d(48), nn.Conv2d(48, 64, 3, 1, 1)
        self.fc = nn.Linear(64 * 4, 4)

    def encode(self, x):
        return torch.relu(self.b(torch.relu(self.bn(self.a(x)))))

    def forward(self, x):
        x = self.encode(x) + self.encode(x.flip(3)).flip(3)
"""


def with_layers(layers: str) -> str:
    """The small project's module, with another network."""
    begin, end = "        super().__init__()\n", "        return self.fc("
    return MODULE[: MODULE.index(begin) + len(begin)] + layers.lstrip("\n") + MODULE[MODULE.index(end) :]


def built(path: Path) -> nn.Module:
    spec = importlib.util.spec_from_file_location("layers_of_a_test", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.pop(spec.name, None)
    spec.loader.exec_module(module)
    return module.build()  # type: ignore[no-any-return]


@pytest.mark.nightly
@pytest.mark.parametrize("layers", [COMPUTED, SEVERAL], ids=["computed weights", "several calls"])
def test_such_a_network_is_pruned_verified_and_loaded_into_its_class(layers: str, tmp_path: Path) -> None:
    """The checkpoint has the names of the user's class, such as weight_orig."""
    code, project = tmp_path / "blobs.py", tmp_path / "edgeprune.toml"
    code.write_text(with_layers(layers))
    project.write_text(FILE.replace("max_metric_drop = 0.02", "max_metric_drop = 1.0"))
    save_file(built(code).state_dict(), tmp_path / "blobs.safetensors")
    run = command("run", "--project", project, "--json", timeout=600)
    settled(run)
    (tuned,) = tmp_path.glob("runs/local/finetune-*/tuned.safetensors")
    network = edgeprune.load(tuned, built(code))
    assert sum(parameter.numel() for parameter in network.parameters()) == run.json["pruned"]["parameters"]
    assert type(network.a) is type(network.b) is nn.Conv2d
    assert run.json["pruned"]["macs"] < run.json["baseline"]["macs"]
