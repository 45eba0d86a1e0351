"""The site of the documentation: its reference has all that the code has, and a link that leads nowhere is found."""

from __future__ import annotations

from pathlib import Path

import pytest
import reference
import typer
import website

import edgeprune
from edgeprune.cli import app
from edgeprune.frontends.sections import ProjectFile
from edgeprune.frontends.toml import TargetFile, keys_of


def test_the_reference_has_every_command_and_option() -> None:
    page = reference.command_line()
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        section = page.partition(f"## `edgeprune {name}`\n")[2].partition("\n## ")[0]
        assert command.help in section
        for option in (text for one in command.params for text in one.opts if text.startswith("-")):
            assert f"{option} " in section or f"{option}`" in section or f"{option}," in section, f"{name} {option}"


@pytest.mark.parametrize(("page", "shape"), [("project-keys", ProjectFile), ("target-keys", TargetFile)])
def test_the_reference_has_every_key(page: str, shape: type) -> None:
    text = reference.PAGES[page]()
    for section in keys_of(shape, ()):
        rows = text.partition(f"## `[{section}]`\n")[2].partition("\n## ")[0]
        assert all(f"| `{key}` |" in rows for key in keys_of(shape, (section, "")))


def test_the_reference_has_every_public_name() -> None:
    page = reference.python()
    assert all(f".{name}\n" in page for name in edgeprune.__all__)


def test_a_notebook_becomes_a_page() -> None:
    text = "# %% [markdown]\n# # Title\n#\n# Text.\n\n# %%\nx = 1\n"
    assert reference.notebook(text) == "# Title\n\nText.\n\n```python\nx = 1\n```\n"


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(website, "SITE", tmp_path)
    (tmp_path / "b.html").write_text('<h2 id="here">b</h2>')
    (tmp_path / "a.html").write_text(
        '<a href="b.html#here">1</a> <a href="b.html#gone">2</a> <a href="c.html">3</a> <img src="d.svg">'
        '<a href="https://example.org/x">4</a> <a href="#">5</a>'
    )
    assert website.broken() == [f"a.html: {link} leads nowhere" for link in ("b.html#gone", "c.html", "d.svg")]


def test_the_navigation_has_the_pages_of_each_heading() -> None:
    page = website.navigation()
    problems = (
        "My model is not cut <docs/not-cut>\nMy run does not settle <docs/not-settled>\nExit codes <docs/exit-codes>"
    )
    assert f":caption: Problems\n\n{problems}\n" in page
    assert "<examples/quickstart>\n" in page and "docs/reference/api\n" in page
