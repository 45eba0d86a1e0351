"""Deploy and roll back: on this machine by the command line, and on hosts behind real SSH servers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import releases as deploying
from releases import bundle
from safetensors.torch import load_file, save_file
from small import Finished, command
from sshd import SSHD, Sshd, named, start

from edgeprune.errors import EdgepruneError, SecurityError, UsageError, VerdictError
from edgeprune.records import Release, Target


def deployed(done: Finished) -> list[dict[str, Any]]:
    """The releases of the hosts that a command printed."""
    return [release for host in done.json["hosts"] for release in host["releases"]]


@pytest.mark.slow
def test_deploy_and_roll_back_by_the_command_line(own_run: Path, home_with_key: Path) -> None:
    """The budget is so large that noise cannot make it fail. The second release has other weights."""
    deploy = ("deploy", "--project", own_run, "--budget", "50 ms")
    first = command(*deploy, "--json")
    assert first.code == 0, first.out + first.err
    (one,) = deployed(first)
    assert (one["host"], one["service"], one["state"]) == ("here", "blobs", "current")
    assert one["manifest"]["verdict"]["artifact"] == one["manifest"]["artifact"]
    again = command(*deploy)
    assert again.code == 0 and "already, and it passes its check" in again.out
    current = home_with_key / ".edgeprune" / "services" / "blobs" / "current"
    done = subprocess.run(
        [sys.executable, current / "runner.py", "--check"], capture_output=True, timeout=600, check=False
    )
    assert done.returncode == 0 and (current / "load.cpp").read_text().startswith(
        "// Loads this release with ONNX Runtime"
    )

    weights = load_file(own_run.with_name("blobs.safetensors"))
    save_file({name: 1.01 * value for name, value in weights.items()}, own_run.with_name("blobs.safetensors"))
    second = command(*deploy, "--json")
    assert second.code == 0, second.err
    before = Path(os.path.realpath(current.parent / "previous")) / "model.onnx"
    content = before.read_bytes()
    before.write_bytes(content + b"\0")
    altered = command("rollback", "--project", own_run)
    assert altered.code == 6 and "model.onnx was altered; deploy again" in altered.err
    assert "damaged" in command("releases").out
    before.write_bytes(content)
    assert command("rollback", "--project", own_run).code == 0
    again = command("rollback", "--project", own_run)  # as after a rollback that failed on a later host
    assert again.code == 0 and "was rolled back already" in again.err
    states = {release["digest"]: release["state"] for release in deployed(command("releases", "--json"))}
    assert states == {one["digest"]: "current", deployed(second)[0]["digest"]: "previous"}
    assert "emulated" not in command("releases").out

    written = command("bundle", "--project", own_run, "--budget", "50 ms", "-o", own_run.with_name("b.tar"), "--json")
    (file,) = written.json["bundles"]
    assert written.code == 0 and (file["path"], file["number"]) == (str(own_run.with_name("b.tar")), 4)
    runner = [sys.executable, current / "runner.py"]
    done = subprocess.run(
        [*runner, "--install", own_run.with_name("b.tar")], capture_output=True, timeout=600, check=True
    )
    third = json.loads(done.stdout)["release"]
    assert third == file["release"]
    assert command("withdraw", third[:12], "--project", own_run).code == 0
    assert third not in {release["digest"] for release in deployed(command("releases", "--json"))}
    assert "withdraw" in command("audit").out and "accepted" in command("keys", "list").out
    assert command("check", "--deployed", "--project", own_run).code == 0

    (home_with_key / ".ssh" / "id_ed25519").unlink()
    keyless = command(*deploy)
    assert keyless.code == 2 and "ssh-keygen -t ed25519" in keyless.err
    assert not keyless.out.strip(), "it is an error before any stage runs"


# The original is evaluated last, so it is better.
RISING = """
count = 0

def metric(outputs, targets):
    global count
    count += 1
    return count
