"""A device deploys only signed bundles that run and belong to it.

A power cut at any moment leaves the old release in service, or the new one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from releases import activation, bundle, publication, resigned
from sshd import keygen

from edgeprune.devices import bundle as bundling
from edgeprune.devices import wire
from edgeprune.devices.agent import releases as device
from edgeprune.devices.agent import trust
from edgeprune.runtimes import machine
from edgeprune.runtimes.device import Failed
from edgeprune.stages.releases.bundles import Bundle

LIST = wire.ListReleases(30.0, "null")
RAN = wire.Check(ok=True, relative_error=0.0, limit=1.0, median_ms=1.0)


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return keygen(tmp_path / "key")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is the agent of a device whose files are in `tmp_path`."""
    folder = tmp_path / ".edgeprune"
    folder.mkdir()
    monkeypatch.setattr(machine, "home", lambda: str(folder))


def service() -> Path:
    return Path(machine.root()) / "services" / "vision"


def pointed(kind: Any) -> str | None:
    return device.pointed(str(service()), kind)


def listed() -> dict[str, wire.ReleaseEntry]:
    return {entry.digest: entry for entry in device.listed(LIST).releases}


def serve(made: Bundle, **changes: Any) -> wire.Activated:
    device.publish(publication(made))
    return device.activate(activation(made, **changes))


def back(made: Bundle, **changes: Any) -> wire.Activate:
    """The job of a rollback."""
    return activation(made, digest=pointed("previous"), **changes)


def clock(monkeypatch: pytest.MonkeyPatch, start: int = 1_700_000_000) -> None:
    """Every bundle is a second younger than the one before."""
    ticks = iter(range(start, start + 1000))
    monkeypatch.setattr("edgeprune.stages.releases.bundles.time.time", lambda: next(ticks))


