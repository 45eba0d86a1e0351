"""A fleet of real SSH servers with every fault at once. Each server is a board with a lease of its own, which needs root."""

from __future__ import annotations

import io
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from releases import bundle, deploy
from rich.console import Console
from sshd import SSHD, Sshd, keygen, named, start

from edgeprune.devices import bundle as bundling
from edgeprune.devices.fleet import Pace
from edgeprune.errors import SecurityError
from edgeprune.records import Fleet, Target
from edgeprune.reports import fleet
from edgeprune.stages.releases import rollout, signers
from edgeprune.stages.releases.rollout import Plan

Servers = dict[str, Sshd]
WITHOUT_SPACE = "small"


@pytest.fixture
def launched(tmp_path_factory: pytest.TempPathFactory, alone: None) -> Iterator[ExitStack]:
    pytest.importorskip("paramiko")
    if SSHD is None:
        pytest.skip("no sshd on this machine; apt-get install openssh-server")
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("several boards on one machine need root, for a lease each")
    with ExitStack() as stack:
        yield stack


def launch(stack: ExitStack, factory: pytest.TempPathFactory, names: list[str]) -> Servers:
    servers = {}
    for name in names:
        disk = len(bundling.agent()) + (64 << 10) if name == WITHOUT_SPACE else None
        process, servers[name] = start(factory.mktemp("sshd"), own_lease=True, disk_bytes=disk)
        stack.callback(process.wait, 10)
        stack.callback(process.terminate)
        stack.callback(servers[name].proxy.close)
    return servers


def steps(found: Fleet) -> dict[str, str]:
    return {host.host: host.step for host in found.hosts}


def service(server: Sshd) -> Path:
    return server.home / ".edgeprune" / "services" / "vision"


