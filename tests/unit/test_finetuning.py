"""Training is repeatable, goes on exactly where it stopped, and keeps the best epoch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from edgeprune.errors import UsageError
from edgeprune.frontends import toml
from edgeprune.frontends import user_code as user
from edgeprune.graph import groups as graph
from edgeprune.network import surgery as network
from edgeprune.records import Epoch, Project
from edgeprune.stages import finetune as finetuning
from edgeprune.stages import parallel


class Killed(Exception):
    """Stands for the end of the process."""


def save(path: Path, write: Callable[[Path], None]) -> None:
    write(path)


def cut(project: Project) -> tuple[torch.nn.Module, torch.nn.Module]:
    model = user.build_model(project)
    inputs = user.example_inputs(project)
    groups = network.survey(model, inputs)
    return network.cut(model, graph.recipe(groups, {"a": range(8), "b": range(16)}), inputs), model


def train(project: Project, checkpoint: Path, on_epoch: Callable[[Epoch], None] = lambda e: None) -> finetuning.Tuned:
    small, teacher = cut(project)
    return finetuning.finetune(project, small, teacher, checkpoint, save, on_epoch)


@pytest.fixture
def known(project: Path) -> Project:
    return replace(toml.read_project(project), epochs=3)


def test_the_same_seed_gives_the_same_network(known: Project, tmp_path: Path) -> None:
    first, second = train(known, tmp_path / "1"), train(known, tmp_path / "2")
    assert first.history == second.history
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True))


@pytest.mark.parametrize(("last", "ema"), [(1, None), (2, None), (2, 0.9)])
def test_a_run_killed_after_an_epoch_ends_as_if_it_had_not_been(
    last: int, ema: float | None, known: Project, tmp_path: Path
) -> None:
    known = replace(known, ema=ema)

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


def test_with_a_moving_average_that_is_what_is_measured_and_kept(known: Project) -> None:
    trainer = finetuning._Trainer(replace(known, ema=0.9), *cut(known), torch.device("cpu"))
    trainer.train(1)
    trainer.record(1.0)
    assert trainer.averaged is not None
    average = trainer.averaged.module.state_dict()
    assert all(torch.equal(tensor, average[name]) for name, tensor in trainer.best_state.items())
    assert not torch.equal(average["fc.weight"], trainer.model.state_dict()["fc.weight"])


def test_a_moving_average_forgets_where_it_began() -> None:
    kept, new = [torch.tensor([100.0]), torch.tensor([7])], [torch.tensor([1.0]), torch.tensor([9])]
    for count in range(1, 60):
        finetuning._moving(0.999)(kept, new, count)
    assert kept[0].item() == pytest.approx(1.0, abs=0.01) and kept[1].item() == 9


def test_the_best_epoch_is_kept(known: Project, tmp_path: Path) -> None:
    found = train(known, tmp_path / "c")
    assert found.best.metric == max(epoch.metric for epoch in found.history)
    assert finetuning.evaluate(known, found.model, "valid") == found.best.metric
    assert [epoch.epoch for epoch in found.history] == [0, 1, 2, 3]


def test_epoch_0_is_the_best_that_is_known_without_training(known: Project, tmp_path: Path) -> None:
    small, teacher = cut(known)
    with torch.no_grad():
        small.fc.weight.zero_()
    untrained, _ = cut(known)
    slow = replace(known, learning_rate=1e-9)  # nothing is learnt from so far away
    found = finetuning.finetune(slow, small, teacher, tmp_path / "c", save, lambda epoch: None, untrained)
    assert found.best.epoch == 0 and found.best.metric == finetuning.evaluate(known, cut(known)[0], "valid")
    assert all(torch.equal(a, b) for a, b in zip(found.model.parameters(), cut(known)[0].parameters(), strict=True))
    again, _ = cut(known)
    trained = finetuning.finetune(known, again, teacher, tmp_path / "d", save, lambda epoch: None, small)
    assert trained.history[1:] == train(known, tmp_path / "e").history[1:]  # what is trained is the other


def test_a_loss_that_turns_nan_later_keeps_the_epochs_before(
    known: Project, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = known.path.with_name("blobs.py")
    calls = "\ncalls = []\ndef loss(outputs, targets):\n    calls.append(1)\n"
    scaled = "    return nn.functional.cross_entropy(outputs, targets) * (float('nan') if len(calls) > 8 else 1)\n"
    module.write_text(module.read_text() + calls + scaled)
    found = train(replace(known, loss="blobs:loss"), tmp_path / "c")
    assert [epoch.epoch for epoch in found.history] == [0, 1]
    assert "epoch 2, batch 0" in caplog.text
    assert all(torch.isfinite(parameter).all() for parameter in found.model.parameters())


def test_the_teacher_is_left_alone(known: Project, tmp_path: Path) -> None:
    small, teacher = cut(known)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    finetuning.finetune(known, small, teacher, tmp_path / "c", save, lambda epoch: None)
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())


def test_more_processes_than_gpus_are_refused_with_how_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert parallel.device() == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(UsageError, match="--nproc-per-node 1"):
        parallel.device()
