"""Measures how files of public exporters become verified artifacts at half their latency.

    python benchmarks/from_files.py [--files NAME ...] [--targets local local-openvino local-tflite] [--out rows.jsonl]

The networks have random weights, and random samples without labels. Each run is a process of the command line, as a user
starts it, and begins with nothing. "Seconds" are of that process. "Difference" is the largest one between the artifact's
outputs and torch's, of the largest output. With --out, each run with a verdict is a line of JSON in that file. The same
command again does the runs that are missing there, and its table covers all.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from onnx_runs import SUBJECTS, check_run
from small import Finished

from edgeprune.errors import InconclusiveError

TARGETS = "local", "local-openvino", "local-tflite"
RUNTIMES = {"local": "ONNX Runtime", "local-openvino": "OpenVINO", "local-tflite": "TFLite"}
HEAD = "| file | exporter | runtime | before, ms | after, ms | of budget | difference | verdict | seconds |"


def measured(name: str, target: str) -> dict[str, Any]:
    """The figures of one run, or what went wrong."""
    seconds: list[float] = []

    def timed(*arguments: str | Path, timeout: float) -> Finished:
        begun = time.monotonic()
        line = [sys.executable, "-m", "edgeprune.cli", *map(str, arguments)]
        done = subprocess.run(line, capture_output=True, text=True, timeout=4 * timeout)
        seconds.append(time.monotonic() - begun)
        return Finished(done.returncode, done.stdout, done.stderr)

    row: dict[str, Any] = {"file": name, "target": target}
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = check_run(name, target, Path(folder), timed)
        except (AssertionError, InconclusiveError) as error:
            return {**row, "error": str(error).splitlines()[0][:160]}
        checks = {check["name"]: check["value"] for check in found["checks"]}
        return row | {
            "before_ms": found["baseline"]["p50_ms"],
            "after_ms": found["pruned"]["p50_ms"],
            "share": found["pruned"]["p50_ms"] / found["budget_ms"],
            "difference": checks["output_max_relative_error"],
            "verdict": found["status"],
            "seconds": seconds[0],
        }


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The rows as Markdown."""
    yield HEAD
    yield "|---" * HEAD.count("| ") + "|"
    for row in rows:
        start = f"| {row['file']} | {SUBJECTS[row['file']].exporter} | {RUNTIMES.get(row['target'], row['target'])} |"
        if "error" in row:
            yield f"{start} {row['error']} |  |  |  |  |  |"
        else:
            yield (
                f"{start} {row['before_ms']:.3f} | {row['after_ms']:.3f} | {100 * row['share']:.1f}% |"
                f" {row['difference']:.0e} | {row['verdict']} | {row['seconds']:.0f} |"
            )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--files", nargs="+", choices=SUBJECTS, default=[*SUBJECTS])
    parser.add_argument("--targets", nargs="+", default=TARGETS)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = [json.loads(line) for line in arguments.out.read_text().splitlines()] if _exists(arguments.out) else []
    known = {(row["file"], row["target"]) for row in rows}
    for name in arguments.files:
        for target in arguments.targets:
            if (name, target) in known:
                continue
            rows.append(measured(name, target))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
            if arguments.out and "error" not in rows[-1]:
                with arguments.out.open("a") as stream:
                    print(json.dumps(rows[-1]), file=stream)
    print(*table(rows), sep="\n")


def _exists(path: Path | None) -> bool:
    return path is not None and path.exists()


if __name__ == "__main__":
    main()
