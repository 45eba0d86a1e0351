"""Training is repeatable, resumes exactly where it stopped, and keeps the best epoch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from edgeprune.errors import UsageError
from edgeprune.frontends import toml
from edgeprune.frontends.data import Loss, Metric, Split
from edgeprune.frontends.functions import FileFunction
from edgeprune.frontends.model import build_model, example_inputs
from edgeprune.graph.groups import make_recipe
from edgeprune.network.cut import cut
from edgeprune.network.survey import survey
from edgeprune.records import Epoch, FinetuneSection, Project, Tuned
from edgeprune.stages import parallel, training
from edgeprune.stages.training import Checkpoint, Course, Networks


class Killed(Exception):
    """Stands for the end of the process."""


def save(path: Path, write: Callable[[Path], None]) -> None:
    write(path)


def pruned(project: Project) -> tuple[torch.nn.Module, torch.nn.Module]:
    model = build_model(project)
    inputs = example_inputs(project)
    groups = survey(model, inputs)
    return cut(model, make_recipe(groups, {"a": range(8), "b": range(16)}), inputs), model


def course(project: Project) -> Course:
    train, valid = Split(project, "train", augmented=True), Split(project, "valid")
    return Course(train, valid, Loss(project), Metric(project), project.finetune)


@dataclass(frozen=True)
class Trained:
    model: torch.nn.Module
    history: tuple[Epoch, ...]

    @property
    def best(self) -> Epoch:
        return Tuned(Path(), self.history).best


def train(
    project: Project,
    checkpoint: Path,
    on_epoch: Callable[[Epoch], None] = lambda e: None,
    networks: Networks | None = None,
) -> Trained:
    networks = networks or Networks(*pruned(project))
    return Trained(*training.train(course(project), networks, Checkpoint(checkpoint, save), on_epoch))


def evaluate(project: Project, model: torch.nn.Module) -> float:
    return training.evaluate(model, Metric(project), Split(project, "valid"))


def with_settings(project: Project, **settings: object) -> Project:
    return replace(project, finetune=replace(project.finetune, **settings))


@pytest.fixture
def known(project: Path) -> Project:
    return with_settings(toml.read_project(project), epochs=3)


def test_the_same_seed_gives_the_same_network(known: Project, tmp_path: Path) -> None:
    first, second = train(known, tmp_path / "1"), train(known, tmp_path / "2")
    assert first.history == second.history
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("last", "ema", "optimizer"),
    [
        (1, None, "sgd"),
        (2, 0.9, "sgd"),
        pytest.param(2, None, "sgd", marks=pytest.mark.slow),
        pytest.param(2, None, "adamw", marks=pytest.mark.slow),
    ],
)
def test_a_training_killed_after_an_epoch_ends_with_the_same_weights(
    last: int, ema: float | None, optimizer: str, known: Project, tmp_path: Path
) -> None:
    known = with_settings(known, ema=ema, optimizer=optimizer)

    def kill(epoch: Epoch) -> None:
        if epoch.epoch == last:
            raise Killed

    with pytest.raises(Killed):
        train(known, tmp_path / "killed", kill)
    epochs: list[int] = []
    resumed = train(known, tmp_path / "killed", lambda epoch: epochs.append(epoch.epoch))
    whole = train(known, tmp_path / "whole")
    assert epochs == list(range(last + 1, 4))
    assert resumed.history == whole.history
    theirs = whole.model.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in resumed.model.state_dict().items())


def test_with_a_moving_average_the_average_is_measured_and_kept(known: Project) -> None:
    trainer = training._Trainer(course(with_settings(known, ema=0.9)), Networks(*pruned(known)), torch.device("cpu"))
    trainer.train(1)
    trainer.record(1.0)
    assert trainer.averaged is not None
    average = trainer.averaged.module.state_dict()
    assert all(torch.equal(tensor, average[name]) for name, tensor in trainer.best_state.items())
    assert not torch.equal(average["fc.weight"], trainer.model.state_dict()["fc.weight"])


def test_a_moving_average_forgets_its_first_weights() -> None:
    kept, new = [torch.tensor([100.0]), torch.tensor([7])], [torch.tensor([1.0]), torch.tensor([9])]
    for count in range(1, 60):
        training._moving(0.999)(kept, new, count)
    assert kept[0].item() == pytest.approx(1.0, abs=0.01) and kept[1].item() == 9


def test_the_best_epoch_is_kept(known: Project, tmp_path: Path) -> None:
    found = train(known, tmp_path / "c")
    assert found.best.metric == max(epoch.metric for epoch in found.history)
    assert evaluate(known, found.model) == found.best.metric
    assert [epoch.epoch for epoch in found.history] == [0, 1, 2, 3]


def test_epoch_0_is_the_best_network_without_training(known: Project, tmp_path: Path) -> None:
    small, teacher = pruned(known)
    with torch.no_grad():
        small.fc.weight.zero_()
    untrained, _ = pruned(known)
    slow = with_settings(known, learning_rate=1e-9)  # nothing is learnt from so far away
    found = train(slow, tmp_path / "c", networks=Networks(small, teacher, untrained))
    assert found.best.epoch == 0 and found.best.metric == evaluate(known, pruned(known)[0])
    assert all(torch.equal(a, b) for a, b in zip(found.model.parameters(), pruned(known)[0].parameters(), strict=True))
    again, _ = pruned(known)
    trained = train(known, tmp_path / "d", networks=Networks(again, teacher, small))
    assert trained.history[1:] == train(known, tmp_path / "e").history[1:]  # what is trained is the other


def test_a_loss_that_turns_nan_later_keeps_the_epochs_before(
    known: Project, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = known.path.with_name("blobs.py")
    calls = "\ncalls = []\ndef loss(outputs, targets):\n    calls.append(1)\n"
    scaled = "    return nn.functional.cross_entropy(outputs, targets) * (float('nan') if len(calls) > 8 else 1)\n"
    module.write_text(module.read_text() + calls + scaled)
    loss = FileFunction(known.path, "[data] loss", "blobs:loss")
    found = train(replace(known, data=replace(known.data, loss=loss)), tmp_path / "c")
    assert [epoch.epoch for epoch in found.history] == [0, 1]
    assert "epoch 2, batch 0" in caplog.text
    assert all(torch.isfinite(parameter).all() for parameter in found.model.parameters())


def test_the_original_network_is_not_trained(known: Project, tmp_path: Path) -> None:
    small, teacher = pruned(known)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    train(known, tmp_path / "c", networks=Networks(small, teacher))
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())


def test_more_processes_than_gpus_are_refused_with_how_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(parallel, "started_by_torchrun", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert parallel.device() == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(UsageError, match="--nproc-per-node 1"):
        parallel.device()


def test_an_optimiser_has_its_own_defaults_and_the_keys_replace_them() -> None:
    assert (FinetuneSection().rate, FinetuneSection().decay) == (0.01, 1e-4)
    adamw = FinetuneSection(optimizer="adamw")
    assert (adamw.rate, adamw.decay) == (0.001, 0.01)
    given = FinetuneSection(optimizer="adamw", learning_rate=0.5, weight_decay=0.0)
    assert (given.rate, given.decay) == (0.5, 0.0)


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_the_project_chooses_the_optimiser_and_its_weight_decay(
    name: str, kind: type[torch.optim.Optimizer], known: Project
) -> None:
    chosen = with_settings(known, optimizer=name, learning_rate=0.003, weight_decay=0.02)
    trainer = training._Trainer(course(chosen), Networks(*pruned(known)), torch.device("cpu"))
    (group,) = trainer.optimiser.param_groups
    assert type(trainer.optimiser) is kind and (group["lr"], group["weight_decay"]) == (0.003, 0.02)


def test_a_second_training_reuses_the_teachers_outputs_and_gives_the_same_network(
    known: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, teacher = pruned(known)
    calls: list[int] = []
    teacher.register_forward_hook(lambda *_: calls.append(1))
    first = train(known, tmp_path / "a", networks=Networks(copy.deepcopy(small), teacher))
    taught = len(calls)
    again = train(known, tmp_path / "b", networks=Networks(copy.deepcopy(small), teacher))
    assert len(calls) - taught < taught / 2  # a trial of the memory layout calls copies
    monkeypatch.setattr(training, "LIMITS", replace(training.LIMITS, teacher_bytes=0))
    training._KNOWN.pop(teacher)
    alone = train(known, tmp_path / "c", networks=Networks(copy.deepcopy(small), teacher))
    assert not training._KNOWN[teacher].by_batch
    for other in (again, alone):
        pairs = zip(first.model.state_dict().values(), other.model.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_batches_with_other_values_shapes_or_types_are_others() -> None:
    one = torch.arange(4.0)
    others = [one + 1, one.reshape(2, 2), one.to(torch.float64)]
    assert len({training._content((x,)) for x in (one, one.clone(), *others)}) == 4
    assert training._content((torch.tensor(True),)) != training._content((torch.tensor(False),))
