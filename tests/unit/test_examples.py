"""The examples run anywhere: on their built-in samples where no data is given."""

from __future__ import annotations

import ast
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from edgeprune.frontends import toml
from edgeprune.frontends.model import build_model, example_inputs
from edgeprune.frontends.trial import check_data
from edgeprune.network.survey import survey

EXAMPLES = Path(__file__).parents[2] / "examples"
METADATA = tomllib.loads((EXAMPLES.parent / "pyproject.toml").read_text())["project"]
PROJECTS = sorted(path.relative_to(EXAMPLES).as_posix() for path in EXAMPLES.glob("*/*.toml"))


@pytest.mark.parametrize("name", PROJECTS)
def test_an_example_is_complete_without_its_data(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGEPRUNE_DATA", raising=False)
    project = toml.read_project(EXAMPLES / name)
    model, inputs = build_model(project), example_inputs(project)
    check_data(model, project)
    groups = survey(model, inputs, project.prune.lock)
    assert not groups.unknown_operators
    assert groups.macs(groups.least()) < 0.2 * groups.macs(groups.full())


def test_the_digits_are_those_of_scikit_learn_in_their_split() -> None:
    datasets, selection = pytest.importorskip("sklearn.datasets"), pytest.importorskip("sklearn.model_selection")
    data = datasets.load_digits()
    rest, test = selection.train_test_split(range(1797), test_size=0.2, stratify=data.target, random_state=0)
    train, valid = selection.train_test_split(rest, test_size=0.25, stratify=data.target[rest], random_state=0)
    order = [*train, *valid, *test]
    with np.load(EXAMPLES / "digits" / "digits.npz") as packed:
        assert (packed["images"] == data.images[order]).all() and (packed["labels"] == data.target[order]).all()


def test_the_digits_need_only_what_the_core_installs() -> None:
    """A new user installs no extra before `edgeprune demo`."""
    core = {re.split("[<>=]", line)[0] for line in METADATA["dependencies"]}
    for name in ("digits.py", "train.py"):
        tree = ast.parse((EXAMPLES / "digits" / name).read_text())
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {getattr(node, "module", None) or node.names[0].name for node in imports}
        tops = {one.partition(".")[0] for one in names}
        assert tops <= core | set(sys.stdlib_module_names) | {"digits"}


def test_data_is_read_from_the_given_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sources = runpy.run_path(str(EXAMPLES / "sources.py"))
    monkeypatch.delenv("EDGEPRUNE_DATA", raising=False)
    assert sources["found"]("x.npz") is None and sources["downloaded"]("nowhere", "0") is None
    monkeypatch.setenv("EDGEPRUNE_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="EDGEPRUNE_DATA names a folder without it"):
        sources["found"]("x.npz")
    (tmp_path / "x.npz").touch()
    assert sources["found"]("x.npz") == tmp_path / "x.npz"
    monkeypatch.setenv("EDGEPRUNE_DATA", "download")
    assert sources["found"]("x.npz") is None


def test_a_download_is_the_commit_that_was_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From a repository of the test's: git checks that every file is what the commit says."""
    origin, cache = tmp_path / "origin", tmp_path / "cache"
    origin.mkdir()
    git = [
        "git",
        "-C",
        str(origin),
        "-c",
        "user.name=a",
        "-c",
        "user.email=a@b",
        "-c",
        "uploadpack.allowAnySHA1InWant=true",
    ]
    (origin / "data.csv").write_text("1,2\n")
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "data"]):
        subprocess.run([*git, *arguments], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    sources = runpy.run_path(str(EXAMPLES / "sources.py"))
    download = sources["downloaded"]
    download.__globals__["CACHE"] = cache
    monkeypatch.setenv("EDGEPRUNE_DATA", "download")
    folder = download(str(origin), commit)
    assert folder == cache / commit and (folder / "data.csv").read_text() == "1,2\n"
    assert download("gone", commit) == folder  # kept
    with pytest.raises(subprocess.CalledProcessError):
        download(str(origin), "0" * 40)
