"""A run that is killed anywhere resumes, and repeats at most the stage that was interrupted."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path

import pytest
from small import InProcess, command, kill_after, settled, start


@pytest.mark.nightly
def test_a_run_killed_several_times_resumes_after_its_last_finished_stage(project: Path) -> None:
    made: set[str] = set()
    for words in (
        "median error",
        "confirm",
        "1/2",
        "finetune",
    ):  # in the middle of a profile, of training, between stages
        kill_after(start("run", "--project", project, "--json"), words)
        made = {path.name for path in (project.parent / "runs").glob("[ls]*/*-*") if path.is_dir()}
    again = command("run", "--project", project, "--json")
    settled(again)
    lines = [line.split() for line in again.err.splitlines()]
    for stage in {name.partition("-")[0] for name in made}:
        assert all(words[1:] == ["reused"] for words in lines if words[0] == stage), (stage, again.err)
    assert "median error" not in again.err and not any(words[0] in ("0/2", "1/2") for words in lines), "done twice"
    assert {"survey", "plan", "finetune"} <= {name.partition("-")[0] for name in made}


@pytest.mark.slow
def test_damaged_files_are_set_aside_and_made_again(own_run: Path) -> None:
    folder = own_run.parent
    (tuned,) = folder.glob("runs/local/finetune-*/tuned.safetensors")
    tuned.write_bytes(tuned.read_bytes()[:-10])
    (verdict,) = folder.glob("runs/local/verify-*/verify.json")
    verdict.write_text(verdict.read_text().replace("pass", "fail"))
    run = command("run", "--project", folder / "edgeprune.toml", "--json")
    settled(run)
    assert run.err.count("set aside") == 2
    assert len(list(folder.glob("runs/local/aside/*"))) == 2


def test_two_runs_in_one_folder_exit_with_7(project: Path) -> None:
    first = start("run", "--project", project, "--json")
    try:
        folder = project.parent / "runs" / "local"
        deadline = time.monotonic() + 60
        while not any(lock.stat().st_size for lock in folder.glob("lock.*")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        second = command("run", "--project", project, "--json")
        assert second.code == 7 and str(first.pid) in second.err
    finally:
        first.kill()
        first.wait()
        assert first.stderr is not None
        first.stderr.close()


def test_a_full_disk_is_an_error_and_loses_nothing(
    own_run: Path, edgeprune: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that fails as on a full disk."""
    folder = own_run.parent
    before = {path: path.read_bytes() for path in folder.rglob("*.json")}

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    code, _, said = edgeprune("plan", "--project", str(own_run), "--budget", "70%")
    assert code == 2 and "disk is full" in said, said
    assert {path: path.read_bytes() for path in folder.rglob("*.json")} == before
    assert not list(folder.glob("runs/local/.draft-*"))


def test_an_unwritable_run_folder_is_named(project: Path) -> None:
    (project.parent / "runs").write_text("in the way")
    run = command("run", "--project", project)
    assert run.code == 2 and "runs" in run.err


@pytest.mark.slow
def test_interrupt_exits_with_130_and_leaves_no_worker(project: Path) -> None:
    process = start("run", "--project", project, "--json")
    assert process.stderr is not None
    for line in process.stderr:
        if "original" in line:
            break
    time.sleep(1.0)
    os.kill(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=600)  # a closed pipe would be another error, if it came first
    assert process.returncode == 130, said
