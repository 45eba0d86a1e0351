"""SIGKILL at any moment while the run folder is written. Every file is complete afterwards, or absent."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgeprune.errors import UsageError
from edgeprune.storage.store import Store, write_atomic

KILLS = 12
# Makes stages without end, some of them again. Between them it saves a checkpoint and a file outside the run folder.
CHILD = """
import hashlib, itertools, json, sys, time
from pathlib import Path
from edgeprune.storage.store import Store, write_atomic

root = Path(sys.argv[1])

def slowly(path, text):
    with path.open("w") as file:
        for start in range(0, len(text), 4000):
            file.write(text[start : start + 4000])
            file.flush()
            time.sleep(0.0005)

with Store(root / "runs") as store:
    print("open", flush=True)
    for i in itertools.count(int(sys.argv[2])):
        key = hashlib.sha256(str(i % 7).encode()).hexdigest()
        whole = json.dumps({"i": i, "pad": "x" * (i * 7919 % 60000), "end": True})
        checkpoint = store.scratch("train", "a" * 64) / "checkpoint.json"
        store.save(checkpoint, lambda path: slowly(path, whole))
        write_atomic(root / "profiles" / "p.json", whole.encode())
        with store.create("stage", key) as draft:
            draft.write_text("record.json", whole)
            draft.path("model/part.bin").write_bytes(whole.encode() * 3)
"""


def test_a_kill_leaves_complete_stages_or_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    chance = random.Random(0)
    reached, found = 0, 0
    for _ in range(KILLS):
        line = [sys.executable, "-c", CHILD, str(tmp_path), str(reached + 1)]
        with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None and child.stdout.readline() == "open\n"
            time.sleep(chance.uniform(0.0, 0.25))
            child.kill()
        with Store(tmp_path / "runs") as store:  # the dead process's lock is free
            left = {re.split("[-.]", path.name)[0] for path in store.folder.iterdir()}
            assert left <= {"lock", "partial", "stage"}, left
            for number in range(7):
                entry = store.find("stage", hashlib.sha256(str(number).encode()).hexdigest())
                if entry is not None:
                    found += 1
                    whole = entry.path("record.json").read_text()
                    assert json.loads(whole)["i"] % 7 == number
                    assert entry.path("model/part.bin").read_bytes() == whole.encode() * 3
            for file in (store.scratch("train", "a" * 64) / "checkpoint.json", tmp_path / "profiles" / "p.json"):
                assert file.exists() or not reached, "a finished save was lost"
                if file.exists():
                    content = json.loads(file.read_text())
                    assert content["end"] and content["i"] >= reached, "a finished save was lost"
                    reached = max(reached, content["i"] - 1)
    assert not caplog.records, "a kill alone must damage nothing"
    assert found and reached, "the child was never given time to write"
    assert len(list((tmp_path / "profiles").iterdir())) <= 2  # the file, and what the last kill cut short


def test_a_killed_holder_s_lock_is_free_at_once(tmp_path: Path) -> None:
    line = [sys.executable, "-c", CHILD, str(tmp_path), "1"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stdout.readline() == "open\n"
        child.kill()
    with Store(tmp_path / "runs"):
        pass


@pytest.mark.parametrize("words", [True, False], ids=["native", "python"])
def test_a_disk_that_fills_up_in_a_writer_is_named(words: bool, tmp_path: Path) -> None:
    """Native writers, such as safetensors, report a full disk with another class of error."""

    def write(path: Path) -> None:
        path.write_text("half")
        text = os.strerror(errno.ENOSPC)
        raise RuntimeError(f"I/O error: {text} (os error 28)") if words else OSError(errno.ENOSPC, text)

    with Store(tmp_path / "runs") as store:
        place = store.scratch("train", "a" * 64) / "checkpoint"
        with pytest.raises(UsageError, match="disk is full"):
            store.save(place, write)
        assert not list(place.parent.iterdir())
        with pytest.raises(UsageError, match="disk is full"), store.create("stage", "b" * 64) as draft:
            write(draft.path("model.safetensors"))
        assert store.find("stage", "b" * 64) is None and not list(store.folder.glob(".draft-*"))


def test_an_error_about_another_folder_is_not_attributed_to_the_run_folder(tmp_path: Path) -> None:
    with Store(tmp_path / "runs") as store:
        with pytest.raises(PermissionError), store.create("stage", "b" * 64):
            raise PermissionError(errno.EACCES, "no", "/somewhere/else/data.bin")
        assert [path.name for path in store.folder.iterdir()] == ["lock.0000000000"]


def test_a_file_in_the_place_of_a_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "profiles").write_text("in the way")
    with pytest.raises(UsageError, match="in place of a folder"):
        write_atomic(tmp_path / "profiles" / "p.json", b"{}")
    assert (tmp_path / "profiles").read_text() == "in the way"
