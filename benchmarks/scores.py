"""Measures what loss curves cost, and how good the plan from them is.

    python benchmarks/scores.py --data DIR [--nets digits resnet20 resnet32] [--share 50%]

For each network it prints the processor time and the memory of the scores. Then it plans for a share of the
multiply-accumulates and prints the loss and the accuracy of the refitted network without training, on validation images.
The weights are those of `cifar.py`. A network without weights, such as resnet56, gets random ones: its plan is not judged.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import cifar
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from edgeprune.latency.model import LatencyModel
from edgeprune.latency.surface import LayerCost, Surface, features
from edgeprune.network.importance import CRITERIA
from edgeprune.network.observe import observe
from edgeprune.network.survey import survey
from edgeprune.records import Groups
from edgeprune.stages import prune as pruning
from edgeprune.stages.planning import allocation

sys.path.append(str(Path(__file__).parents[1] / "examples" / "digits"))
import digits

Batches = list[tuple[tuple[Tensor, ...], Tensor]]
NETS = cifar.NETS | {"resnet56": lambda: cifar.CifarResNet(9)}
IMAGES = 8192, 2048  # for scores and refits, and to judge the plan


def subject(net: str, data: Path | None) -> tuple[nn.Module, bool, tuple[Tensor, ...], Batches, Batches]:
    """A network in eval mode, whether it is trained, its example inputs, training and validation batches."""
    torch.manual_seed(0)
    if net == "digits":
        model, example = digits.build(), digits.example_inputs()
        model.load_state_dict(load_file(Path(digits.__file__).with_name("digits.safetensors")))
        return model.eval(), True, example, _listed(digits.train_batches()), _listed(digits.valid_batches())
    model, (train, valid) = (
        NETS[net](),
        (cifar.batches(data, part, n) for part, n in zip(("train", "valid"), IMAGES, strict=True)),
    )
    weights = data / f"{net}-cifar10.safetensors" if data else None
    trained = weights is not None and weights.exists()
    if weights is not None and trained:
        model.load_state_dict(load_file(weights))
    return model.eval(), trained, cifar.inputs(), _listed(train), _listed(valid)


def _listed(batches: object) -> Batches:
    return [((inputs,), targets) for inputs, targets in batches]  # type: ignore[attr-defined]


def by_macs(groups: Groups) -> LatencyModel:
    """A latency model in which a multiply-accumulate takes a nanosecond."""
    costs = []
    for layer in groups.layers:
        coefficients = np.zeros(features(layer, np.ones(1), np.ones(1)).shape[1])
        fixed = layer.per_group.fixed if layer.per_group and layer.loses_whole_groups else 1  # inputs that are no term
        coefficients[0] = layer.positions * layer.kernel * fixed
        costs.append(LayerCost(layer, Surface(layer, coefficients, np.zeros((0, 2)), np.zeros(0), 0.0)))
    return LatencyModel(tuple(costs), 1.0)


@contextmanager
def peak() -> Iterator[list[float]]:
    """Yields a list that holds, at the end, the largest growth of this process's memory in MB."""

    def resident() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6

    found, ended, before = [0.0], threading.Event(), resident()

    def watch() -> None:
        while not ended.wait(0.02):
            found[0] = max(found[0], resident() - before)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


def judged(model: nn.Module, batches: Batches) -> tuple[float, float]:
    """The loss and the accuracy."""
    with torch.no_grad():
        outputs = torch.cat([model(*inputs) for inputs, _ in batches])
    targets = torch.cat([targets for _, targets in batches])
    return F.cross_entropy(outputs, targets).item(), (outputs.argmax(1) == targets).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--nets", nargs="+", default=["digits", "resnet20", "resnet32"])
    parser.add_argument("--share", default="50%")
    options = parser.parse_args()
    print(f"{'network':<10} {'groups':>6} {'seconds':>8} {'of processor':>12} {'MB':>6}   loss, accuracy of the plan")
    for net in options.nets:
        model, trained, example, train, valid = subject(net, options.data)
        groups = survey(model, example)
        started, used = time.monotonic(), time.process_time()
        with peak() as grown:
            scores = CRITERIA["loss-curves"](model, groups, train, F.cross_entropy)
        line = f"{net:<10} {len(groups.free):>6} {time.monotonic() - started:>8.1f} {time.process_time() - used:>12.1f}"
        print(f"{line} {grown[0]:>6.0f}", end="   ", flush=True)
        if not trained:
            print("random weights")
            continue
        budget = float(options.share.rstrip("%")) / 100 * groups.macs(groups.full())
        (plan,) = allocation.plans(groups, by_macs(groups), scores, budget, "")
        pruned = pruning.prune(model, groups, plan, example, partial(observe, batches=train)).untrained
        print("{:.4f}, {:.2%}, of {:.4f}, {:.2%} originally".format(*judged(pruned, valid), *judged(model, valid)))


if __name__ == "__main__":
    main()
