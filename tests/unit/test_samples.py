"""Data that changes is noticed. Data that does not change is not read again."""

from __future__ import annotations

import logging
import os
import sqlite3
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small import SMALLEST

from edgeprune.frontends import samples, toml, tracing
from edgeprune.frontends.samples import Samples
from edgeprune.limits import LIMITS
from edgeprune.pipeline.request import request
from edgeprune.pipeline.run import open_run
from edgeprune.records import Project
from edgeprune.stages.registry import RULES

HEAD = """
import os, random, sqlite3
from pathlib import Path
import numpy as np
import torch
HERE = Path(__file__).parent

def inputs():
    return torch.zeros(1, 3)

def valid():
    return [(torch.zeros(2, 3), torch.zeros(2).long())]

def pair(array):
    return torch.from_numpy(np.array(array, dtype="float32")).reshape(-1, 3), torch.zeros(np.size(array) // 3).long()

"""
ONE_FILE = "def train():\n    return [pair(np.load(HERE / 'data.npy'))]\n"


class Reads:
    """A project, and how often its training data was read."""

    def __init__(self, folder: Path, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "edgeprune.toml").write_text(SMALLEST)
        self.write(code)
        self.project: Project = toml.read_project(folder / "edgeprune.toml")
        self.count = 0
        read = samples._digested

        def counted(*arguments: object) -> object:
            self.count += 1
            return read(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(samples, "_digested", counted)

    def write(self, code: str) -> None:
        (self.folder / "m.py").write_text(HEAD + code)

    def digest(self, fresh: bool = False, project: Project | None = None) -> str:
        """As another process would compute it: it has imported nothing and opened nothing."""
        tracing._traces.clear()
        for name in [name for name in sys.modules if name.startswith("_edgeprune_")]:
            del sys.modules[name]
        from edgeprune.frontends import data

        data._made.clear()
        return Samples(project or self.project, self.folder / "runs" / "shared", fresh).digest("train")


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Reads]:
    return lambda code: Reads(tmp_path / "p", code, monkeypatch)


def save(path: Path, values: Sequence[float], mtime: int | None = None) -> None:
    np.save(path, np.array(values, dtype="float32"))
    if mtime is not None:
        os.utime(path, (mtime, mtime))


def test_a_file_that_changed_is_noticed_and_one_that_was_only_touched_is_not(made: Callable[[str], Reads]) -> None:
    reads = made(ONE_FILE)
    file = reads.folder / "data.npy"
    save(file, [1, 2, 3], 1)
    first = reads.digest()
    assert reads.digest() == first and reads.count == 1, "unchanged data is not read again"
    save(file, [1, 2, 3], 2)
    assert reads.digest() == first and reads.count == 2, "the same samples are the same data"
    assert reads.digest() == first and reads.count == 2
    save(file, [1, 2, 4], 3)
    assert reads.digest() != first and reads.count == 3
    assert reads.digest(fresh=True) and reads.count == 4


SOURCES = {
    "a file that is opened as a module is imported": """
DATA = np.load(HERE / 'data.npy')
def train():
    return [pair(DATA)]
""",
    "a file that is opened with each batch": """
class Lazy:
    def __iter__(self):
        yield pair(np.load(HERE / 'data.npy'))
def train():
    return Lazy()
""",
    "a file that is mapped": """
KEPT = []
def train():
    KEPT.append(np.load(HERE / 'data.npy', mmap_mode='r'))
    return [pair(KEPT[-1])]
""",
    "a file that a library opens, in a folder that is listed": """
def train():
    file, = (path for path in HERE.iterdir() if path.suffix == '.npy')
    return [pair(np.load(file))]
""",
    "workers of a DataLoader": """
class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 1
    def __getitem__(self, i):
        return torch.from_numpy(np.load(HERE / 'data.npy')), 0
def train():
    return torch.utils.data.DataLoader(Rows(), num_workers=2)
""",
    "another module that is imported late": """
def train():
    from late import DATA
    return [pair(DATA)]
""",
}


@pytest.mark.parametrize("code", SOURCES.values(), ids=SOURCES)
def test_a_file_counts_however_it_is_read(code: str, made: Callable[[str], Reads]) -> None:
    reads = made(code)
    late = "import numpy as np\nfrom pathlib import Path\nDATA = np.load(Path(__file__).parent / 'data.npy')\n"
    (reads.folder / "late.py").write_text(late)
    file = reads.folder / "data.npy"
    save(file, [1, 2, 3], 1)
    first = reads.digest()
    assert reads.digest() == first and reads.count == 1
    save(file, [1, 2, 4], 2)
    sys.modules.pop("late", None)
    assert reads.digest() != first


