"""Runs the whole pipeline on the digits example from scratch, with several budgets, runtimes and repeats.

    python benchmarks/pipeline.py [--repeats 2] [--budgets 70% 50% 35%] [--targets local local-openvino] [--out pipeline.json]

It prints the measured share of the budget, the rounds, the change of the metric and the seconds of every run.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import edgeprune
from edgeprune.errors import EdgepruneError

EXAMPLE = Path(__file__).parents[1] / "examples" / "digits"
FILES = ("digits.py", "digits.npz", "digits.safetensors", "edgeprune.toml")


def walk(target: str, budget: str) -> dict[str, object]:
    """One run in a fresh folder."""
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder) / "digits"
        project.mkdir()
        for name in FILES:
            shutil.copy(EXAMPLE / name, project)
        started = time.monotonic()
        row: dict[str, object] = {"target": target, "budget": budget}
        try:
            result = edgeprune.run(project, target, budget=budget)
        except EdgepruneError as error:
            return {**row, "status": type(error).__name__, "error": str(error), "seconds": time.monotonic() - started}
        return {
            **row,
            "status": str(result.status),
            "share": result.pruned.p50_ms / result.budget_ms,
            "predicted_error": result.predicted_ms / result.confirmed_ms - 1,
            "rounds": result.rounds,
            "baseline_ms": result.baseline.p50_ms,
            "pruned_ms": result.pruned.p50_ms,
            "metric_change": result.pruned.metric - result.baseline.metric,
            "macs_share": result.pruned.macs / result.baseline.macs,
            "gap": result.plan["gap"],
            "seconds": time.monotonic() - started,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--budgets", nargs="+", default=["70%", "50%", "35%"])
    parser.add_argument("--targets", nargs="+", default=["local", "local-openvino"])
    parser.add_argument("--out", type=Path, default=Path("pipeline.json"))
    options = parser.parse_args()
    print(
        f"{'target':<15} {'budget':>6} {'status':<12} {'of budget':>9} {'rounds':>6} {'metric':>8} {'MACs':>6} {'seconds':>7}"
    )
    rows = []
    for _ in range(options.repeats):  # repeats are the outer loop, so that the machine's drift spreads over all rows
        for target in options.targets:
            for budget in options.budgets:
                row = walk(target, budget)
                rows.append(row)
                options.out.write_text(json.dumps(rows, indent=1))
                if "share" not in row:
                    print(f"{target:<15} {budget:>6} {row['status']:<12} {row['error']}", flush=True)
                    continue
                print(
                    f"{target:<15} {budget:>6} {row['status']:<12} {row['share']:>9.1%} {row['rounds']:>6}"
                    f" {row['metric_change']:>+8.4f} {row['macs_share']:>6.1%} {row['seconds']:>7.1f}",
                    flush=True,
                )
    shares = [float(str(row["share"])) for row in rows if "share" in row]
    if shares:
        print(f"share of the budget: {min(shares):.1%} to {max(shares):.1%}, median {statistics.median(shares):.1%}")


if __name__ == "__main__":
    main()
