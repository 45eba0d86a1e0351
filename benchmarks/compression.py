"""Measures how accurate a network is at one latency, with edgeprune's plan and with the usual methods.

    python benchmarks/compression.py --data DIR [--full | --short] [--nets …] [--runtimes …] [--budgets …] [--criteria …]

`--data` has `cifar10-jpeg-{train,test}.npz`, and optionally initial weights `resnet{20,32}-cifar10.safetensors`. Without
`--data`, handwritten digits replace them, and the figures mean little. The network `bert` reads `ag-news-7600.csv` of
`--data` instead of images. The original networks are trained on these samples first. A budget is a share of the original
network's measured latency. These methods compete at each budget:

- edgeprune: the exact plan with its default criterion, refitted by least squares before training;
- exact, CRITERION: the same with another criterion of `--criteria`;
- not fitted, widths only, heads and blocks: edgeprune without the refit, without the removal of blocks, or with the residual
  stream of a transformer whole; only if `--methods` names them;
- uniform: the same share of every group, the best units of each by edgeprune's criterion;
- Torch-Pruning: its global group magnitude (Fang et al., CVPR 2023), widths rounded up to 4 channels;
- HALP-style: `allocation.py`'s knapsack with first-order Taylor scores;
- NetAdapt-style: `allocation.py`'s greedy method, with squared weights as scores;
- random: the exact plan with random scores;
- from scratch: edgeprune's widths with new weights.

The other methods have neither the refit nor the removal of blocks. Every network is measured interleaved with the original
one. Its budget is corrected and measured again until the network uses 96 to 100 %, or until no nearer one is found.

edgeprune's fine-tuning trains all networks with the same epochs, images, order and teacher. Only the training depends on the
seed. Held-out training images choose the best epoch. The accuracy is that of the test images.

`--out` keeps every row at once, and the original networks beside it. A later run continues after them. Networks are trained
in `--jobs` other processes while the next networks are measured. Use more than one with spare cores and a GPU.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import cifar
import news
import numpy as np
import torch
import torch_pruning
from allocation import greedy, halp, uniform
from nets import Subject, local
from safetensors.torch import load_file, save_file
from torch import nn

from edgeprune.devices.bench import open_bench
from edgeprune.errors import EdgepruneError, InfeasibleError
from edgeprune.frontends import toml
from edgeprune.frontends.data import Loss, Metric, Split
from edgeprune.frontends.functions import FileFunction
from edgeprune.graph.groups import first_units, make_recipe
from edgeprune.latency import stats
from edgeprune.latency.fit import fit
from edgeprune.latency.model import LatencyModel
from edgeprune.latency.observations import FIT_QUANTILE, reference_ns
from edgeprune.network.cut import cut, formed, sliced
from edgeprune.network.importance import CRITERIA
from edgeprune.network.observe import Reference, observe
from edgeprune.network.survey import survey
from edgeprune.records import Epoch, Groups, Project, Scores, Widths
from edgeprune.stages import parallel, training
from edgeprune.stages import prune as pruning
from edgeprune.stages.planning import allocation

PROCESSES = 4
LEAST, AIM = 0.96, 0.985  # of the budget
ROUND_TO = 4  # channels; the usual choice of Torch-Pruning's users without a GPU
METHODS = "edgeprune", "uniform", "Torch-Pruning", "HALP-style", "NetAdapt-style", "random", "from scratch"
PARTS = "not fitted", "widths only", "heads and blocks"  # edgeprune without one of its parts
SOURCES = {net: module for module in (cifar, news) for net in module.NETS}  # the module of a network and its samples
TRANSFORMERS = {"vit", "convnext", "bert"}  # they need another optimiser
PROJECT = """
[model]
factory = "subject:build"
inputs = "subject:inputs"
[data]
train = "subject:train"
valid = "subject:valid"
test = "subject:test"
[budget]
latency = "50%"
[finetune]
optimizer = "{optimizer}"
learning_rate = {rate}
"""
SUBJECT = """
import sys
from pathlib import Path
sys.path.insert(0, {folder!r})
import {module} as source

