"""Inconclusive tests: those of contracts and of whole runs are counted, and a run names what is inconclusive."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from small import Finished, settled

from edgeprune.errors import InconclusiveError

TESTS = Path(__file__).parents[1]
CONFTEST = """
from inconclusive import Inconclusive

def pytest_configure(config):
    config.addinivalue_line("markers", "contract: of the tier")
    config.pluginmanager.register(Inconclusive())
"""
MODULE = """
import pytest
from edgeprune.errors import InconclusiveError

@pytest.mark.contract
@pytest.mark.parametrize("i", range({count}))
def test_runtime(i):
    if i < {inconclusive}:
        raise InconclusiveError("too disturbed")

@pytest.mark.contract
def test_not_installed():
    pytest.skip("no such runtime")

def test_of_another_tier():
    pass
"""


def write(folder: Path, count: int, inconclusive: int) -> Path:
    (folder / "conftest.py").write_text(CONFTEST)
    module = folder / "test_it.py"
    module.write_text(MODULE.format(count=count, inconclusive=inconclusive))
    return module


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options, str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # they load slowly
    return subprocess.run(line, capture_output=True, text=True, timeout=600, cwd=folder, env=environment, check=False)


@pytest.mark.parametrize(
    "options", [(), pytest.param(("-p", "xdist", "-n", "2"), marks=pytest.mark.slow)], ids=["one process", "xdist"]
)
def test_a_tenth_may_be_inconclusive_and_more_fail_the_run(tmp_path: Path, options: tuple[str, ...]) -> None:
    write(tmp_path, 20, 2)
    found = run(tmp_path, *options)
    assert found.returncode == 0 and "inconclusive: 2 of 20 contract tests\n" in found.stdout, found.stdout
    assert "19 passed, 3 skipped" in found.stdout
    write(tmp_path, 20, 3)
    found = run(tmp_path, *options)
    assert found.returncode == 1, found.stdout
    assert "inconclusive: 3 of 20 contract tests, more than 10%: the run fails" in found.stdout


@pytest.mark.slow
def test_without_inconclusive_tests_nothing_is_printed(tmp_path: Path) -> None:
    write(tmp_path, 3, 0)
    found = run(tmp_path)
    assert found.returncode == 0 and "inconclusive: " not in found.stdout


@pytest.mark.slow
def test_an_inconclusive_test_of_another_tier_fails(tmp_path: Path) -> None:
    module = write(tmp_path, 1, 0)
    module.write_text(module.read_text().replace("    pass", '    raise InconclusiveError("too disturbed")'))
    found = run(tmp_path)
    assert found.returncode == 1 and "1 failed" in found.stdout and "inconclusive:" not in found.stdout


def finished(code: int, value: float = 1.2, **outcomes: str) -> Finished:
    figures = {"value": value, "limit": 1.0, "note": "why"}
    checks = [{"name": name, "outcome": outcome, **figures} for name, outcome in outcomes.items()]
    status = {0: "pass", 1: "fail", 4: "inconclusive"}[code]
    return Finished(code, json.dumps({"status": status, "checks": checks}), "")


def test_a_settled_run_passes_or_has_inconclusive_latencies_only() -> None:
    assert settled(finished(0, latency_p50_ms="pass", metric_drop="pass")) == "pass"
    assert settled(finished(4, latency_p50_ms="inconclusive", slowdown="inconclusive")) == "inconclusive"
    with pytest.raises(AssertionError, match="fail latency_p50_ms: why"):
        settled(finished(1, latency_p50_ms="fail"))
    with pytest.raises(InconclusiveError, match="fail latency_p50_ms: why"):
        settled(finished(1, value=1.05, latency_p50_ms="fail"))
    with pytest.raises(AssertionError, match="fail metric_drop: why"):
        settled(finished(1, value=1.05, latency_p50_ms="fail", metric_drop="fail"))
    with pytest.raises(AssertionError, match="inconclusive baseline: why"):
        settled(finished(4, latency_p50_ms="pass", baseline="inconclusive"))
    with pytest.raises(AssertionError, match="exit code 5: unplugged"):
        settled(Finished(5, "", "unplugged"))
    with pytest.raises(AssertionError, match="exit code 4: too disturbed"):
        settled(Finished(4, json.dumps({"status": "error", "error": "too disturbed"}), ""))
