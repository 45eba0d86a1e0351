"""Which files a function is made of: found by reading import statements, without running code."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeprune.errors import UsageError
from edgeprune.frontends import sources


def files(folder: Path, **modules: str) -> Path:
    for name, text in modules.items():
        path = folder.joinpath(*name.replace("INIT", "$").split("__"))
        path = path.with_name(path.name.replace("$", "__init__") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def found(folder: Path, module: str) -> set[str]:
    sources._beside.cache_clear()
    return set(sources.of_module(folder, module))


def test_imports_are_followed_through_modules_packages_and_functions(tmp_path: Path) -> None:
    files(
        tmp_path,
        net="import layers\nfrom zoo import blocks\ndef build():\n    from late import ONE\n    return ONE\n",
        layers="import os, torch\nfrom layers_more import *\n",
        layers_more="",
        late="ONE = 1\n",
        unrelated="",
        zoo__INIT="from .heads import head\n",
        zoo__blocks="from . import deep\nfrom ..net import build\n",
        zoo__heads="",
        zoo__deep="",
        zoo__spare="",
    )
    expected = {"net.py", "layers.py", "layers_more.py", "late.py"}
    assert found(tmp_path, "net") == expected | {f"zoo/{name}.py" for name in ("__init__", "blocks", "heads", "deep")}
    assert found(tmp_path, "zoo.heads") == {"zoo/__init__.py", "zoo/heads.py"}


def test_a_module_that_the_code_finds_through_sys_path_counts(tmp_path: Path) -> None:
    files(tmp_path, net="import sys\nsys.path.insert(0, 'src')\nimport parts\n", src__parts="", src__other="")
    assert found(tmp_path, "net") == {"net.py", "src/parts.py"}


def test_an_import_by_name_counts_and_one_that_cannot_be_read_counts_every_file(tmp_path: Path) -> None:
    files(tmp_path, a="import importlib\nimportlib.import_module('b')\n", b="", c="")
    assert found(tmp_path, "a") == {"a.py", "b.py"}
    files(tmp_path, a="import importlib\ndef load(name):\n    return importlib.import_module(name)\n")
    assert found(tmp_path, "a") == {"a.py", "b.py", "c.py"}


def test_a_file_with_a_syntax_error_counts_by_its_content(tmp_path: Path) -> None:
    files(tmp_path, net="def build(:\n")
    before = sources.of_module(tmp_path, "net")
    files(tmp_path, net="def build(::\n")
    assert set(before) == {"net.py"} and sources.of_module(tmp_path, "net") != before


def test_circular_imports_end(tmp_path: Path) -> None:
    files(tmp_path, a="import b\n", b="import a\n")
    assert found(tmp_path, "a") == {"a.py", "b.py"}


def test_an_installed_module_counts_by_its_version(tmp_path: Path) -> None:
    assert sources.of_module(tmp_path, "numpy.linalg") == {"package numpy": sources.installed("numpy")}
    assert sources.of_module(tmp_path, "os.path") == {}


def test_environments_and_runs_are_left_out(tmp_path: Path) -> None:
    files(tmp_path, net="import parts\n", venv__parts="", runs__parts="")
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "parts.py").write_text("")
    assert found(tmp_path, "net") == {"net.py"}


def test_a_folder_with_too_many_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files(tmp_path, net="import nowhere\n", other="")
    monkeypatch.setattr(sources, "LIMITS", type("Few", (), {"source_files": 1, "source_bytes": 100})())
    sources._beside.cache_clear()
    with pytest.raises(UsageError, match="a folder with only its own code"):
        sources.of_module(tmp_path, "net")
    sources._beside.cache_clear()


def test_variables_of_the_environment_are_the_texts_that_look_like_one(tmp_path: Path) -> None:
    code = "import os\nA = os.environ['MY_DATA']\nB = os.getenv('HOME2', 'fallback')\nC = 'lower', 3\n"
    files(tmp_path, net=code, broken="def (:\n")
    assert sources.variables(tmp_path, ["net.py", "broken.py", "package numpy"]) == {"MY_DATA", "HOME2"}
