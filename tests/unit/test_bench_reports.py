"""The figures of `edgeprune bench` as they are printed and exported."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from edgeprune.errors import UsageError
from edgeprune.records import (
    Benchmark,
    FileComparison,
    FileFigures,
    Interval,
    OperatorChange,
    OperatorTime,
    Outcome,
    Run,
    Samples,
)
from edgeprune.reports import bench

ROW = FileFigures(
    label="m.onnx",
    file=Path("m.onnx"),
    target="local",
    runtime="onnxruntime",
    runtime_version="1.2.3",
    cpu="a cpu",
    emulated=False,
    simulated=False,
    threads=2,
    batch=1,
    streams=1,
    inputs={"x": "float32 1x3x8x8"},
    latency_ms={"p50": Interval(1.4, 1.5, 1.6), "p90": Interval(1.7, 1.8, 1.9)},
    too_few={"p99": "100 of 368 independent timings"},
    load_ms=None,
    throughput_per_s=Interval(600.0, 666.7, 700.0),
    peak_memory_bytes=70_000_000,
    size_bytes=2_400_038,
    processes=6,
    timings=600,
    discarded=2,
    operators=(OperatorTime("conv", "Conv", 800.0, 0.8), OperatorTime("relu", "Relu", 200.0, 0.2)),
)
SAMPLES = [Samples((Run((1_500_000, 1_400_000), 1 << 20),))]
ONE = Benchmark(1, Outcome.PASS, (ROW,))
HOSTILE = '=HYPERLINK("x")\n|<script>\x1b[31m'


def two(ratio: Interval, **changes: object) -> Benchmark:
    other = replace(ROW, label="half.onnx", latency_ms={"p50": Interval(0.7, 0.75, 0.8)}, operators=ROW.operators[:1])
    known = FileComparison("m.onnx", "half.onnx", ratio, 6, False, (OperatorChange("Relu", 1, 0),))
    return Benchmark(1, Outcome.PASS, (ROW, other), (replace(known, **changes),))


def printed(found: Benchmark) -> str:
    text = io.StringIO()
    bench.show(found, Console(file=text, width=160))
    return text.getvalue()


def test_the_table_shows_intervals_and_what_is_not_known() -> None:
    text = printed(ONE)
    assert "local: onnxruntime 1.2.3, 2 threads, a cpu" in text
    for figure in (
        "1.500 [1.400, 1.600]",
        "1.800 [1.700, 1.900]",
        "666.7 [600.0, 700.0]",
        "70.0",
        "2,400,038",
        "600 in 6",
    ):
        assert figure in text, figure
    assert "too few timings" in text and "no p99, for there are only 100 of 368 independent timings" in text
    assert "not reported" in text and "disturbed processes, discarded: 2" in text


def test_short_latencies_are_in_microseconds() -> None:
    assert "p50, µs" in printed(
        Benchmark(1, Outcome.PASS, (replace(ROW, latency_ms={"p50": Interval(0.01, 0.02, 0.03)}),))
    )


def test_operators_come_with_their_share_the_longest_first() -> None:
    lines = [line.split() for line in printed(ONE).splitlines()]
    assert ["conv", "Conv", "800.0", "80.0%"] in lines and ["relu", "Relu", "200.0", "20.0%"] in lines


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        (Interval(0.49, 0.5, 0.51), "takes 0.500 [0.490, 0.510] of the time of m.onnx (p50): 50.0% less"),
        (Interval(1.1, 1.2, 1.3), "(p50): 20.0% more"),
        (Interval(0.9, 0.95, 1.02), "(p50): no difference that these timings can show"),
    ],
)
def test_two_files_are_compared_in_words(ratio: Interval, text: str) -> None:
    assert text in printed(two(ratio))
    assert "operators that differ, in the files" in printed(two(ratio))


def test_few_processes_give_no_verdict() -> None:
    """Two pairs that happen to agree would show a difference between a file and itself."""
    text = printed(two(Interval(0.49, 0.5, 0.51), pairs=5))
    assert "takes 0.500 [0.490, 0.510] of the time of m.onnx (p50): no verdict, for there are only 5 of 6 pairs" in text


def test_files_with_the_same_operators_say_so() -> None:
    assert "both hold the same operators; --layers times each" in printed(two(Interval(1, 1, 1), operators=()))


def test_figures_of_no_physical_device_and_of_a_busy_one_are_marked() -> None:
    text = printed(
        Benchmark(1, Outcome.PASS, (replace(ROW, emulated=True, disturbed=("other processes used the processor",)),))
    )
    assert "emulated: not the figures of a physical device" in text
    assert "used all the same: 1 of 6 (other processes used the processor)" in text and "--patience 10m" in text


def test_many_files_are_shown_in_several_tables() -> None:
    many = Benchmark(1, Outcome.PASS, tuple(replace(ROW, label=f"m{i}.onnx") for i in range(9)))
    assert all(f"m{i}.onnx" in printed(many) for i in range(9)) and printed(many).count("peak memory, MB") == 3


# --------------------------------------------------------------------------------------------------------- exports


def export(name: str, found: Benchmark = ONE) -> str:
    return bench.exporter(Path(name))(found, SAMPLES)


def test_the_trace_is_in_chromes_format_in_the_order_of_execution() -> None:
    meta, first, second = json.loads(export("model.trace.json"))["traceEvents"]
    assert meta["ph"] == "M" and meta["args"]["name"] == "m.onnx: onnxruntime 1.2.3"
    assert (first["ph"], first["name"], first["cat"], first["ts"], first["dur"]) == ("X", "conv", "Conv", 0.0, 800.0)
    assert (second["name"], second["ts"], second["pid"], second["tid"]) == ("relu", 800.0, meta["pid"], first["tid"])


def test_raw_times_are_exported_with_the_figures() -> None:
    found = json.loads(export("times.json"))
    assert found["times_ns"] == [[[1_500_000, 1_400_000]]] and found["files"][0]["latency_ms"]["p50"]["mid"] == 1.5
    assert "p99" not in found["files"][0]["latency_ms"] and found["schema"] == 1


def test_csv_has_a_line_for_each_file_and_leaves_unknown_figures_empty() -> None:
    (line,) = csv.DictReader(io.StringIO(export("a.csv")))
    assert (line["p50_ms"], line["p90_high_ms"], line["p99_ms"], line["load_ms"]) == ("1.5", "1.9", "", "")


def test_layers_are_exported_as_csv() -> None:
    lines = list(csv.DictReader(io.StringIO(export("layers.csv"))))
    assert [(line["operator"], line["kind"], float(line["us"])) for line in lines] == [
        ("conv", "Conv", 800.0),
        ("relu", "Relu", 200.0),
    ]


def test_markdown_holds_the_same_tables() -> None:
    text = export("a.md")
    assert "| p50, ms | 1.500 \\[1.400, 1.600\\] |" in text and "| conv | Conv | 800.0 | 80.0% |" in text


def test_names_from_files_are_harmless_everywhere() -> None:
    hostile = replace(ROW, label=HOSTILE, operators=(OperatorTime(HOSTILE, HOSTILE, 1.0, 1.0),))
    found = Benchmark(1, Outcome.PASS, (hostile,))
    assert "\x1b" not in printed(found)
    for name in ("layers.csv", "a.csv"):
        for line in csv.reader(io.StringIO(export(name, found))):
            assert all(cell[:1] not in "=+-@" or not cell for cell in line) and "\x1b" not in str(line)
    text = export("a.md", found)
    assert "<script>" not in text.replace("\\<", "") and "\x1b" not in text
    assert json.loads(export("trace.json", found))["traceEvents"][1]["name"] == HOSTILE


def test_another_name_of_an_export_is_one_line() -> None:
    with pytest.raises(UsageError, match=r"--export 'a.txt': name it \*trace.json, \*layers.csv"):
        bench.exporter(Path("a.txt"))
    assert bench.needs_layers(Path("trace.json")) and not bench.needs_layers(Path("times.json"))
