"""Training in two processes gives the same network as in one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small import Finished, command

from edgeprune.records import Tuned
from edgeprune.storage import codec

SCRIPT = """
import sys
from dataclasses import replace
from pathlib import Path

from safetensors.torch import save_file

from edgeprune.frontends import toml
from edgeprune.frontends.data import Loss, Metric, Split
from edgeprune.frontends.model import build_model
from edgeprune.stages import parallel
from edgeprune.stages.training import Checkpoint, Course, Networks, train

project = toml.read_project(Path(sys.argv[1]))
settings = replace(project.finetune, epochs=2)
with parallel.joined():
    course = Course(Split(project, "train", augmented=True), Split(project, "valid"), Loss(project), Metric(project), settings)
    checkpoint = Checkpoint(Path(sys.argv[2]) / "c", lambda path, write: None)
    model, history = train(course, Networks(build_model(project), build_model(project)), checkpoint, lambda epoch: None)
    if parallel.rank() == 0:
        save_file({name: t.contiguous() for name, t in model.state_dict().items()}, Path(sys.argv[2]) / "tuned")
        print([epoch.loss for epoch in history])
"""
ALONE = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
TORCHRUN = [*ALONE[:-1], "2"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def run(*argv: str | Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(list(map(str, argv)), env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.mark.nightly
def test_a_step_is_the_same_in_two_processes_as_in_one(project: Path, tmp_path: Path) -> None:
    """Batches have 31 samples, so that shares are uneven. Batch-norm would see each share separately, so there is none."""
    module = project.with_name("blobs.py")
    text = module.read_text()
    module.write_text(
        text.replace("nn.BatchNorm2d(48)", "nn.Identity()")
        .replace("i + 32", "i + 31")
        .replace("count, 32", "count, 31")
    )
    toml = project.read_text()
    project.write_text(toml.replace('weights = "blobs.safetensors"\n', ""))
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    losses = []
    for name, start in (("one", [sys.executable]), ("two", TORCHRUN)):
        (tmp_path / name).mkdir()
        losses.append(json.loads(run(*start, script, project, tmp_path / name).stdout.replace("None", "null")))
    assert losses[0][1:] == pytest.approx(losses[1][1:], rel=1e-4)
    one, two = (load_file(tmp_path / name / "tuned") for name in ("one", "two"))
    for key, tensor in one.items():
        assert torch.allclose(tensor, two[key], rtol=1e-3, atol=1e-4), key


@pytest.mark.slow
def test_finetune_trains_under_torchrun_and_all_its_processes_end(own_run: Path) -> None:
    text = own_run.read_text()
    assert "epochs = 2" in text
    own_run.write_text(text.replace("epochs = 2", "epochs = 3"))
    for _ in ("trained", "reused"):
        done = run(*TORCHRUN, "-m", "edgeprune", "finetune", "--project", own_run, "--json")
        path = Path(json.loads(done.stdout.strip().splitlines()[-1])["path"])
        history = codec.loads(Tuned, path.with_name("finetune.json").read_text(), "finetune").history
        assert [epoch.epoch for epoch in history] == [0, 1, 2, 3]
    refused = subprocess.run(
        [*ALONE, "-m", "edgeprune", "verify", "--project", str(own_run)],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert "torchrun is for edgeprune finetune" in refused.stderr


@pytest.mark.nightly
def test_a_job_of_a_sweep_trains_in_several_processes(own_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    own_run.write_text(own_run.read_text().replace("epochs = 2", "epochs = 3"))
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    arguments = (
        "sweep",
        "--project",
        own_run,
        "--budget",
        "60%",
        "--executor",
        "local",
        "--nproc-per-node",
        "2",
        "--json",
    )
    (cell,) = command(*arguments, timeout=600).json["cells"]
    assert cell["result"] is not None, cell
    (log,) = own_run.parent.glob("runs/jobs/*/1/*_log.err")
    trained, reused = (line for line in log.read_text().splitlines() if "finetune  " in line)
    assert "best of 3 epochs" in trained and "reused" in reused


@pytest.mark.slow
@pytest.mark.parametrize(
    "variables", [{}, {"TORCHELASTIC_RUN_ID": "none", "LOCAL_RANK": "3"}], ids=["RANK", "torchrun's"]
)
def test_variables_of_a_job_around_it_do_not_matter(
    variables: dict[str, str], finished_run: tuple[Path, Finished], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scheduler sets RANK, and a shell that torchrun started passes its variables on. Its parent is not torchrun."""
    for name, value in {"RANK": "3", "WORLD_SIZE": "8", **variables}.items():
        monkeypatch.setenv(name, value)
    for verb in ("plan", "finetune"):
        done = command(verb, "--project", finished_run[0], "--json")
        assert done.code == 0 and done.json, done.err
