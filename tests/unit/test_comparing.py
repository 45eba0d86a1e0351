"""Finished runs beside each other: ratios only where latencies can be compared, and the reason where they cannot."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from runs import Texts, put
from small import InProcess

import edgeprune as package
from edgeprune.errors import UsageError
from edgeprune.latency import stats
from edgeprune.records import Comparison, Device, TimedProcess
from edgeprune.reports import sweep as reports
from edgeprune.stages.series import compare, finished
from edgeprune.stages.series.finished import Finished


@pytest.fixture
def run(tmp_path: Path) -> Finished:
    return finished.read(put(tmp_path))


def timed(run: Finished, scale: float, drift: float = 1.0, processes: int = 8) -> Finished:
    """The run with other times: the pruned network takes `scale` ms, the original 2 ms, both times the drift."""
    noise = 1 + 0.01 * np.random.default_rng(int(1000 * scale)).standard_normal(processes)

    def taken(ms: float) -> tuple[TimedProcess, ...]:
        return tuple(TimedProcess((1,), 1, 1e6 * ms * drift * float(one), 1) for one in noise)

    return replace(run, evidence=replace(run.evidence, pruned=taken(scale), original=taken(2.0)))


def on(run: Finished, **facts: Any) -> Finished:
    """The run on a device with other facts."""
    assert run.made.device is not None
    return replace(run, made=replace(run.made, device=replace(run.made.device, **facts)))


def test_drift_between_runs_of_the_same_original_network_cancels(run: Finished) -> None:
    _, other = compare.of_runs([timed(run, 1.0), timed(run, 0.8, drift=1.3)]).runs
    assert other.shared_ratio and other.latency_ratio is not None
    assert other.latency_ratio.low <= 0.8 <= other.latency_ratio.high and other.latency_ratio.mid == pytest.approx(
        0.8, rel=0.01
    )


def test_another_runtime_on_the_same_device_has_a_ratio_of_latencies(run: Finished) -> None:
    other = on(timed(run, 0.8), runtime="openvino", runtime_version="2026")
    other = replace(other, original=replace(other.original, sha256="9" * 64))
    _, found = compare.of_runs([timed(run, 1.0), other]).runs
    assert not found.shared_ratio and found.latency_ratio is not None and not found.why_no_ratio
    assert found.latency_ratio.low < found.latency_ratio.mid == pytest.approx(0.8, rel=0.02)


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ({"serial": "1"}, "it ran on another device"),
        ({"cpu": "Cortex-A76"}, "it ran on another device: cpu Cortex-A76, not Cortex-A72"),
        ({"emulated": True}, "it ran on another device: emulated True, not False"),
    ],
)
def test_another_device_has_no_ratio(run: Finished, facts: dict[str, Any], why: str) -> None:
    _, other = compare.of_runs([run, on(run, **facts)]).runs
    assert other.latency_ratio is None and other.why_no_ratio == why
    assert other.metric_difference == 0


def test_other_threads_have_no_ratio(run: Finished) -> None:
    other = replace(run, reads={**run.reads, "[runtime] threads": 4})
    assert compare.of_runs([run, other]).runs[1].why_no_ratio == "it ran with 4 threads, not 1"


@pytest.mark.parametrize("label", ["[data] test samples", "[data] metric"])
def test_other_data_has_no_difference_of_metrics(run: Finished, label: str) -> None:
    _, other = compare.of_runs([run, replace(run, reads={**run.reads, label: "changed"})]).runs
    assert other.metric_difference is None and other.why_no_difference == f"{label} is another one"
    assert other.latency_ratio is not None


def test_metrics_of_other_counts_of_samples_have_no_difference(run: Finished) -> None:
    few = replace(run.evidence, differences=tuple(replace(one, samples=5) for one in run.evidence.differences))
    _, other = compare.of_runs([run, replace(run, evidence=few)]).runs
    assert other.why_no_difference == "its metric is of 5 samples, not of 20"


def test_labels_differ(tmp_path: Path) -> None:
    runs = [finished.read(put(tmp_path, budget=budget)) for budget in ("50%", "12 ms")]
    assert [one.label for one in compare.of_runs(runs).runs] == ["pi 50% fp32", "pi 12 ms fp32"]
    other = replace(runs[1], made=replace(runs[1].made, project="q"))
    assert [one.label for one in compare.of_runs([*runs[:1], other]).runs] == ["p pi 50% fp32", "q pi 12 ms fp32"]
    labels = [one.label for one in compare.of_runs([runs[0], replace(runs[0], folder=Path("b"))]).runs]
    assert labels == [f"pi 50% fp32 ({runs[0].folder.name})", "pi 50% fp32 (b)"]


def test_fewer_than_two_runs_is_one_line(tmp_path: Path) -> None:
    verdict = put(tmp_path)
    with pytest.raises(UsageError, match="2 to 100 different runs, not 1"):
        compare.compare([verdict, verdict.parent])


def test_the_ratio_of_medians_covers_the_true_ratio() -> None:
    random, hits = np.random.default_rng(0), 0
    for _ in range(200):
        first, second = 1 + 0.05 * random.standard_normal(12), 2 + 0.1 * random.standard_normal(10)
        interval = stats.ratio_of_medians(first, second)
        hits += interval.low <= 0.5 <= interval.high
    assert 180 <= hits <= 200


def test_a_latency_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError):
        stats.ratio_of_medians(np.array([np.inf]), np.array([1.0]))


# ---------------------------------------------------------------------------------------------------------- printing


def compared(run: Finished) -> Comparison:
    device = Device("x86_64", "Cortex-A72", 8, "Linux", "openvino", "1", "boot")
    made = replace(run.made, target="board", device=device)
    return compare.of_runs([timed(run, 1.0), replace(timed(run, 0.8), made=made), timed(run, 0.5)])


def test_a_comparison_is_printed_with_what_cannot_be_compared(
    run: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    reports.show_comparison(compared(run), Console(width=160, no_color=True))
    out = capsys.readouterr().out
    assert "first" in out and "board 50% fp32: no ratio of latencies: it ran on another device" in out
    assert "50.0%" in out


def test_in_80_columns_a_comparison_is_two_tables_without_folded_cells(
    run: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    smaller = timed(run, 0.8)
    found = compare.of_runs([timed(run, 1.0), replace(smaller, made=replace(smaller.made, budget="35%"))])
    reports.show_comparison(found, Console(width=80, no_color=True))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert all(len(line) <= 80 for line in lines) and len(lines) == 8, lines
    latency, figures = (line.removeprefix("  pi 35% fp32").split() for line in lines if "35%" in line)
    assert latency[:2] == ["pass", "0.803"] and latency[2] == "80.0%" and latency[4].endswith("]")
    assert figures == ["0.9100", "+0.0000", "900", "3,600"]


def test_a_comparison_is_csv_markdown_and_json(tmp_path: Path, edgeprune: InProcess) -> None:
    first, second = (str(put(tmp_path, budget=budget)) for budget in ("50%", "12 ms"))
    code, out, _ = edgeprune("compare", first, second, "--csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 0 and [row["budget"] for row in rows] == ["50%", "12 ms"] and float(rows[1]["latency_ratio"]) == 1
    code, out, _ = edgeprune("compare", first, second, "--markdown")
    assert code == 0 and out.startswith("| run | verdict |") and "| pi 12 ms fp32 | pass |" in out
    code, out, _ = edgeprune("compare", first, second, "--json")
    assert code == 0 and json.loads(out)["runs"][1]["latency_ratio"]["mid"] == 1
    code, _, err = edgeprune("compare", first, second, "--json", "--csv")
    assert code == 2 and "one format" in err
    code, _, err = edgeprune("compare", first, str(tmp_path / "nothing"))
    assert code == 2 and "nothing: is not a folder" in err and err.count("\n") == 1


def test_hostile_texts_stay_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = Texts.all('=cmd()|"\x1b[31m<script>[red]')
    runs = [finished.read(put(tmp_path, bad, budget=budget)) for budget in ("50%", "12 ms")]
    found = compare.of_runs([runs[0], on(runs[1], cpu="=x\x1b[31m[bold]")])
    reports.show_comparison(found, Console(width=200, no_color=True))
    text = capsys.readouterr().out + reports.comparison_csv(found) + reports.comparison_markdown(found)
    assert "\x1b" not in text and "[bold]" in text
    assert ",'=x" in reports.comparison_csv(found)


def test_compare_is_a_function_that_gives_a_table_in_a_notebook(tmp_path: Path) -> None:
    found = package.compare([put(tmp_path, budget=budget) for budget in ("50%", "12 ms")])
    assert "pi 12 ms fp32" in found._repr_html_() and found.runs[1].latency_ratio is not None
