"""TensorRT on a stand-in for trtexec: engines, the DLA, a Jetson's state and releases."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import releases as deploying
import torch
from releases import verdict
from sshd import keygen
from torch import nn

from edgeprune import runtimes
from edgeprune.devices.bench import open_bench
from edgeprune.errors import DeviceError, RuntimeMissing, UsageError
from edgeprune.records import Artifact, Prepare, Target
from edgeprune.stages.compile import Compiler
from edgeprune.stages.releases import bundles

StandIn = Callable[[str], None]


@pytest.fixture
def target(tmp_path: Path) -> Target:
    return Target(tmp_path / "t.toml", "t", "local", "tensorrt", simulated=True)


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return compiled(tmp_path / "model", "fp32")


def compiled(folder: Path, precision: str) -> Artifact:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()
    folder.mkdir()
    calls = [(np.random.default_rng(i).standard_normal((1, 3, 16, 16)).astype("float32"),) for i in range(4)]
    example = (torch.zeros(1, 3, 16, 16),)
    return Compiler(runtimes.host("tensorrt"), precision, calls).compile(model, example, (), folder, "s")


def image(tmp_path: Path) -> list[Path]:
    np.save(tmp_path / "x.npy", np.ones((1, 3, 16, 16), "float32"))
    return [tmp_path / "x.npy"]


def plans(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / ".edgeprune" / "engines").glob("*.plan"))


@pytest.mark.slow
def test_an_engine_is_built_once_and_again_for_another_version(
    target: Target, artifact: Artifact, tmp_path: Path, stand_in: StandIn
) -> None:
    for version, built in (("10.3.0", 1), ("10.3.0", 1), ("8.5.2", 2)):
        stand_in(version)
        with open_bench(target, tmp_path) as bench:
            ((measured,),) = bench.measure([[artifact.files[0]]], image(tmp_path), profiled=True)
        assert bench.device.runtime_version == version and len(plans(tmp_path)) == built
        assert measured.run.copies_ns > 0 and measured.run.fallbacks == 0
        assert "/0/Conv" in dict(measured.nodes)


def test_a_stand_in_is_refused_unless_the_target_expects_it(target: Target, tmp_path: Path, stand_in: StandIn) -> None:
    stand_in("10.3.0")
    with (
        pytest.raises(UsageError, match=r"stand-in.*simulated = true"),
        open_bench(replace(target, simulated=False), tmp_path),
    ):
        pass


def test_a_missing_trtexec_is_reported_with_its_places(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    with (
        pytest.raises(RuntimeMissing, match=r"neither in PATH nor at /usr/src/tensorrt/bin"),
        open_bench(target, tmp_path),
    ):
        pass


@pytest.mark.slow
def test_layers_that_fall_back_from_the_dla_are_counted(
    target: Target, artifact: Artifact, tmp_path: Path, stand_in: StandIn
) -> None:
    stand_in("8.5.2")
    with open_bench(replace(target, dla=0), tmp_path) as bench:
        ((measured,),) = bench.measure([[artifact.files[0]]], image(tmp_path))
    assert measured.run.fallbacks == 3  # pooling, flattening and the linear layer
    stand_in("11.1.0")
    with (
        open_bench(replace(target, dla=0), tmp_path) as bench,
        pytest.raises(DeviceError, match="Cannot create DLA engine"),
    ):
        bench.measure([[artifact.files[0]]], image(tmp_path))


@pytest.mark.parametrize(
    ("version", "precision"),
    [
        ("8.5.2", "int8"),
        *(
            pytest.param(*one, marks=pytest.mark.slow)
            for one in [("8.5.2", "fp16"), ("11.1.0", "fp16"), ("11.1.0", "int8")]
        ),
        *(pytest.param("10.3.0", precision, marks=pytest.mark.slow) for precision in ("fp16", "int8")),
    ],
)
def test_every_version_builds_every_precision(
    version: str, precision: str, target: Target, tmp_path: Path, stand_in: StandIn
) -> None:
    stand_in(version)
    with open_bench(target, tmp_path) as bench:
        bench.measure([[compiled(tmp_path / "model", precision).files[0]]], image(tmp_path), timed_s=0.01)


@pytest.mark.slow
def test_a_device_in_an_unexpected_state_is_an_error(
    target: Target, artifact: Artifact, tmp_path: Path, stand_in: StandIn
) -> None:
    stand_in("10.3.0")
    for asked, why in (
        (
            replace(target, power_mode="MAXN"),
            r"\[expect\] power_mode = MAXN, and the device's is not reported; sudo nvpmodel",
        ),
        (replace(target, prepare=Prepare("MAXN")), "nvpmodel does not print its power mode: is this a Jetson"),
    ):
        with open_bench(asked, tmp_path) as bench, pytest.raises(DeviceError, match=why):
            bench.measure([[artifact.files[0]]], image(tmp_path))


@pytest.mark.slow
def test_a_release_holds_the_engine_that_was_built_there(
    target: Target, artifact: Artifact, tmp_path: Path, stand_in: StandIn
) -> None:
    stand_in("10.3.0")
    inputs = [np.ones((1, 3, 16, 16), "float32")]
    with open_bench(target, tmp_path) as bench:
        (outputs,) = bench.outputs(artifact.files[0], [inputs[0][None]])
        verified = bundles.Verified(bench.device, artifact, verdict(), inputs, outputs[0])
    target = replace(target, deploy=replace(target.deploy, key=keygen(tmp_path / "key")))
    (tmp_path / "bundle").mkdir()
    made = bundles.bundle("eyes", target, verified, tmp_path / "bundle", 1)
    (release,) = deploying.deploy(target, made, lambda text: None)
    folder = tmp_path / ".edgeprune" / "services" / "eyes" / "current"
    assert release.state == "current" and release.manifest is not None and release.manifest.device.simulated
    assert (folder / "engine.plan").read_bytes() == plans(tmp_path)[0].read_bytes()
    assert {"build.json", "runner.py"} <= {path.name for path in folder.iterdir()}
    (folder / "engine.plan").unlink()
    (damaged,) = deploying.releases(target)
    assert damaged.damage == "engine.plan is missing"
    (folder / "engine.plan").write_bytes(b"cut off")
    time.sleep(1.1)  # a bundle's age is in whole seconds
    (tmp_path / "again").mkdir()
    again = bundles.bundle("eyes", target, verified, tmp_path / "again", 2)
    notes: list[str] = []
    (fixed,) = deploying.deploy(target, again, notes.append)
    assert fixed.digest == again.digest and "does not run" in notes[0]
    assert not list((tmp_path / "bundle").glob("*.plan"))  # none was sent there
    assert (folder / "load.cpp").read_text().startswith("// Loads this release's engine")


# ------------------------------------------------------------------------------------- how strict the stand-in is


def ask(*arguments: str, cwd: Path) -> tuple[int, str]:
    tool = shutil.which("trtexec")
    assert tool is not None
    done = subprocess.run([tool, *arguments], capture_output=True, text=True, timeout=600, cwd=cwd, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("version", "arguments", "why"),
    [
        ("10.3.0", ["--onnx=model.onnx", "--buildOnly"], "Unknown option: --buildOnly"),
        ("8.5.2", ["--onnx=model.onnx", "--skipInference"], "Unknown option: --skipInference"),
        ("11.1.0", ["--onnx=model.onnx", "--fp16"], "Unknown option: --fp16"),
        ("10.3.0", ["--onnx=model.onnx", "--fp16", "--fp16"], "Unknown option: --fp16"),
        ("10.3.0", ["--onnx", "model.onnx"], "Unknown option: model.onnx"),
        ("10.3.0", ["--onnx=none.onnx"], "Failed to parse onnx file"),
        ("10.3.0", ["--loadEngine=model.onnx"], "Engine deserialization failed"),
        ("8.5.2", ["--onnx=half.onnx", "--buildOnly"], "FP16 builder flag is not set"),
        ("8.5.2", ["--onnx=bytes.onnx", "--buildOnly"], "INT8 builder flag is not set"),
        ("8.5.2", ["--onnx=model.onnx", "--buildOnly", "--useDLACore=0"], "is unsupported on DLA"),
        ("10.3.0", ["--onnx=model.onnx", "--loadInputs=x:x.npy"], "Cannot find input tensor|Unexpected file size"),
    ],
)
def test_the_stand_in_refuses_what_the_real_one_refuses(
    version: str, arguments: list[str], why: str, tmp_path: Path, stand_in: StandIn
) -> None:
    stand_in(version)
    for name, precision in (("model", "fp32"), ("half", "fp16"), ("bytes", "int8")):
        if any(f"{name}.onnx" in argument for argument in arguments):
            shutil.copy(compiled(tmp_path / name, precision).files[0], tmp_path / f"{name}.onnx")
    image(tmp_path)
    code, said = ask(*arguments, cwd=tmp_path)
    assert code == 1 and "&&&& FAILED TensorRT.trtexec" in said
    assert any(part in said for part in why.split("|")), said