@pytest.mark.nightly
@pytest.mark.parametrize("size", [9, 20])
def test_a_fleet_with_every_fault_at_once(
    size: int, home_with_key: Path, launched: ExitStack, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    dead, slow = [f"dead{i}" for i in range(size // 4)], ["slow0", "slow1"]
    faulty = [*dead, *slow, WITHOUT_SPACE, "otherkey", "unhealthy"]
    good = [f"good{i}" for i in range(size - len(faulty))]
    names = [*faulty, *good]
    servers = launch(launched, tmp_path_factory, names)
    target = named(servers, home_with_key)
    key = target.deploy.key
    assert key is not None
    old = bundle(tmp_path / "old", key, 1000, sequence=1)
    deploy(replace(target, deploy=replace(target.deploy, hosts=("unhealthy",))), old)
    for name in dead[:-1]:
        servers[name].proxy.refusing = True
    servers[dead[-1]].proxy.hold()  # it takes the connection and says nothing
    for name in slow:
        servers[name].proxy.delay_s = 0.02
    accepted = servers["otherkey"].home / ".edgeprune" / "allowed_signers"
    accepted.parent.mkdir(mode=0o700)
    accepted.write_text(
        f'edgeprune namespaces="edgeprune" {keygen(tmp_path / "other").with_suffix(".pub").read_text()}'
    )
    (service(servers["unhealthy"]) / "broken").touch()  # its server cannot load the new release
    picky = replace(
        target, deploy=replace(target.deploy, reload=("sh", "-c", "! test -e broken || grep 1000 current/model.json"))
    )

    new = bundle(tmp_path / "new", key, 2000, sequence=2)
    found = rollout.deploy(picky, new, lambda text: None, Plan(Pace(parallel=4, max_failures=20)))
    errors = {host.host: host.error for host in found.failed}
    assert steps(found) == {
        **dict.fromkeys([*dead, WITHOUT_SPACE, "otherkey", "unhealthy"], "failed"),
        **dict.fromkeys([*slow, *good], "done"),
    }
    assert list(steps(found)) == names, "the table is in the order of the target"
    assert all("is the device on" in errors[name] or "cannot connect" in errors[name] for name in dead), errors
    assert "space" in errors[WITHOUT_SPACE] or "full" in errors[WITHOUT_SPACE], errors[WITHOUT_SPACE]
    assert "not by a key of" in errors["otherkey"]
    assert f"back to {old.digest[:12]}" in errors["unhealthy"]
    runs = {release.host: release.digest for release in found.releases}
    assert runs == {**dict.fromkeys([*slow, *good], new.digest), "unhealthy": old.digest}
    assert found.exit_code == 5

    for name in dead:  # they come back: the same bundle goes to the hosts that lack it
        servers[name].proxy.refusing = False
        servers[name].proxy.flow()
    (service(servers["unhealthy"]) / "broken").unlink()
    again = rollout.deploy(picky, new, lambda text: None, Plan(Pace(parallel=4, max_failures=20)))
    assert steps(again) == {
        **dict.fromkeys([WITHOUT_SPACE, "otherkey"], "failed"),
        **dict.fromkeys([*dead, "unhealthy"], "done"),
        **dict.fromkeys([*slow, *good], "unchanged"),
    }


@pytest.mark.slow
def test_the_others_wait_for_the_canary(
    home_with_key: Path, launched: ExitStack, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    servers = launch(launched, tmp_path_factory, ["canary", "two", "three"])
    target = named(servers, home_with_key)
    key = target.deploy.key
    assert key is not None
    lines: list[str] = []
    plan = Plan(canary=1, soak_s=0.5)
    first = bundle(tmp_path / "1", key, 1000, sequence=1)
    found = rollout.deploy(target, first, lines.append, plan)
    assert set(steps(found).values()) == {"done"}, rollout.summary(found)
    soaked = next(i for i, line in enumerate(lines) if "p50" in line)
    assert all("canary" in line for line in lines[:soaked]) and any("two" in line for line in lines[soaked:])

    late = bundle(tmp_path / "2", key, 3_000_000, sequence=2)  # 3 ms a call, and the verdict has 0.9 ms
    found = rollout.deploy(target, late, lines.append, plan)
    assert steps(found) == {"canary": "failed", "two": "not begun", "three": "not begun"}
    error = found.failed[0].error
    assert "slower than its limit" in error and f"back to {first.digest[:12]}" in error
    assert found.exit_code == 1 and "canary failed" in found.stopped
    assert {one.digest for one in rollout.releases(target).releases if one.state == "current"} == {first.digest}


@pytest.mark.slow
def test_keys_of_a_fleet_and_the_way_out_of_a_bad_release(
    home_with_key: Path, launched: ExitStack, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    servers = launch(launched, tmp_path_factory, ["one", "two"])
    target: Target = named(servers, home_with_key)
    key, new = target.deploy.key, keygen(tmp_path / "new")
    assert key is not None
    lines: list[str] = []
    first = bundle(tmp_path / "1", key, 1000, sequence=1)
    deploy(target, first)
    servers["two"].proxy.refusing = True
    rotate = signers.change("rotate", str(new), target)
    found = signers.changed(target, rotate, lines.append)
    assert [len(host.facts) for host in found.hosts] == [2, 0] and found.exit_code == 5
    assert any("the old key stays" in line for line in lines)
    servers["two"].proxy.refusing = False
    found = signers.changed(target, rotate, lines.append)
    assert [[fact["state"] for fact in host.facts] for host in found.hosts] == [["accepted", "retired"]] * 2

    with pytest.raises(SecurityError, match="not by a key of"):
        deploy(target, bundle(tmp_path / "2", key, 2000, sequence=2))
    far = bundle(tmp_path / "3", new, 3000, sequence=10**9)  # of a host that counts wrongly
    deploy(target, far)
    with pytest.raises(SecurityError, match=f"edgeprune withdraw {far.digest[:12]}"):
        deploy(target, bundle(tmp_path / "4", new, 4000, sequence=3))
    out = rollout.withdraw(target, "vision", far.digest[:12], lines.append)
    assert {one.digest for one in out.releases} == {first.digest}, "signed by a retired key, and still good"
    deploy(target, bundle(tmp_path / "5", new, 4000, sequence=3))
    with pytest.raises(SecurityError, match="was withdrawn here"):
        deploy(target, far)

    log = signers.audit(target)
    assert not log.failed
    deeds = [fact["did"] for fact in log.hosts[0].facts]
    kept = "publish", "activate"
    assert deeds == [*kept, "key-add", "key-retire", *kept, "activate", "withdraw", *kept]
    assert log.hosts[0].facts[0]["digest"] == first.digest and "@" in log.hosts[0].facts[0]["who"]
    place = servers["one"].home / ".edgeprune" / "audit.jsonl"
    place.write_text(place.read_text().replace('"withdraw"', '"activate"'))
    altered = signers.audit(target)
    assert [host.host for host in altered.failed] == ["one"] and "was altered: entry 9" in altered.failed[0].error


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, pytest.param(2, marks=pytest.mark.nightly)])
def test_after_ctrl_c_every_host_runs_a_whole_release_and_the_table_has_all(
    times: int, home_with_key: Path, launched: ExitStack, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """It comes while two hosts switch. Once, they come to their end; twice, they are left, and end by themselves."""
    names = ["one", "two", "three", "four"]
    servers = launch(launched, tmp_path_factory, names)
    target = named(servers, home_with_key)
    key = target.deploy.key
    assert key is not None
    first, second = bundle(tmp_path / "1", key, 1000, sequence=1), bundle(tmp_path / "2", key, 2000, sequence=2)
    deploy(target, first)
    slow = replace(target, deploy=replace(target.deploy, reload=("sleep", "3")))
    pressed: list[str] = []

    def press(text: str) -> None:
        if len(pressed) < times and ("and it runs there" in text or "Ctrl-C again" in text):
            pressed.append(text)
            signal.raise_signal(signal.SIGINT)

    with heeding_ctrl_c():
        found = rollout.deploy(slow, second, press, Plan(Pace(parallel=2)))
    assert len(pressed) == times and found.interrupted and found.exit_code == 130
    assert [host.host for host in found.hosts] == names
    assert set(list(steps(found).values())[:2]) == ({"done"} if times == 1 else {"unknown"})
    assert [steps(found)[name] for name in ("three", "four")] == ["not begun"] * 2
    shown = io.StringIO()
    fleet.show(found, Console(width=200, file=shown))
    assert all(name in shown.getvalue() for name in names)

    running = rollout.releases(target, wait_s=60.0)
    assert not running.failed, running.failed
    runs = {one.host: one.digest for one in running.releases if one.state == "current"}
    assert {runs["three"], runs["four"]} == {first.digest} and {runs["one"], runs["two"]} <= {
        first.digest,
        second.digest,
    }
    assert rollout.checked(target, "vision", lambda text: None).exit_code == 0  # none is half there: each runs
    again = rollout.deploy(target, second, lambda text: None, Plan(Pace(parallel=2), wait_s=60.0))
    assert {one.digest for one in again.releases} == {second.digest} and again.exit_code == 0


@contextmanager
def heeding_ctrl_c() -> Iterator[None]:
    """SIGINT interrupts, also where a shell runs the tests in the background and has them ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