DATA = {data!r} and Path({data!r})
build, inputs = source.NETS[{net!r}], source.inputs
train = lambda: source.batches(DATA, "train", {images})
valid = lambda: source.batches(DATA, "valid", {images})
test = lambda: source.batches(DATA, "test")
"""


@dataclass(frozen=True)
class Size:
    """The extent of the run."""

    nets: tuple[str, ...]
    runtimes: tuple[str, ...]
    budgets: tuple[str, ...]
    seeds: int
    images: int | None
    epochs: int
    all_images: int | None  # for the original network
    from_weights: int  # epochs to adapt given weights to these images
    from_nothing: int  # epochs to train a network without
    rounds: int = 3  # of measuring and correcting, at most


FULL = Size(
    ("resnet20", "resnet32", "mobilenet"), ("onnxruntime", "openvino"), ("65%", "50%", "35%"), 3, None, 15, None, 5, 60
)
USUAL = replace(FULL, seeds=1, images=3_000, epochs=2, all_images=20_000, from_weights=1, from_nothing=5)
SHORT = replace(FULL, nets=("resnet20",), runtimes=("onnxruntime",), budgets=("50%",), seeds=1, images=256, epochs=1,
                all_images=512, from_weights=1, from_nothing=2, rounds=1)  # fmt: skip


def project(folder: Path, net: str, data: Path | None, images: int | None, rate: float) -> Project:
    """A project of this network and so many training images. A transformer's learning rate is a 20th, for AdamW."""
    folder.mkdir()
    here, place = str(Path(__file__).parent), str(data.absolute()) if data else None
    module = SOURCES[net].__name__
    (folder / "subject.py").write_text(SUBJECT.format(folder=here, module=module, net=net, data=place, images=images))
    optimizer, rate = ("adamw", rate / 20) if net in TRANSFORMERS else ("sgd", rate)
    (folder / "edgeprune.toml").write_text(PROJECT.format(optimizer=optimizer, rate=rate))
    return toml.read_project(folder / "edgeprune.toml")


@dataclass(frozen=True)
class Trained:
    """A network with the weights of its best epoch, and the history."""

    model: nn.Module
    history: tuple[Epoch, ...]


def with_settings(asked: Project, **settings: int) -> Project:
    """The project with other settings of `[finetune]`."""
    return replace(asked, finetune=replace(asked.finetune, **settings))


def evaluated(asked: Project, model: nn.Module) -> float:
    """The metric on the test images."""
    return training.evaluate(model, Metric(asked), Split(asked, "test"))


def course(asked: Project) -> training.Course:
    """The training course of the project's networks."""
    train, valid = Split(asked, "train", augmented=True), Split(asked, "valid")
    return training.Course(train, valid, Loss(asked), Metric(asked), asked.finetune)


def tuned(asked: Project, model: nn.Module, teacher: nn.Module, untrained: nn.Module | None = None) -> Trained:
    """Trained as `edgeprune finetune` does."""
    path = asked.folder / f"checkpoint-{time.monotonic_ns()}"  # a new folder: training must not resume
    checkpoint = training.Checkpoint(path, lambda path, write: None)
    networks = training.Networks(model, teacher, untrained)
    return Trained(*training.train(course(asked), networks, checkpoint, lambda epoch: None))


