"""A project that is made of Python objects: its keywords, what it copies, and what its errors name."""

from __future__ import annotations

import copy
import re
import threading
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import edgeprune
from edgeprune.api import verbs
from edgeprune.api.verbs import opened
from edgeprune.errors import UsageError
from edgeprune.frontends import objects
from edgeprune.frontends.data import Loss, Metric, Split
from edgeprune.frontends.model import build_model, example_inputs
from edgeprune.frontends.modelfile import FORMATS
from edgeprune.frontends.sections import ProjectFile
from edgeprune.frontends.toml import keys_of
from edgeprune.records import Budget, keyword
from edgeprune.records import Project as Record
from edgeprune.stages import trial

BATCHES = [(torch.ones(4, 3), torch.tensor([0, 1, 0, 1]))]


def accuracy(outputs: Tensor, targets: Tensor) -> float:
    return float((outputs.argmax(1) == targets).float().mean())


def record(model: nn.Module | None = None, **options: Any) -> Record:
    given = {"train": BATCHES, "valid": BATCHES, **options}
    return edgeprune.Project(nn.Linear(3, 2) if model is None else model, torch.zeros(1, 3), **given).record


def test_every_key_of_the_file_is_a_keyword_and_the_reverse() -> None:
    keys = {
        keyword(section, key) for section in keys_of(ProjectFile, ()) for key in keys_of(ProjectFile, (section, ""))
    }
    keys -= set(FORMATS)  # a project of objects has a model
    assert keys == {"model", "example_inputs", *objects.Options.__annotations__} - {"name", "folder"}


def test_every_keyword_is_documented() -> None:
    table = (Path(__file__).parents[2] / "docs" / "python.md").read_text()
    assert [name for name in objects.Options.__annotations__ if f"`{name}`" not in table] == []
    assert [
        name for name in objects.Options.__annotations__ if f"  {name}: " not in (objects.Options.__doc__ or "")
    ] == []


def test_every_keyword_arrives(tmp_path: Path) -> None:
    found = record(
        test=lambda: BATCHES,
        weights=tmp_path / "w.safetensors",
        budget="12 ms",
        max_metric_drop=0.5,
        mean=(0.0,),
        std=[1.0],
        scale=2,
        importance="taylor",
        lock=["head.*"],
        epochs=3,
        optimizer="adamw",
        learning_rate=0.1,
        weight_decay=0.0,
        ema=0.9,
        seed=7,
        check_budget=["p99 20 ms"],
        slowdown=0.1,
        name="small",
        folder=tmp_path / "here",
    )
    assert found.budget.latency == Budget.parse("12 ms") and found.budget.max_metric_drop == 0.5
    assert found.preprocess is not None and found.preprocess.factor == (2.0,)
    assert (found.prune.importance, found.prune.lock) == ("taylor", ("head.*",))
    tuned = found.finetune
    assert (tuned.epochs, tuned.optimizer, tuned.rate, tuned.decay, tuned.ema, tuned.seed) == (
        3,
        "adamw",
        0.1,
        0.0,
        0.9,
        7,
    )
    assert found.check.budget == (Budget.parse("p99 20 ms"),) and found.check.slowdown == 0.1
    assert (found.name, found.folder, found.model.weights) == ("small", tmp_path / "here", tmp_path / "w.safetensors")


def test_runs_are_kept_in_the_working_directory_under_the_model_s_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    project = edgeprune.Project(nn.Linear(3, 2), torch.zeros(1, 3), train=BATCHES, valid=BATCHES)
    assert project.record.folder == tmp_path / "edgeprune-runs" / "linear"
    assert repr(project) == f"Project('linear', runs in {str(project.record.folder)!r})"
    assert not project.record.folder.exists()


def test_a_file_and_objects_are_two_ways_to_one_project(project: Path) -> None:
    read = edgeprune.Project.read(project)
    assert read.record == edgeprune.Project.read(project.parent).record
    assert edgeprune.groups(read) == edgeprune.groups(project)


def test_the_user_s_model_and_inputs_stay_and_later_changes_of_them_do_not_count() -> None:
    model, inputs = nn.Sequential(nn.Linear(3, 2), nn.Dropout()), torch.zeros(1, 3)
    model.train()
    before = copy.deepcopy(model.state_dict())
    known = edgeprune.Project(model, inputs, train=BATCHES, valid=BATCHES).record
    sources = known.model.factory.sources()
    built = build_model(known)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.zero_()
    assert model.training and all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        model[0].weight.fill_(1.0)  # type: ignore[operator, union-attr]
    inputs += 1
    assert known.model.factory.sources() == sources
    assert torch.equal(build_model(known).state_dict()["0.weight"], before["0.weight"])
    assert not example_inputs(known)[0].any()


