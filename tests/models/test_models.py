"""Which channels of each architecture can be cut, and where it runs. Each test writes its line of docs/models.md.

`make test-models` runs all of them. `pytest tests/models -k VGG` runs one, and changes only its line.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import locked
from page import Line, Page
from rows import answers, refit, row
from zoo import ZOO

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
SECONDS = 240.0  # of an architecture's process
LEAST = 70  # architectures of the page


@pytest.mark.parametrize("title", ZOO)
def test_the_line_of_each_architecture_is_up_to_date(title: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    line = Line.of(title, answers(row, title, SECONDS))
    with locked(tmp_path_factory.getbasetemp().parents[0] / "models.lock"):
        page = Page.read(PAGE.read_text())
        known = page.lines.get(title)
        page.lines[title] = line
        PAGE.write_text(page.written(ZOO))
    assert known is not None and known.lasting == line.lasting, f"{PAGE.name} now has the line of {title}; check it"


def test_the_page_has_a_line_for_every_architecture() -> None:
    content = PAGE.read_text()
    page = Page.read(content)
    assert list(page.lines) == list(ZOO) and len(ZOO) >= LEAST
    assert page.written(ZOO) == content, "only these tests write the part below the mark"
    assert sum(line.is_cut for line in page.lines.values()) > sum(line.peer == "yes" for line in page.lines.values())


def test_a_line_is_written_alone_and_says_what_is_missing() -> None:
    page = Page.read(PAGE.read_text())
    others = {title: line for title, line in page.lines.items() if title != "VGG"}
    page.lines["VGG"] = Line.of("VGG", {"groups cut": "7", "of": "8", "late": "not done within 9 s", "locked": "a"})
    again = Page.read(page.written(ZOO))
    assert again.lines["VGG"].cells[:4] == ("7", "8", "no: not done within 9 s", "–")
    assert {title: line for title, line in again.lines.items() if title != "VGG"} == others


def test_an_architecture_that_hangs_or_dies_is_a_line_too() -> None:
    assert answers(hangs, "VGG", 1.0) == {"late": "not done within 1 s"}
    assert answers(dies, "VGG", SECONDS) == {"of": "VGG", "late": "the process ended with code 3"}


def hangs(title: str) -> Iterator[tuple[str, str]]:
    time.sleep(600)
    yield "of", title


def dies(title: str) -> Iterator[tuple[str, str]]:
    yield "of", title
    os._exit(3)


@pytest.mark.parametrize("title", ZOO)
def test_every_pruned_architecture_can_be_refitted(title: str) -> None:
    found = answers(refit, title, SECONDS)
    if "survey" in found:
        pytest.skip(found["survey"])
    assert "late" not in found and found["finite"]
    plain, *fitted = found["distances"]
    assert max(fitted) <= plain
