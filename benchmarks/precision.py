"""Measures every precision on the original network, and the whole pipeline in fp32 and in the chosen precision.

    python benchmarks/precision.py --data DIR [--nets …] [--runtimes …] [--budgets …] [--epochs …] [--images …] [--keep FOLDER]

Networks and data are those of `compression.py`. Each row is one `edgeprune run`. Latency and accuracy are those of the
verdict: of the artifacts, on the test images. The budget is a share of the original network's latency in fp32.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import cifar
from compression import PROJECT, SUBJECT, USUAL, baseline

from edgeprune.api import verbs
from edgeprune.errors import EdgepruneError

TARGET = '[connect]\ntransport = "local"\n[runtime]\nname = "{runtime}"\nprecision = "{precision}"\n'


def written(folder: Path, net: str, data: Path | None, images: int, epochs: int, runtimes: list[str]) -> Path:
    """A project of this network with its weights, and its targets."""
    project = folder / net
    (project / "targets").mkdir(parents=True, exist_ok=True)
    baseline(net, data, USUAL, folder, project / "weights.safetensors")
    here, place = str(Path(__file__).parent), str(data.absolute()) if data else None
    (project / "subject.py").write_text(SUBJECT.format(folder=here, net=net, data=place, images=images))
    text = PROJECT.format(rate=0.02).replace("[data]", 'weights = "weights.safetensors"\n[data]')
    (project / "edgeprune.toml").write_text(f"{text}epochs = {epochs}\n")
    for runtime in runtimes:
        for precision in ("fp32", "auto"):
            path = project / "targets" / f"{runtime}-{precision}.toml"
            path.write_text(TARGET.format(runtime=runtime, precision=precision))
    return project


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--nets", nargs="+", default=["resnet20"], choices=sorted(cifar.NETS))
    parser.add_argument("--runtimes", nargs="+", default=["onnxruntime", "openvino", "tflite"])
    parser.add_argument("--budgets", nargs="+", default=["50%", "30%"])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--keep", type=Path, help="a folder; continues with the runs in it")
    options = parser.parse_args()
    candidates = ["| network | runtime | precision | latency, of fp32 | accuracy |", "|---|---|---|---|---|"]
    rows = [
        "| network | runtime | budget | asked | taken | of budget | MACs left | accuracy | verdict |",
        "|---" * 9 + "|",
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = options.keep or Path(name)
        for net in options.nets:
            project = written(folder, net, options.data, options.images, options.epochs, options.runtimes)
            for runtime in options.runtimes:
                for budget in options.budgets:
                    for precision in ("fp32", "auto"):
                        row = [net, runtime, budget, precision]
                        try:
                            result = verbs.run(project, f"{runtime}-{precision}", budget=budget)
                        except EdgepruneError as error:
                            row += ["–", "–", "–", "–", type(error).__name__]
                        else:
                            after = result.pruned
                            row += [result.precision, f"{after.p50_ms / result.budget_ms:.1%}",
                                    f"{after.macs / result.baseline.macs:.0%}",
                                    f"{result.baseline.metric:.2%} → {after.metric:.2%}", str(result.status)]  # fmt: skip
                        rows.append(f"| {' | '.join(row)} |")
                        print(rows[-1], flush=True)
                for path in sorted((project / "runs" / f"{runtime}-auto").glob("precision-*/choice.json"))[:1]:
                    choice = json.loads(path.read_text())
                    full = choice["candidates"][0]["latency"]["mid"]
                    for one in choice["candidates"]:
                        taken = " (taken)" if one["precision"] == choice["precision"] else ""
                        share, metric = one["latency"]["mid"] / full, one["metric"]
                        row = f"| {net} | {runtime} | {one['precision']}{taken} | {share:.1%} | {metric:.2%} |"
                        candidates.append(row)
                        print(row, flush=True)
    print("\n".join(["", *candidates, "", *rows]))


if __name__ == "__main__":
    main()
