"""Projects of Python objects, from the model to the verdict: the README's lines, the quickstart, and what is reused."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import edgeprune
from edgeprune.api.networks import PrunedNetwork

ROOT = Path(__file__).parents[2]
NULL = '[connect]\ntransport = "local"\n[runtime]\nname = "null"\n'


class Notes:
    """The progress line of each stage."""

    def __init__(self) -> None:
        self.of: dict[str, str] = {}

    def start(self, stage: str) -> None: ...

    def step(self, done: int, total: int, note: str) -> None: ...

    def note(self, text: str) -> None: ...

    def done(self, stage: str, note: str) -> None:
        self.of[stage] = note


def accuracy(outputs: Tensor, targets: Tensor) -> float:
    return float((outputs.argmax(1) == targets).float().mean())


@pytest.fixture
def given(trained: Path) -> dict[str, Any]:
    """The trained model and the data of the small project."""
    names = runpy.run_path(str(trained / "blobs.py"))
    model = names["build"]()
    model.load_state_dict(load_file(trained / "blobs.safetensors"))
    return {
        "model": model,
        "example_inputs": names["inputs"](),
        "train_loader": names["train"](),
        "valid_loader": names["valid"](),
        "accuracy": accuracy,
    }


@pytest.mark.slow
def test_runs_of_objects_are_reused_until_one_of_them_changes(given: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "null.toml").write_text(NULL)

    def pruned(data: Any) -> tuple[Notes, PrunedNetwork]:
        project = edgeprune.Project(
            given["model"],
            given["example_inputs"],
            train=data,
            valid=given["valid_loader"],
            metric=accuracy,
            importance="magnitude-l2",
            folder=tmp_path / "runs",
        )
        notes = Notes()
        return notes, project.prune(str(tmp_path / "null.toml"), budget="60%", watch=notes)

    _, first = pruned(given["train_loader"])
    parameters = sum(parameter.numel() for parameter in first.model.parameters())
    assert parameters < sum(parameter.numel() for parameter in given["model"].parameters())
    notes, second = pruned(given["train_loader"])
    assert set(notes.of.values()) == {"reused"} and second.network == first.network
    changed = [(images + 0.01, labels) for images, labels in given["train_loader"]]
    notes, _ = pruned(changed)
    assert notes.of["prune"].startswith("redone, [data] train samples")
    with torch.no_grad():
        given["model"].fc.bias += 0.01
    notes, _ = pruned(given["train_loader"])
    assert notes.of["prune"].startswith("redone, ") and "Project(model=...): weights" in notes.of["scores"]


@pytest.mark.slow
def test_the_lines_of_the_readme_run(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (lines,) = (
        text
        for text in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
        if "Project(" in text
    )
    before = {name: tensor.clone() for name, tensor in given["model"].state_dict().items()}
    given["model"].train()
    trained: list[nn.Module] = []
    variables: dict[str, Any] = {**given, "train": trained.append}
    exec(lines, variables)
    result, pruned = variables["result"], variables["pruned"]
    assert (
        result.status in ("pass", "inconclusive") and f"Compressed(status='{result.status}'" in capsys.readouterr().out
    )
    assert trained == [pruned.model] and isinstance(result.model, nn.Module) and result.artifact.is_file()
    assert all(torch.equal(a, b) for a, b in zip(result.model.parameters(), pruned.model.parameters(), strict=True))
    assert result.pruned.parameters == sum(parameter.numel() for parameter in result.model.parameters())
    assert given["model"].training
    assert all(torch.equal(before[name], tensor) for name, tensor in given["model"].state_dict().items())
    assert result.run == tmp_path / "edgeprune-runs" / "net" / "runs" / "local"


@pytest.mark.nightly
def test_a_network_that_was_built_elsewhere_is_compiled_and_verified_without_a_budget(
    given: dict[str, Any], tmp_path: Path
) -> None:
    project = edgeprune.Project(
        given["model"],
        given["example_inputs"],
        train=given["train_loader"],
        valid=given["valid_loader"],
        folder=tmp_path / "runs",
    )
    notes = Notes()
    assert project.compile(watch=notes).files[0].is_file()
    assert not {"profile", "scores", "plan", "prune", "finetune"} & set(notes.of)
    assert project.verify().outcome in ("pass", "inconclusive")


@pytest.mark.slow
def test_the_quickstart_compresses_real_data_trains_in_its_own_loop_and_verifies(tmp_path: Path) -> None:
    shutil.copy(ROOT / "examples" / "quickstart.py", tmp_path)
    (tmp_path / "digits").mkdir()
    shutil.copy(ROOT / "examples" / "digits" / "digits.npz", tmp_path / "digits")
    command = [sys.executable, "quickstart.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    assert re.match(r"(pass|inconclusive): .*edgeprune-runs/net/runs/local/", done.stdout), done.stdout
