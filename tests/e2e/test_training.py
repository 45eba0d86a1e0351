"""Networks that the user trains: with their own function, with their own loop, or elsewhere."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from small import command, settled

import edgeprune

TRAINER = """
import torch

def train(model, original, data):
    (data.folder / "state").write_text("saved")
    data.report(1, 1, "half way")
    return model
"""


@pytest.fixture
def folder(own_run: Path) -> Path:
    return own_run.parent


@pytest.mark.nightly
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
    again = command("compile", *here, "--weights", tuned, "--json")  # edgeprune's own format
    assert again.code == 0 and Path(again.json["files"][0]).exists(), again.err
    settled(command("check", *here, "--weights", path, "--json"))

    wrong = command("verify", *here, "--weights", folder / "blobs.safetensors")
    assert wrong.code == 2 and "a.weight" in wrong.err and str(start.parent) in wrong.err
    assert len(wrong.err.strip().splitlines()) == 1, wrong.err
    shown = command("prune", *here)
    assert f"edgeprune.load('{start}', MODEL)" in shown.out and "edgeprune verify --weights FILE" in shown.out
    found = command("prune", *here, "--json").json
    assert found["network"] == str(start) and found["plan"]["keep"]
    missing = command("verify", *here, "--weights", "no.safetensors")
    assert missing.code == 2 and "no.safetensors is not a file" in missing.err


@pytest.mark.slow
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


@pytest.mark.slow
def test_without_a_budget_the_network_is_compiled_and_verified_and_nothing_is_pruned(project: Path) -> None:
    whole = project.read_text()
    train = next(line for line in whole.splitlines(keepends=True) if line.startswith("train = "))
    project.write_text(whole.replace('latency = "60%"\n', "").replace(train, ""))  # training data is not needed
    here = "--project", project
    done = command("run", *here, "--json")
    assert done.code == 0, done.err
    stages = [line.split()[0] for line in done.err.splitlines() if line and not line.startswith(" ")]
    assert set(stages) == {"trial", "trace", "original", "compile", "verify"}, done.err
    assert "nothing is pruned, since there is no latency budget" in done.err
    result = done.json
    assert (result["status"], result["rounds"]) == ("pass", 0)
    assert [result[key] for key in ("budget_ms", "predicted_ms", "confirmed_ms", "plan")] == [None] * 4
    assert result["pruned"]["parameters"] == result["baseline"]["parameters"] and result["pruned"]["p50_ms"] > 0
    names = {check["name"] for check in result["checks"]}
    assert "metric_drop" in names and "output_cosine" in names
    assert not any(name.startswith("latency") for name in names)
    shown = command("run", *here)
    assert shown.code == 0 and "budget" not in shown.out.partition("verdict")[0].replace("no latency budget", "")
    again = command("run", *here, "--json")
    assert again.json == result and again.err.count("reused") == len(again.err.strip().splitlines())

    for verb in ("plan", "finetune"):
        refused = command(verb, *here)
        assert refused.code == 2 and "[budget] latency is missing, so nothing is pruned" in refused.err
    weights = command("verify", *here, "--weights", project.with_name("blobs.safetensors"))
    assert weights.code == 2 and "[model] weights" in weights.err
    without_data = command("plan", *here, "--budget", "50%")
    assert without_data.code == 2 and "[data] train is missing; pruning reads training data" in without_data.err
    checked = command("check", *here, "--json")
    assert checked.code == 0 and {check["name"] for check in checked.json["checks"]} == names - {"metric_drop"}, (
        checked.out
    )
    project.write_text(whole.replace('latency = "60%"\n', ""))
    with_budget = command("plan", *here, "--budget", "1 s", "--json")
    assert with_budget.code == 0 and with_budget.json["keep"], with_budget.err  # the original network meets it
    forecast = command("run", *here, "--dry-run")
    assert forecast.code == 0 and "for the verdict" in forecast.out and "confirm" not in forecast.out


@pytest.mark.slow
def test_an_unpruned_network_in_another_precision_is_compared_with_fp32(project: Path) -> None:
    project.write_text(project.read_text().replace('latency = "60%"\n', ""))
    targets = project.parent / "targets"
    targets.mkdir()
    (targets / "small.toml").write_text(
        '[connect]\ntransport = "local"\n[runtime]\nname = "onnxruntime"\nprecision = "int8"\n'
    )
    done = command("run", "--project", project, "--target", "small", "--json")
    assert done.code == 0, done.err
    assert done.json["precision"] == "int8" and done.json["pruned"]["size_bytes"] < done.json["baseline"]["size_bytes"]