def baseline(net: str, data: Path | None, size: Size, folder: Path, kept: Path | None = None) -> nn.Module:
    """The original network, trained on all images, or read from `kept`."""
    torch.manual_seed(0)
    model = SOURCES[net].NETS[net]()
    if kept is not None and kept.exists():
        model.load_state_dict(load_file(kept))
        return model.eval()
    weights = data / f"{net}-cifar10.safetensors" if data else None
    epochs, rate = size.from_nothing, 0.02 if net in TRANSFORMERS else 0.1
    if weights is not None and weights.exists():
        model.load_state_dict(load_file(weights), strict=False)  # all but num_batches_tracked
        epochs, rate = size.from_weights, 0.01
    asked = project(folder / f"{net}-original", net, data, size.all_images, rate)
    loss = FileFunction(asked.path, "[data] loss", "torch.nn.functional:cross_entropy")  # a given loss: no distillation
    plain = with_settings(replace(asked, data=replace(asked.data, loss=loss)), epochs=epochs)
    model = tuned(plain, model, model).model
    if kept is not None:
        save_file(model.state_dict(), kept)
    return model


# ------------------------------------------------------------------------------------------------- methods


@dataclass(frozen=True)
class Small:
    """A pruned network where training starts, its widths, and the best one without training if it differs."""

    start: nn.Module
    widths: Widths
    untrained: nn.Module | None = None


Example = tuple[torch.Tensor, ...]  # the inputs of one call
Cut = Callable[[float], Small | None]  # the network with a predicted latency of at most this many nanoseconds


def ways(
    model: nn.Module,
    groups: Groups,
    costs: LatencyModel,
    default: str,
    criteria: Sequence[str],
    whole: Original,
) -> dict[str, Cut]:
    """Every method, by its name in the table. edgeprune uses the `default` criterion and every other requested one."""
    scores, example = whole.scores, whole.example

    def at(widths: Widths | None, by: str, fitted: bool = False) -> Small | None:
        if widths is None:
            return None
        keep = {group.name: allocation.best_units(group, scores[by], widths[group.name]) for group in groups.free}
        recipe = make_recipe(groups, keep)
        small = cut(model, recipe, example)
        if not fitted:
            return Small(small, widths)
        pruned = pruning.refitted(model, small, recipe, whole.reference)
        return Small(pruned.start, widths, pruned.untrained)

    def exact(by: str, among: Groups = groups, fitted: bool = True, chosen: Scores | None = None) -> Cut:
        def made(limit: float) -> Small | None:
            try:
                widths = allocation.plans(among, costs, chosen or scores[by], limit, "")[0].widths
            except InfeasibleError:
                return None
            if chosen and any(group.normalised and widths[group.name] < group.width for group in groups.free):
                return None
            return at(widths, by, fitted)

        return made

    others = [name for name in criteria if name != default]
    return {
        "edgeprune": exact(default),
        "not fitted": exact(default, fitted=False),
        "widths only": exact(default, replace(groups, blocks=())),
        "heads and blocks": exact(default, chosen=whole_stream(groups, scores[default])),
        **{f"exact, {name}": exact(name) for name in others},
        "uniform": lambda limit: at(uniform(groups, costs, scores[default], limit), default),
        "Torch-Pruning": lambda limit: dependency_graph(model, example, groups, costs, limit),
        "HALP-style": lambda limit: at(halp(groups, costs, scores["taylor"], limit), "taylor"),
        "NetAdapt-style": lambda limit: at(greedy(groups, costs, scores["magnitude-l2"], limit), "magnitude-l2"),
        "random": exact("random", replace(groups, blocks=()), fitted=False),
    }


def whole_stream(groups: Groups, scores: Scores) -> Scores:
    """Scores by which a transformer's residual stream, which norms are taken over, stays whole: its cuts cost most."""
    most = 10 * sum(max(allocation.losses(group, scores).values()) for group in groups.free)
    whole = {group.name: (most,) * (group.width - 1) + (0.0,) for group in groups.free if group.normalised}
    return replace(scores, curves=scores.curves | whole)


