"""Nothing gets into service that is not what was signed, runs, and belongs here; and a cut at any moment leaves old or new."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import releases
from releases import bundle, job, resigned
from sshd import keygen

from edgeprune.devices.agent import RELEASING, agent
from edgeprune.stages.deploy import Bundle

Device = Any


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return keygen(tmp_path / "key")


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Device:
    home = tmp_path / ".edgeprune"
    home.mkdir()
    monkeypatch.setattr(agent, "home", lambda: str(home))
    return releases.releasing()


def service(device: Device) -> Path:
    return Path(agent.root()) / "services" / "vision"


def serve(device: Device, made: Bundle, **changes: Any) -> dict[str, Any]:
    device.publish(job(made, **changes))
    return dict(device.activate(job(made, **changes)))


def back(device: Device, made: Bundle, **changes: Any) -> dict[str, Any]:
    """What a rollback asks for."""
    return job(made, digest=device.pointed(service(device), "previous"), **changes)


def clock(monkeypatch: pytest.MonkeyPatch, start: int = 1_700_000_000) -> None:
    """Every bundle is a second younger than the one before."""
    ticks = iter(range(start, start + 1000))
    monkeypatch.setattr("edgeprune.stages.deploy.time.time", lambda: next(ticks))


def test_one_release_follows_another_and_is_rolled_back(
    device: Device, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock(monkeypatch)
    first, second = bundle(tmp_path / "1", key, 1000), bundle(tmp_path / "2", key, 2000)
    assert serve(device, first)["check"]["ok"]
    assert serve(device, second)["previous"] == first.digest
    assert device.activate(back(device, second))["current"] == first.digest
    states = {entry["digest"]: entry["state"] for entry in device.releases({})["releases"]}
    assert states == {first.digest: "current", second.digest: "previous"}
    assert (service(device) / "current" / "load.cpp").exists() is False  # there is none for no runtime
    assert device.activate(back(device, first))["current"] == second.digest


def test_a_release_that_hangs_is_not_waited_for(device: Device, key: Path, tmp_path: Path) -> None:
    made = bundle(tmp_path / "1", key)
    runner = made.files[0].parent / "runner.py"
    runner.write_text("import time; time.sleep(60)")
    files = json.loads(made.files[0].read_text())["files"]
    files["runner.py"] = [runner.stat().st_size, agent.hashlib.sha256(runner.read_bytes()).hexdigest()]
    with pytest.raises(agent.Failed, match=r"took over 0.5 s"):
        device.publish(job(resigned(made, key, files=files), check_s=0.5))
    assert not device.releases({})["releases"]


def test_an_answer_that_was_lost_is_given_again(
    device: Device, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link that breaks has jobs sent again: that must not undo what they did."""
    clock(monkeypatch)
    first, second = bundle(tmp_path / "1", key, 1000), bundle(tmp_path / "2", key, 2000)
    for made in (first, second):
        for _ in range(2):
            serve(device, made)
    asked = back(device, second)
    assert [device.activate(asked)["current"] for _ in range(2)] == [first.digest] * 2
    assert device.pointed(service(device), "previous") == second.digest


def unsigned(made: Bundle, key: Path, tmp_path: Path) -> Bundle:
    Path(f"{made.files[0]}.sig").unlink()
    return made


def signed_by_another(made: Bundle, key: Path, tmp_path: Path) -> Bundle:
    return resigned(made, keygen(tmp_path / "other"))


def altered_manifest(made: Bundle, key: Path, tmp_path: Path) -> Bundle:
    made.files[0].write_text(made.files[0].read_text().replace('"threads": 1', '"threads": 2'))
    return made


def altered_and_hashed_again(made: Bundle, key: Path, tmp_path: Path) -> Bundle:
    altered_manifest(made, key, tmp_path)
    return Bundle(made.files, made.manifest, agent.hashlib.sha256(made.files[0].read_bytes()).hexdigest(), made.signer)


def altered_model(made: Bundle, key: Path, tmp_path: Path) -> Bundle:
    (made.files[0].parent / "model.json").write_text('{"ns": 7777}')
    return made


def missing_model(made: Bundle, key: Path, tmp_path: Path) -> Bundle:
    (made.files[0].parent / "model.json").unlink()
    return made


def older(made: Bundle, key: Path, tmp_path: Path) -> Bundle:
    return resigned(made, key, created_s=1_600_000_000)


def of_another_device(made: Bundle, key: Path, tmp_path: Path) -> Bundle:
    return resigned(made, key, device={**json.loads(made.files[0].read_text())["device"], "cpu": "another"})