"""


@pytest.mark.slow
def test_an_artifact_that_failed_is_not_deployed(own_run: Path, home_with_key: Path) -> None:
    with open(own_run.with_name("blobs.py"), "a") as module:
        module.write(RISING)
    own_run.write_text(own_run.read_text().replace("[budget]", 'metric = "blobs:metric"\n[budget]'))
    done = command("deploy", "--project", own_run, "--budget", "50 ms")
    assert done.code == 1 and "nothing was deployed: the verdict is fail (metric_drop)" in done.err
    assert not (home_with_key / ".edgeprune").exists()


@pytest.fixture
def fleet(
    home_with_key: Path, tmp_path_factory: pytest.TempPathFactory, alone: None
) -> Iterator[tuple[Target, list[Sshd]]]:
    """A target of two hosts, named in ~/.ssh/config."""
    pytest.importorskip("paramiko")
    if SSHD is None:
        pytest.skip("no sshd on this machine; apt-get install openssh-server")
    servers = {name: start(tmp_path_factory.mktemp("sshd")) for name in ("one", "two")}
    target = named({name: server for name, (_, server) in servers.items()}, home_with_key)
    try:
        yield target, [server for _, server in servers.values()]
    finally:
        for process, server in servers.values():
            server.proxy.close()
            process.terminate()
            process.wait(10)


def states(found: list[Release]) -> list[tuple[str, str, str]]:
    return [(release.host, release.digest, release.state) for release in found]


@pytest.mark.slow
def test_hosts_are_deployed_in_order_up_to_the_first_that_fails(
    fleet: tuple[Target, list[Sshd]], home_with_key: Path, tmp_path: Path
) -> None:
    target, servers = fleet
    key = target.deploy.key
    assert key is not None
    lines: list[str] = []
    first = bundle(tmp_path / "1", key, 1000)
    found = deploying.deploy(target, first, lines.append)
    assert states(found) == [("one", first.digest, "current"), ("two", first.digest, "current")]
    assert sum("accepts bundles that this key signs" in text for text in lines) == 2

    time.sleep(1.1)  # a bundle's age is in whole seconds
    second = bundle(tmp_path / "2", key, 2000)
    marker = servers[1].home / ".edgeprune" / "services" / "vision" / "broken"
    marker.touch()  # only on the second host
    picky = replace(
        target, deploy=replace(target.deploy, reload=("sh", "-c", "! test -e broken || grep 1000 current/model.json"))
    )
    with pytest.raises(VerdictError, match=f"^two: .*back to {first.digest[:12]}; one runs {second.digest[:12]}"):
        deploying.deploy(picky, second, lines.append)
    now = [entry for entry in states(deploying.releases(target)) if entry[2] == "current"]
    assert now == [("one", second.digest, "current"), ("two", first.digest, "current")]
    with pytest.raises(UsageError, match=f"^two: .*nothing to go back to; one runs {first.digest[:12]}"):
        deploying.rollback(target, "vision", lines.append)


def test_a_verdict_of_another_device_is_refused(fleet: tuple[Target, list[Sshd]], tmp_path: Path) -> None:
    target, servers = fleet
    assert target.deploy.key is not None
    other = bundle(tmp_path / "1", target.deploy.key, runtime_version="another")
    with pytest.raises(SecurityError, match=r"runtime_version is 0 there, another in the verdict.*two was not touched"):
        deploying.deploy(target, other, lambda text: None)
    assert not (servers[0].home / ".edgeprune" / "services").exists()


@pytest.mark.nightly
def test_a_link_that_breaks_during_a_switch_leaves_a_complete_release(
    fleet: tuple[Target, list[Sshd]], tmp_path: Path
) -> None:
    """The device ends the switch without its host. Its server refuses the new release, so it returns to the old one."""
    target, servers = fleet
    assert target.deploy.key is not None
    folder = servers[0].home / ".edgeprune" / "services" / "vision"
    target = replace(target, deploy=replace(target.deploy, hosts=("one",)))
    first = bundle(tmp_path / "1", target.deploy.key, 1000)  # type: ignore[arg-type]
    deploying.deploy(target, first, lambda text: None)
    time.sleep(1.1)
    second = bundle(tmp_path / "2", target.deploy.key, 2000)  # type: ignore[arg-type]
    slow = ("sh", "-c", f"touch {tmp_path}/asked; sleep 3; grep 1000 current/model.json")
    failures: list[BaseException] = []

    def deploy() -> None:
        try:
            deploying.deploy(replace(target, deploy=replace(target.deploy, reload=slow)), second, lambda text: None)
        except EdgepruneError as error:
            failures.append(error)

    thread = threading.Thread(target=deploy)
    thread.start()
    until = time.monotonic() + 30
    while not (tmp_path / "asked").exists():
        assert time.monotonic() < until
        time.sleep(0.02)
    servers[0].proxy.refusing = True
    servers[0].proxy.cut()
    time.sleep(8)  # the host is gone meanwhile
    assert Path(os.readlink(folder / "current")).name == first.digest and not (folder / "switching").exists()
    servers[0].proxy.refusing = False
    thread.join(60)
    assert failures and Path(os.readlink(folder / "current")).name == first.digest


SERVER = """
import json, os, signal, sys
folder = sys.argv[1]
def load(*_):
    with open(folder + "/current/model.json") as file:
        ns = json.load(file)["ns"]
    with open(folder + "/serving", "w") as file:
        file.write(str(ns))
load()
signal.signal(signal.SIGHUP, load)
while True:
    signal.pause()
"""


@pytest.mark.slow
def test_a_server_loads_the_release_after_deploy_and_after_rollback(
    fleet: tuple[Target, list[Sshd]], tmp_path: Path
) -> None:
    target, servers = fleet
    key = target.deploy.key
    assert key is not None
    folder = servers[0].home / ".edgeprune" / "services" / "vision"
    target = replace(target, deploy=replace(target.deploy, hosts=("one",)))
    deploying.deploy(target, bundle(tmp_path / "1", key, 1000), lambda text: None)
    server = subprocess.Popen([sys.executable, "-c", SERVER, str(folder)])
    try:
        serving(folder, "1000")
        notified = replace(target, deploy=replace(target.deploy, reload=("kill", "-HUP", str(server.pid))))
        time.sleep(1.1)
        deploying.deploy(notified, bundle(tmp_path / "2", key, 2000), lambda text: None)
        serving(folder, "2000")
        deploying.rollback(notified, "vision", lambda text: None)
        serving(folder, "1000")
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(10)


def serving(folder: Path, wanted: str) -> None:
    until = time.monotonic() + 10
    path: Any = folder / "serving"
    while not (path.exists() and path.read_text() == wanted):
        assert time.monotonic() < until, path.read_text() if path.exists() else "nothing"
        time.sleep(0.05)