def dependency_graph(
    model: nn.Module, example: Example, groups: Groups, costs: LatencyModel, limit: float
) -> Small | None:
    """Torch-Pruning at the least global ratio that is predicted to meet the limit (bisection)."""
    low, high, found = 0.0, 0.98, None
    for _ in range(9):
        ratio = (low + high) / 2
        small = sliced(model, {})
        last = [module for module in small.modules() if isinstance(module, nn.Linear)]
        importance = torch_pruning.importance.GroupMagnitudeImportance(p=2)
        pruner = torch_pruning.pruner.BasePruner(
            small, example[0], importance, global_pruning=True, pruning_ratio=ratio, max_pruning_ratio=0.95,
            ignored_layers=last, round_to=ROUND_TO,
        )  # fmt: skip
        pruner.step()
        widths = widths_of(groups, small)
        if costs.ns(widths) <= limit:
            found, high = Small(small, widths), ratio
        else:
            low = ratio
    return found


def widths_of(groups: Groups, small: nn.Module) -> dict[str, int]:
    """The kept units of each group, from the shapes of a cut network. Raises `ValueError` if they do not agree."""
    shapes = {name: parameter.shape for name, parameter in small.named_parameters()}
    widths = groups.full()
    for group in groups.free:
        slot = group.slots[0]
        if slot.parameter not in shapes:  # removed with its block
            widths[group.name] = 0
            continue
        fixed = sum(len(i) for g in groups.groups if g.locked for s in g.slots for i in s.indices
                    if (s.parameter, s.dim) == (slot.parameter, slot.dim))  # fmt: skip
        widths[group.name] = (shapes[slot.parameter][slot.dim] - fixed) // len(slot.indices[0])
    for parameter, dims in make_recipe(groups, first_units(groups, widths)).items():
        if any(parameter in shapes and shapes[parameter][dim] != len(kept) for dim, kept in dims.items()):
            raise ValueError(f"{parameter} is of shape {tuple(shapes[parameter])}, which its groups do not allow")
    return widths


def at_budget(
    subject: Subject, cuts: Mapping[str, Cut], share: float, full_ns: float, rounds: int
) -> dict[str, tuple[Small, float]]:
    """For every method, the network with the highest measured latency within the budget, and its share of the budget."""
    asked = dict.fromkeys(cuts, AIM)
    best: dict[str, tuple[Small, float]] = {}
    for _ in range(rounds):
        made = {}
        for name, aim in asked.items():
            try:
                made[name] = cuts[name](aim * share * full_ns)
            except (
                ValueError,
                RuntimeError,
                AttributeError,
            ) as error:  # Torch-Pruning raises these on networks that it cannot cut
                print(f"  {name}: {type(error).__name__}: {str(error).splitlines()[0][:120]}", flush=True)
        found = {name: small for name, small in made.items() if small is not None}
        if not found:
            break
        different = {
            tuple(small.widths.values()): small.widths for small in found.values()
        }  # networks of one size have one latency
        models = [subject.file(own) for own in (subject.groups.full(), *different.values())]
        full, *taken = subject.bench.compare(models, subject.inputs, PROCESSES)
        shares = {key: stats.ratio(samples, full, FIT_QUANTILE).mid / share
                  for key, samples in zip(different, taken, strict=True)}  # fmt: skip
        left = {}
        for name, small in found.items():
            used = shares[tuple(small.widths.values())]
            if used <= 1 and used > best.get(name, (small, 0.0))[1]:
                best[name] = small, used
            if not LEAST <= used <= 1:
                left[name] = asked[name] * AIM / used
        asked = left
        if not asked:
            break
    return best


# ------------------------------------------------------------------------------------------------------ the run

Row = dict[str, object]


@dataclass(frozen=True)
class Original:
    """Facts about an original network that do not depend on the runtime."""

    example: Example
    accuracy: float
    scores: Mapping[str, Scores]
    reference: Reference


