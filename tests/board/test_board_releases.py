"""Releases on a virtual board. A power cut at any step leaves the old release in service, or the new one."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import releases as deploying
from releases import activation, bundle, publication
from sshd import keygen
from test_faults import shell, ssh_argv, target

from edgeprune.devices import wire
from edgeprune.devices.bench import identified
from edgeprune.devices.transports.ssh.remote import agent_path
from edgeprune.devices.virtual import board
from edgeprune.errors import DeviceError
from edgeprune.records import Device, Target
from edgeprune.stages.releases.bundles import Bundle

ssh = pytest.importorskip("edgeprune.devices.transports.ssh")
pytestmark = pytest.mark.usefixtures("virtual_board")

# Publishes and activates a bundle. It stops after the `at`-th call of os.`kind`, until the power is cut.
STOPPING = """
import importlib, json, os, runpy, sys, time
agent = runpy.run_path(os.path.expanduser("~/{agent}"))
sys.meta_path.insert(0, agent["Sources"])
names = "devices.wire", "devices.agent.releases", "runtimes.machine"
wire, releases, machine = (importlib.import_module(agent["PACKAGE"] + "." + name) for name in names)
machine.home = lambda: os.path.expanduser("~/.edgeprune")
releases.run_check = lambda folder, manifest, check_s: wire.Check(True, 0.0, 1.0, 1.0)
count = 0
def stopping(work):
    def call(*a, **k):
        global count
        found = work(*a, **k)
        count += 1
        if count == {at}:
            print("there", flush=True)
            time.sleep(3600)
        return found
    return call
setattr(os, {kind!r}, stopping(getattr(os, {kind!r})))
publication, activation = (wire.read_job(document)[1] for document in json.loads({jobs!r}))
releases.publish(publication)
releases.activate(activation)
print("done", flush=True)
"""
# In order: the release gets its name; the state to return to; previous; current; the switch is over.
STEPS = [("rename", 1), ("replace", 1), ("replace", 2), ("replace", 3), ("unlink", 3)]


@pytest.fixture(scope="module")
def device() -> Device:
    with closing(ssh.Ssh(target())) as transport:
        return identified(transport, target())


@pytest.fixture
def served(tmp_path: Path, device: Device) -> Iterator[tuple[Target, Path]]:
    """A target with a deployed release, and the key that signed it."""
    key = keygen(tmp_path / "key")
    to = replace(target(), deploy=replace(target().deploy, key=key))
    shell("rm -rf .edgeprune/services .edgeprune/allowed_signers; sync")
    deploying.deploy(to, made(tmp_path / "first", key, device, 1000), lambda text: None)
    yield to, key
    shell("rm -rf .edgeprune/services .edgeprune/allowed_signers")


def made(folder: Path, key: Path, device: Device, ns: int) -> Bundle:
    time.sleep(1.1)  # a bundle's age is in whole seconds
    return bundle(folder, key, ns, **{name: getattr(device, name) for name in Device.__dataclass_fields__})


def now(to: Target) -> dict[str, str]:
    """{state: digest} there."""
    return {release.state: release.digest for release in deploying.releases(to)}


def power_cut() -> None:
    board.monitor("system_reset")
    until = time.monotonic() + 120
    while "up" not in shell("echo up"):
        assert time.monotonic() < until


@pytest.mark.nightly
def test_after_a_power_cut_at_any_step_the_old_or_the_new_release_is_deployed(
    served: tuple[Target, Path], device: Device, tmp_path: Path
) -> None:
    to, key = served
    old = now(to)["current"]
    for number, (kind, at) in enumerate(STEPS):
        new = made(tmp_path / f"new{number}", key, device, 2000 + number)
        with closing(ssh.Ssh(to)) as transport:
            source = str(Path(transport.put(new.files)).parent)
        jobs = [replace(publication(new), source=source), activation(new, keep=3)]
        documents = json.dumps([wire.job_document(i, job) for i, job in enumerate(jobs)])
        script = STOPPING.format(agent=agent_path(), at=at, kind=kind, jobs=documents)
        argv = [*ssh_argv(), "python3 -I -"]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(script)
            process.stdin.close()
            assert process.stdout.readline().strip() == "there", (kind, at)
            power_cut()
            process.kill()

        ran, current = shell(
            "cd .edgeprune/services/vision; python3 -I current/runner.py --check; basename $(readlink current)"
        ).split("\n")[:2]
        assert current in (old, new.digest), (kind, at)
        assert json.loads(ran)["ok"], (kind, at)
        found = now(to)  # the next process there restores the state
        assert found["current"] in (old, new.digest)
        assert set(shell("ls -A .edgeprune/services/vision").split()) <= {"current", "previous", "releases", "lock"}
        old = found["current"]  # the next release is deployed after it
    newer = made(tmp_path / "newer", key, device, 3000)
    deploying.deploy(to, newer, lambda text: None)
    assert now(to)["current"] == newer.digest


@pytest.mark.nightly
def test_a_release_that_a_power_cut_damaged_is_refused(
    served: tuple[Target, Path], device: Device, tmp_path: Path
) -> None:
    """A disk may lose what it confirmed. Such a release is refused."""
    to, key = served
    first = now(to)["current"]
    deploying.deploy(to, made(tmp_path / "second", key, device, 2000), lambda text: None)
    shell(f"truncate -s 3 .edgeprune/services/vision/releases/{first}/model.json")
    with pytest.raises(Exception, match="altered") as caught:
        deploying.rollback(to, "vision", lambda text: None)
    assert getattr(caught.value, "exit_code", None) == 6 and not isinstance(caught.value, DeviceError)
