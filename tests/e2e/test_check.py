"""The check of a compiled network, called by a user and by a CI job, and the plugin in a project's tests."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from small import Finished, command, settled

import edgeprune
from edgeprune.devices.bench import Bench
from edgeprune.stages import inputs, training


@pytest.fixture(scope="module")
def with_baseline(finished_run: tuple[Path, Finished], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(finished_run[0].parent, tmp_path_factory.mktemp("baseline") / "blobs", symlinks=True))
    settled(command("check", "--project", folder, "--update", "--reason", "as released", "--json"))
    return folder


@pytest.fixture
def checked(with_baseline: Path, tmp_path: Path) -> Path:
    """The small project after a run, with a baseline, which a test may change."""
    return Path(shutil.copytree(with_baseline, tmp_path / "blobs", symlinks=True))


def outcomes(found: Finished) -> dict[str, str]:
    return {check["name"]: check["outcome"] for check in found.json["checks"]}


def test_an_unchanged_artifact_passes_and_is_remembered(
    checked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    found = command("check", "--project", checked, "--json", "--junit", tmp_path / "checks.xml", "-b", "p90 1 s")
    status = settled(found)
    assert set(outcomes(found)) >= {"latency_p90_ms", "slowdown", "metric_drop", "size_bytes", "peak_memory_bytes"}
    assert "as released" in found.json["baseline"] and "::error" not in found.err
    assert (found.json["schema"], found.json["status"]) == (1, status)
    suite = ElementTree.parse(tmp_path / "checks.xml").getroot()
    assert suite.get("failures") == "0" and len(suite) == len(outcomes(found))
    assert f"| {outcomes(found)['slowdown']} | slowdown |" in (tmp_path / "summary.md").read_text()
    history = command("history", "--project", checked, "--json").json
    assert [record["note"] for record in history["records"]] == ["as released", ""]
    shown = command("history", "--project", checked, "--figure", "metric")
    assert shown.code == 0 and "as released" in shown.out


def test_a_budget_that_does_not_hold_fails(checked: Path) -> None:
    found = command("check", "--project", checked, "-b", "1 us", "--json")
    assert found.code == 1 and outcomes(found)["latency_p50_ms"] == "fail"


@pytest.mark.nightly
def test_a_larger_network_is_slower_and_the_report_names_the_operators(
    checked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    path = checked / "edgeprune.toml"
    path.write_text(path.read_text().replace('latency = "60%"', 'latency = "100%"'))
    found = command("check", "--project", checked)
    assert found.code == 1, found.out + found.err
    assert "fail         slowdown" in found.out and "interleaved in" in found.out
    assert "slower    " in found.out and "::error title=" in found.out
    assert "fail         size_bytes" in found.out


@pytest.mark.slow
def test_a_stale_baseline_is_named_and_not_compared(checked: Path) -> None:
    path = checked / "profiles" / "local" / "blobs.baseline.json"
    content = json.loads(path.read_text())
    content["measured"]["device"]["runtime_version"] = "1.2.3"
    path.write_text(json.dumps(content))
    found = command("check", "--project", checked, "--json")
    assert found.code == 4, found.err
    assert "runtime_version was 1.2.3" in found.json["stale"][0] and "slowdown" not in outcomes(found)
    assert outcomes(found)["baseline"] == "inconclusive"


@pytest.mark.slow
def test_bad_calls_report_what_to_do(checked: Path, tmp_path: Path) -> None:
    path = checked / "profiles" / "local" / "blobs.baseline.json"
    for arguments, said in (
        (["--update"], "--update --reason"),
        (["--baseline", tmp_path / "none.json"], "no such baseline"),
        (["--baseline", tmp_path / "good", "--update", "--reason", "no suffix"], "ends in .json"),
        (["--baseline", tmp_path], "ends in .json"),
        (["--junit", ""], "is a folder"),
        (["--junit", tmp_path], "is a folder"),
        (["-b", "soon"], "cannot read the budget"),
    ):
        found = command("check", "--project", checked, *arguments)
        assert found.code == 2 and said in found.err
    path.write_text("{")
    (tmp_path / "checks.xml").write_text("what passed yesterday")
    found = command("check", "--project", checked, "--junit", tmp_path / "checks.xml")
    assert found.code == 2 and str(path) in found.err and not (tmp_path / "checks.xml").exists()
    (checked / "profiles" / "local" / "blobs.history.jsonl").unlink()
    found = command("history", "--project", checked)
    assert found.code == 2 and "nothing was checked yet" in found.err


@pytest.mark.slow
def test_a_verdict_stands_where_the_history_cannot_be_written(checked: Path) -> None:
    history = checked / "profiles" / "local" / "blobs.history.jsonl"
    history.unlink()
    history.mkdir()  # like a read-only file, but for root, too
    found = command("check", "--project", checked, "-b", "1 us", "--json")
    assert found.code == 1 and found.json["status"] == "fail"
    assert "this check is missing in the history" in found.err


@pytest.mark.slow
def test_without_a_baseline_the_other_checks_decide_and_a_warning_is_printed(
    checked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    (checked / "profiles" / "local" / "blobs.baseline.json").unlink()
    found = command("check", "--project", checked, "-b", "1 s")
    assert found.code == 0, found.out + found.err
    assert "::warning title=blobs on local::baseline: none" in found.out and "baseline  none" in found.out


@pytest.mark.slow
def test_an_update_replaces_a_baseline_that_cannot_be_read(checked: Path) -> None:
    path = checked / "profiles" / "local" / "blobs.baseline.json"
    path.write_text(path.read_text()[:1000])
    found = command("check", "--project", checked, "-b", "1 s", "--update", "--reason", "fixed", "--json")
    assert found.code == 0, found.err
    assert json.loads(path.read_text())["reason"] == "fixed"


def test_outputs_that_are_not_finite_fail_with_a_report(
    checked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    was = Bench.outputs

    def outputs(bench: Bench, *given: Any, **more: Any) -> list[np.ndarray]:
        return [found * np.nan for found in was(bench, *given, **more)]

    monkeypatch.setattr(Bench, "outputs", outputs)
    before = (checked / "profiles" / "local" / "blobs.baseline.json").read_text()
    report = edgeprune.check(checked, budgets=["1 s"], reason="broken")
    found = {check.name: check.outcome for check in report.checks}
    assert report.outcome == found["metric_not_finite"] == found["output_not_finite"] == "fail"
    assert report.baseline.startswith("not made")
    assert (checked / "profiles" / "local" / "blobs.baseline.json").read_text() == before
    assert edgeprune.history(checked).records[-1].outcome == "fail"


@pytest.mark.slow
def test_other_libraries_are_checked_and_nothing_is_trained_again(
    checked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = inputs.installed
    monkeypatch.setattr(inputs, "installed", lambda package: versions(package) + ".1")
    monkeypatch.setattr(training, "train", lambda *given: pytest.fail("it is trained again"))
    report = edgeprune.check(checked, budgets=["1 s"])
    assert "slowdown" in {check.name for check in report.checks}


@pytest.mark.slow
def test_the_actions_script_gates(checked: Path, tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    action = yaml.safe_load((Path(__file__).parents[2] / "action.yml").read_text())
    script = next(step["run"] for step in action["runs"]["steps"] if step.get("id") == "check")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "TARGET": "local",
        "PROJECT": str(checked / "edgeprune.toml"),
        "JUNIT": str(tmp_path / "checks.xml"),
        "GITHUB_OUTPUT": str(tmp_path / "output"),
    }
    own = str(checked / "profiles" / "local" / "blobs.baseline.json")
    for budget, baseline, code, outcome in (
        ("soon", "", 2, ""),
        ("1 s", str(tmp_path / "none.json"), 2, ""),
        ("1 us\np90 1 us\n", own, 1, "fail"),
    ):
        line = ["bash", "-e", "-o", "pipefail", "-c", script]  # as GitHub runs `shell: bash`
        given = {**environment, "BUDGET": budget, "BASELINE": baseline}
        found = subprocess.run(line, env=given, capture_output=True, text=True, timeout=600)
        assert found.returncode == code, found.stderr
        assert ("no such baseline" in found.stderr) == ("none.json" in baseline)
        assert (tmp_path / "output").read_text().splitlines()[-1] == f"outcome={outcome}"
    assert "latency_p90_ms" in (tmp_path / "checks.xml").read_text()


TESTS = """
import pytest
import torch

NET = torch.nn.Conv2d(3, 8, 3)
INPUTS = (torch.rand(1, 3, 32, 32),)

def test_fast(latency):
    assert latency(NET, INPUTS) <= "10 s"

@pytest.mark.latency("local")
def test_slow(latency):
    assert latency(NET, INPUTS) <= "p90 10 ns"

def test_else():
    pass

@pytest.mark.latency("no-such-target", stict=True)
def test_misspelt(latency):
    assert latency(NET, INPUTS) <= "10 s"
"""


@pytest.mark.slow
def test_the_plugin_decides_and_shows_the_distribution(tmp_path: Path) -> None:
    (tmp_path / "test_net.py").write_text(TESTS)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "pytest", "-p", "no:anyio", *arguments, str(tmp_path)]
        return subprocess.run(line, capture_output=True, text=True, timeout=600, cwd=tmp_path, check=False)

    found = run()
    assert "1 failed, 2 passed, 1 error" in found.stdout and "'stict'" in found.stdout, found.stdout + found.stderr
    assert "latency_p90_ms is" in found.stdout and "limit 1e-05" in found.stdout and "####" in found.stdout
    left = run("-m", "not latency")
    assert "1 passed, 3 deselected" in left.stdout
