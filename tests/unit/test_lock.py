"""One run at a time holds a folder, on every file system. A holder that is gone loses it, and one that lives never does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from edgeprune.errors import BusyError
from edgeprune.limits import LIMITS
from edgeprune.storage import lock as locks
from edgeprune.storage.lock import Lock, is_held
from edgeprune.storage.store import Store

KEY = "a" * 64


def written(folder: Path, number: int, age_s: float = 0.0, **holder: object) -> Path:
    """A lock that another process wrote."""
    path = folder / f"lock.{number:010}"
    path.write_text(json.dumps(holder) if holder else "")
    os.utime(path, (time.time() - age_s,) * 2)
    return path


def newest(folder: Path) -> str:
    return max(path.name for path in folder.glob("lock.*"))


def test_threads_and_processes_take_turns(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib\n"
        "from edgeprune.storage.lock import Lock\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "for _ in range(15):\n"
        "    lock = Lock(folder)\n"
        "    lock.acquire(60)\n"
        "    count = folder / 'count'\n"
        "    count.write_text(str(int(count.read_text()) + 1))\n"
        "    lock.release()\n"
    )
    (tmp_path / "count").write_text("0")
    children = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stderr=subprocess.DEVNULL) for _ in "12"]
    inside: list[int] = []

    def work() -> None:
        for _ in range(15):
            lock = Lock(tmp_path)
            lock.acquire(60)
            inside.append(threading.get_ident())
            (tmp_path / "count").write_text(str(int((tmp_path / "count").read_text()) + 1))
            lock.release()

    threads = [threading.Thread(target=work) for _ in "12"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [child.wait(60) for child in children] == [0, 0]
    assert (tmp_path / "count").read_text() == "60" and len(inside) == 30
    assert len(list(tmp_path.glob("*lock*"))) == 1, "old numbers are removed"


def test_a_dead_process_loses_its_lock_at_once(tmp_path: Path) -> None:
    child = subprocess.Popen(["true"])  # it ended, and its number is still known to the system
    while locks._started(child.pid):
        time.sleep(0.01)
    written(tmp_path, 4, machine=locks._machine(), pid=child.pid, started="1", who="p")
    assert not is_held(tmp_path)
    lock = Lock(tmp_path)
    lock.acquire()
    assert newest(tmp_path) == "lock.0000000005" and is_held(tmp_path)
    child.wait()


def test_another_process_with_the_same_number_is_not_the_holder(tmp_path: Path) -> None:
    written(tmp_path, 0, machine=locks._machine(), pid=os.getpid(), started="1", who="p")
    Lock(tmp_path).acquire()


def test_a_living_process_of_this_machine_keeps_its_lock_however_old(tmp_path: Path) -> None:
    holder = dict(locks._self())
    written(tmp_path, 0, 100 * LIMITS.lock_stale_s, **holder)
    with pytest.raises(BusyError, match=rf"process {os.getpid()} on .*pass --wait"):
        Lock(tmp_path).acquire()


@pytest.mark.parametrize(("age_s", "is_free"), [(0.0, False), (LIMITS.lock_stale_s + 5, True)])
def test_a_run_on_another_machine_holds_the_lock_while_it_touches_it(
    age_s: float, is_free: bool, tmp_path: Path
) -> None:
    written(tmp_path, 7, age_s, machine="another", pid=os.getpid(), who="process 1 on node7, since now")
    if is_free:
        Lock(tmp_path).acquire()
        assert newest(tmp_path) == "lock.0000000008"
    else:
        with pytest.raises(BusyError, match="node7"):
            Lock(tmp_path).acquire()


def test_a_holder_touches_its_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "LIMITS", type("Soon", (), {"lock_touch_s": 0.01, "lock_stale_s": 1.0}))
    lock = Lock(tmp_path)
    lock.acquire()
    path = tmp_path / newest(tmp_path)
    os.utime(path, (0, 0))
    until = time.monotonic() + 60
    while path.stat().st_mtime == 0 and time.monotonic() < until:
        time.sleep(0.01)
    assert path.stat().st_mtime > 0
    lock.release()
    assert path.read_text() == ""


def test_a_process_that_slept_does_not_take_a_number_that_was_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It saw number 5 free. Meanwhile 6 was taken and given back, and 7 is held."""
    written(tmp_path, 5)
    held, link = locks._self(), os.link

    def late(source: Path, target: Path) -> None:
        (tmp_path / "lock.0000000005").unlink()
        written(tmp_path, 7, **held)
        link(source, target)

    monkeypatch.setattr(locks.os, "link", late)
    with pytest.raises(BusyError):
        Lock(tmp_path).acquire()
    assert [path.name for path in tmp_path.glob("*lock*")] == ["lock.0000000007"]


def test_a_link_whose_answer_was_lost_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def lossy(source: Path, target: Path) -> None:
        link(source, target)
        raise FileExistsError

    monkeypatch.setattr(locks.os, "link", lossy)
    Lock(tmp_path).acquire()
    assert is_held(tmp_path)


# ------------------------------------------------------------------------------------------------ in the run folder


def test_while_a_stage_is_made_apart_others_may_use_the_folder(tmp_path: Path) -> None:
    with Store(tmp_path) as training:
        with training.apart("finetune", KEY), training.create("finetune", KEY) as draft:
            draft.write_text("w", "1")
            with Store(tmp_path) as other, other.create("plan", KEY) as drafted:
                drafted.write_text("p", "2")
            assert draft.path("w").read_text() == "1", "the other run did not clean it up"
        assert training.find("finetune", KEY) and training.find("plan", KEY)
        with pytest.raises(BusyError), Store(tmp_path):
            pass


def test_a_stage_that_two_runs_need_is_made_once(tmp_path: Path) -> None:
    made: list[str] = []

    def run(name: str) -> None:
        with Store(tmp_path, 60) as store, store.apart("finetune", KEY):
            if store.find("finetune", KEY) is None:
                with store.create("finetune", KEY) as draft:
                    time.sleep(0.05)
                    draft.write_text("w", name)
                made.append(name)

    threads = [threading.Thread(target=run, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1


def test_a_killed_training_s_draft_is_removed(tmp_path: Path) -> None:
    (tmp_path / f".draft-finetune-{KEY[:12]}-x").mkdir()
    (tmp_path / "locks" / f"finetune-{KEY[:12]}").mkdir(parents=True)
    with Store(tmp_path):
        assert not list(tmp_path.glob(".draft-*"))