def test_loaders_or_functions_that_return_them_are_read() -> None:
    for train in (BATCHES, lambda: BATCHES, torch.utils.data.DataLoader([(torch.ones(3), 1)] * 4, batch_size=2)):  # type: ignore[arg-type, var-annotated]
        assert sum(len(targets) for _, targets in Split(record(train=train), "train")) == 4


def test_augment_is_a_function_of_the_inputs() -> None:
    ((inputs, _),) = Split(record(augment=nn.ReLU()), "train", augmented=True)
    assert torch.equal(inputs[0], BATCHES[0][0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trian": BATCHES}, r"Project has no keyword 'trian'; did you mean train\?"),
        ({"valid": None}, r"Project\(valid=\.\.\.\) is missing"),
        ({"train": None, "budget": "50%"}, r"Project\(train=\.\.\.\) is missing; pruning reads training data"),
        ({"epochs": "many"}, r"Project\(epochs=\.\.\.\) must be a whole number from 0 to 10000, not 'many'"),
        ({"optimizer": "lion"}, r'Project\(optimizer=\.\.\.\) must be "sgd" or "adamw", not \'lion\''),
        ({"budget": "5 apples"}, r"Project\(budget=\.\.\.\): cannot read the budget '5 apples'"),
        ({"check_budget": ["soon"]}, r"Project\(check_budget=\.\.\.\): cannot read the budget 'soon'"),
        ({"metric": 3}, r"Project\(metric=\.\.\.\) must be a function, and is of type int"),
        ({"mean": [0.0], "std": [1.0, 2.0]}, r"Project\(\.\.\.\): mean has 1 numbers, std 2"),
        ({"metric": accuracy, "closed_loop": accuracy}, r"Project\(\.\.\.\): metric and closed_loop exclude"),
        ({"name": "a b"}, r"Project\(name=\.\.\.\) must be of letters"),
    ],
)
def test_a_wrong_keyword_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        record(**options)
    assert "\n" not in str(raised.value)


def test_a_project_without_any_data_says_what_to_give() -> None:
    with pytest.raises(UsageError, match=r"^Project needs data: give train and valid, or samples without labels$"):
        edgeprune.Project(nn.Linear(3, 2), torch.zeros(1, 3))


def test_without_a_budget_no_training_data_is_needed(tmp_path: Path) -> None:
    project = edgeprune.Project(nn.Linear(3, 2), torch.zeros(1, 3), valid=BATCHES, augment=nn.ReLU(), folder=tmp_path)
    with opened(project) as run:
        assert run.record(trial.STAGE).samples == 4
    with pytest.raises(UsageError, match=r"train=\.\.\.\) is missing"), opened(project, budget="50%"):
        pass


def test_a_model_that_is_none_or_cannot_be_copied_is_named() -> None:
    given: dict[str, Any] = {
        "a str; return a torch.nn.Module": "resnet18",
        "the class ReLU; return a network of it: ReLU()": nn.ReLU,
        "parameter weight has no values (device meta); build the model on the CPU": nn.Linear(3, 2, device="meta"),
        "parameter weight has no shape yet; call the model once first": nn.LazyLinear(2),
        "return the torch.nn.Module that was exported": torch.export.export(nn.Linear(3, 2), (torch.zeros(1, 3),)),
    }
    for message, model in given.items():
        with pytest.raises(UsageError, match=rf"^Project\(model=\.\.\.\).*{re.escape(message)}$"):
            record(model)
    model = nn.Linear(3, 2)
    model.lock = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(UsageError, match=r"Project\(model=\.\.\.\): copy\.deepcopy\(model\) raises TypeError"):
        record(model)


def test_a_model_whose_parameters_are_all_frozen_is_named(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 2)).requires_grad_(False)
    project = edgeprune.Project(model, torch.zeros(1, 3), train=BATCHES, valid=BATCHES, folder=tmp_path, epochs=1)
    with (
        pytest.raises(UsageError, match=r"Project\(model=\.\.\.\): no parameter requires a gradient; call "),
        opened(project, budget="50%") as run,
    ):
        run.record(trial.STAGE)


