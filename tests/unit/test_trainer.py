"""The user's function trains: what it gets, what it must return, and what is kept."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from edgeprune.errors import UsageError
from edgeprune.frontends import toml
from edgeprune.frontends.data import Loss, Metric, Split
from edgeprune.frontends.functions import FileFunction
from edgeprune.frontends.model import build_model
from edgeprune.network.cut import sliced
from edgeprune.pipeline.request import Request, request
from edgeprune.pipeline.run import open_run
from edgeprune.records import Epoch, Project
from edgeprune.stages import finetune, trainer, training
from edgeprune.stages.registry import RULES
from edgeprune.stages.training import Networks

KEPT = {
    "a.weight": {0: range(8)},
    **{f"bn.{name}": {0: range(8)} for name in ("weight", "bias", "running_mean", "running_var")},
    "b.weight": {1: range(8)},
}
TRAINED = """
    optimiser = torch.optim.AdamW(model.parameters(), 0.01)
    for epoch in range(3):
        for done, (inputs, targets) in enumerate(data.train):
            loss = data.loss(model(*inputs), targets)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        data.report(epoch + 1, 3, f"{data.evaluate(model):.2f}")
    return model
"""


@pytest.fixture
def known(project: Path) -> Project:
    return toml.read_project(project)


def networks(project: Project) -> Networks:
    """The original network, and the pruned one, whose last layer is zero: it is at chance without training."""
    original = build_model(project)
    small = sliced(original, {name: {dim: tuple(kept) for dim, kept in dims.items()} for name, dims in KEPT.items()})
    with torch.no_grad():
        small.fc.weight.zero_()
    untrained = sliced(small, {})
    return Networks(small, original, untrained)


def call(
    project: Project, given: Networks, folder: Path, steps: Callable[..., None] = print
) -> tuple[nn.Module, tuple[Epoch, ...]]:
    """Train with `train` of mine.py."""
    function = FileFunction(project.path, "[finetune] trainer", "mine:train")
    splits = (trainer.Batches(Split(project, name)) for name in ("train", "valid"))
    data = trainer.Data(*splits, Loss(project).of_training, Metric(project), 0, folder, steps)
    return trainer.train(function, given, data)


def trained(
    project: Project, body: str, folder: Path, given: Networks | None = None, steps: Callable[..., None] = print
) -> tuple[nn.Module, tuple[Epoch, ...]]:
    """Train with a function of this body."""
    project.path.with_name("mine.py").write_text(f"import torch\ndef train(model, original, data):{body}")
    return call(project, given or networks(project), folder, steps)


def test_the_function_trains_the_pruned_network_and_the_metric_compares_it_with_the_untrained(
    known: Project, tmp_path: Path
) -> None:
    steps: list[tuple[int, int, str]] = []
    model, (before, after) = trained(known, TRAINED, tmp_path, steps=lambda *step: steps.append(step))
    assert after.metric > before.metric + 0.3
    assert training.evaluate(model, Metric(known), Split(known, "valid")) == after.metric
    assert model.a.out_channels == 8 and not model.training
    assert [step[:2] for step in steps] == [(1, 3), (2, 3), (3, 3)]


def test_a_trained_network_that_is_worse_is_not_kept(
    known: Project, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = networks(known)
    untrained = trained(known, TRAINED, tmp_path)[0]
    worse = "\n    model.fc.weight.data.zero_()\n    return model\n"
    model, (before, after) = trained(known, worse, tmp_path, replace(good, untrained=untrained))
    assert after.metric < before.metric and "the untrained network is kept" in caplog.text
    assert torch.equal(model.fc.weight, untrained.fc.weight)


def test_the_function_gets_a_model_to_train_a_frozen_original_and_data_of_known_length(
    known: Project, tmp_path: Path
) -> None:
    body = """
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert not original.training and not any(p.requires_grad for p in original.parameters())
    assert original.a.out_channels == 16 and model.a.out_channels == 8
    assert (len(data.train), len(data.valid), data.seed) == (8, 3, 0)
    (images,), labels = next(iter(data.valid))
    assert images.shape == (32, 1, 24, 24) and labels.shape == (32,)
    assert data.metric(original(images), labels) > 0.5
    data.evaluate(model)
    assert model.training
    original.a.weight.data.zero_()
    return model
