"""The finetune stage: train the pruned network. It is distilled from the original, or the user trains it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from edgeprune.errors import UsageError
from edgeprune.pipeline.stage import Output, Stage
from edgeprune.records import Budget, Confirmed, Epoch, FinetuneSection, Groups, Project, Pruned, Tuned
from edgeprune.stages import events

if TYPE_CHECKING:
    from torch import nn

    from edgeprune.frontends.data import Loss, Metric, Split
    from edgeprune.frontends.model import Network
    from edgeprune.frontends.trial import Checker
    from edgeprune.stages.training import Networks


@dataclass(frozen=True)
class Reads:
    """The original and the pruned network, the data, and the settings of the training."""

    network: Network
    survey: Groups
    confirm: Confirmed
    prune: Pruned
    checker: Checker
    augmented: Split
    valid: Split
    loss: Loss
    metric: Metric
    finetune_section: FinetuneSection
    given_weights: Path | None
    budget_latency: Budget | None


def run(reads: Reads, output: Output) -> Tuned:
    """Train, and keep the best network."""
    from edgeprune.graph.groups import make_recipe
    from edgeprune.network import weights
    from edgeprune.stages import parallel
    from edgeprune.stages.training import Networks

    original = reads.network.module
    plan = reads.confirm.plan
    recipe = make_recipe(reads.survey, plan.keep)
    untrained = weights.load(reads.prune.untrained, original)
    tuned = output.path("tuned.safetensors")
    cuts = plan.cuts(reads.survey)
    if reads.given_weights is not None:
        parallel.broadcast()  # other processes of torchrun need not wait
        model, history, notes = _given(reads, reads.given_weights, untrained)
        weights.save(tuned, model, recipe)
        return Tuned(tuned, history, notes)
    if not cuts or not reads.finetune_section.epochs:
        parallel.broadcast()  # other processes of torchrun need not wait
        weights.save(tuned, untrained, recipe)
        return Tuned(
            tuned, (), "epochs = 0, so nothing is trained" if cuts else "nothing was cut, so nothing is trained"
        )
    networks = Networks(weights.load(reads.prune.start, original), original, untrained)
    train = _distil if reads.finetune_section.trainer is None else _by_user
    model, history = train(reads, networks, output)
    weights.save(tuned, model, recipe)
    return Tuned(tuned, history)


def _distil(reads: Reads, networks: Networks, output: Output) -> tuple[nn.Module, tuple[Epoch, ...]]:
    """The built-in training. A killed run resumes after its last epoch, and gives the same weights."""
    from edgeprune.stages import parallel, training

    course = training.Course(reads.augmented, reads.valid, reads.loss, reads.metric, reads.finetune_section)
    with reads.checker.differentiating(training=True):
        checkpoint = training.Checkpoint(output.partial() / "checkpoint.safetensors", output.save)
        if output.fresh:
            checkpoint.path.unlink(missing_ok=True)
        parallel.broadcast(reads.prune.start.read_bytes())
        parallel.broadcast(checkpoint.path.read_bytes() if checkpoint.path.exists() else b"")
        return training.train(course, networks, checkpoint, _on_epoch(reads, output))


def _by_user(reads: Reads, networks: Networks, output: Output) -> tuple[nn.Module, tuple[Epoch, ...]]:
    """Training by `[finetune] trainer`. What the function keeps in its folder stays if the run is killed."""
    from edgeprune.stages import trainer

    section, folder = reads.finetune_section, output.partial() / "trainer"
    assert section.trainer is not None
    if output.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(exist_ok=True)
    data = trainer.Data(
        trainer.Batches(reads.augmented),
        trainer.Batches(reads.valid),
        reads.loss.of_training,
        reads.metric,
        section.seed,
        folder,
        output.watch.step,
    )
    return trainer.train(section.trainer, networks, data)


def _given(reads: Reads, path: Path, untrained: nn.Module) -> tuple[nn.Module, tuple[Epoch, ...], str]:
    """The pruned network with the weights that the user trained. Epoch 1 is this network, epoch 0 the untrained one."""
    from edgeprune.frontends import checkpoint
    from edgeprune.network import weights
    from edgeprune.stages import trainer, training

    where, start = f"--weights {path}", reads.prune.start
    model = weights.load(start, reads.network.module)
    fix = f"train the network that edgeprune.load({str(start)!r}, model) gives"
    notes = trainer.take_over(model, checkpoint.read(where, path, path.parent), where, fix)
    before, after = (training.evaluate(one, reads.metric, reads.valid) for one in (untrained, model))
    return model.eval(), (Epoch(0, None, before), Epoch(1, None, after)), ", ".join((path.name, *notes))


def _on_epoch(reads: Reads, output: Output) -> Callable[[Epoch], None]:
    """A function that reports an epoch to TensorBoard and to the run's progress."""
    folder = output.events / events.name_of(reads.confirm.plan, reads.budget_latency)

    def on_epoch(epoch: Epoch) -> None:
        events.epoch(folder, epoch)
        output.watch.step(
            epoch.epoch, reads.finetune_section.epochs, f"validation {reads.metric.name} {epoch.metric:.4f}"
        )

    return on_epoch


def describe(tuned: Tuned, reads: Reads) -> str:
    """The best epoch and its metric."""
    if not tuned.history:
        return tuned.reason
    best, trainer = tuned.best, reads.finetune_section.trainer
    by_user = tuned.reason or (trainer.name if trainer else "")
    if by_user:
        before, after = (f"{epoch.metric:.4f}" for epoch in tuned.history)
        return f"{by_user}: validation {reads.metric.name} {after}, untrained {before}"
    name = f"validation {reads.metric.name}"
    return f"best of {reads.finetune_section.epochs} epochs is {best.epoch}: {name} {best.metric:.4f}"


STAGE = Stage("finetune", Reads, run, Tuned, describe, releases_device=True, joint=True)


def follow(project: Project) -> None:
    """Train with process 0 of torchrun: wait until it trains, receive its network, and work on a shard of every batch.

    Raises:
        UsageError: the user's function trains.
    """
    from edgeprune.frontends.data import Loss, Metric, Split
    from edgeprune.frontends.model import Network
    from edgeprune.network import weights
    from edgeprune.stages import parallel, training

    if project.finetune.trainer is not None:
        raise UsageError(f"{project.finetune.trainer.where} starts its own processes; run edgeprune without torchrun")
    with TemporaryDirectory(prefix="edgeprune-") as name:
        start, checkpoint = Path(name) / "start.safetensors", Path(name) / "checkpoint.safetensors"
        content = parallel.broadcast()
        if not content:  # there is nothing to train
            return
        start.write_bytes(content)
        content = parallel.broadcast()
        if content:
            checkpoint.write_bytes(content)
        network = Network(project)
        original = network.module
        course = training.Course(
            Split(project, "train", augmented=True),
            Split(project, "valid"),
            Loss(project, network.structure),
            Metric(project, network.structure),
            project.finetune,
        )
        networks = training.Networks(weights.load(start, original), original)
        training.train(course, networks, training.Checkpoint(checkpoint, lambda path, write: None), lambda epoch: None)
