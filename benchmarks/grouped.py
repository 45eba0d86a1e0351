"""Measures how well the latency model predicts networks whose grouped convolutions lose groups, inputs and outputs.

    python benchmarks/grouped.py [--variants 66] [--seed 0]

Two networks of ResNeXt's blocks, with random widths, are timed with ONNX Runtime in one thread, interleaved in one process.
ONNX Runtime's profiler gives the times of nodes. The model of `edgeprune.latency.fit` is fitted twice to the same times. Now
a layer has the sizes of `Layer.sides`: all inputs, and the outputs of one group. Before, these were the inputs of one
group and all outputs. Errors are those on the folds left out.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from edgeprune.graph.groups import candidate_widths
from edgeprune.latency.fit import fit
from edgeprune.latency.observations import by_layer
from edgeprune.network.cut import formed
from edgeprune.network.survey import survey
from edgeprune.records import Device, Experiment, Groups, Profile, Run, Samples
from edgeprune.records.profile import Role
from edgeprune.runtimes.formats import FORMATS

ANCHORS, ROUNDS, PROFILED = 4, 10, 8
DEVICE = Device("local", "this machine", 1, "none", "none", "0", "boot")
KERNEL = "_kernel_time"


def conv(i: int, o: int, k: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    layer = nn.Conv2d(i, o, k, stride, k // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(o), nn.ReLU())


class Block(nn.Module):
    def __init__(self, channels: int, width: int, groups: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(channels, width, 1), conv(width, width, groups=groups), conv(width, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)  # type: ignore[no-any-return]


def resnext(each: int) -> nn.Module:
    """Two blocks with 16 groups and two with 32, of `each` channels."""
    first, second = (nn.Sequential(*(Block(4 * n, n * each, n) for _ in range(2))) for n in (16, 32))
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))
    return nn.Sequential(conv(3, 64, 3, 4), first, conv(64, 128, 3, 2), second, pool).eval()


def profiled(each: int, variants: int, random: np.random.Generator) -> tuple[Profile, Groups]:
    """The times of random variants of a network, and its groups."""
    example = (torch.randn(1, 3, 112, 112),)
    model = resnext(each)
    groups = survey(model, example)
    template = FORMATS["onnx"](formed(model, groups, example), example, groups)
    middle = {g.name: candidate_widths(g)[len(candidate_widths(g)) // 2] for g in groups.free}
    drawn = [{g.name: int(random.choice(candidate_widths(g))) for g in groups.free} for _ in range(variants)]
    widths: list[dict[str, int]] = [*[middle] * ANCHORS, *drawn]
    files = [template.variant(one) for one in widths]
    feed = {"input_0": example[0].numpy()}

    def session(file: bytes, profiling: bool = False) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.enable_profiling = profiling
        options.profile_file_prefix = str(Path(tempfile.gettempdir()) / "grouped")
        return onnxruntime.InferenceSession(file, options, ["CPUExecutionProvider"])

    sessions, times = [session(file) for file in files], np.empty((ROUNDS, len(files)))
    for own in times:
        for place in random.permutation(len(files)):
            sessions[place].run(None, feed)  # warms the caches
            began = time.perf_counter_ns()
            sessions[place].run(None, feed)
            own[place] = time.perf_counter_ns() - began
    experiments = []
    for place, (one, total) in enumerate(zip(widths, np.quantile(times, 0.2, axis=0), strict=True)):
        watched, nodes = session(files[place], profiling=True), dict[str, list[int]]()
        for _ in range(PROFILED):
            watched.run(None, feed)
        report = Path(watched.end_profiling())
        for event in json.loads(report.read_text()):
            if event.get("cat") == "Node" and event["name"].endswith(KERNEL):
                name = event["name"].removesuffix(KERNEL).removesuffix("_nchwc")
                nodes.setdefault(name, []).append(1000 * event["dur"])
        report.unlink()
        layers = by_layer(
            [(name, int(np.quantile(own, 0.2))) for name, own in nodes.items()], template.owners(groups.layers)
        )
        role: Role = "anchor" if place < ANCHORS else "fit"
        experiments.append(Experiment(role, 0, one, Samples((Run((round(total),), 1),)), *layers))
    return Profile("local", f"resnext{each}", groups.network, DEVICE, 1, "fp32", tuple(experiments)), groups


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", type=int, default=66)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(f"{'channels of a group':<20} before: median, 90 %   now: median, 90 %")
    for each in (8, 4):
        torch.manual_seed(options.seed)
        profile, groups = profiled(each, options.variants, np.random.default_rng(options.seed))
        before = replace(groups, layers=tuple(replace(layer, made_per_group=None) for layer in groups.layers))
        old, new = fit(before, profile), fit(groups, profile)
        errors = (f"{model.median_error:>12.2%} {model.error:>7.2%}" for model in (old, new))
        print(f"{each:<20} {'   '.join(errors)}", flush=True)


if __name__ == "__main__":
    main()
