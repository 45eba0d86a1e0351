"""Compares the p50 of `edgeprune bench` with that of a plain loop over ONNX Runtime and of OpenVINO's benchmark_app.

    python benchmarks/file_bench.py [--model model.onnx] [--rounds 20]

By default the model is the network of examples/digits. Each round runs all four in fresh processes, one after the other, in
alternating order: `edgeprune bench` on `local` and on `local-openvino`, the loop, and benchmark_app. All use one thread, fp32
and the same options. It prints the ratios of the medians, over rounds, with their interval and their range.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np

from edgeprune.devices.patience import Patience
from edgeprune.latency import stats
from edgeprune.pipeline.request import Quiet
from edgeprune.stages import bench

EXAMPLE = Path(__file__).parents[1] / "examples" / "digits"
TARGETS = "local", "local-openvino"
TIMED_S = 1.0
# As in runtimes/onnxruntime/device.py. It warms up for half a second, then times single runs.
LOOP = """
import sys, time
import numpy as np, onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
(x,) = session.get_inputs()
feed = {x.name: np.random.default_rng(0).standard_normal(x.shape).astype("float32")}
until = time.perf_counter() + 0.5
while time.perf_counter() < until:
    session.run(None, feed)
times, until = [], time.perf_counter() + float(sys.argv[2])
while time.perf_counter() < until:
    start = time.perf_counter_ns()
    session.run(None, feed)
    times.append(time.perf_counter_ns() - start)
print(np.median(times) / 1e6)
"""


def digits(folder: Path) -> Path:
    """The network of examples/digits as an ONNX file."""
    sys.path.insert(0, str(EXAMPLE))
    import digits as example
    from safetensors.torch import load_file

    from edgeprune.runtimes.formats import FORMATS

    network = example.build()
    network.load_state_dict(load_file(EXAMPLE / "digits.safetensors"))
    path = folder / "digits.onnx"
    path.write_bytes(FORMATS["onnx"].written(network.eval(), example.example_inputs()))
    return path


def edgeprune(model: Path) -> dict[str, float]:
    """The p50 on each target in milliseconds, of one process each."""
    asked = bench.Asked((model,), TARGETS, seconds=1e-9)
    found, _ = bench.measure(asked, bench.subjects(asked), Patience(accepting=True), Quiet())
    return {row.target: row.p50_ms.mid for row in found.files}


def loop(model: Path) -> float:
    """The median of a plain loop in milliseconds."""
    return float(printed([sys.executable, "-c", LOOP, str(model), str(TIMED_S)]))


def benchmark_app(model: Path) -> float:
    """The median of OpenVINO's benchmark_app in milliseconds."""
    tool = Path(sys.executable).with_name("benchmark_app")
    options = "-api sync -hint none -nstreams 1 -nthreads 1 -infer_precision f32 -ip f32".split()
    text = printed([str(tool), "-m", str(model), *options, "-t", str(round(TIMED_S))])
    found = re.search(r"Median:\s+([\d.]+) ms", text)
    if found is None:
        raise SystemExit(f"benchmark_app printed no median:\n{text}")
    return float(found[1])


def printed(argv: list[str]) -> str:
    """What a program prints."""
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def shown(name: str, ratios: list[float]) -> str:
    """The median ratio, its 95 % interval, and the range of rounds."""
    one = stats.median_interval(np.array(ratios))
    spread = f"rounds from {min(ratios):.3f} to {max(ratios):.3f}"
    return f"{name}: {one.mid:.3f} [{one.low:.3f}, {one.high:.3f}], {spread}"


def main() -> None:
    """Run all rounds and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="an ONNX file with one input of fixed shape")
    parser.add_argument("--rounds", type=int, default=20)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        model = asked.model or digits(Path(name))
        others: list[tuple[str, str, Callable[[Path], float]]] = [
            ("ONNX Runtime, a plain loop", TARGETS[0], loop),
            ("OpenVINO, benchmark_app", TARGETS[1], benchmark_app),
        ]
        ratios: dict[str, list[float]] = {label: [] for label, _, _ in others}
        medians: list[float] = []
        for number in range(asked.rounds):
            turned = number % 2
            ours = edgeprune(model) if not turned else {}
            theirs = {label: measure(model) for label, _, measure in others}
            ours = ours or edgeprune(model)
            for label, target, _ in others:
                ratios[label].append(ours[target] / theirs[label])
            medians.append(ours[TARGETS[0]])
            text = ", ".join(f"{label} {ours[target]:.3f} / {theirs[label]:.3f} ms" for label, target, _ in others)
            print(f"round {number + 1}: {text}; load {os.getloadavg()[0]:.1f}", flush=True)
    for label, found in ratios.items():
        print(shown(f"edgeprune / {label}", found))
    print(f"p50 on {TARGETS[0]}: {median(medians):.3f} ms over {asked.rounds} rounds")


if __name__ == "__main__":
    main()
