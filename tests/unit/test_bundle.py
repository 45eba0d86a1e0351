"""The code that travels to devices is one file. It needs nothing else, and its bytes are the same every time."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from edgeprune import runtimes
from edgeprune.devices import bundle

ENTRIES = ["edgeprune.devices.agent.main", "edgeprune.devices.agent.offline", "edgeprune.runtimes.runner"]
ENTRIES += [f"edgeprune.runtimes.{name}.device" for name in runtimes.names()]
SOURCES = bundle.sources(ENTRIES)


def file(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / f"{hashlib.sha256(content).hexdigest()[:8]}.py"
    path.write_bytes(content)
    return path


def test_the_agent_is_the_same_bytes_in_every_process() -> None:
    """The devices know it by its digest."""
    script = "import hashlib; from edgeprune.devices import bundle; print(hashlib.sha256(bundle.agent()).hexdigest())"
    digests = {
        subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert digests == {hashlib.sha256(bundle.agent()).hexdigest()}


def test_a_runner_can_install_a_bundle_of_every_runtime_and_measures_nothing() -> None:
    text = bundle.runner().decode()
    assert all(f"/runtimes/{name}/device.py" in text for name in runtimes.names())
    assert not any(name in text for name in ("host.py", "/agent/main.py", "/agent/measure.py", "/agent/lease.py"))


def imports(tree: ast.Module, everywhere: bool) -> set[str]:
    nodes = ast.walk(tree) if everywhere else iter(tree.body)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add((node.module or "").partition(".")[0])
    return found


@pytest.mark.parametrize("name", SOURCES)
def test_a_module_that_travels_needs_the_standard_library_only(name: str) -> None:
    """Its syntax is that of Python 3.8. Runtimes and numpy are imported where they are used."""
    tree = ast.parse(SOURCES[name], feature_version=(3, 8))
    assert imports(tree, everywhere=False) <= sys.stdlib_module_names
    assert "edgeprune" not in imports(tree, everywhere=True)


def test_the_host_s_modules_do_not_travel() -> None:
    assert not any(name.endswith(("host.py", "base.py", "bundle.py", "bench.py")) for name in SOURCES)


def loaded(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def release(folder: Path, runtime: str) -> Path:
    folder.mkdir()
    (folder / "runner.py").write_bytes(bundle.runner())
    (folder / "model.json").write_text('{"ns": 1000}')
    manifest = {
        "runtime": runtime,
        "model": "model.json",
        "threads": 1,
        "dla": None,
        "device": {"runtime_version": "0"},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder / "runner.py"


def test_a_runner_is_independent_of_edgeprune_and_of_other_runners(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server may load several releases, and edgeprune may be installed in another version."""
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    before = set(sys.modules)
    null = loaded(release(tmp_path / "null", "null"))
    later = release(tmp_path / "other", "onnxruntime")
    later.write_text(later.read_text().replace(null.PACKAGE, f"{null.PACKAGE}_later"))  # of another version
    other = loaded(later)
    try:
        assert null.PACKAGE != other.PACKAGE and null.load()(["x"]) == ["x"]
        new = {name.partition(".")[0] for name in set(sys.modules) - before}
        assert new - sys.stdlib_module_names == {null.PACKAGE, other.PACKAGE}
    finally:
        for name in set(sys.modules) - before:
            del sys.modules[name]


def test_a_traceback_names_the_file_inside_the_bundle(tmp_path: Path) -> None:
    agent = file(tmp_path, bundle.agent())
    argv: list[Any] = [sys.executable, "-I", agent, "serve"]
    done = subprocess.run(argv, input=b"no json\n", capture_output=True, timeout=600, check=False)
    assert done.returncode == 1 and "/devices/agent/main.py" in done.stderr.decode()


def test_text_that_cannot_be_a_raw_literal_is_refused() -> None:
    with pytest.raises(ValueError, match=r"x\.py cannot travel"):
        bundle._literal("x.py", "a = '''b'''")
