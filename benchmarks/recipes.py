"""Compares one cut with sparse training before the cut, and with two cuts, at the same number of epochs.

    python benchmarks/recipes.py --data DIR [--net …] [--runtime …] [--budget …] [--epochs …] [--images …] [--seeds …]

All schedules end at the same measured latency, with edgeprune's exact plan. They train as `compression.py` does, without the
refit:

- at once: cut, then all epochs;
- two steps: cut to the geometric mean of the latencies, half of the epochs, new scores, cut to the budget, the other half;
- slimming: a third of the epochs before the cut, with an L1 penalty on the scales of batch-norm (Liu et al., ICCV 2017).
  These scales are then the scores (`bn-scale`);
- group lasso: the same, with the norm of each unit's weights (Wen et al., NeurIPS 2016), and loss curves as scores;
- growing: the same, with the original scores. Weight decay rises with every step for the units that the plan would cut
  (Wang et al., ICLR 2021).
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import cifar
import numpy as np
import torch
from compression import (
    AIM,
    USUAL,
    Small,
    at_budget,
    baseline,
    course,
    evaluated,
    project,
    tuned,
    widths_of,
    with_settings,
)
from nets import Subject, local
from torch import Tensor, nn

from edgeprune.devices.bench import open_bench
from edgeprune.errors import EdgepruneError
from edgeprune.frontends.data import Loss, Split
from edgeprune.graph.groups import make_recipe
from edgeprune.latency.fit import fit
from edgeprune.latency.model import LatencyModel
from edgeprune.latency.observations import reference_ns
from edgeprune.network.cut import cut
from edgeprune.network.importance import CRITERIA
from edgeprune.network.survey import survey
from edgeprune.records import Groups, Project, Scores
from edgeprune.stages import training
from edgeprune.stages.planning import allocation

LASSO = {"slimming": 1e-4, "group lasso": 1e-3}  # of the penalty, as in the papers' experiments on CIFAR
GROWN = 1.0  # weight decay at the end, for the units that will be cut
ROUNDS = 3  # of measuring and correcting

Gradient = Callable[[Tensor, Tensor], Tensor]  # of a parameter's gradient and its value


@contextmanager
def penalised(model: nn.Module, penalties: Mapping[str, Gradient]) -> Iterator[None]:
    """The gradient of a penalty, added to that of the loss."""
    parameters = dict(model.named_parameters())

    def hook(name: str) -> Callable[[Tensor], Tensor]:
        return lambda gradient: gradient + penalties[name](gradient, parameters[name].detach())

    handles = [parameters[name].register_hook(hook(name)) for name in penalties]
    yield
    for handle in handles:
        handle.remove()


def lasso(groups: Groups, model: nn.Module, kind: str) -> dict[str, Gradient]:
    """λ·sign(γ) for the scales of a group's channels, or λ·w/‖w‖ for each unit's part of every weight."""
    shapes = {name: parameter.ndim for name, parameter in model.named_parameters()}
    slots = [slot for group in groups.free for slot in group.slots if slot.parameter in shapes]
    rate = LASSO[kind]
    if kind == "slimming":
        scales = {s.parameter for s in slots if shapes[s.parameter] == 1 and s.parameter.endswith("weight")}
        return {name: lambda _, value: rate * value.sign() for name in scales}

    def pull(dims: list[int]) -> Gradient:
        def gradient(_: Tensor, value: Tensor) -> Tensor:
            total = torch.zeros_like(value)
            for dim in dims:
                others = [d for d in range(value.ndim) if d != dim]
                total += rate * value / torch.linalg.vector_norm(value, dim=others, keepdim=True).clamp(min=1e-6)
            return total

        return gradient

    weights = {s.parameter: sorted({t.dim for t in slots if t.parameter == s.parameter}) for s in slots
               if shapes[s.parameter] > 1}  # fmt: skip
    return {name: pull(dims) for name, dims in weights.items()}


def growing(groups: Groups, model: nn.Module, keep: Mapping[str, tuple[int, ...]], steps: int) -> dict[str, Gradient]:
    """λ·w for the units that the plan cuts. λ grows from 0 to `GROWN` over `steps`."""
    recipe = make_recipe(groups, keep)
    parameters = dict(model.named_parameters())

    def pull(name: str) -> Gradient:
        gone = torch.zeros_like(parameters[name])
        for dim, kept in recipe[name].items():
            index = torch.ones(gone.shape[dim], dtype=torch.bool)
            index[list(kept)] = False
            gone.index_fill_(dim, index.nonzero().flatten(), 1.0)
        count = 0

        def gradient(_: Tensor, value: Tensor) -> Tensor:
            nonlocal count
            count += 1
            return min(1.0, count / steps) * GROWN * gone * value

        return gradient

    return {name: pull(name) for name in recipe if name in parameters}


class Recipes:
    """One network, latency model and budget. Each schedule gives a pruned network and its remaining epochs."""

    def __init__(
        self, asked: Project, subject: Subject, costs: LatencyModel, full_ns: float, share: float, epochs: int
    ):
        self.asked, self.subject, self.costs = asked, subject, costs
        self.full_ns, self.share, self.epochs = full_ns, share, epochs

    def scored(self, model: nn.Module, groups: Groups, criterion: str, seed: int) -> Scores:
        torch.manual_seed(seed)
        read, loss = list(Split(self.asked, "train")), Loss(self.asked)
        return CRITERIA[criterion](model, groups, read, loss)

    def cut(self, model: nn.Module, groups: Groups, scores: Scores, share: float) -> nn.Module:
        """The exact plan whose measured latency is nearest the budget. `model` may be pruned already."""
        there = {layer.name for layer in groups.layers}
        layers = tuple(cost for cost in self.costs.layers if cost.layer.name in there)
        costs = replace(self.costs, layers=layers, posterior=None)

        def exact(limit: float) -> Small:
            plan = allocation.plans(groups, costs, scores, limit, "")[0]
            return Small(cut(model, make_recipe(groups, plan.keep), cifar.inputs()), plan.widths)

        (found, used), *_ = at_budget(self.subject, {"exact": exact}, share, self.full_ns, ROUNDS).values()
        print(f"    {used:.1%} of {share:.0%}", flush=True)
        return found.start

    def at_once(self, seed: int) -> tuple[nn.Module, int]:
        model, groups = self.subject.model, self.subject.groups
        scores = self.scored(model, groups, self.asked.prune.importance, seed)
        return self.cut(model, groups, scores, self.share), self.epochs

    def two_steps(self, seed: int) -> tuple[nn.Module, int]:
        model, groups = self.subject.model, self.subject.groups
        scores = self.scored(model, groups, self.asked.prune.importance, seed)
        first = with_settings(self.asked, epochs=self.epochs // 2, seed=seed)
        half = tuned(first, self.cut(model, groups, scores, self.share**0.5), model).model
        left = survey(half, cifar.inputs())
        scores = self.scored(half, left, self.asked.prune.importance, seed)
        return self.cut(half, left, scores, self.share), self.epochs - self.epochs // 2

    def sparse(self, kind: str, seed: int) -> tuple[nn.Module, int]:
        model, groups, before = copy.deepcopy(self.subject.model), self.subject.groups, self.epochs // 3
        if kind == "growing":
            scores = self.scored(model, groups, self.asked.prune.importance, seed)
            aim = AIM * self.share * self.full_ns
            keep = allocation.plans(groups, self.costs, scores, aim, "")[0].keep
            steps = before * sum(1 for _ in Split(self.asked, "train"))
            penalties = growing(groups, model, keep, steps)
        else:
            penalties = lasso(groups, model, kind)
        with penalised(model, penalties):
            # Not tuned(): its best epoch would be the one before the penalty did anything.
            last = with_settings(self.asked, epochs=before, seed=seed)
            state: dict[str, Tensor] = {}

            def remember(path: Path, write: object) -> None:
                state.update({name: tensor.clone() for name, tensor in model.state_dict().items()})

            checkpoint = training.Checkpoint(self.asked.folder / f"sparse-{kind}-{seed}", remember)
            networks = training.Networks(model, self.subject.model)
            training.train(course(last), networks, checkpoint, lambda epoch: None)
        model.load_state_dict(state)
        if kind != "growing":
            scores = self.scored(model, groups, "bn-scale" if kind == "slimming" else self.asked.prune.importance, seed)
        return self.cut(model, groups, scores, self.share), self.epochs - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--net", default="resnet20", choices=sorted(cifar.NETS))
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--budget", default="50%")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    share = float(options.budget[:-1]) / 100
    with tempfile.TemporaryDirectory() as name, open_bench(local(options.runtime), Path(name)) as bench:
        folder = Path(name)
        model = baseline(options.net, options.data, USUAL, folder)
        subject = Subject(options.net, model, cifar.inputs(), local(options.runtime), bench, folder)
        asked = project(folder / "recipes", options.net, options.data, options.images, 0.02)
        profile = subject.profiled(lambda done, most, note: None)
        costs, full_ns = fit(subject.groups, profile), reference_ns(profile)
        print(f"original {evaluated(asked, model):.2%} of the test images", flush=True)
        recipes = Recipes(asked, subject, costs, full_ns, share, options.epochs)
        ways: dict[str, Callable[[int], tuple[nn.Module, int]]] = {
            "at once": recipes.at_once,
            "two steps": recipes.two_steps,
            **{
                kind: lambda seed, kind=kind: recipes.sparse(kind, seed)
                for kind in ("slimming", "group lasso", "growing")
            },
        }
        print("| recipe | test images |\n|---|---|")
        for way, made in ways.items():
            found = []
            for seed in range(options.seeds):
                small, epochs = made(seed)
                removed = [block.name for block in subject.groups.removed(widths_of(subject.groups, small))]
                trained = tuned(with_settings(asked, epochs=epochs, seed=seed), small, model).model
                found.append(evaluated(asked, trained))
                print(f"    without {', '.join(removed) or 'no block'}: {found[-1]:.2%}", flush=True)
            spread = f" ± {100 * (max(found) - min(found)) / 2:.2f}" if len(found) > 1 else ""
            print(f"| {way} | {100 * np.mean(found):.2f}{spread} |", flush=True)


if __name__ == "__main__":
    try:
        main()
    except EdgepruneError as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from error
