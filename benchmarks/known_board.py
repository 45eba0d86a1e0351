"""Measures whether a profile of another device saves experiments: a replay of profiles, each device left out in turn.

    python benchmarks/known_board.py --projects ../examples/onnx ../examples/keras [--rows results.jsonl] [--boards nb201.csv]

`--rows` takes the profiles from the results of `fleet_plan.py`. A third of a device's variants is held out, in three splits.
Models are fitted to the first n of the others:

- own: the latency model of edgeprune, without the other device;
- chosen: the same, on the n variants that reduce the variance of the other device's model most;
- scaled: the other device's model, with a factor and an exponent that fit the n variants;
- corrected: the same, with a term for the logarithm of each group's width (ridge regression);
- mean: the geometric mean of own and corrected.

Every error is the median relative error on the variants held out. `--boards` does the same for whole networks of NAS-Bench-201
on four boards. There, own is a ridge regression on the operations of the cells.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import torch
from cifar import NETS

from edgeprune.api import verbs
from edgeprune.latency.fit import draft
from edgeprune.latency.model import LatencyModel
from edgeprune.latency.observations import measured_ns
from edgeprune.network.survey import survey as surveyed
from edgeprune.records import Experiment, Groups, Profile
from edgeprune.stages import survey
from edgeprune.storage import codec, profiles

COUNTS = 6, 12, 18, 24
RIDGE = 0.1  # of features with a variance of one
Errors = dict[tuple[int, str], list[float]]  # by (n, method)


def of_projects(paths: Sequence[Path]) -> Iterator[tuple[str, Groups, list[Profile]]]:
    """Projects with profiles of several targets."""
    for path in paths:
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(shutil.copytree(path, Path(folder) / path.name))
            with verbs.opened(copy, "local", progress=False) as run:
                groups = run.record(survey.STAGE)
            found = [profiles.read(file) for file in sorted((copy / "profiles").glob(f"*/{path.name}-*.json"))]
        yield path.name, groups, [one for one in found if one.network == groups.network]


def of_rows(path: Path) -> Iterator[tuple[str, Groups, list[Profile]]]:
    """The profiles in the results of `fleet_plan.py`."""
    found: dict[str, list[Profile]] = defaultdict(list)
    for (net, kind, *_), value in map(json.loads, path.read_text().splitlines()):
        if kind == "profile":
            found[net].append(codec.loads_kept(Profile, value, str(path)))
    for net, known in found.items():
        torch.manual_seed(0)
        yield net, surveyed(NETS[net]().eval(), (torch.zeros(1, 3, 32, 32),)), known


def subset(profile: Profile, taken: Sequence[Experiment]) -> Profile:
    """The profile of these variants, with the anchors of their processes."""
    batches, kept = {one.batch for one in taken}, {id(one) for one in taken}
    return replace(
        profile,
        experiments=tuple(
            e for e in profile.experiments if id(e) in kept or (e.role == "anchor" and e.batch in batches)
        ),
    )


def by_gain(model: LatencyModel, pool: Sequence[Experiment], count: int) -> list[Experiment]:
    """The variants that reduce the variance of a model over the pool most, as `experiments.choose` takes them."""
    covariance, chosen = model.covariance([one.widths for one in pool]), []
    for _ in range(min(count, len(pool))):
        gain = (covariance**2).sum(axis=1) / (np.diag(covariance) + 1e-12)
        gain[chosen] = -1
        pivot = int(np.argmax(gain))
        chosen.append(pivot)
        column = covariance[:, pivot]
        covariance = covariance - np.outer(column, column) / (column[pivot] + 1e-12)
    return [pool[i] for i in chosen]


def line(x: np.ndarray, y: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The least-squares line; with few points, its slope is drawn to 1."""
    slope = (((x - x.mean()) * (y - y.mean())).sum() + 0.01) / (((x - x.mean()) ** 2).sum() + 0.01)
    return lambda at: y.mean() + slope * (at - x.mean())


