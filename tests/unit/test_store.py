"""The run folder holds complete stages or none."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from edgeprune.errors import BusyError, UsageError
from edgeprune.storage import store
from edgeprune.storage.store import Store, write_atomic

KEY = "a" * 64


def make(opened: Store, text: str = "hello") -> store.Entry:
    with opened.create("stage", KEY) as draft:
        draft.write_text("record.json", text)
    return draft.entry


def test_a_finished_stage_is_found_again(tmp_path: Path) -> None:
    with Store(tmp_path / "runs") as opened:
        assert opened.find("stage", KEY) is None
        make(opened)
    with Store(tmp_path / "runs") as opened:
        entry = opened.find("stage", KEY)
        assert entry is not None and entry.path("record.json").read_text() == "hello"
        assert opened.find("stage", "b" * 64) is None


def test_a_stage_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with Store(tmp_path) as opened:
        with pytest.raises(ZeroDivisionError), opened.create("stage", KEY) as draft:
            draft.write_text("record.json", str(1 / 0))
        assert opened.find("stage", KEY) is None
        assert [path.name for path in tmp_path.iterdir()] == ["lock.0000000000"]


def test_a_stage_made_anew_replaces_the_old_one(tmp_path: Path) -> None:
    with Store(tmp_path) as opened:
        make(opened, "old")
        assert make(opened, "new").path("record.json").read_text() == "new"
        assert opened.find("stage", KEY) is not None


def test_a_link_changes_in_one_step_and_never_replaces_the_users_folder(tmp_path: Path) -> None:
    with Store(tmp_path) as opened:
        entry = make(opened)
        (tmp_path / ".latest.new").symlink_to("nowhere")  # of a killed run
        opened.link("latest", tmp_path)
        opened.link("latest", entry.folder)
        assert (tmp_path / "latest" / "record.json").read_text() == "hello"
        (tmp_path / "latest").unlink()
        (tmp_path / "latest" / "own").mkdir(parents=True)
        with pytest.raises(UsageError, match="latest: there is a folder in place of a link"):
            opened.link("latest", entry.folder)
        assert (tmp_path / "latest" / "own").is_dir()


@pytest.mark.parametrize("damage", ["change", "cut", "remove", "manifest", "garble"])
def test_a_damaged_stage_is_set_aside_with_one_warning(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Store(tmp_path) as opened:
        entry = make(opened)
        file, manifest = entry.path("record.json"), entry.path(store.MANIFEST)
        if damage == "change":
            file.write_text("hallo")
        elif damage == "cut":
            file.write_text("")
        elif damage == "remove":
            file.unlink()
        elif damage == "manifest":
            manifest.unlink()
        else:
            manifest.write_bytes(os.urandom(100))
        assert opened.find("stage", KEY) is None
        assert len(caplog.records) == 1 and "aside" in caplog.text
        assert opened.find("stage", KEY) is None and len(caplog.records) == 1
        assert len(list((tmp_path / "aside").iterdir())) == 1
        make(opened)
        assert opened.find("stage", KEY) is not None


def test_a_scratch_folder_lives_until_its_stage_is_finished(tmp_path: Path) -> None:
    with Store(tmp_path) as opened:
        place = opened.scratch("stage", KEY)
        opened.save(place / "checkpoint", lambda path: path.write_text("1") and None)
    with Store(tmp_path) as opened:
        assert (opened.scratch("stage", KEY) / "checkpoint").read_text() == "1"
        make(opened)
        assert not place.exists()


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    with Store(tmp_path), pytest.raises(BusyError, match=str(os.getpid())), Store(tmp_path):
        pass
    with Store(tmp_path):
        pass


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_named_and_what_was_there_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "profile.json"
    write_atomic(target, b"before")
    monkeypatch.setattr(store.os, "fsync", full)
    with pytest.raises(UsageError, match="full"):
        write_atomic(target, b"after")
    assert target.read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["profile.json"]


def test_a_folder_that_cannot_be_made_is_named() -> None:
    with pytest.raises(UsageError, match=r"^/proc/nowhere/runs: cannot be made: .*; give another folder$"):
        Store(Path("/proc/nowhere/runs")).__enter__()


def test_a_failing_save_keeps_the_checkpoint_before(tmp_path: Path) -> None:
    with Store(tmp_path) as opened:
        path = opened.scratch("stage", KEY) / "checkpoint"
        opened.save(path, lambda p: p.write_text("1") and None)

        def broken(place: Path) -> None:
            place.write_text("2")
            full()

        with pytest.raises(UsageError):
            opened.save(path, broken)
        assert path.read_text() == "1"


def test_the_manifest_can_be_read_by_a_person(tmp_path: Path) -> None:
    with Store(tmp_path) as opened:
        content = json.loads(make(opened).path(store.MANIFEST).read_text())
    assert content["key"] == KEY and list(content["files"]) == ["record.json"]
