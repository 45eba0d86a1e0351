"""The files of the repository agree with one another."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_pre_commit_runs_the_commands_of_make_lint() -> None:
    hooks = re.findall(r"^ +entry: \.venv/bin/(.+)$", (ROOT / ".pre-commit-config.yaml").read_text(), re.M)
    recipe = (ROOT / "Makefile").read_text().partition("\nlint:")[2].partition("\n\n")[0]
    assert hooks == re.findall(r"^\t@\$\(BIN\)/(.+)$", recipe, re.M)


def test_every_target_of_make_is_explained() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.+)$", makefile, re.M)
    assert phony is not None
    assert set(phony[1].split()) == set(re.findall(r"^([a-z-]+):.*## \S", makefile, re.M))


def test_every_decision_is_in_the_index() -> None:
    folder = ROOT / "docs" / "adr"
    index = (folder / "README.md").read_text()
    for path in folder.glob("[0-9]*.md"):
        head = path.read_text().splitlines()[:5]
        title = head[0].partition(" ")[2].partition(". ")[2]
        status = re.fullmatch(r"(.+) · (\d{4}-\d{2}-\d{2})", head[2])
        assert status, f"{path.name}: the third line must be the status and the date"
        row = next(line for line in index.splitlines() if line.startswith(f"| {int(path.name[:4])} |"))
        assert f"[{title}]({path.name})" in row, f"{path.name}: its title is not in the index"
        assert f"| {status[1]} | {status[2]} |" in row, f"{path.name}: its status or date is not that of the index"


def test_the_wheel_has_every_file_of_the_demo_and_stays_small() -> None:
    """The whole wheel is built and tried by .ci/package."""
    included = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    files = [ROOT / source for source in included["force-include"] if source.startswith("examples/")]
    names = {file.name for file in files}
    assert names == {"digits.py", "edgeprune.toml", "digits.npz", "digits.safetensors", "LICENSE.digits"}
    assert sum(file.stat().st_size for file in files) < 750_000


def test_links_between_documents_have_targets() -> None:
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
    for path in [*documents, ROOT / "benchmarks" / "README.md"]:
        text = re.sub(r"```.*?```", "", path.read_text(), flags=re.S)
        for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
            if "://" not in link:
                assert (path.parent / link).exists(), f"{path.relative_to(ROOT)} links to {link}"
