"""How well unseen width configurations are predicted, against multiply-accumulates, on this machine.

    python benchmarks/latency_prediction.py --net mobilenetv2 --runtime openvino [--threads 1] [--held-out 40] [--seed 0]

Profiles the network as `edgeprune profile` does, then measures random configurations that the model never saw: half of them
at the planner's candidate widths, half at any widths. The unpruned network is measured between them, so that the machine's
drift is taken out of both sides alike. Beside it, from the same measurements: latency proportional to multiply-accumulates.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from nets import NETS, inputs

from edgeprune import graph, latency, network, profiling, runtimes
from edgeprune.bench import Bench, open_bench
from edgeprune.formats import FORMATS
from edgeprune.types import Groups, Profile, Target

ANCHOR_EVERY = 5


def held_out(groups: Groups, count: int, seed: int) -> list[dict[str, int]]:
    """Random configurations: the first half at candidate widths, the others at any."""
    random = np.random.default_rng(seed)
    found = []
    for i in range(count):
        widths = groups.full()
        for group in groups.free:
            candidates = graph.candidate_widths(group) if i < count // 2 else range(1, group.width + 1)
            widths[group.name] = int(random.choice(list(candidates)))
        found.append(widths)
    return found


def measure(bench: Bench, models: list[Path], anchor: Path, files: list[Path]) -> tuple[np.ndarray, float]:
    """Nanoseconds of each model relative to the anchor around it, and the anchor's own."""
    order: list[int] = []
    for i in range(len(models)):
        order += [-1, i] if i % ANCHOR_EVERY == 0 else [i]
    order.append(-1)
    measured = bench.measure([anchor if i < 0 else models[i] for i in order], files)
    medians = np.array([np.median(m.run.times_ns) for m in measured])
    places = [at for at, i in enumerate(order) if i < 0]
    shares = [medians[at] / np.interp(at, places, medians[places]) for at, i in enumerate(order) if i >= 0]
    return np.array(shares), float(np.median(medians[places]))


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
    parser.add_argument("--runtime", choices=["onnxruntime", "openvino", "tflite"], required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--held-out", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    model, example = NETS[options.net]().eval(), inputs()
    target = Target(Path("benchmark.toml"), "benchmark", "local", options.runtime, options.threads)
    runtime = runtimes.RUNTIMES[options.runtime]
    with tempfile.TemporaryDirectory() as folder, open_bench(target, Path(folder)) as bench:
        started = time.monotonic()
        groups = network.survey(model, example)
        template = FORMATS[runtime.format](model, example, groups)
        files = bench.save_inputs([tensor.numpy() for tensor in example], Path(folder))

        def variant(widths: dict[str, int]) -> Path:
            place = Path(tempfile.mkdtemp(dir=folder))
            exported = place / f"exported.{runtime.format}"
            exported.write_bytes(template.variant(widths))
            return runtime.convert(exported, place)[0]

        owners = template.owners(groups.layers)
        profile = Profile("benchmark", options.net, groups.network, bench.device, options.threads, "fp32", ())

        def told(done: int, total: int, note: str) -> None:
            print(f"  {done}/{total} {note}", flush=True)

        for grown in profiling.measure(bench, variant, owners, groups, profile, files, told):  # type: ignore[arg-type]
            profile = grown
        fitted = latency.fit(groups, profile)
        wall = time.monotonic() - started
        baseline = latency.baseline(profile)
        unseen = held_out(groups, options.held_out, options.seed)
        shares, anchor = measure(bench, [variant(w) for w in unseen], variant(groups.full()), files)
    measured = shares * baseline
    predicted = np.array([fitted.ns(w) for w in unseen])
    macs = np.array([groups.macs(w) for w in unseen]) / groups.macs(groups.full()) * baseline
    half = len(unseen) // 2
    rows = [
        row("edgeprune, all", predicted, measured),
        row("edgeprune, candidate widths", predicted[:half], measured[:half]),
        row("edgeprune, any widths", predicted[half:], measured[half:]),
        row("multiply-accumulates, all", macs, measured),
    ]
    inside = float((np.abs(measured / predicted - 1) <= fitted.error).mean())
    print(
        f"{options.net} on {options.runtime}, {options.threads} thread(s): baseline {baseline / 1e6:.3f} ms"
        f" (now {anchor / 1e6:.3f}), {len(profile.experiments)} experiments, {wall:.0f} s in all,"
        f" interval ±{fitted.error:.1%} holds {inside:.0%}"
    )
    print(f"{'predictor':<30} {'median':>7} {'p95':>7} {'max':>7} {'≤ 5 %':>6} {'≤ 10 %':>6}")
    for r in rows:
        figures = " ".join(f"{r[key]:>7.1%}" for key in ("median", "p95", "max"))
        print(f"{r['predictor']:<30} {figures} {r['within_5']:>6.0%} {r['within_10']:>6.0%}")
    if options.out:
        document = {"net": options.net, "runtime": options.runtime, "threads": options.threads, "wall_s": wall}
        document |= {"experiments": len(profile.experiments), "baseline_ns": baseline, "coverage": inside, "rows": rows}
        options.out.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