def ridge(x: np.ndarray, y: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Ridge regression on standardised features."""
    middle, spread = x.mean(axis=0), x.std(axis=0) + 1e-9
    scaled = (x - middle) / spread
    weights = np.linalg.solve(scaled.T @ scaled + RIDGE * len(x) * np.eye(x.shape[1]), scaled.T @ (y - y.mean()))
    return lambda at: y.mean() + (at - middle) / spread @ weights


def transferred(known: np.ndarray, features: np.ndarray, log_ns: np.ndarray, n: np.ndarray) -> dict[str, np.ndarray]:
    """Log latencies of all rows, from the other device's log latencies and the rows `n` that were measured."""
    scaled = line(known[n], log_ns[n])(known)
    return {"scaled": scaled, "corrected": scaled + ridge(features[n], log_ns[n] - scaled[n])(features)}


def replayed(groups: Groups, target: Profile, other: LatencyModel, seed: int, errors: Errors) -> None:
    """Add the errors of one split of one pair of devices."""
    fits = [one for one in target.experiments if one.role == "fit"]
    held = set(np.random.default_rng(seed).permutation(len(fits))[: len(fits) // 3].tolist())
    pool = [one for i, one in enumerate(fits) if i not in held]
    rows = [*pool, *(fits[i] for i in sorted(held))]
    last = np.arange(len(pool), len(rows))
    log_ns = np.log([measured_ns(target, one) for one in rows])
    known = np.log([other.ns(one.widths) for one in rows])
    features = np.log([[one.widths[group.name] for group in groups.free] for one in rows])
    for n in (n for n in COUNTS if n <= len(pool)):
        found = transferred(known, features, log_ns, np.arange(n))
        for name, taken in (("own", pool[:n]), ("chosen", by_gain(other, pool, n))):
            model = draft(groups, subset(target, taken))
            found[name] = np.log([model.ns(one.widths) for one in rows])
            # Each subset has its own anchors, so a scale of its own. What is compared is relative.
            found[name] += np.median(log_ns[:n] - found[name][:n])
        found["mean"] = (found["own"] + found["corrected"]) / 2
        for name, log in found.items():
            errors[n, name].append(float(np.median(np.abs(np.expm1(log_ns[last] - log[last])))))


def of_boards(path: Path) -> Errors:
    """The errors on NAS-Bench-201, where every board is predicted from every other one."""
    table = [row for row in csv.DictReader(path.open())]
    boards = [name for name in table[0] if name.endswith("_ms")]
    table = [row for row in table if min(float(row[name]) for name in boards) > 1]  # others are not connected
    names = sorted({operation for row in table for operation in row["arch"].replace("+", "").split("|") if operation})
    cells = [row["arch"].replace("+", "|").split("|") for row in table]
    operations = np.array([[cell.count(name) for name in names] for cell in cells], float)
    log = {name: np.log([float(row[name]) for row in table]) for name in boards}
    errors: Errors = defaultdict(list)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(table))
        last = order[-2000:]
        for here, there in permutations(boards, 2):
            for n in (6, 12, 24, 48, 96, 192, 384):
                found = transferred(log[there], operations, log[here], order[:n])
                found["own"] = ridge(operations[order[:n]], log[here][order[:n]])(operations)
                for name, one in found.items():
                    errors[n, name].append(float(np.median(np.abs(np.expm1(log[here][last] - one[last])))))
    return errors


def show(title: str, errors: Errors) -> None:
    methods = [name for name in ("own", "chosen", "scaled", "corrected", "mean") if any(m == name for _, m in errors)]
    print(f"\n| {title} | {' | '.join(methods)} |\n|---|{'---|' * len(methods)}")
    for n in sorted({n for n, _ in errors}):
        print(f"| {n} | {' | '.join(f'{np.median(errors[n, name]):.1%}' for name in methods)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--projects", nargs="*", type=Path, default=[])
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--boards", type=Path)
    options = parser.parse_args()
    for name, groups, known in [*of_projects(options.projects), *(of_rows(options.rows) if options.rows else ())]:
        errors: Errors = defaultdict(list)
        for target, other in permutations(known, 2):
            model = draft(groups, other)
            for seed in range(3):
                replayed(groups, target, model, seed, errors)
        counts = ", ".join(f"{one.device.runtime} {sum(e.role == 'fit' for e in one.experiments)}" for one in known)
        show(f"{name}: variants ({counts})", errors)
    if options.boards:
        show("NAS-Bench-201: networks", of_boards(options.boards))


if __name__ == "__main__":
    main()