"""
    given = networks(known)
    before = given.original.a.weight.clone()
    trained(known, body, tmp_path, given)
    assert torch.equal(given.original.a.weight, before)
    assert all(parameter.requires_grad for parameter in given.original.parameters())


def test_a_wrapper_of_the_model_may_be_returned(known: Project, tmp_path: Path) -> None:
    wrapped = TRAINED.replace("return model", "return torch.nn.Sequential(torch.nn.DataParallel(model))")
    model, (before, after) = trained(known, wrapped, tmp_path)
    assert after.metric > before.metric + 0.3 and type(model).__name__ == "Net"


def test_random_numbers_of_the_function_follow_from_the_seed(known: Project, tmp_path: Path) -> None:
    drawn = []
    for _ in range(2):
        trained(known, "\n    (data.folder / 'drawn').write_text(str(torch.rand(4)))\n    return model\n", tmp_path)
        drawn.append((tmp_path / "drawn").read_text())
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("\n    return None\n", r"trainer = 'mine:train' returns None; return the trained model"),
        (
            "\n    return original\n",
            r"the returned model: a\.weight has the shape \(16, 1, 3, 3\) instead of \(8, 1, 3, 3\), bn\.weight .* and 3 more"
            r".*the model that was given",
        ),
        ("\n    model.bn = torch.nn.Identity()\n    return model\n", r"lacks bn\.weight, bn\.bias, bn\.running_mean"),
        ("\n    model.x = torch.nn.Linear(1, 1)\n    return model\n", r"has x\.weight, x\.bias, which the model lacks"),
        ("\n    model.fc.bias.data[0] = float('nan')\n    return model\n", r"tensor fc\.bias holds NaN or infinity"),
        ("\n    x = 1\n    raise KeyError('batch')\n", r"mine:train' raises KeyError: 'batch' \(mine\.py, line 4\)"),
    ],
)
def test_a_trainer_that_fails_or_returns_something_else_is_one_line(
    body: str, message: str, known: Project, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        trained(known, body, tmp_path)
    assert str(caught.value).startswith(f"{known.path}: [finetune] trainer") and "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------- the stage


def with_trainer(project: Path, body: str) -> Request:
    project.with_name("mine.py").write_text(f"import torch\ndef train(model, original, data):{body}")
    text = project.read_text().replace("epochs = 2\nlearning_rate = 0.02\n", 'trainer = "mine:train"\n')
    project.write_text(text)
    return request(project)


def settings(asked: Request) -> str:
    with open_run(asked, RULES) as run:
        return run.settings(RULES.stages["finetune"])


def test_the_key_of_training_covers_the_trainer_s_source(project: Path) -> None:
    without = settings(request(project))
    first = settings(with_trainer(project, TRAINED))
    assert first != without and settings(request(project)) == first
    project.with_name("mine.py").write_text("def train(model, original, data):\n    return model\n")
    assert settings(request(project)) != first


def test_a_trainer_that_is_not_there_is_found_before_a_device_is_used(project: Path) -> None:
    asked = with_trainer(project, TRAINED)
    project.with_name("mine.py").write_text("")
    with open_run(asked, RULES) as run, pytest.raises(UsageError, match="module mine has no function train"):
        run.value("trial")


def test_torchrun_does_not_start_a_trainer(project: Path) -> None:
    known = with_trainer(project, TRAINED).project
    with pytest.raises(UsageError, match=r"\[finetune\] trainer.*without torchrun"):
        finetune.follow(known)


# ------------------------------------------------------------------------------------------------- given weights


def test_the_key_of_training_covers_given_weights_by_their_content(project: Path) -> None:
    mine = project.with_name("mine.safetensors")
    found = []
    for content in (b"a", b"b", b"a"):
        mine.write_bytes(content)
        found.append(settings(request(project, weights=mine)))
    assert found[0] == found[2] != found[1] and settings(request(project)) not in found


def test_weights_that_cannot_be_used_are_refused_at_once(project: Path) -> None:
    with pytest.raises(UsageError, match="--weights no is not a file"):
        request(project, weights="no")
    project.write_text(project.read_text().replace('latency = "60%"\n', ""))
    with pytest.raises(UsageError, match=r"\[budget\] latency is missing, so nothing is pruned.*\[model\] weights"):
        request(project, weights=project.with_name("blobs.safetensors"))


def test_without_a_budget_no_stage_of_pruning_is_read(project: Path) -> None:
    project.write_text(project.read_text().replace('latency = "60%"\n', ""))
    with open_run(request(project), RULES) as run:
        assert set(run.value("groups").full()) == {group.name for group in run.value("groups").groups if group.locked}
        final = run.value("final")
        assert final.tuned is None and final.module is run.value("network").module
        for stage in ("plan", "finetune"):
            with pytest.raises(UsageError, match=r"\[budget\] latency is missing, so nothing is pruned"):
                run.value(stage)
        assert run.device is None  # not even identified


# ---------------------------------------------------------------------------------------------------- the examples

DOCUMENT = Path(__file__).parents[2] / "docs" / "training.md"


def example(number: int) -> str:
    """The code of an example in docs/training.md."""
    return re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.S)[number]


def of_example(project: Project, number: int, folder: Path) -> tuple[Epoch, ...]:
    project.path.with_name("mine.py").write_text(example(number).replace("1e-3", "1e-2"))
    return call(project, networks(project), folder)[1]


def test_the_documented_loop_trains(known: Project, tmp_path: Path) -> None:
    before, after = of_example(known, 0, tmp_path)
    assert after.metric > before.metric + 0.3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the packages
@pytest.mark.parametrize(
    ("packages", "number", "saved"),
    [(("lightning",), 1, "last.ckpt"), (("transformers", "accelerate"), 2, "checkpoint-24")],
)
def test_the_documented_trainers_train_and_resume(
    packages: tuple[str, ...], number: int, saved: str, known: Project, tmp_path: Path
) -> None:
    for package in packages:
        pytest.importorskip(package)
    before, after = of_example(known, number, tmp_path)
    assert after.metric > before.metric + 0.3
    assert (tmp_path / saved).exists()
    assert of_example(known, number, tmp_path)[1] == after
