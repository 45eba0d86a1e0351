"""Networks that the user trains: with their own function, with their own loop, or elsewhere."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from small import Finished, command, settled

import edgeprune

TRAINER = """
import torch

def train(model, original, data):
    (data.folder / "state").write_text("saved")
    data.report(1, 1, "half way")
    return model
"""


@pytest.fixture
def folder(finished_run: tuple[Path, Finished], tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run[0].parent, tmp_path / "blobs"))


def test_weights_that_the_user_trained_are_verified_against_the_original(folder: Path, tmp_path: Path) -> None:
    build = runpy.run_path(str(folder / "blobs.py"))["build"]
    (start,) = folder.glob("runs/local/prune-*/start.safetensors")
    mine = edgeprune.load(start, build()).train()
    with torch.no_grad():
        mine.fc.bias += 1.0  # of all classes, so that the metric remains
    path = tmp_path / "mine.safetensors"
    save_file({f"module.{name}": tensor for name, tensor in mine.state_dict().items()}, path)

    here = "--project", folder / "edgeprune.toml"
    done = command("verify", *here, "--weights", path, "--json")
    settled(done)
    assert "mine.safetensors, prefix module. stripped: validation metric" in done.err
    (tuned,) = (
        file
        for file in folder.glob("runs/local/finetune-*/tuned.safetensors")
        if torch.equal(edgeprune.load(file, build()).fc.bias, mine.fc.bias)
    )
    again = command("verify", *here, "--weights", tuned, "--json")  # edgeprune's own format
    assert again.code in (0, 4), again.err

    wrong = command("verify", *here, "--weights", folder / "blobs.safetensors")
    assert wrong.code == 2 and "a.weight" in wrong.err and str(start.parent) in wrong.err
    assert len(wrong.err.strip().splitlines()) == 1, wrong.err
    missing = command("verify", *here, "--weights", "no.safetensors")
    assert missing.code == 2 and "no.safetensors is not a file" in missing.err


def test_the_user_s_function_trains_in_the_pipeline(folder: Path) -> None:
    project = folder / "edgeprune.toml"
    project.write_text(project.read_text().replace("epochs = 2\nlearning_rate = 0.02\n", 'trainer = "mine:train"\n'))
    (folder / "mine.py").write_text(TRAINER)
    done = command("finetune", "--project", project, "--json")
    assert done.code == 0, done.err
    assert "half way" in done.err
    assert "mine:train: validation metric" in done.err
    assert not list(folder.glob("runs/local/partial/finetune-*"))
    (folder / "mine.py").write_text(TRAINER.replace("return model", "return model.no"))
    failed = command("finetune", "--project", project)
    assert failed.code == 2 and "(mine.py, line 7)" in failed.err
    assert next(folder.glob("runs/local/partial/finetune-*/trainer/state")).read_text() == "saved"