def original(asked: Project, model: nn.Module, example: Example, criteria: Sequence[str]) -> Original:
    """Its test accuracy, its scores by every used criterion, and its layers' inputs."""
    torch.manual_seed(0)  # training batches are read in random order
    groups = survey(model, example)
    model = formed(model, groups, example)
    accuracy, read = evaluated(asked, model), list(Split(asked, "train"))
    wanted = dict.fromkeys((asked.prune.importance, "taylor", "magnitude-l2", "random", *criteria))
    scores = {name: CRITERIA[name](model, groups, read, Loss(asked)) for name in wanted}
    return Original(example, accuracy, scores, observe(model, read))


def case(
    subject: Subject, asked: Project, size: Size, done: Sequence[Row], keep: Callable[[Sequence[Row]], None],
    read: Callable[[], Original], criteria: Sequence[str], methods: Sequence[str], trainers: Executor,
) -> None:  # fmt: skip
    """Measures all budgets, seeds and methods for one network and runtime, while earlier networks are trained."""
    groups, model, net, runtime = subject.groups, subject.model, subject.net, subject.runtime.name
    begun: list[list[Future[Row]]] = []
    made: dict[str, Cut] = {}
    submit = trainers.submit if groups.form == "module" else _now  # a graph cannot be pickled
    for budget in size.budgets:
        same = {"net": net, "runtime": runtime, "budget": budget}
        seeds = [s for s in range(size.seeds) if not any({**same, "seed": s}.items() <= row.items() for row in done)]
        if not seeds:
            continue
        if not made:
            profile = subject.profiled(lambda done, most, note: None)
            full_ns, whole = reference_ns(profile), read()
            print(f"{net} on {runtime}: {full_ns / 1e6:.3f} ms, {whole.accuracy:.2%} of the test images", flush=True)
            made = ways(model, groups, fit(groups, profile), asked.prune.importance, criteria, whole)
        cuts = at_budget(
            subject,
            {name: cut for name, cut in made.items() if name in methods or name.startswith("exact")},
            float(budget[:-1]) / 100,
            full_ns,
            size.rounds,
        )
        for seed in seeds:
            smalls = dict(cuts)
            if "edgeprune" in cuts and "from scratch" in methods:
                like, share = cuts["edgeprune"]
                torch.manual_seed(1000 + seed)
                smalls["from scratch"] = Small(reset(sliced(like.start, {})), like.widths), share
            train = with_settings(asked, epochs=size.epochs, seed=seed)
            begun.append([])
            for name, (small, used) in smalls.items():
                row = same | {"seed": seed, "original": whole.accuracy, "method": name, "of_budget": used}
                begun[-1].append(submit(trained, train, groups, small, model, row))
            begun = _finished(begun, keep)
    for _ in as_completed([job for jobs in begun for job in jobs]):
        begun = _finished(begun, keep)


def _now(function: Callable[..., Row], *arguments: object) -> Future[Row]:
    """Call a function in this process."""
    done: Future[Row] = Future()
    done.set_result(function(*arguments))
    return done


def _finished(begun: Sequence[list[Future[Row]]], keep: Callable[[Sequence[Row]], None]) -> list[list[Future[Row]]]:
    """Keep the rows of completed trainings, and return the others. Raises the error of a failed training."""
    done = [jobs for jobs in begun if all(job.done() for job in jobs)]
    for jobs in done:
        keep([job.result() for job in jobs])
    return [jobs for jobs in begun if jobs not in done]


def trained(asked: Project, groups: Groups, small: Small, teacher: nn.Module, known: Row) -> Row:
    """The row of a network: `known`, its sizes, and its accuracy before and after training."""
    started = time.monotonic()
    small = copy.deepcopy(small)  # tensors arrive in shared memory, and all seeds use them
    left = groups.macs(small.widths) / groups.macs(groups.full())
    found = tuned(asked, small.start, teacher, small.untrained)
    before, after = found.history[0].metric, evaluated(asked, found.model.to(parallel.device()))
    print("{net:<10} {runtime:<12} {budget:>4} {seed} {method:<16} {of_budget:>6.1%} of budget".format(**known),
          f"MACs {left:>4.0%}, {before:>6.2%} -> {after:>6.2%}", flush=True)  # fmt: skip
    return known | {
        "before": before, "accuracy": after, "macs": left, "removed": [block.name for block in groups.removed(small.widths)],
        "seconds": time.monotonic() - started,
    }  # fmt: skip


