"""The agent and the runner on Python 3.8, the oldest that a device may have."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from releases import activation, bundle, publication
from sshd import keygen

from edgeprune import runtimes
from edgeprune.devices import bundle as bundling
from edgeprune.devices import wire
from edgeprune.devices.transports.base import Transport, ask
from edgeprune.devices.transports.local import Local
from edgeprune.stages.releases import bundles

VARIABLE = "EDGEPRUNE_PYTHON38"  # names a Python 3.8, for instance one of a virtual environment with numpy
DEADLINE_S = 30.0


def runs(argv: list[str]) -> bool:
    try:
        return subprocess.run(argv, capture_output=True, timeout=600, check=False).returncode == 0
    except OSError:
        return False


@pytest.fixture(scope="module")
def python() -> str:
    """A Python 3.8, with numpy where there is one."""
    installed = [str(path) for path in Path.home().glob(".pyenv/versions/3.8.*/bin/python")]
    places = [place for place in (os.environ.get(VARIABLE, ""), "python3.8", *installed) if place]
    usable = [place for place in places if runs([place, "-c", "import sys; sys.exit(sys.version_info[:2] != (3, 8))"])]
    if not usable:
        pytest.skip(f"no Python 3.8 is installed; {VARIABLE} may name one")
    return next((place for place in usable if runs([place, "-c", "import numpy"])), usable[0])


@pytest.fixture(scope="module")
def numpy_python(python: str) -> str:
    if not runs([python, "-c", "import numpy"]):
        pytest.skip(f"Python 3.8 has no numpy; {VARIABLE} may name a Python 3.8 that has it")
    return python


@pytest.fixture
def device(python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Transport]:
    monkeypatch.setenv("HOME", str(tmp_path))
    with closing(Local(python)) as local:
        yield local


def model(tmp_path: Path) -> str:
    path = tmp_path / "model.json"
    path.write_text('{"ns": 1000}')
    return str(path)


def test_it_identifies_examines_and_times(device: Transport, tmp_path: Path) -> None:
    assert ask(device, "old", wire.Examine(DEADLINE_S)).python == "3.8"
    assert ask(device, "old", wire.Identify(DEADLINE_S, "null")).runtime_version == "0"
    assert "load" in ask(device, "old", wire.GetState(DEADLINE_S, "null")).conditions
    path = model(tmp_path)
    job = wire.Time(DEADLINE_S, "null", 1, (path,), (), 0.01, 0.01, runs_min=5, runs_max=50, profiled=(path,))
    (timed,) = ask(device, "old", job).models
    assert len(timed.times_ns) >= 5 and timed.nodes[0].ns == 1000


@pytest.mark.parametrize("name", [name for name in runtimes.names() if name != "null"])
def test_the_code_of_every_runtime_is_imported(name: str, device: Transport) -> None:
    """None of them is installed there, and the agent reports that."""
    with pytest.raises(Exception, match="runtime-missing"):
        ask(device, "old", wire.Identify(DEADLINE_S, name))


def test_it_computes_outputs(numpy_python: str, device: Transport, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(6.0).reshape(3, 2))
    job = wire.GetOutputs(DEADLINE_S, "null", 1, model(tmp_path), (str(tmp_path / "x.npy"),), 1, 0, 5.0, 1 << 20)
    reply = ask(device, "old", job)
    assert reply.count == 3
    device.get(reply.files[0], tmp_path / "y.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), np.load(tmp_path / "x.npy"))


def test_it_publishes_activates_and_runs_a_release(numpy_python: str, device: Transport, tmp_path: Path) -> None:
    made = bundle(tmp_path / "1", keygen(tmp_path / "key"))
    assert ask(device, "old", publication(made)).enrolled
    activated = ask(device, "old", activation(made))
    assert activated.current == made.digest and activated.check.ok
    (entry,) = ask(device, "old", wire.ListReleases(DEADLINE_S, "null")).releases
    assert entry.state == "current" and not entry.damage
    runner = tmp_path / ".edgeprune" / "services" / "vision" / "current" / "runner.py"
    done = subprocess.run([numpy_python, "-I", str(runner), "--check"], capture_output=True, timeout=600, check=True)
    assert json.loads(done.stdout)["ok"]


def test_it_installs_a_bundle_and_counts_its_calls(numpy_python: str, tmp_path: Path) -> None:
    key, home = keygen(tmp_path / "key"), {**os.environ, "HOME": str(tmp_path)}
    made = bundle(tmp_path / "1", key, sequence=1)
    bundles.write(made, tmp_path / "1.tar")
    runner = made.files[0].parent / "runner.py"
    argv = [numpy_python, runner, "--install", tmp_path / "1.tar", "--signer", key.with_suffix(".pub")]
    (tmp_path / ".edgeprune").mkdir()
    done = subprocess.run(argv, env=home, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0 and json.loads(done.stdout)["release"] == made.digest, done.stderr
    service = tmp_path / ".edgeprune" / "services" / "vision"
    script = f"import sys; sys.path.insert(0, {str(service / 'current')!r}); import runner; runner.load()([1])"
    script += f"; m = sys.modules[runner.runner.metrics.__name__]; print(m.text({str(service)!r}))"
    done = subprocess.run([numpy_python, "-c", script], capture_output=True, text=True, timeout=600, check=True)
    assert f'edgeprune_calls_total{{service="vision",release="{made.digest[:12]}"' in done.stdout


def test_a_release_that_gives_another_output_is_refused(numpy_python: str, device: Transport, tmp_path: Path) -> None:
    made = bundle(tmp_path / "1", keygen(tmp_path / "key"), expected=2.0)
    with pytest.raises(Exception, match="does not run"):
        ask(device, "old", replace(publication(made), check_s=DEADLINE_S))


def test_a_runner_can_be_imported(python: str, tmp_path: Path) -> None:
    (tmp_path / "runner.py").write_bytes(bundling.runner())
    assert runs([python, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import runner; runner.load"])
