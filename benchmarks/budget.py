"""Measures how closely and how soon a budget is met: predicted, confirmed, rounds, and the used share of the budget.

    python benchmarks/budget.py --net resnet50 --runtime onnxruntime [--threads 1] [--budgets 80% 65% 50% 35%] [--repeats 1]

Each budget is a share of the original network's latency. edgeprune's pipeline runs up to the confirmed plan: profile (once
for each repeat), plan, cut with its proof, confirm on this machine. Importance is magnitude, on random weights.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import cifar
import nets
import news
from nets import RUNTIMES

import edgeprune
from edgeprune.errors import EdgepruneError

# The module of each network. Of two with one name, the one for larger images.
SOURCES = {net: module for module in (news, cifar, nets) for net in module.NETS}
MODEL = """
import sys
sys.path.insert(0, {folder!r})
import torch
import {module} as source

inputs = source.inputs

def build():
    torch.manual_seed(0)
    return source.NETS[{net!r}]()

def batches():
    return [(inputs()[0], torch.zeros(1, dtype=torch.long))]
"""
PROJECT = """
[model]
factory = "subject:build"
inputs = "subject:inputs"
[data]
train = "subject:batches"
valid = "subject:batches"
[budget]
latency = "50%"
[prune]
importance = "magnitude-l2"
[finetune]
epochs = 0
"""
TARGET = """
[connect]
transport = "local"
[runtime]
name = "{runtime}"
threads = {threads}
"""


def project(folder: Path, net: str, runtime: str, threads: int) -> Path:
    """A project of this network with a target `benchmark`."""
    (folder / "subject.py").write_text(
        MODEL.format(folder=str(Path(__file__).parent), module=SOURCES[net].__name__, net=net)
    )
    (folder / "edgeprune.toml").write_text(PROJECT)
    (folder / "targets").mkdir()
    (folder / "targets" / "benchmark.toml").write_text(TARGET.format(runtime=runtime, threads=threads))
    return folder / "edgeprune.toml"


def walk(path: Path, budget: str) -> dict[str, object]:
    """One budget, from the profile to a confirmed plan."""
    started = time.monotonic()
    try:
        confirmed = edgeprune.prune(path, "benchmark", budget=budget).confirmed
    except EdgepruneError as error:
        return {"budget": budget, "error": f"{type(error).__name__}: {error}", "seconds": time.monotonic() - started}
    chosen = next((r for r in confirmed.measurements if r.widths == confirmed.plan.widths), None)
    if chosen is None:
        return {"budget": budget, "error": "the original network meets it", "seconds": time.monotonic() - started}
    return {
        "budget": budget,
        "budget_ms": chosen.budget_ns / 1e6,
        "predicted_ms": chosen.predicted_ns / 1e6,
        "confirmed_ms": chosen.measured.mid / 1e6,
        "share": chosen.share,
        "high": chosen.measured.high / chosen.budget_ns,
        "rounds": confirmed.rounds,
        "gap": confirmed.plan.gap,
        "seconds": time.monotonic() - started,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", choices=sorted(SOURCES), required=True)
    parser.add_argument("--runtime", choices=RUNTIMES, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--budgets", nargs="+", default=["80%", "65%", "50%", "35%"])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, object]] = []
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory() as folder:
            path = project(Path(folder), options.net, options.runtime, options.threads)
            started = time.monotonic()
            profile = edgeprune.profile(path, "benchmark")
            spent = time.monotonic() - started
            count = len(profile.experiments)
            print(f"{options.net} on {options.runtime}: profile of {count} experiments in {spent:.0f} s")
            headings = f"{'budget':>6} {'budget, ms':>10} {'predicted':>10} {'confirmed':>10} {'share':>7}"
            print(f"{headings} {'rounds':>6} {'s':>5}")
            for budget in options.budgets:
                row = {"net": options.net, "runtime": options.runtime, "profile_s": spent, **walk(path, budget)}
                rows.append(row)
                if "error" in row:
                    print(f"{budget:>6} {row['error']}", flush=True)
                    continue
                print(
                    f"{budget:>6} {row['budget_ms']:>10.3f} {row['predicted_ms']:>10.3f} {row['confirmed_ms']:>10.3f}"
                    f" {row['share']:>7.1%} {row['rounds']:>6} {row['seconds']:>5.0f}",
                    flush=True,
                )
                if options.out:
                    options.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