def test_one_release_follows_another_and_is_rolled_back(
    key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock(monkeypatch)
    first, second = bundle(tmp_path / "1", key, 1000), bundle(tmp_path / "2", key, 2000)
    assert serve(first).check.ok
    assert serve(second).previous == first.digest
    assert device.activate(back(second)).current == first.digest
    states = {digest: entry.state for digest, entry in listed().items()}
    assert states == {first.digest: "current", second.digest: "previous"}
    assert (service() / "current" / "load.cpp").exists() is False  # there is none for no runtime
    assert device.activate(back(first)).current == second.digest


def test_a_release_that_hangs_is_refused(key: Path, tmp_path: Path) -> None:
    made = bundle(tmp_path / "1", key)
    runner = made.files[0].parent / "runner.py"
    runner.write_text("import time; time.sleep(60)")
    files = json.loads(made.files[0].read_text())["files"]
    files["runner.py"] = [runner.stat().st_size, hashlib.sha256(runner.read_bytes()).hexdigest()]
    with pytest.raises(Failed, match=r"took over 0.5 s"):
        device.publish(publication(resigned(made, key, files=files), check_s=0.5))
    assert not listed()


def test_a_repeated_job_gets_the_same_answer(key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host repeats its jobs after a broken link. That must not undo what they did."""
    clock(monkeypatch)
    first, second = bundle(tmp_path / "1", key, 1000), bundle(tmp_path / "2", key, 2000)
    for made in (first, second):
        for _ in range(2):
            serve(made)
    asked = back(second)
    assert [device.activate(asked).current for _ in range(2)] == [first.digest] * 2
    assert pointed("previous") == second.digest


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
    return Bundle(made.files, made.manifest, hashlib.sha256(made.files[0].read_bytes()).hexdigest(), made.signer)


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
def test_a_refused_bundle_leaves_no_trace(
    spoil: Callable[[Bundle, Path, Path], Bundle],
    served: bool,
    key: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock(monkeypatch)
    first, second = bundle(tmp_path / "1", key, 1000), bundle(tmp_path / "2", key, 2000)
    if served:
        serve(first)
    elif spoil is older:
        pytest.skip("there is none that it could be older than")
    with pytest.raises(Failed, match=REFUSED[spoil]) as caught:
        device.publish(publication(spoil(second, key, tmp_path)))
    assert caught.value.kind == ("unhealthy" if spoil is that_does_not_run else "refused")
    assert list(listed()) == [first.digest] * served
    assert len(list(service().glob("releases/*"))) == served and not (tmp_path / "evil").exists()
    assert (Path(machine.root()) / "allowed_signers").exists() == served  # a refused bundle adds no trusted key


def test_an_altered_release_is_not_activated_again(key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock(monkeypatch)
    first, second = bundle(tmp_path / "1", key, 1000), bundle(tmp_path / "2", key, 2000)
    serve(first)
    serve(second)
    with open(service() / "previous" / "model.json", "a") as file:
        file.write(" ")
    with pytest.raises(Failed, match="altered; deploy again"):
        device.activate(back(second))
    assert pointed("current") == second.digest
    assert listed()[first.digest].damage and not listed()[second.digest].damage


def test_a_server_that_fails_to_reload_gets_the_old_release_back(
    key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock(monkeypatch)
    noted = tmp_path / "noted"
    first, second = bundle(tmp_path / "1", key, 1000), bundle(tmp_path / "2", key, 2000)
    note = ("sh", "-c", f"readlink current >> {noted}")
    refuse = ("sh", "-c", f"readlink current >> {noted}; ! grep -q 2000 current/model.json")
    with pytest.raises(Failed, match="ended with 1"):
        serve(first, reload=("false",))
    assert pointed("current") is None  # the first one has nothing to go back to
    serve(first, reload=note)
    with pytest.raises(Failed, match=f"ended with 1.*back to {first.digest[:12]}"):
        serve(second, reload=refuse)
    assert pointed("current") == first.digest
    assert [line.rpartition("/")[2] for line in noted.read_text().split()] == [
        first.digest,
        second.digest,
        first.digest,
    ]


def test_old_releases_are_dropped_unless_in_use(key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock(monkeypatch)
    made = [bundle(tmp_path / str(i), key, 1000 + i) for i in range(4)]
    for one in made:
        serve(one, keep=2)
    assert set(listed()) == {made[2].digest, made[3].digest}
    device.activate(back(made[3], keep=2))
    assert pointed("current") == made[2].digest


# Forks for each line of its input. The fork dies at the n-th call that changes the file system, before it is done or after.
KILLED = """
import importlib, json, os, runpy, signal, sys
agent = runpy.run_path({agent!r})
sys.meta_path.insert(0, agent["Sources"])
names = "devices.wire", "devices.agent.releases", "runtimes.machine"
wire, releases, machine = (importlib.import_module(agent["PACKAGE"] + "." + name) for name in names)
machine.home = lambda: {home!r}
releases.run_check = lambda folder, manifest, check_s: wire.Check(True, 0.0, 1.0, 1.0)
doers = {{"publish": releases.publish, "activate": releases.activate}}
jobs = [(doers[document["mode"]], wire.read_job(document)[1]) for document in json.loads({jobs!r})]
count = 0
def deadly(work, at):
    def call(*a, **k):
        global count
        count += 1
        if count == at and not {after}:
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            return work(*a, **k)
        finally:
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)
    return call
for line in sys.stdin:
    child = os.fork()
    if child:
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    for name in ("rename", "replace", "symlink", "unlink", "fsync", "mkdir", "rmdir"):
        setattr(os, name, deadly(getattr(os, name), int(line)))
    for do, job in jobs:
        do(job)
    break
"""
Jobs = list[wire.Work[Any]]


@contextmanager
def deadly(after: bool, jobs: Jobs, home: Path) -> Iterator[Callable[[int], bool]]:
    """Does the jobs up to the n-th step. Returns whether the process was killed then; False when it completed before that."""
    documents = json.dumps([wire.job_document(i, job) for i, job in enumerate(jobs)])
    agent = home.parent / "agent.py"
    agent.parent.mkdir(exist_ok=True)
    agent.write_bytes(bundling.agent())
    text = KILLED.format(agent=str(agent), home=str(home), after=after, jobs=documents)
    argv = [sys.executable, "-c", text]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None

        def killed(at: int) -> bool:
            print(at, file=process.stdin, flush=True)
            code = int(process.stdout.readline())  # type: ignore[union-attr]
            assert code in (0, -signal.SIGKILL)
            return code != 0

        yield killed


def do(job: wire.Work[Any]) -> None:
    if isinstance(job, wire.Publish):
        device.publish(job)
    else:
        assert isinstance(job, wire.Activate)
        device.activate(job)


@pytest.mark.parametrize(
    ("verb", "after"),
    [
        ("deploy", False),
        ("rollback", True),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in [("deploy", True), ("rollback", False)]),
    ],
)
def test_a_kill_at_any_step_leaves_the_old_or_the_new_release(
    verb: str, after: bool, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock(monkeypatch)
    monkeypatch.setattr(device, "run_check", lambda folder, manifest, check_s: RAN)
    old, second, third = (bundle(tmp_path / str(i), key, 1000 + i) for i in range(3))
    serve(old)
    serve(second)
    start, home = Path(machine.root()), tmp_path / "again" / ".edgeprune"
    monkeypatch.setattr(machine, "home", lambda: str(home))
    plans: dict[str, tuple[Bundle, Bundle, Jobs]] = {
        "deploy": (second, third, [publication(third), activation(third)]),
        "rollback": (second, old, [activation(second, digest=old.digest)]),
    }
    before, wanted, jobs = plans[verb]
    steps = 0
    with deadly(after, jobs, home) as killed:
        for at in range(1, 200):
            shutil.rmtree(home, ignore_errors=True)
            shutil.copytree(start, home, symlinks=True)
            if not killed(at):
                break
            steps += 1
            current = Path(os.path.realpath(service() / "current"))
            assert current.name in (before.digest, wanted.digest)
            trust.checked(str(current), current.name)  # whole, signed, and in service
            device.listed(LIST)  # the next process clears up
            assert pointed("current") in (before.digest, wanted.digest)
            assert pointed("previous") in (old.digest, second.digest)
            assert not (service() / "switching").exists()
            if pointed("current") == before.digest:  # the same again goes through
                for job in jobs:
                    do(job)
                assert pointed("current") == wanted.digest
    assert steps >= (20 if verb == "deploy" else 10)
    assert pointed("current") == wanted.digest
    assert pointed("previous") == before.digest


def test_one_process_at_a_time_changes_the_releases_of_a_service(key: Path, tmp_path: Path) -> None:
    first = bundle(tmp_path / "1", key)
    with device.locked("vision"), pytest.raises(Failed, match="changed by another process") as caught:
        device.publish(publication(first))
    assert caught.value.kind == "busy"


def test_a_device_accepts_the_key_of_its_first_bundle_and_added_keys(
    key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock(monkeypatch)
    other = keygen(tmp_path / "other")
    first, second = bundle(tmp_path / "1", key, 1000), bundle(tmp_path / "2", other, 2000)
    assert device.publish(publication(first)).enrolled and not device.publish(publication(first)).enrolled
    with pytest.raises(Failed, match="not by a key of"):
        device.publish(publication(second))
    with open(Path(machine.root()) / "allowed_signers", "a") as file:
        file.write(f'edgeprune namespaces="edgeprune" {second.signer}\n')
    device.publish(publication(second))


def test_the_runner_has_a_command_line(key: Path, tmp_path: Path) -> None:
    first = bundle(tmp_path / "1", key)
    serve(first)
    current = service() / "current"
    argv = [sys.executable, str(current / "runner.py")]
    done = subprocess.run([*argv, "--check"], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0 and json.loads(done.stdout)["ok"]
    done = subprocess.run([*argv, str(current / "input_0.npy")], cwd=tmp_path, timeout=600, check=False)
    assert done.returncode == 0 and (tmp_path / "output_0.npy").exists()
    assert time.time() - os.lstat(current).st_mtime < 60
