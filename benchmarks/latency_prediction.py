"""Measures how well the latency model predicts unseen width configurations, and what the profile costs.

    python benchmarks/latency_prediction.py --net mobilenetv2 --runtime openvino [--threads 1] [--held-out 40] [--seed 0]

The benchmark profiles the network as `edgeprune profile` does. Then it measures random configurations that the model never
saw. Half of them have the planner's candidate widths, half have any widths (few of these are multiples of 8). Each is
interleaved with the profile's anchor and others in four processes.

Two other predictors use the same run: latency proportional to multiply-accumulates, and the sum of layers that are timed
separately at their widths (of four configurations). Errors are relative to the measured latency.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from nets import NETS, RUNTIMES, Subject, alone

from edgeprune.devices.bench import Measured
from edgeprune.graph.groups import candidate_widths
from edgeprune.latency.fit import fit
from edgeprune.latency.observations import FIT_QUANTILE, anchor_ns, reference_ns
from edgeprune.records import Groups
from edgeprune.stages import experiments

PROCESSES = 4  # of each held-out configuration; one on an emulated device
ALONE = 2  # configurations of each half whose layers are also timed separately


def held_out(groups: Groups, count: int, seed: int) -> list[dict[str, int]]:
    """Random configurations: the first half at candidate widths, the second half at any widths."""
    random = np.random.default_rng([seed, 20])
    found = []
    for i in range(count):
        widths = groups.full()
        for group in groups.free:
            candidates = candidate_widths(group) if i < count // 2 else range(1, group.width + 1)
            widths[group.name] = int(random.choice(list(candidates)))
        found.append(widths)
    return found


def measure(subject: Subject, unseen: Sequence[dict[str, int]], anchor_ns: float) -> tuple[np.ndarray, np.ndarray]:
    """Nanoseconds of configurations: the best estimate (configurations,), each process (configurations, `PROCESSES`).

    Every round mixes the configurations anew. So the effect of a process does not bias a configuration. The logarithms of the
    times are a two-way layout, configuration plus process, solved by least squares. The anchor is at zero.
    """
    random = np.random.default_rng(0)
    processes = 1 if subject.bench.device.emulated else PROCESSES  # an emulated device repeats its times
    count, share = len(unseen), experiments.TOGETHER
    beside = [subject.file(experiments.anchor(subject.groups))] * experiments.ANCHORS
    models = [subject.file(widths) for widths in unseen]
    rounds = [random.permutation(count) for _ in range(processes)]
    batches = [order[start : start + share] for order in rounds for start in range(0, count, share)]
    per_round = len(batches) // processes
    rows, logs = [], []
    single = np.empty((count, processes))

    def keep(place: int, found: list[Measured]) -> None:
        anchors, own = np.split(np.log([np.quantile(m.run.times_ns, FIT_QUANTILE) for m in found]), [len(beside)])
        for which, log in [*((None, log) for log in anchors), *zip(batches[place], own, strict=True)]:
            row = np.zeros(count + len(batches))
            row[count + place] = 1
            if which is not None:
                row[which] = 1
            rows.append(row)
            logs.append(log)
        single[batches[place], place // per_round] = np.exp(own - anchors.mean()) * anchor_ns
        print(f"  held out: process {place + 1}/{len(batches)}", flush=True)

    asked = [[*beside, *(models[i] for i in batch)] for batch in batches]
    subject.bench.measure(asked, subject.inputs, experiments.TIMED_S, on_done=keep)
    solution, *_ = np.linalg.lstsq(np.array(rows), np.array(logs))
    return np.exp(solution[:count]) * anchor_ns, single


def row(name: str, predicted: np.ndarray, measured: np.ndarray) -> dict[str, object]:
    error = np.abs(predicted / measured - 1)
    return {
        "predictor": name,
        "median": float(np.median(error)),
        "p95": float(np.quantile(error, 0.95)),
        "max": float(error.max()),
        "within_5": float((error <= 0.05).mean()),
        "within_10": float((error <= 0.1).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", choices=sorted(NETS), required=True)
    parser.add_argument("--runtime", choices=RUNTIMES, required=True)
    parser.add_argument("--target", help="a target to measure on, such as virtual-pi; default: this machine")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--held-out", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        with Subject.open(options.net, options.runtime, options.threads, Path(folder), options.target) as subject:
            profile = subject.profiled(lambda done, most, note: print(f"  {done}/{most} {note}", flush=True))
            model = fit(subject.groups, profile)
            wall = time.monotonic() - started
            unseen = held_out(subject.groups, options.held_out, options.seed)
            measured, single = measure(subject, unseen, anchor_ns(profile))
            some = [*range(ALONE), *range(options.held_out - ALONE, options.held_out)]
            isolated = None if options.target else alone(subject, [unseen[i] for i in some])
            emulated = subject.bench.device.emulated
    groups = subject.groups
    baseline = reference_ns(profile)
    intervals = [model.predict(w) for w in unseen]
    predicted = np.array([interval.mid for interval in intervals])
    macs = np.array([groups.macs(w) for w in unseen]) / groups.macs(groups.full()) * baseline
    half = len(unseen) // 2
    rows = [
        row("edgeprune, all", predicted, measured),
        row("edgeprune, candidate widths", predicted[:half], measured[:half]),
        row("edgeprune, any widths", predicted[half:], measured[half:]),
        row("multiply-accumulates, all", macs, measured),
    ]
    if isolated is not None:
        timed = np.isfinite(isolated)
        if timed.any():
            rows.append(row(f"layers alone, summed ({timed.sum()})", isolated[timed], measured[some][timed]))
    low, high = (np.array([[getattr(i, end)] for i in intervals]) for end in ("low", "high"))
    inside = float(np.mean((low <= single) & (single <= high)))
    inside_mean = float(np.mean((low[:, 0] <= measured) & (measured <= high[:, 0])))
    width = float(np.median([i.high / i.mid - 1 for i in intervals]))
    spent = sum(sum(run.times_ns) for e in profile.experiments for run in e.samples.runs) / 1e9
    print(
        f"{options.net} on {options.runtime}, {options.threads} thread(s){', emulated' if emulated else ''}: baseline"
        f" {baseline / 1e6:.3f} ms, {len(profile.experiments)} experiments, {subject.device_s:.0f} s of the device's time"
        f" ({spent:.0f} s of it timed), {wall:.0f} s in all; interval ±{width:.1%}"
        f" holds {inside_mean:.0%} of the configurations and {inside:.0%} of the single processes"
    )
    print(f"{'predictor':<30} {'median':>7} {'p95':>7} {'max':>7} {'≤ 5 %':>6} {'≤ 10 %':>6}")
    for r in rows:
        figures = " ".join(f"{r[key]:>7.1%}" for key in ("median", "p95", "max"))
        print(f"{r['predictor']:<30} {figures} {r['within_5']:>6.0%} {r['within_10']:>6.0%}")
    if options.out:
        document = {
            **{"net": options.net, "runtime": options.runtime, "threads": options.threads, "seed": options.seed},
            **{"emulated": emulated, "experiments": len(profile.experiments), "wall_s": wall},
            **{
                "device_s": subject.device_s,
                "timed_s": spent,
                "baseline_ns": baseline,
                "coverage": inside_mean,
                "coverage_single": inside,
            },
            **{"interval": width, "rows": rows, "measured_ns": measured.tolist(), "predicted_ns": predicted.tolist()},
            **{"single_ns": single.tolist()},
        }
        options.out.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