def test_a_file_that_is_added_to_a_folder_is_noticed(made: Callable[[str], Reads]) -> None:
    reads = made("def train():\n    return [pair(np.load(path)) for path in sorted((HERE / 'all').glob('*.npy'))]\n")
    (reads.folder / "all").mkdir()
    save(reads.folder / "all" / "a.npy", [1, 2, 3])
    first = reads.digest()
    assert reads.digest() == first and reads.count == 1
    save(reads.folder / "all" / "b.npy", [1, 2, 3])
    assert reads.digest() != first


def test_a_data_base_counts(made: Callable[[str], Reads]) -> None:
    query = "sqlite3.connect(HERE / 'x.db').execute('select v from t')"
    reads = made(f"def train():\n    return [pair([row[0] for row in {query}])]\n")
    with sqlite3.connect(reads.folder / "x.db") as base:
        base.execute("create table t (v real)")
        base.executemany("insert into t values (?)", [(1,), (2,), (3,)])
    first = reads.digest()
    assert reads.digest() == first and reads.count == 1
    with sqlite3.connect(reads.folder / "x.db") as base:
        base.execute("update t set v = v + 1")
    base.close()
    assert reads.digest() != first


def test_a_variable_of_the_environment_may_name_the_folder(
    made: Callable[[str], Reads], monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = made("def train():\n    return [pair(np.load(os.environ.get('MY_DATA', HERE) + '/data.npy'))]\n")
    for name, last in (("a", 3), ("b", 4), ("c", 3)):
        (reads.folder / name).mkdir()
        save(reads.folder / name / "data.npy", [1, 2, last])
    found = {}
    for name in "abc":
        monkeypatch.setenv("MY_DATA", str(reads.folder / name))
        found[name] = reads.digest()
    assert found["a"] == found["c"] != found["b"] and reads.count == 3


def test_a_relative_path_counts_in_its_working_directory(
    made: Callable[[str], Reads], monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = made("def train():\n    return [pair(np.load('data.npy'))]\n")
    found = []
    for name, last in (("a", 3), ("b", 4)):
        (reads.folder / name).mkdir()
        save(reads.folder / name / "data.npy", [1, 2, last])
        monkeypatch.chdir(reads.folder / name)
        found.append(reads.digest())
    assert found[0] != found[1]


def test_the_code_counts_too(made: Callable[[str], Reads]) -> None:
    reads = made("def train():\n    return [pair([1, 2, 3])]\n")
    first = reads.digest()
    reads.write("def train():\n    return [pair([1, 2, 3])]  # the same samples\n")
    assert reads.digest() == first and reads.count == 2


def test_shuffled_and_augmented_data_is_the_same_data(made: Callable[[str], Reads]) -> None:
    """Global generators and those that the data holds are reset before it is read."""
    reads = made("""
class Noisy(torch.utils.data.Dataset):
    def __len__(self):
        return 50
    def __getitem__(self, i):
        return torch.full((3,), i) + torch.rand(3) + np.random.rand() + random.random(), i
def train():
    return torch.utils.data.DataLoader(Noisy(), 4, shuffle=True)
""")
    torch.manual_seed(1)
    first = reads.digest()
    torch.manual_seed(2)
    assert reads.digest(fresh=True) == first and reads.count == 2


def test_data_that_never_repeats_is_said_once_and_redoes_nothing(
    made: Callable[[str], Reads], caplog: pytest.LogCaptureFixture
) -> None:
    reads = made("""
class Never:
    def __len__(self):
        return LENGTH
    def __iter__(self):
        for _ in range(LENGTH):
            yield torch.frombuffer(bytearray(os.urandom(24)), dtype=torch.uint8).reshape(2, 12), torch.zeros(2).long()
LENGTH = 4
def train():
    return Never()
""")
    with caplog.at_level(logging.WARNING):
        first = reads.digest()
    assert [record.message for record in caplog.records] == [
        f"{reads.folder / 'edgeprune.toml'}: [data] train gives other samples whenever it is read, so a change of its data"
        " cannot be noticed; seed its random numbers"
    ]
    assert reads.digest(fresh=True) == first, "another read must not redo everything"
    reads.write((reads.folder / "m.py").read_text().replace("LENGTH = 4", "LENGTH = 5"))
    assert reads.digest() != first, "the number of batches counts"


ENDLESS = """
class Endless:
    def __iter__(self):
        scale = float(np.load(HERE / 'data.npy'))
        number = 0
        while True:
            yield torch.full((2, 3), scale * number), torch.zeros(2).long()
            number += 1
def train():
    return Endless()
"""


def test_reading_ends_though_the_data_does_not_and_later_reads_see_the_same_samples(
    made: Callable[[str], Reads], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(samples, "LIMITS", replace(LIMITS, samples_s=0.05))
    reads = made(ENDLESS)
    file = reads.folder / "data.npy"
    np.save(file, 1.0)
    os.utime(file, (1, 1))
    first = reads.digest()
    monkeypatch.setattr(samples, "LIMITS", replace(LIMITS, samples_s=0.2))
    assert reads.digest(fresh=True) == first, "as many batches as before, on a faster machine, too"
    os.utime(file, (2, 2))
    with caplog.at_level(logging.WARNING):
        assert reads.digest() == first
    assert "pass --fresh if others changed" in caplog.text
    np.save(file, 2.0)
    assert reads.digest() != first


def test_reading_is_bounded_in_bytes(made: Callable[[str], Reads], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "LIMITS", replace(LIMITS, samples_bytes=100))
    reads = made(ENDLESS)
    np.save(reads.folder / "data.npy", 1.0)
    reads.digest()
    known = samples.Samples(reads.project, reads.folder / "runs" / "shared")._remembered()["train"]
    assert (known.batches, known.ended) == (3, False)  # of 40 bytes each


@pytest.mark.filterwarnings("ignore:os.fork")  # of JAX, which a converter in this process may have imported
@pytest.mark.parametrize(
    "reason",
    [
        "import socket; s = socket.socket(); s.settimeout(1); s.connect_ex(('127.0.0.1', 9)); s.close()",
        "import os; pid = os.fork() or os._exit(0); os.waitpid(pid, 0)",
    ],
)
def test_data_from_elsewhere_is_read_in_every_run(reason: str, made: Callable[[str], Reads]) -> None:
    reads = made(f"def train():\n    {reason}\n    return [pair([1, 2, 3])]\n")
    assert reads.digest() == reads.digest() and reads.count == 2


def test_data_made_from_very_many_files_is_read_in_every_run(
    made: Callable[[str], Reads], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "LIMITS", replace(LIMITS, traced_files=3))
    reads = made("def train():\n    return [pair([len((HERE / f'{i}.txt').read_text()), 0, 0]) for i in range(5)]\n")
    for i in range(5):
        (reads.folder / f"{i}.txt").write_text("x")
    first = reads.digest()
    assert reads.digest() == first and reads.count == 2
    (reads.folder / "4.txt").write_text("xx")
    assert reads.digest() != first


def test_data_of_objects_is_read_in_every_run(made: Callable[[str], Reads]) -> None:
    """It is in memory, so no file says whether it changed."""
    reads = made("def train():\n    return [pair([1, 2, 3])]\n")
    objects = replace(reads.project, path=reads.folder, objects=True)
    assert reads.digest(project=objects) == reads.digest(project=objects) and reads.count == 2


@pytest.mark.parametrize("damage", ["", "{", '{"train": 3}', '{"train": {"digest": "x"}}'])
def test_a_damaged_memory_is_made_again(damage: str, made: Callable[[str], Reads]) -> None:
    reads = made("def train():\n    return [pair([1, 2, 3])]\n")
    first = reads.digest()
    (reads.folder / "runs" / "shared" / "samples.json").write_text(damage)
    assert reads.digest() == first and reads.count == 2
    assert reads.digest() == first and reads.count == 2


def test_a_stage_that_reads_changed_data_is_redone_and_others_are_not(project: Path) -> None:
    """The samples are in the keys of the stages that read them, under a name that the progress line shows."""
    module = project.with_name("blobs.py")
    np.save(project.with_name("noise.npy"), 0.1)
    code = module.read_text().replace("0.1 * torch", "float(np.load(__file__[:-8] + 'noise.npy')) * torch")
    module.write_text("import numpy as np\n" + code)

    def reads() -> dict[str, dict[str, object]]:
        with open_run(request(project), RULES) as run:
            return {name: run.reads(RULES.stages[name]) for name in ("survey", "scores")}

    before = reads()
    assert reads() == before
    np.save(project.with_name("noise.npy"), 0.2)
    after = reads()
    assert after["survey"] == before["survey"]
    changed = [label for label in before["scores"] if before["scores"][label] != after["scores"][label]]
    assert "[data] train samples" in changed
