"""One network for two runtimes of this machine: one training, and an artifact, a verdict, a check and a bundle for each."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from small import command

ROOT = Path(__file__).parents[2]


@pytest.mark.nightly
def test_one_command_gives_one_network_for_two_runtimes(project: Path, home_with_key: Path) -> None:
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

    targets = ["--project", project, "--target", "one", "--target", "two", "--json"]
    checked = command("check", *targets, "--budget", "1 s", timeout=900)
    artifacts = {result["target"]: Path(result["artifact"]).stat().st_size for result in found["results"]}
    assert [result["target"] for result in checked.json["results"]] == ["one", "two"]
    for result in checked.json["results"]:
        latency, *_ = result["checks"]
        assert (latency["name"], latency["outcome"], latency["limit"]) == ("latency_p50_ms", "pass", 1000.0)
    assert len({result["artifact"] for result in checked.json["results"]}) == len(artifacts) == 2
    same = command("deploy", *targets, timeout=600)
    assert same.code == 2 and "one and two have the host here" in same.json["error"]
    if again.json["status"] != "pass":
        return  # this machine is too busy for a verdict, so nothing is to be bundled
    written = command("bundle", *targets, "-o", project.with_name("b.tar"), timeout=600)
    assert written.code == 0, written.err
    assert [Path(one["path"]).name for one in written.json["bundles"]] == ["b-one.tar", "b-two.tar"]
