"""Releases on a device of its own kernel: its power is cut at every step, and it serves the old one or the new."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from releases import bundle, job
from sshd import keygen
from test_faults import shell, ssh_argv, target

from edgeprune.devices.agent import RELEASING
from edgeprune.devices.bench import identified
from edgeprune.devices.virtual import board
from edgeprune.errors import DeviceError
from edgeprune.records import Device, Target
from edgeprune.stages import deploy as deploying

ssh = pytest.importorskip("edgeprune.devices.transports.ssh")
pytestmark = pytest.mark.usefixtures("virtual_board")

# Does its jobs, but stops for good once it has done the n-th thing of this kind to the file system.
STOPPING = """
import glob, importlib.util, json, os, sys, time
def module(name, path, **names):
    spec = importlib.util.spec_from_file_location(name, path)
    found = importlib.util.module_from_spec(spec)
    vars(found).update(names)
    spec.loader.exec_module(found)
    return found
agent = module("agent", glob.glob(os.path.expanduser("~/.edgeprune/agent-*.py"))[0])
part = module("part", {part!r}, agent=agent)
part.run_check = lambda folder, manifest, check_s: {{"ok": True}}
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
job = json.loads({job!r})
for mode in ("publish", "activate"):
    part.MODES[mode](job)
print("done", flush=True)
"""
# What a deploy renames, replaces and unlinks: the release's name; what to go back to; previous; current; done.
STEPS = [("rename", 1), ("replace", 1), ("replace", 2), ("replace", 3), ("unlink", 3)]


@pytest.fixture(scope="module")
def device() -> Device:
    with closing(ssh.Ssh(target())) as transport:
        return identified(transport, target())


@pytest.fixture
def served(tmp_path: Path, device: Device) -> Iterator[tuple[Target, Path]]:
    """A target that one release is in service on, and the key that it is signed with."""
    key = keygen(tmp_path / "key")
    to = replace(target(), deploy=replace(target().deploy, key=key))
    shell("rm -rf .edgeprune/services .edgeprune/allowed_signers; sync")
    deploying.deploy(to, made(tmp_path / "first", key, device, 1000), lambda text: None)
    yield to, key
    shell("rm -rf .edgeprune/services .edgeprune/allowed_signers")


def made(folder: Path, key: Path, device: Device, ns: int) -> deploying.Bundle:
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


def test_its_power_cut_at_every_step_it_serves_the_old_or_the_new(
    served: tuple[Target, Path], device: Device, tmp_path: Path
) -> None:
    to, key = served
    old = now(to)["current"]
    for number, (kind, at) in enumerate(STEPS):
        new = made(tmp_path / f"new{number}", key, device, 2000 + number)
        with closing(ssh.Ssh(to)) as transport:
            part, source = transport.put([RELEASING]), str(Path(transport.put(new.files)).parent)
        asked: dict[str, Any] = {**job(new), "source": source, "keep": 3}
        script = STOPPING.format(part=part, at=at, kind=kind, job=json.dumps(asked))
        argv = [*ssh_argv(), "python3 -I -"]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(script)
            process.stdin.close()
            assert process.stdout.readline().strip() == "there", (kind, at)
            power_cut()
            process.kill()

        current = shell("basename $(readlink .edgeprune/services/vision/current)").strip()
        assert current in (old, new.digest), (kind, at)
        ran = shell("python3 -I .edgeprune/services/vision/current/runner.py --check")
        assert json.loads(ran)["ok"], (kind, at)
        found = now(to)  # who comes next clears up
        assert found["current"] in (old, new.digest)
        assert set(shell("ls -A .edgeprune/services/vision").split()) <= {"current", "previous", "releases", "lock"}
        newer = made(tmp_path / f"newer{number}", key, device, 3000 + number)
        deploying.deploy(to, newer, lambda text: None)
        assert now(to)["current"] == newer.digest
        old = newer.digest


def test_a_release_that_the_power_cut_damaged_would_be_refused(
    served: tuple[Target, Path], device: Device, tmp_path: Path
) -> None:
    """Not that it can: but if a disk loses what it promised to keep, nobody serves it."""
    to, key = served
    first = now(to)["current"]
    deploying.deploy(to, made(tmp_path / "second", key, device, 2000), lambda text: None)
    shell(f"truncate -s 3 .edgeprune/services/vision/releases/{first}/model.json")
    with pytest.raises(Exception, match="altered") as caught:
        deploying.rollback(to, "vision", lambda text: None)
    assert getattr(caught.value, "exit_code", None) == 6 and not isinstance(caught.value, DeviceError)
