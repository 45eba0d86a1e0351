"""doctor reports mistakes in the data before training."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from edgeprune.frontends import dataset, toml
from edgeprune.records import Finding


def examined(project: Path, code: str) -> list[Finding]:
    module = project.with_name("blobs.py")
    module.write_text(module.read_text() + code)
    return list(dataset.examine(toml.read_project(project)))


def test_good_data_gives_no_warning(project: Path) -> None:
    found = examined(project, "")
    assert [finding.level for finding in found] == ["ok"] * 3
    assert found[0].what.startswith("[data] train: 256 samples, 4 classes of ")


@pytest.mark.parametrize(
    ("code", "level", "text"),
    [
        ("def train(): return [(x.index_fill(0, torch.tensor([3]), float('nan')), y) for x, y in _data(0, 64)]",
         "fail", "batch 0 has NaN or infinity in its inputs"),
        ("def train(): return [(x, y + 3) for x, y in _data(0, 64)]", "fail", "the model has 4 classes"),
        ("def train(): return [(0 * x + 7, y) for x, y in _data(0, 64)]", "warn", "channels that never change: 0"),
        ("def valid(): return _data(0, 256)[:1]", "warn", "32 samples are in both train and valid"),
        ("def train(): return _data(0, 64) + _data(0, 64)[:1]", "warn", "32 samples occur more than once"),
        ("def train(): return [(255 * x, y) for x, y in _data(0, 256)]", "warn", "train: mean "),
        ("def test(): return [(x + 1, y) for x, y in _data(2, 96)]", "warn", "train and test differ by"),
        ("def train(): return [(x[y > 0], y[y > 0]) for x, y in _data(0, 256)]", "warn", "classes that train lacks: 0"),
        ("def train(): return _data(0, 256) + [(x[y > 0], y[y > 0]) for s in range(9, 25) for x, y in _data(s, 256)]",
         "warn", "classes with less than a tenth of the largest class's samples: 0"),
    ],
)  # fmt: skip
def test_each_mistake_is_reported(code: str, level: str, text: str, project: Path) -> None:
    found = [finding for finding in examined(project, "\n\n" + code + "\n") if text in finding.what]
    assert {finding.level for finding in found} == {level}
    assert all(finding.fix for finding in found)


@pytest.mark.parametrize(
    ("labels", "batch", "sorted_"),
    [
        ("torch.arange(4).repeat_interleave(64)", 32, True),
        ("torch.arange(4).repeat_interleave(250)", 1000, True),  # in one batch
        ("(torch.arange(4000) >= 1200).long()", 100, True),  # the rarer class first
        ("torch.arange(4).repeat(1000)", 50, False),
        ("torch.arange(4)", 4, False),  # too few to decide
        ("(torch.arange(4000) == 3999).long()", 50, False),  # likewise
    ],
)
def test_samples_that_are_sorted_by_class_are_reported(labels: str, batch: int, sorted_: bool, project: Path) -> None:
    code = f"""

def train():
    y = {labels}
    x = torch.rand(len(y), 1, 24, 24, generator=torch.Generator().manual_seed(0))
    return list(zip(x.split({batch}), y.split({batch})))
"""
    assert any("train is sorted" in finding.what for finding in examined(project, code)) == sorted_


def test_many_sorted_classes_are_reported_together() -> None:
    """Two hundred classes of five hundred samples: each may be missing by chance, but not all of them."""
    split = dataset._Content(100_000, Counter(dict.fromkeys(range(200), 500)), [i // 500 for i in range(2048)])
    (finding,) = dataset._order(split)
    assert "have 5 of 200 classes" in finding.what
    random = torch.randint(0, 200, (2048,), generator=torch.Generator().manual_seed(0)).tolist()
    assert not list(dataset._order(replace(split, first=random)))
