"""A service counts its calls, Prometheus can read the figures, and `check --from-metrics` judges them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from edgeprune.devices import bundle as bundling
from edgeprune.devices import release_messages
from edgeprune.devices.agent import releases
from edgeprune.errors import DeviceError
from edgeprune.records import Budget, Outcome
from edgeprune.runtimes import machine, metrics
from edgeprune.stages.releases import watched

RELEASE = "0123456789ab"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a release in service."""
    release = tmp_path / "vision" / "releases" / (RELEASE + "c" * 52)
    release.mkdir(parents=True)
    (release / "manifest.json").write_text('{"runtime": "null", "precision": "fp32", "artifact": "a\\"b"}')
    (tmp_path / "vision" / "current").symlink_to(release)
    return release


def echo(inputs: Sequence[Any]) -> Any:
    if inputs == ["bad"]:
        raise ValueError("bad input")
    return inputs


def served(folder: Path, calls: int, errors: int = 0) -> Callable[[Any], Any]:
    call = metrics.recorded(echo, str(folder))
    for _ in range(calls):
        assert call(["x"]) == ["x"]
    for _ in range(errors):
        with pytest.raises(ValueError, match="bad input"):
            call(["bad"])
    return call


def service(folder: Path) -> str:
    return str(folder.parents[1])


def test_calls_errors_and_quantiles_of_a_service_are_counted(folder: Path) -> None:
    served(folder, 5000, 3)
    (one,) = watched.parsed(metrics.text(service(folder)))
    assert (one.release, one.name, one.calls, one.errors) == (RELEASE, str(os.getpid()), 5000, 3)
    assert one.window == metrics.KEPT and set(one.quantiles) == {0.5, 0.9, 0.99}
    assert 0 < one.quantiles[0.5] <= one.quantiles[0.9] <= one.quantiles[0.99] < 1
    assert f'edgeprune_release_info{{service="vision",release="{RELEASE}",runtime="null"' in metrics.text(
        service(folder)
    )


def test_figures_of_many_processes_are_cut_at_the_end_of_a_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A number that is cut would be another number."""
    served(folder, 5)
    monkeypatch.setattr(machine, "root", lambda: str(folder.parents[2]))
    monkeypatch.setattr(metrics, "text", lambda service: "edgeprune_calls_total 123456\n" * 3)
    for most in (84, 85, 100, 10**6):
        monkeypatch.setattr(releases, "METRICS_CHARS", most)
        shown = releases.metrics_of(release_messages.ReadMetrics(1.0, "vision")).text
        assert set(shown.split("\n")) == {"edgeprune_calls_total 123456", ""}


def test_figures_of_a_process_that_is_gone_are_removed(folder: Path) -> None:
    served(folder, 1)
    place = folder.parents[1] / "metrics"
    (mine,) = place.iterdir()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait(20)
    other = mine.with_name(mine.name.replace(str(os.getpid()), str(gone.pid)))
    other.write_bytes(mine.read_bytes())
    (one,) = watched.parsed(metrics.text(service(folder)))
    assert one.name == str(os.getpid()) and list(place.iterdir()) == [mine]


@pytest.mark.filterwarnings("ignore:os.fork")  # of JAX, which a converter in this process may have imported
def test_a_child_process_keeps_figures_of_its_own(folder: Path) -> None:
    call = served(folder, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the tests' process has threads
        child = os.fork()
    if child == 0:
        call(["x"])
        os._exit(0 if len(os.listdir(folder.parents[1] / "metrics")) == 2 else 1)
    assert os.waitpid(child, 0)[1] == 0
    (one,) = watched.parsed(metrics.text(service(folder)))
    assert one.calls == 2


def test_calls_from_several_threads_are_all_counted(folder: Path) -> None:
    call = served(folder, 0)
    threads = [threading.Thread(target=lambda: [call(["x"]) for _ in range(500)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (one,) = watched.parsed(metrics.text(service(folder)))
    assert one.calls == 2000


def test_a_folder_that_cannot_be_written_does_not_disturb_the_service(folder: Path) -> None:
    (folder.parents[1] / "metrics").write_text("this is a file")
    assert metrics.recorded(echo, str(folder)) is echo
    assert metrics.recorded(echo, "/somewhere/else") is echo


def test_the_runner_answers_prometheus_on_this_machine_only(folder: Path) -> None:
    served(folder, 7)
    (folder / "runner.py").write_bytes(bundling.runner())
    argv = [sys.executable, str(folder / "runner.py"), "--metrics", "0"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            assert url.startswith("http://127.0.0.1:")
            with urllib.request.urlopen(url, timeout=30) as reply:
                content = reply.read().decode()
            assert f'release="{RELEASE}",process="{os.getpid()}"}} 7\n' in content
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(url.replace("/metrics", "/manifest.json"), timeout=30)
        finally:
            process.terminate()


def process(**changes: Any) -> watched.Process:
    return watched.Process("r", "1", **{"calls": 1000, "window": 1000, "quantiles": {0.5: 0.01, 0.99: 0.03}, **changes})


@pytest.mark.parametrize(
    ("one", "budget", "outcome"),
    [
        (process(), "12 ms", Outcome.PASS),
        (process(), "9 ms", Outcome.FAIL),
        (process(), "p99 20 ms", Outcome.FAIL),
        (process(), "p99 40 ms", Outcome.PASS),
        (process(window=100), "p99 40 ms", Outcome.INCONCLUSIVE),  # a p99 needs 299 calls
        (process(quantiles={}), "12 ms", Outcome.INCONCLUSIVE),
        (process(errors=50), "12 ms", Outcome.FAIL),
    ],
)
def test_metrics_are_judged_by_the_budgets(one: watched.Process, budget: str, outcome: Outcome) -> None:
    assert Outcome.of(watched.judged(one, [Budget.parse(budget)])) is outcome


@pytest.mark.parametrize(
    "text",
    [
        "<html>",
        'edgeprune_calls_total{process="1"} NaN',
        'edgeprune_calls_total{process="1"} -1',
        'edgeprune_call_seconds{process="1",quantile="x"} 1',
        "\x1b[2J",
    ],
)
def test_odd_metrics_are_a_clean_error(text: str) -> None:
    with pytest.raises(DeviceError, match="the metrics cannot be used") as caught:
        watched.parsed(text)
    assert str(caught.value).isprintable()
