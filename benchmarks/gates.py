"""Measures how often the slowdown check errs, with two equal artifacts and with one that has more layers.

    python benchmarks/gates.py [--target local] [--trials 200] [--minutes 60] [--neighbour CORE] [--out FILE]

Each trial is one comparison of `edgeprune check`: ten processes in which both artifacts are interleaved, and more while the
result is inconclusive. Two trials of three have no difference ("A/A"). In the third, one artifact has `--extra` more equal
layers (5 %; 1 % on an emulated device).

Two other rules are applied to the same samples, as if the baseline were the first half of the processes and the new artifact
the second. One is a bare threshold on the mean of all times. The other is pytest-benchmark's
`--benchmark-compare-fail=mean:3%`, with one process of each. The neighbour is a process that keeps one core busy.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn

from edgeprune import runtimes
from edgeprune.devices.bench import Bench, open_bench
from edgeprune.frontends import toml
from edgeprune.records import Samples
from edgeprune.stages.compile import Compiler
from edgeprune.stages.verdicts.accuracy import Timer
from edgeprune.stages.verdicts.comparison import slowdown
from edgeprune.stages.verdicts.verdict import POLICY

LAYERS, SIZE = 20, 48  # convolutions, and the side of their images
EMULATED_LAYERS, EMULATED_SIZE = 100, 8  # 1 % of them is one layer


def network(layers: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Conv2d(16, 16, 3, 1, 1) for _ in range(layers))).eval()


class Recorded:
    """A bench that keeps its last comparison."""

    def __init__(self, bench: Bench) -> None:
        self._bench, self.taken = bench, []

    def compare(self, models: Sequence[Path], files: Sequence[Path], processes: int) -> list[Samples]:
        found = self._bench.compare(models, files, processes)
        self.taken.append(found)
        return found


def others(rounds: list[list[Samples]], floor: float) -> dict[str, bool]:
    """Whether a bare threshold and pytest-benchmark would report the first artifact as slower."""
    new = [run.times_ns for taken in rounds for run in taken[0].runs]
    old = [run.times_ns for taken in rounds for run in taken[1].runs]
    half = len(new) // 2
    bare = np.mean(np.concatenate(new[half:])) / np.mean(np.concatenate(old[:half]))
    single = np.mean(new[-1]) / np.mean(old[0])
    return {"mean": bool(bare > 1 + floor), "pytest-benchmark": bool(single > 1 + floor)}


@contextmanager
def neighbour(core: int | None) -> Iterator[None]:
    """A process that keeps a core busy."""
    if core is None:
        yield
        return
    process = multiprocessing.get_context("fork").Process(target=_spin, args=(core,), daemon=True)
    process.start()
    try:
        yield
    finally:
        process.terminate()
        process.join()


def last_core() -> int:
    """The last core of this machine."""
    return max(os.sched_getaffinity(0))


def _spin(core: int) -> None:
    os.sched_setaffinity(0, {core})
    a = np.random.default_rng(0).random((256, 256))
    parent = os.getppid()
    while os.getppid() == parent:  # it ends with the benchmark, however that ends
        a = a @ a
        a /= a.max()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="local")
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--neighbour", type=int)
    parser.add_argument("--extra", type=float)
    parser.add_argument("--only", choices=("A/A", "slower"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    target = toml.read_target(toml.find_target(options.target, Path.cwd()))
    layers, size = (EMULATED_LAYERS, EMULATED_SIZE) if target.emulated else (LAYERS, SIZE)
    extra = options.extra or (0.01 if target.emulated else 0.05)
    floor = POLICY.allowed_slowdown(None, target.emulated)
    runtime, inputs = runtimes.host(target.runtime), (torch.rand(1, 16, size, size),)
    counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    with tempfile.TemporaryDirectory() as name, open_bench(target, Path(name)) as bench, neighbour(options.neighbour):
        folder, models = Path(name), {}
        for kind, count in (("base", layers), ("A/A", layers), ("slower", layers + round(extra * layers))):
            place = folder / kind.replace("/", "")
            place.mkdir()
            models[kind] = Compiler(runtime, "fp32").compile(network(count), inputs, (), place, "").files[0]
        files = bench.save_inputs([tensor.numpy() for tensor in inputs], folder)
        until = time.monotonic() + 60 * options.minutes
        for trial in range(options.trials):
            if time.monotonic() > until:
                break
            kind = options.only or ("slower" if trial % 3 == 2 else "A/A")
            began, recorded = time.monotonic(), Recorded(bench)
            found = slowdown(Timer(recorded, files), models[kind], models["base"], floor)  # type: ignore[arg-type]
            row = {"kind": kind, "neighbour": options.neighbour is not None, "outcome": str(found.outcome),
                   "ratio": found.value, "seconds": time.monotonic() - began,
                   "processes": sum(len(taken[0].runs) for taken in recorded.taken),
                   "base_ms": float(np.median([np.median(r.times_ns) for t in recorded.taken for r in t[1].runs])) / 1e6,
                   **others(recorded.taken, floor)}  # fmt: skip
            counts[kind]["trials"] += 1
            counts[kind][row["outcome"]] += 1
            for rule in ("mean", "pytest-benchmark"):
                counts[kind][rule] += row[rule]
            if options.out:
                with options.out.open("a") as out:
                    out.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
    print(
        "| trials | of | fail | inconclusive | pass | mean > floor | pytest-benchmark |\n|---|---|---|---|---|---|---|"
    )
    for kind, had in counts.items():
        cells = [kind, *(had[key] for key in ("trials", "fail", "inconclusive", "pass", "mean", "pytest-benchmark"))]
        print(f"| {' | '.join(map(str, cells))} |")


if __name__ == "__main__":
    main()