def test_numbers_and_arrays_of_libraries_are_numbers_and_lists() -> None:
    found = record(epochs=np.int64(3), max_metric_drop=np.float64(0.5), mean=np.array([0.5]), std=torch.ones(1))
    assert (found.finetune.epochs, found.budget.max_metric_drop) == (3, 0.5)
    assert found.preprocess is not None and (found.preprocess.mean, found.preprocess.std) == ((0.5,), (1.0,))


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, torch.optim.swa_utils.AveragedModel])
def test_a_wrapper_does_not_name_the_project(wrap: Any) -> None:
    assert record(wrap(nn.Linear(3, 2))).name == "linear"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"buget": "50%"}, "there is no option 'buget'; did you mean budget?"),
        ({"budget": 0.5}, 'budget must be a text such as "12 ms" or "50%", not 0.5'),
        ({"budget": "50%", "patience": 15}, 'patience must be a text such as "15m", not 15'),
        ({"target": None}, "target must be a name or a path"),
        ({"target": ["local", 3]}, "target must be a name or a path"),
        ({"target": Path("nowhere.toml")}, "no target 'nowhere.toml'"),
    ],
)
def test_a_wrong_option_of_a_call_is_named(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    project = edgeprune.Project(nn.Linear(3, 2), torch.zeros(1, 3), train=BATCHES, valid=BATCHES, folder=tmp_path)
    with pytest.raises(UsageError, match=f"^{re.escape(message)}"):
        project.prune(**options)


def test_errors_of_the_user_s_objects_name_the_keyword_and_the_line() -> None:
    def failing(outputs: Tensor, targets: Tensor) -> Tensor:
        raise KeyError("no such label")

    known = record(loss=failing, metric=lambda outputs, targets: float("nan"), train=iter(BATCHES))
    with pytest.raises(UsageError, match=r"Project\(loss=\.\.\.\) raises KeyError: .*\(.*test_objects\.py, line \d+\)"):
        Loss(known)(torch.zeros(2, 2), torch.zeros(2))
    with pytest.raises(UsageError, match=r"Project\(metric=\.\.\.\) gives nan"):
        Metric(known)(torch.zeros(2, 2), torch.zeros(2))
    with pytest.raises(UsageError, match=r"Project\(train=\.\.\.\).*read once"):
        Split(known, "train")
    with pytest.raises(UsageError, match=r"Project\(test=\.\.\.\) is missing"):
        Split(known, "test")


def test_the_key_follows_the_functions_and_the_weights() -> None:
    def sources(**options: Any) -> list[object]:
        torch.manual_seed(0)
        known = record(**options)
        functions = [known.model.factory, known.model.inputs, known.data.train, known.data.metric, known.data.loss]
        return [function and (function.name, dict(function.sources())) for function in functions]

    def other(outputs: Tensor, targets: Tensor) -> float:
        return float((outputs.argmax(1) != targets).float().mean())

    assert sources(metric=accuracy) == sources(metric=accuracy)
    assert sources(metric=accuracy) != sources(metric=other)
    assert sources() != sources(model=nn.Linear(3, 2, bias=False))
    model = nn.Linear(3, 2)
    before = sources(model=model)
    with torch.no_grad():
        model.bias.zero_()
    assert sources(model=model) != before


def test_another_budget_replaces_the_project_s(tmp_path: Path) -> None:
    from edgeprune.pipeline.request import read_project

    project = edgeprune.Project(nn.Linear(3, 2), torch.zeros(1, 3), train=BATCHES, valid=BATCHES, budget="3 ms")
    assert read_project(project) is project.record
    assert read_project(project, "50%") == replace(
        project.record, budget=replace(project.record.budget, latency=Budget.parse("50%"))
    )


def test_the_generators_of_the_user_s_loaders_are_as_before_a_run() -> None:
    generator = torch.Generator().manual_seed(3)
    data: Any = torch.utils.data.DataLoader([(torch.ones(3), i % 2) for i in range(8)], 4, True, generator=generator)  # type: ignore[arg-type]
    before = generator.get_state()
    known = record(train=data)
    with objects.generators_restored(known):
        split = Split(known, "train")
        with split.repeatable(1, epoch=2):
            assert len(list(split)) == 2
        assert not torch.equal(generator.get_state(), before)
    assert torch.equal(generator.get_state(), before)


def test_compress_asks_for_a_budget() -> None:
    project = edgeprune.Project(nn.Linear(3, 2), torch.zeros(1, 3), train=BATCHES, valid=BATCHES)
    with pytest.raises(UsageError, match=r'compress needs a budget: compress\(budget="12 ms"\)'):
        project.compress()


def test_finish_uses_the_options_that_the_network_was_pruned_with(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    run: Any = SimpleNamespace(record=lambda stage: SimpleNamespace(start=Path("start")), request=SimpleNamespace())
    run.request.project = record()
    monkeypatch.setattr(verbs, "opened", lambda *given, **options: nullcontext(run))
    monkeypatch.setattr(verbs, "run", lambda project, target, **options: asked.update(options, target=target))
    project = edgeprune.Project(nn.Linear(3, 2), torch.zeros(1, 3), train=BATCHES, valid=BATCHES)
    pruned = project.prune("board", budget="40%", precision="int8")
    project.finish(pruned, nn.Linear(3, 2))
    assert (asked["target"], asked["budget"], asked["precision"]) == ("board", "40%", "int8")
