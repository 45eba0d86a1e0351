"""Commands on the pages run, if they need no board. tests/unit/test_snippets.py checks that the others could."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small import command
from snippets import ROOT, blocks, commands, runs_here, scripts

QUICKSTART = ROOT / "docs" / "quickstart.md"
ELSEWHERE = "demo", "--version"  # .ci/package runs them


def run(words: list[str], folder: Path) -> None:
    """Run a command of a page in a folder. A measurement on a busy machine may be inconclusive."""
    if words[0] == "edgeprune":
        done = command(*words[1:], cwd=folder, timeout=900)
        assert done.code in (0, 4), f"{' '.join(words)}: {done.err}"
    elif words[0] == "python":
        environment = {**os.environ, "PYTHONPATH": ""}
        subprocess.run([sys.executable, *words[1:]], cwd=folder, env=environment, check=True, timeout=600)
    else:
        assert words[:2] == ["pip", "install"], f"no test runs {words}"


@pytest.mark.nightly
def test_the_quickstart_runs(tmp_path: Path) -> None:
    """A reader saves the files and runs the commands, in the order of the page."""
    for block in blocks(QUICKSTART):
        if block.file:
            (tmp_path / block.file).write_text(block.text)
        elif block.language == "sh":
            for words in commands(block.text):
                if words[:2] == ["edgeprune", "init"]:
                    (tmp_path / "edgeprune.toml").unlink(missing_ok=True)
                run(words, tmp_path)
    assert (tmp_path / "runs" / "local" / "latest" / "model.onnx").is_file()


def here() -> list[list[str]]:
    """The commands of all pages that need no board, each once."""
    found = {
        tuple(words)
        for block, text in scripts()
        for words in commands(text)
        if words[0] == "edgeprune" and block.page != QUICKSTART and not block.needs
    }
    return [list(words) for words in sorted(found) if words[1] not in ELSEWHERE and runs_here([*words])]


@pytest.mark.nightly
def test_commands_that_need_no_board_run(own_run: Path) -> None:
    """In the folder of a small project after its run, with the files that the pages name."""
    folder = own_run.parent
    for name in ("model.onnx", "pruned.onnx", "digits.onnx"):
        shutil.copy(folder / "runs" / "local" / "latest" / "model.onnx", folder / name)
    (trained,) = folder.glob("runs/local/finetune-*/tuned.safetensors")
    shutil.copy(trained, folder / "mine.safetensors")
    assert len(here()) >= 8
    for words in here():
        run(words, folder)


@pytest.mark.nightly
def test_the_short_benchmark_runs() -> None:
    """Its figures do not count. 4 is inconclusive: this machine is busy."""
    command = [sys.executable, str(ROOT / "benchmarks" / "compression.py"), "--short"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode in (0, 4), done.stdout + done.stderr
