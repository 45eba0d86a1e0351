"""The doctor sees what is wrong with data before anybody trains on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeprune import codec, dataset
from edgeprune.types import Finding


def examined(project: Path, code: str) -> list[Finding]:
    module = project.with_name("blobs.py")
    module.write_text(module.read_text() + code)
    return list(dataset.examine(codec.read_project(project)))


def test_good_data_gives_no_warning(project: Path) -> None:
    found = examined(project, "")
    assert [finding.level for finding in found] == ["ok"] * 3
    assert found[0].what.startswith("[data] train: 256 samples, 4 classes of ")


@pytest.mark.parametrize(
    ("code", "level", "said"),
    [
        ("def train(): return [(x.index_fill(0, torch.tensor([3]), float('nan')), y) for x, y in _data(0, 64)]",
         "fail", "batch 0 has NaN or infinity in its inputs"),
        ("def train(): return [(x, y + 3) for x, y in _data(0, 64)]", "fail", "the model has 4 classes"),
        ("def train(): return [(0 * x + 7, y) for x, y in _data(0, 64)]", "warn", "channels that never change: 0"),
        ("def valid(): return _data(0, 256)[:1]", "warn", "32 samples are in both train and valid"),
        ("def train(): return _data(0, 64) + _data(0, 64)[:1]", "warn", "32 samples are there more than once"),
        ("def train(): return [(255 * x, y) for x, y in _data(0, 256)]", "warn", "train: mean "),
        ("def test(): return [(x + 1, y) for x, y in _data(2, 96)]", "warn", "train and test differ by"),
        ("def train(): return [(x[y > 0], y[y > 0]) for x, y in _data(0, 256)]", "warn", "classes that train lacks: 0"),
        ("def train(): return _data(0, 256) + [(x[y > 0], y[y > 0]) for s in range(9, 25) for x, y in _data(s, 256)]",
         "warn", "less than a tenth as many samples as of the largest class: 0"),
        ("def train(): return [(x[y == c], y[y == c]) for c in range(4) for x, y in _data(0, 256)]",
         "warn", "train is sorted: none of its first 1"),
    ],
)  # fmt: skip
def test_each_fault_is_named(code: str, level: str, said: str, project: Path) -> None:
    found = [finding for finding in examined(project, "\n\n" + code + "\n") if said in finding.what]
    assert {finding.level for finding in found} == {level}
    assert all(finding.fix for finding in found)
