"""The public names and the version. A change of the list below is a change of the API: CHANGELOG.md names it."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import edgeprune

ROOT = Path(__file__).parents[2]
PUBLIC = {
    "Project",
    "bench",
    "bundle",
    "check",
    "compare",
    "compile",
    "deploy",
    "finetune",
    "finish",
    "front",
    "groups",
    "history",
    "load",
    "plan",
    "profile",
    "prune",
    "releases",
    "rollback",
    "run",
    "setup",
    "sweep",
    "verify",
    "withdraw",
}


def test_the_public_names_are_these() -> None:
    assert set(edgeprune.__all__) == PUBLIC
    assert set(dir(edgeprune)) == {*PUBLIC, "__version__"}
    assert edgeprune.__all__ == sorted(edgeprune.__all__)


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_public_name_is_documented(name: str) -> None:
    assert getattr(edgeprune, name).__doc__


def test_the_version_is_that_of_pyproject() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    command = [sys.executable, "-m", "edgeprune", "--version"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600).stdout
    assert edgeprune.__version__ == declared
    assert printed == f"edgeprune {declared}\n"


def test_the_package_ships_its_types() -> None:
    assert (Path(edgeprune.__file__).parent / "py.typed").is_file()
