"""One network for two runtimes of this machine: one training, and an artifact and a verdict for each."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from small import command

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_one_command_gives_one_network_for_two_runtimes(project: Path) -> None:
    folder = project.parent / "targets"
    folder.mkdir()
    for name, file in (("one", "local"), ("two", "local-tflite")):
        shutil.copy(ROOT / "targets" / f"{file}.toml", folder / f"{name}.toml")
    arguments = ["run", "--project", project, "--target", "two", "--target", "one", "--json"]
    first = command(*arguments, timeout=900)
    found = first.json
    assert first.code in (0, 1, 4), first.err
    assert [result["target"] for result in found["results"]] == ["one", "two"]
    assert {result["runtime"] for result in found["results"]} == {"onnxruntime", "tflite"}
    widths = [result["plan"]["widths"] for result in found["results"]]
    assert widths[0] == widths[1] and found["binds"] in ("one", "two")
    assert all(Path(result["artifact"]).is_file() for result in found["results"])
    runs = project.parent / "runs"
    assert [place.parent.name for place in runs.glob("*/finetune-*")] == ["one+two"]
    again = command(*arguments, timeout=900)
    assert "confirm    reused" in again.err and "finetune" not in again.err  # nothing is planned or trained again
    assert again.json["results"][0]["plan"] == found["results"][0]["plan"]
