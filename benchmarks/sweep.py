"""Measures how long a sweep takes, relative to separate first runs of its cells.

    python benchmarks/sweep.py [--targets local local-openvino local-tflite] [--budgets 80% 65% 50% 35%] [--patience 30m]

The project is the digits example. Each first run is `edgeprune run` in a new folder, with nothing kept. The sweep is
`edgeprune sweep` in a new folder, too. Half of the first runs come before the sweep and half after it, so that drift of the
machine affects both. The machine should be quiet: disturbed measurements are repeated, and this time is counted.

The second table says in which stages the time went, as the commands print it. "together" is what cells measure together: the
plans of confirm rounds, and the artifacts for verdicts.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

EXAMPLE = Path(__file__).parents[1] / "examples" / "digits"
MOST_S = 4 * 3600.0  # of one command
GOAL = 0.4  # of the time of the first runs


@dataclass(frozen=True)
class Ended:
    """A command that ended: its seconds, its document, and {stage: its seconds}."""

    seconds: float
    document: dict[str, Any]
    stages: Counter[str]


def ended(root: Path, *arguments: str) -> Ended:
    """Run a command in a new copy of the example."""
    folder = Path(tempfile.mkdtemp(dir=root)) / "digits"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("runs", "profiles", "__pycache__"))
    began = time.monotonic()
    command = [sys.executable, "-m", "edgeprune", *arguments, "--json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=MOST_S)
    stages = Counter[str]()
    for stage, seconds in re.findall(r"\b([a-z]+) {2,}.*\((\d+\.\d) s\)$", done.stderr, re.MULTILINE):
        stages[stage] += float(seconds)
    return Ended(time.monotonic() - began, json.loads(done.stdout), stages)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", default=["local", "local-openvino", "local-tflite"])
    parser.add_argument("--budgets", nargs="+", default=["80%", "65%", "50%", "35%"])
    parser.add_argument("--patience", default="30m")
    options = parser.parse_args()
    cells = list(product(options.targets, options.budgets))
    patient = "--patience", options.patience
    print("| command | seconds | status |\n|---|---|---|", flush=True)
    total, failed, stages = 0.0, False, Counter[str]()
    with tempfile.TemporaryDirectory() as name:
        for i, (target, budget) in enumerate(cells):
            if i == len(cells) // 2:
                sweep = ended(Path(name), "sweep", "--budget", *options.budgets, "--target", *options.targets, *patient)
                print(f"| sweep of {len(cells)} | {sweep.seconds:.0f} | {sweep.document['status']} |", flush=True)
            first = ended(Path(name), "run", "--budget", budget, "--target", target, *patient)
            stages += first.stages
            total, failed = total + first.seconds, failed | (first.document["status"] == "error")
            print(f"| run {target} {budget} | {first.seconds:.0f} | {first.document['status']} |", flush=True)
    failed |= any(cell["status"] == "error" for cell in sweep.document.get("cells", [{"status": "error"}]))
    if failed:
        sys.exit("a run ended without a verdict, so the times cannot be compared: try again on a quiet machine")
    print("\n| stage | first runs, s | sweep, s |\n|---|---|---|")
    for stage in sorted(stages | sweep.stages, key=lambda one: -stages[one]):
        print(f"| {stage} | {stages[stage]:.0f} | {sweep.stages[stage]:.0f} |")
    share = sweep.seconds / total
    print(f"\n{len(cells)} first runs: {total:.0f} s; sweep: {sweep.seconds:.0f} s, {share:.0%} (goal: {GOAL:.0%})")


if __name__ == "__main__":
    main()
