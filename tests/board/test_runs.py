"""Runs on the virtual board, a device of another architecture. Its times repeat from boot to boot."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small import Finished, command

from edgeprune.devices.bench import open_bench
from edgeprune.frontends import toml
from edgeprune.latency import stats
from edgeprune.network.survey import survey
from edgeprune.records import Profile
from edgeprune.runtimes.formats import FORMATS
from edgeprune.storage import codec

pytestmark = pytest.mark.usefixtures("virtual_board")
ROOT = Path(__file__).parents[2]
TARGET = "virtual-pi-onnxruntime"


@pytest.mark.nightly
def test_the_recorded_profile_predicts_on_this_boot(tmp_path: Path) -> None:
    """Experiments that are measured again agree with the record within 1 %."""
    pytest.importorskip("litert_torch")
    sys.path.insert(0, str(ROOT / "examples" / "digits"))
    try:
        import digits
    finally:
        sys.path.pop(0)
    (path,) = (ROOT / "profiles" / "virtual-pi").glob("digits-*.json")
    profile = codec.loads_kept(Profile, path.read_text(), str(path))
    model, inputs = digits.build().eval(), digits.example_inputs()
    groups = survey(model, inputs)
    assert groups.network == profile.network
    template = FORMATS["tflite"](model, inputs, groups)
    recorded = [profile.experiments[0], *(e for e in profile.experiments if e.role == "fit")][:4]
    models = []
    for i, experiment in enumerate(recorded):
        models.append(tmp_path / str(i) / "model.tflite")
        models[-1].parent.mkdir()
        models[-1].write_bytes(template.variant(experiment.widths))
    with open_bench(toml.read_target(ROOT / "targets" / "virtual-pi.toml"), tmp_path) as bench:
        files = bench.save_inputs([tensor.numpy() for tensor in inputs], tmp_path)
        measured = bench.measure([[model] for model in models], files)
        assert bench.device.emulated
    for experiment, (again,) in zip(recorded, measured, strict=True):
        assert np.median(again.run.times_ns) == pytest.approx(stats.latency(experiment.samples).mid, rel=0.01)


@pytest.fixture(scope="module")
def finished_run(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Finished]:
    """The small project after one run on the board, and the output of the run.

    Three quarters of the profile are recorded: a process that measures takes half a minute. The run measures the rest.
    """
    project = Path(shutil.copytree(trained, tmp_path_factory.mktemp("board") / "blobs")) / "edgeprune.toml"
    shutil.copytree(ROOT / "profiles" / TARGET, project.parent / "profiles" / TARGET)
    return project, command("run", "--project", project, "--target", TARGET, "--json", timeout=1500)


@pytest.mark.nightly
def test_a_small_network_runs_and_is_deployed(finished_run: tuple[Path, Finished]) -> None:
    project, done = finished_run
    here = ("--project", project, "--target", TARGET)
    assert done.code == 0, done.out + done.err
    result = done.json
    assert (result["status"], result["emulated"]) == ("pass", True)
    # Two groups leave few latencies to choose from, so some of the budget may stay unused.
    assert 0.8 < result["pruned"]["p50_ms"] / result["budget_ms"] <= 1
    deployed = command("deploy", *here, timeout=600)
    assert deployed.code == 0, deployed.err
    assert "reused" in deployed.out and "pass, emulated" in command("releases", *here[2:], timeout=600).out


@pytest.mark.slow
def test_a_slower_artifact_fails_its_check(finished_run: tuple[Path, Finished]) -> None:
    """A slowdown of a percent is enough, since the clock of the board counts instructions."""
    project, _ = finished_run
    here = ("--project", project, "--target", TARGET)
    declared = command("check", *here, "--update", "--reason", "first", timeout=600)
    assert declared.code == 0, declared.out + declared.err
    same = command("check", *here, "--json", timeout=600)
    assert same.code == 0 and checks(same)["slowdown"]["outcome"] == "pass", same.out + same.err
    project.write_text(project.read_text().replace('latency = "60%"', 'latency = "75%"'))
    slower = command("check", *here, "--json", timeout=900)
    found = checks(slower)["slowdown"]
    assert slower.code == 1 and found["outcome"] == "fail" and found["value"] > 1.01, slower.out + slower.err
    assert slower.json["slower"], "the operators that take longer are named"


def checks(done: Finished) -> dict[str, Any]:
    return {check["name"]: check for check in done.json["checks"]}


@pytest.mark.slow
def test_a_stand_in_for_a_jetson_is_deployed_and_marked_as_simulated(project: Path) -> None:
    """The profile is a recorded one, since it takes seven minutes. All later stages run."""
    (project.parent / "targets").mkdir()
    shutil.copy(ROOT / "targets" / "virtual-jetson.toml", project.parent / "targets" / "jetson.toml")
    shutil.copytree(ROOT / "profiles" / "virtual-jetson", project.parent / "profiles" / "jetson")
    done = command("deploy", "--project", project, "--target", "jetson", "--json", timeout=1500)
    assert done.code == 0, done.out + done.err
    manifest = done.json[0]["manifest"]
    assert manifest["runtime"] == "tensorrt"
    assert manifest["verdict"]["emulated"] and manifest["verdict"]["simulated"] and manifest["device"]["simulated"]
    shown = command("releases", "--target", project.parent / "targets" / "jetson.toml", timeout=600)
    assert "pass, emulated, simulated" in shown.out
    real = project.parent / "targets" / "real.toml"
    real.write_text((project.parent / "targets" / "jetson.toml").read_text().replace("simulated = true", ""))
    refused = command("run", "--project", project, "--target", "real", timeout=600)
    assert refused.code == 2 and "stand-in" in refused.err


@pytest.mark.parametrize(
    ("target", "package", "shown"),
    [
        ("virtual-pi", "litert_torch", "tflite 2"),
        ("virtual-pi-ncnn", "pnnx", "ncnn 1"),
        ("virtual-pi-executorch", "executorch", "executorch 1.5"),
    ],
)
def test_the_doctor_finds_no_fault_of_the_board(target: str, package: str, shown: str) -> None:
    pytest.importorskip(package)
    done = command("doctor", target, timeout=600)
    assert done.code == 0, done.out
    assert shown in done.out and "host key is known" in done.out