def reset(model: nn.Module) -> nn.Module:
    """New random weights."""
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return model


def table(rows: Sequence[Row]) -> str:
    """One line for each network, runtime and budget: each method's mean accuracy over seeds, with its range."""
    methods = list(dict.fromkeys(str(row["method"]) for row in rows))
    lines = ["| network | runtime | budget | " + " | ".join(methods) + " |", "|---" * (3 + len(methods)) + "|"]
    for place in dict.fromkeys((row["net"], row["runtime"], row["budget"]) for row in rows):
        cells = []
        for method in methods:
            own = [float(str(r["accuracy"])) for r in rows
                   if (r["net"], r["runtime"], r["budget"], r["method"]) == (*place, method)]  # fmt: skip
            spread = f" ±{100 * (max(own) - min(own)) / 2:.2f}" if len(own) > 1 else ""
            cells.append(f"{100 * np.mean(own):.2f}{spread}" if own else "none")
        lines.append("| " + " | ".join([*map(str, place), *cells]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--full", action="store_true", help="all images, epochs and seeds; needs a GPU, or some days")
    parser.add_argument("--short", action="store_true", help="one network, one budget, one epoch, a few images")
    parser.add_argument("--nets", nargs="+", choices=sorted(SOURCES))
    parser.add_argument("--runtimes", nargs="+")
    parser.add_argument("--budgets", nargs="+")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--images", type=int)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--rate", type=float, default=0.02)
    parser.add_argument("--criteria", nargs="*", choices=sorted(CRITERIA), default=[])
    parser.add_argument("--methods", nargs="+", choices=(*METHODS, *PARTS), default=METHODS)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--jobs", type=int, default=1, help="training processes beside the measuring process")
    options = parser.parse_args()
    if "from scratch" in options.methods and "edgeprune" not in options.methods:
        parser.error("--methods: from scratch takes the widths of edgeprune; name that, too")
    size = SHORT if options.short else FULL if options.full else USUAL
    given = {name: getattr(options, name) for name in ("nets", "runtimes", "budgets", "seeds", "images", "epochs")}
    size = replace(size, **{name: value for name, value in given.items() if value is not None})
    rows: list[Row] = []
    if options.out and options.out.exists():
        rows = json.loads(options.out.read_text())

    def keep(new: Sequence[Row]) -> None:
        rows.extend(new)
        if options.out:
            options.out.write_text(json.dumps(rows, indent=1))

    cores = max(1, (os.cpu_count() or 1) // (options.jobs + 1))  # one core is left to the measuring process
    processes = ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn"), torch.set_num_threads, (cores,))
    with tempfile.TemporaryDirectory() as name, processes as trainers:
        folder = Path(name)
        try:
            for net in size.nets:
                kept = options.out.parent / f"{options.out.stem}-{net}.safetensors" if options.out else None
                model = baseline(net, options.data, size, folder, kept)
                asked = project(folder / net, net, options.data, size.images, options.rate)
                example = SOURCES[net].inputs()
                read = cache(partial(original, asked, model, example, options.criteria))
                for runtime in size.runtimes:
                    target = local(runtime)
                    with open_bench(target, folder) as bench:
                        subject = Subject(net, model, example, target, bench, folder)
                        case(subject, asked, size, rows, keep, read, options.criteria, options.methods, trainers)
        except BaseException:
            trainers.shutdown(wait=False, cancel_futures=True)  # queued trainings would be wasted
            raise
    print(table(rows))


if __name__ == "__main__":
    try:
        main()
    except EdgepruneError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