def of_another_service(made: Bundle, key: Path, tmp_path: Path) -> Bundle:
    return resigned(made, key, service="speech")


def leading_out(made: Bundle, key: Path, tmp_path: Path) -> Bundle:
    return resigned(made, key, files={"../../evil": [0, "0" * 64]})


def no_manifest(made: Bundle, key: Path, tmp_path: Path) -> Bundle:
    return resigned(made, key, files=7)


def that_does_not_run(made: Bundle, key: Path, tmp_path: Path) -> Bundle:
    return bundle(tmp_path / "wrong", key, 3000, expected=2.0)


REFUSED: dict[Callable[[Bundle, Path, Path], Bundle], str] = {
    unsigned: "not signed|lacks manifest.json.sig",
    signed_by_another: "not by a key of",
    altered_manifest: "altered",
    altered_and_hashed_again: "not by a key of",
    altered_model: "model.json was altered",
    missing_model: "lacks model.json",
    older: "older than one that is here",
    of_another_device: "verified on another device",
    of_another_service: "of the service 'speech'",
    leading_out: "file of the name",
    no_manifest: "not a manifest",
    that_does_not_run: "does not run",
}


@pytest.mark.parametrize("served", [True, False], ids=["after another", "the first"])
@pytest.mark.parametrize("spoil", REFUSED, ids=lambda spoil: spoil.__name__)
def test_what_is_refused_leaves_no_trace(
    spoil: Callable[[Bundle, Path, Path], Bundle],
    served: bool,
    device: Device,
    key: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock(monkeypatch)
    first, second = bundle(tmp_path / "1", key, 1000), bundle(tmp_path / "2", key, 2000)
    if served:
        serve(device, first)
    elif spoil is older:
        pytest.skip("there is none that it could be older than")
    with pytest.raises(agent.Failed, match=REFUSED[spoil]) as caught:
        device.publish(job(spoil(second, key, tmp_path)))
    assert caught.value.kind == ("unhealthy" if spoil is that_does_not_run else "refused")
    assert [entry["digest"] for entry in device.releases({})["releases"]] == [first.digest] * served
    assert len(list(service(device).glob("releases/*"))) == served and not (tmp_path / "evil").exists()
    assert (
        Path(agent.root()) / "allowed_signers"
    ).exists() == served  # nobody is trusted for a bundle that was refused


def test_a_release_that_was_altered_where_it_lies_is_not_gone_back_to(
    device: Device, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock(monkeypatch)
    first, second = bundle(tmp_path / "1", key, 1000), bundle(tmp_path / "2", key, 2000)
    serve(device, first)
    serve(device, second)
    with open(service(device) / "previous" / "model.json", "a") as file:
        file.write(" ")
    with pytest.raises(agent.Failed, match="altered; deploy again"):
        device.activate(back(device, second))
    assert device.pointed(service(device), "current") == second.digest
    damaged = {entry["digest"]: entry.get("damage") for entry in device.releases({})["releases"]}
    assert damaged[first.digest] and not damaged[second.digest]


def test_a_server_that_cannot_take_it_up_gets_the_old_one_back(
    device: Device, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock(monkeypatch)
    told = tmp_path / "told"
    first, second = bundle(tmp_path / "1", key, 1000), bundle(tmp_path / "2", key, 2000)
    note = ["sh", "-c", f"readlink current >> {told}"]
    refuse = ["sh", "-c", f"readlink current >> {told}; ! grep -q 2000 current/model.json"]
    with pytest.raises(agent.Failed, match="ended with 1"):
        serve(device, first, tell=["false"])
    assert device.pointed(service(device), "current") is None  # the first one has nothing to go back to
    serve(device, first, tell=note)
    with pytest.raises(agent.Failed, match=f"ended with 1.*back to {first.digest[:12]}"):
        serve(device, second, tell=refuse)
    assert device.pointed(service(device), "current") == first.digest
    assert [line.rpartition("/")[2] for line in told.read_text().split()] == [first.digest, second.digest, first.digest]


def test_old_releases_go_but_never_those_in_use(
    device: Device, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock(monkeypatch)
    made = [bundle(tmp_path / str(i), key, 1000 + i) for i in range(4)]
    for one in made:
        serve(device, one, keep=2)
    assert {e["digest"] for e in device.releases({})["releases"]} == {made[2].digest, made[3].digest}
    device.activate(back(device, made[3], keep=2))
    assert device.pointed(service(device), "current") == made[2].digest


# Dies at the n-th thing it asks of the file system, before it is done or after.
KILLED = """
import json, os, signal, sys
sys.path.insert(0, {tests!r})
from edgeprune.agent import agent
agent.home = lambda: {home!r}
part = agent.loaded_module({part!r}, agent=agent)
part.run_check = lambda folder, manifest, check_s: {{}}
count = 0
def deadly(work):
    def call(*a, **k):
        global count
        count += 1
        if count == {at} and not {after}:
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            return work(*a, **k)
        finally:
            if count == {at}:
                os.kill(os.getpid(), signal.SIGKILL)
    return call
for name in ("rename", "replace", "symlink", "unlink", "fsync", "mkdir", "rmdir"):
    setattr(os, name, deadly(getattr(os, name)))
job = json.loads({job!r})
for mode in {modes!r}:
    part.MODES[mode](job)
"""


def killed(at: int, after: bool, modes: list[str], asked: dict[str, Any], home: Path) -> bool:
    """Whether it was killed; False when it came to its end before that."""
    text = KILLED.format(
        tests=str(Path(releases.__file__).parent), home=str(home), part=str(RELEASING), at=at, after=after, modes=modes,
        job=json.dumps(asked),
    )  # fmt: skip
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode != 0


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("verb", ["deploy", "rollback"])
def test_killed_at_every_step_it_leaves_the_old_or_the_new_and_goes_on(
    verb: str, after: bool, device: Device, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock(monkeypatch)
    monkeypatch.setattr(device, "run_check", lambda folder, manifest, check_s: {"ok": True})
    old, second, third = (bundle(tmp_path / str(i), key, 1000 + i) for i in range(3))
    serve(device, old)
    serve(device, second)
    start, home = Path(agent.root()), tmp_path / "again" / ".edgeprune"
    monkeypatch.setattr(agent, "home", lambda: str(home))
    before, wanted, modes, asked = {
        "deploy": (second, third, ["publish", "activate"], job(third)),
        "rollback": (second, old, ["activate"], job(second, digest=old.digest)),
    }[verb]
    steps = 0
    for at in range(1, 200):
        shutil.rmtree(home, ignore_errors=True)
        shutil.copytree(start, home, symlinks=True)
        if not killed(at, after, modes, asked, home):
            break
        steps += 1
        current = Path(os.path.realpath(service(device) / "current"))
        assert current.name in (before.digest, wanted.digest)
        device.checked(str(current), current.name)  # whole, signed, and in service
        device.releases({})  # who comes next clears up
        assert device.pointed(service(device), "current") in (before.digest, wanted.digest)
        assert device.pointed(service(device), "previous") in (old.digest, second.digest)
        assert not (service(device) / "switching").exists()
        if device.pointed(service(device), "current") == before.digest:  # the same again goes through
            for mode in modes:
                device.MODES[mode](asked)
            assert device.pointed(service(device), "current") == wanted.digest
    assert steps >= (20 if verb == "deploy" else 10)
    assert device.pointed(service(device), "current") == wanted.digest
    assert device.pointed(service(device), "previous") == before.digest


def test_the_releases_of_a_service_are_changed_by_one_at_a_time(device: Device, key: Path, tmp_path: Path) -> None:
    first = bundle(tmp_path / "1", key)
    with device.locked("vision"), pytest.raises(agent.Failed, match="changed by another process") as caught:
        device.publish(job(first))
    assert caught.value.kind == "busy"


def test_a_device_trusts_the_key_of_its_first_bundle_and_those_that_are_added(
    device: Device, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock(monkeypatch)
    other = keygen(tmp_path / "other")
    first, second = bundle(tmp_path / "1", key, 1000), bundle(tmp_path / "2", other, 2000)
    assert device.publish(job(first))["enrolled"] and not device.publish(job(first))["enrolled"]
    with pytest.raises(agent.Failed, match="not by a key of"):
        device.publish(job(second))
    with open(Path(agent.root()) / "allowed_signers", "a") as file:
        file.write(f'edgeprune namespaces="edgeprune" {second.signer}\n')
    device.publish(job(second))


def test_the_runner_answers_a_person(device: Device, key: Path, tmp_path: Path) -> None:
    first = bundle(tmp_path / "1", key)
    serve(device, first)
    current = service(device) / "current"
    argv = [sys.executable, str(current / "runner.py")]
    done = subprocess.run([*argv, "--check"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and json.loads(done.stdout)["ok"]
    done = subprocess.run([*argv, str(current / "input_0.npy")], cwd=tmp_path, timeout=60, check=False)
    assert done.returncode == 0 and (tmp_path / "output_0.npy").exists()
    assert time.time() - os.lstat(current).st_mtime < 60
