"""Samples without labels: the original network's outputs are the targets, and reports say agreement."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import edgeprune
from edgeprune.errors import UsageError
from edgeprune.frontends.agreement import BATCH
from edgeprune.frontends.data import Loss, Metric, Split
from edgeprune.frontends.dataset import examine
from edgeprune.frontends.model import Network
from edgeprune.frontends.samples import Samples
from edgeprune.frontends.toml import read_project
from edgeprune.frontends.trial import Checker
from edgeprune.limits import LIMITS
from edgeprune.network.importance.gradients import fisher, taylor
from edgeprune.network.outputs import tensors
from edgeprune.network.survey import survey
from edgeprune.records import Figures, Outcome, Project, Report, Result
from edgeprune.reports.ci import junit
from edgeprune.reports.html import html
from edgeprune.stages.verdicts import verdict
from edgeprune.storage import codec

MODULE = """
import torch
from torch import nn
def build():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
def inputs():
    return (torch.zeros(1, 4),)
def batches():
    return [(torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64))]
def loss(outputs, targets):
    return (outputs - targets).abs().mean()
def closeness(outputs, targets):
    return 1 - float((outputs - targets).abs().mean())
"""
FILE = """
[model]
factory = "m:build"
inputs = "m:inputs"
[data]
samples = "*.npy"
[budget]
latency = "50%"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project whose only data is a file of 100 samples."""
    (tmp_path / "m.py").write_text(MODULE)
    (tmp_path / "edgeprune.toml").write_text(FILE)
    np.save(tmp_path / "many.npy", rows(100))
    return tmp_path


def rows(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, *(shape or (4,)))).astype("float32")


def project_of(folder: Path, data: str = "", **replaced: str) -> Project:
    text = FILE
    for old, new in replaced.items():
        text = "\n".join(new if line.startswith(f"{old} =") else line for line in text.splitlines())
    (folder / "edgeprune.toml").write_text(text.replace("[budget]", f"{data}\n[budget]"))
    return read_project(folder / "edgeprune.toml")


def of_objects(model: nn.Module, samples: Any, inputs: Any = None, **options: Any) -> Project:
    given = torch.zeros(1, 4) if inputs is None else inputs
    return edgeprune.Project(model, given, samples=samples, **options).record


def read(project: Project, name: Any) -> tuple[Tensor, Tensor]:
    """All inputs and all targets of a split."""
    batches = list(Split(project, name))
    return torch.cat([inputs[0] for inputs, _ in batches]), torch.cat([targets for _, targets in batches])


def measured(project: Project, outputs: Any, name: Any = "valid") -> float:
    """The metric of these outputs for a split."""
    network = Network(project)
    return Metric(project, network.structure)(outputs, read(project, name)[1])


# ---------------------------------------------------------------------------------------------------- splits, targets


def test_each_sample_is_in_one_split_and_splits_are_the_same_in_every_process(folder: Path) -> None:
    splits = [read(project_of(folder), name)[0] for name in ("train", "valid", "test")]
    assert [len(split) for split in splits] == [60, 20, 20]
    together = torch.cat(splits).numpy()
    assert sorted(map(tuple, together)) == sorted(map(tuple, rows(100)))
    np.testing.assert_array_equal(splits[2].numpy(), rows(100)[np.random.default_rng(0).permutation(100)[80:]])


def test_targets_are_what_the_original_network_returns(folder: Path) -> None:
    project = project_of(folder)
    inputs, targets = read(project, "train")
    with torch.no_grad():
        torch.testing.assert_close(targets, Network(project).module(inputs))


def test_training_is_shuffled_by_the_epoch_and_its_targets_stay_the_same_numbers(folder: Path) -> None:
    split = Split(project_of(folder), "train")
    found = []
    for epoch in (0, 1, 1):
        with split.repeatable(0, epoch):
            batches = list(split)
        found.append((torch.cat([x for (x,), _ in batches]), torch.cat([y for _, y in batches])))
    (first, _), (second, targets), (again, repeated) = found
    assert not torch.equal(first, second) and torch.equal(second, again) and torch.equal(targets, repeated)


def test_targets_do_not_depend_on_the_order_in_which_they_are_first_read(folder: Path) -> None:
    def after(epochs: tuple[int, ...]) -> Tensor:
        (folder / "many.npy").touch()  # as if in another process
        split = Split(project_of(folder), "train")
        for epoch in epochs:
            split.set_epoch(epoch)
            found = torch.cat([y for _, y in split])
        return found

    assert torch.equal(after((0, 1, 2)), after((2,)))


def test_a_target_follows_from_weights_preprocessing_and_seed_which_are_in_the_key(folder: Path) -> None:
    from safetensors.torch import save_file

    from edgeprune.frontends.callables import state

    def sources(data: str = "", **replaced: str) -> dict[str, dict[str, str]]:
        given = project_of(folder, data, **replaced).data
        return {name: dict(getattr(given, name).sources()) for name in ("train", "valid", "test", "loss", "metric")}

    weights = 'inputs = "m:inputs"\nweights = "w.safetensors"'
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    save_file(dict(state(model)), folder / "w.safetensors")
    first = sources(inputs=weights)
    save_file({name: 2 * tensor for name, tensor in state(model)}, folder / "w.safetensors")
    second = sources(inputs=weights)
    scaled, seeded = sources("[preprocess]\nmean = [0.0]\nstd = [2.0]\n"), sources("[finetune]\nseed = 3\n")
    for one, other in ((first, second), (scaled, sources()), (seeded, sources())):
        assert all(one[name] != other[name] for name in one)


def test_a_digest_reads_the_samples_and_computes_no_target(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeprune.frontends.agreement import Original

    def never(*_: object) -> Tensor:
        raise AssertionError("a target was computed")

    monkeypatch.setattr(Original, "targets", never)
    before = Samples(project_of(folder), folder / "runs").digest("train")
    assert Samples(project_of(folder), folder / "runs").digest("train") == before
    np.save(folder / "many.npy", rows(100, seed=1))
    assert Samples(project_of(folder), folder / "runs").digest("train") != before


def test_a_run_that_reuses_everything_imports_no_torch(folder: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; from pathlib import Path;"
        "from edgeprune.frontends.samples import Samples; from edgeprune.frontends.toml import read_project;"
        f"folder = Path({str(folder)!r}); project = read_project(folder / 'edgeprune.toml');"
        "print(Samples(project, folder / 'runs').digest('train'), len(project.data.loss.sources()))"
    )
    digest = Samples(project_of(folder), folder / "runs").digest("train")
    again = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert again.stdout.split() == [digest, "3"], again.stderr


def test_a_new_file_in_the_folder_is_noticed(folder: Path) -> None:
    before = Samples(project_of(folder), folder / "runs").digest("valid")
    np.save(folder / "more.npy", rows(50, seed=1))
    assert Samples(project_of(folder), folder / "runs").digest("valid") != before


# ---------------------------------------------------------------------------------------------------------- agreement


def test_scores_of_classes_agree_if_their_largest_is_the_same(folder: Path) -> None:
    project = project_of(folder)
    _, targets = read(project, "valid")
    assert measured(project, targets) == 1.0
    assert measured(project, 100 + 3 * targets) == 1.0
    changed = targets.clone()
    changed[:5] = -changed[:5]  # the largest becomes the smallest
    assert measured(project, changed) == pytest.approx(15 / 20)


def test_numbers_agree_by_the_share_of_the_variance_that_they_explain() -> None:
    model = nn.Conv1d(1, 2, 3, padding=1)
    project = of_objects(model, rows(100, 1, 6), torch.zeros(1, 1, 6))
    inputs, targets = read(project, "valid")
    with torch.no_grad():
        exact = model(inputs)
    error = 0.1 * torch.randn(exact.shape, generator=torch.Generator().manual_seed(0))
    wanted = 1 - float(error.square().sum() / (targets - targets.mean(0)).square().sum())
    assert measured(project, exact) == pytest.approx(1.0)
    assert measured(project, exact + error) == pytest.approx(wanted, abs=1e-5)
    assert measured(project, exact.mean(0).expand_as(exact)) == pytest.approx(0, abs=1e-5)
    assert measured(project, -exact) == 0.0


class Two(nn.Module):
    """A network with two outputs and a number that is no real one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        scores = self.a(x)
        return {"boxes": self.b(x), "logits": scores, "best": scores.argmax(1)}


def test_all_real_outputs_count_alike() -> None:
    model = Two()
    project = of_objects(model, rows(100))
    inputs, targets = read(project, "valid")
    with torch.no_grad():
        boxes, logits, best = tensors(model(inputs))
    assert targets.shape == (20, 5)
    assert measured(project, [boxes, logits, best]) == pytest.approx(1.0)
    assert measured(project, [-boxes, logits, best]) == pytest.approx(0.5)
    lost = logits.clone()
    lost[:10] = -lost[:10]
    assert measured(project, [boxes, lost, best]) == pytest.approx(0.75)


def test_the_loss_is_a_distance_that_is_zero_for_the_original_network(folder: Path) -> None:
    for project in (project_of(folder), of_objects(Two(), rows(100))):
        inputs, targets = next(iter(Split(project, "train")))
        network = Network(project)
        loss = Loss(project, network.structure)
        outputs = network.module.train()(inputs[0])
        assert loss.of_training(outputs, targets).item() == pytest.approx(0, abs=1e-6)
        shifted = [tensor + torch.arange(float(tensor.shape[1])) for tensor in tensors(outputs)[:2]]
        shifted += tensors(outputs)[2:]
        assert loss(shifted if len(shifted) > 1 else shifted[0], targets).item() > 0.01


def test_probabilities_are_compared_as_probabilities() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Softmax(1))
    project = of_objects(model, rows(100))
    _, targets = read(project, "train")
    wrong = targets.flip(1)
    wanted = (targets * (targets.log() - wrong.log())).sum(1).mean()
    assert Loss(project, Network(project).structure).of_training(wrong, targets).item() == pytest.approx(float(wanted))


@pytest.mark.parametrize("model", [nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), nn.Conv1d(1, 2, 3)])
def test_importance_has_a_gradient_at_the_original_network_and_training_has_none(model: nn.Module) -> None:
    shape = (4,) if isinstance(model, nn.Sequential) else (1, 6)
    project = of_objects(model, rows(100, *shape), torch.zeros(1, *shape))
    inputs, targets = next(iter(Split(project, "train")))
    network = Network(project)
    loss = Loss(project, network.structure)
    parameters = list(network.module.parameters())

    def steepness(value: Tensor) -> float:
        return max(float(g.abs().max()) for g in torch.autograd.grad(value, parameters))

    outputs = network.module(*inputs)
    assert steepness(loss.of_training(outputs, targets)) < 1e-5
    value = loss(network.module(*inputs), targets)
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert steepness(value) > 1e-3


@pytest.mark.parametrize("criterion", [taylor, fisher])
def test_gradient_criteria_rank_channels_without_labels(criterion: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    with torch.no_grad():
        model[2].weight[:, 2] = 0  # nothing depends on unit 2
    project = of_objects(model, rows(200))
    network = Network(project)
    groups = survey(network.module, network.inputs)
    scores = criterion(network.module, groups, Split(project, "train"), Loss(project, network.structure))
    (units,) = (units for units in scores.units.values() if len(units) == 6)
    assert min(range(6), key=units.__getitem__) == 2 and max(units) > 1e3 * units[2]


def test_a_network_that_takes_one_batch_size_is_called_with_it(folder: Path) -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.reshape(2, 4))

    project = of_objects(Fixed(), rows(101), torch.zeros(2, 4))
    assert {len(targets) for _, targets in Split(project, "train")} == {2}
    assert {len(targets) for _, targets in Split(project_of(folder), "train")} == {BATCH, 60 - BATCH}


def test_outputs_over_the_cap_are_computed_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = read(project_of(folder), "valid")
    (folder / "many.npy").touch()
    monkeypatch.setattr("edgeprune.frontends.agreement.LIMITS", replace(LIMITS, unlabelled_kept_bytes=0))
    again = read(project_of(folder), "valid")
    torch.testing.assert_close(again, kept)


# ------------------------------------------------------------------------------------------------ the project's keys


def test_splits_of_the_user_and_samples_exclude_each_other(folder: Path) -> None:
    for key in ("train", "valid", "test"):
        with pytest.raises(UsageError, match=rf"\[data\] samples and {key} exclude each other; keep samples"):
            project_of(folder, f'{key} = "m:batches"')
    with pytest.raises(UsageError, match="samples and batch_dims exclude each other"):
        project_of(folder, "batch_dims = [1, 0]")
    with pytest.raises(UsageError, match=r"\[data\] valid is missing; add it: .*samples without labels"):
        project_of(folder, samples='train = "m:batches"')


def test_the_users_loss_and_metric_get_the_original_networks_outputs(folder: Path) -> None:
    project = project_of(folder, 'loss = "m:loss"\nmetric = "m:closeness"')
    _, targets = read(project, "valid")
    assert measured(project, targets + 0.5) == pytest.approx(0.5)
    metric = Metric(project, Network(project).structure)
    assert not metric.is_agreement and metric.name == "metric"
    assert Loss(project).of_training(targets + 0.25, targets).item() == pytest.approx(0.25)


def test_too_few_samples_are_one_line_with_the_least_number(folder: Path) -> None:
    np.save(folder / "many.npy", rows(19))
    with pytest.raises(UsageError, match=r"\[data\] samples = '\*\.npy' gives 19 samples; give at least 20"):
        Split(project_of(folder), "train")


def test_a_model_without_real_outputs_cannot_be_compared() -> None:
    class Best(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.argmax(1)

    with pytest.raises(UsageError, match="returns no real numbers to compare; return logits"):
        Split(of_objects(Best(), rows(100)), "valid")


def test_objects_may_be_an_array_a_list_or_a_pattern(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, given = nn.Linear(4, 3), rows(40)
    monkeypatch.chdir(folder)
    np.save("few.npy", given)
    forms: list[Any] = [
        given,
        torch.from_numpy(given),
        list(given),
        [x[None] for x in given],
        "few.npy",
        Path("few.npy"),
    ]
    found = [read(of_objects(model, form), "valid")[0] for form in forms]
    assert all(torch.equal(one, found[0]) for one in found)
    changed = given.copy()
    project = of_objects(model, changed)
    changed[:] = 0
    assert torch.equal(read(project, "valid")[0], found[0])


def test_several_inputs_are_given_by_name_or_in_order() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.fc(a) + b

    a, b = rows(40), rows(40, 3, seed=1)
    example = {"a": torch.zeros(1, 4), "b": torch.zeros(1, 3)}
    by_name = of_objects(Sum(), {"b": b, "a": a}, example)
    in_order = of_objects(Sum(), (a, b), tuple(example.values()))
    for project in (by_name, in_order):
        ((x, y), _), *_ = Split(project, "valid")
        assert x.shape[1:] == (4,) and y.shape[1:] == (3,)
    with pytest.raises(UsageError, match="gives 1 inputs, and the model takes 2"):
        Split(of_objects(Sum(), a, example), "valid")


# ------------------------------------------------------------------------------------------------------------ reports


def test_checks_and_tables_say_agreement() -> None:
    name = "agreement with the original"
    check = verdict.metric_drop(1.0, 0.98, 0.01, "on 20 samples", name)
    assert (check.name, check.outcome) == ("agreement_drop", Outcome.FAIL)
    assert check.note == f"{name}: on 20 samples"
    plain = verdict.metric_drop(0.9, 0.9, 0.01, "on 20 samples")
    assert (plain.name, plain.note) == ("metric_drop", "on 20 samples")


def test_the_table_of_a_run_and_a_report_for_ci_name_the_agreement() -> None:
    figures = Figures(1.0, 1.1, 1.0, 1, 1, 1, 1)
    check = verdict.metric_drop(1.0, 0.9, 0.01, "on 20 samples", "agreement with the original")
    result = Result(
        *(1, Outcome.FAIL, "local", "onnxruntime", "fp32", False, False, None, None, None, 0),
        *("agreement with the original", figures, figures, None, (check,), Path("a"), Path("b"), Path("c")),
    )
    assert re.search(r"agreement with the original +1\.0000 +1\.0000", html(result))
    assert '"metric_name": "agreement with the original"' in codec.dumps(result)
    report = Report("p", "local", "0" * 64, (check,), "")
    assert 'name="agreement_drop"' in junit([report]) and "agreement with the original: on 20 samples" in junit(
        [report]
    )


def test_the_trial_passes_and_only_a_network_that_always_answers_the_same_is_remarked_on() -> None:
    def remarks(model: nn.Module) -> list[str]:
        project = of_objects(model, rows(100))
        network = Network(project)
        checker, metric = Checker(network, project), Metric(project, network.structure)
        checker.first(scored=True, trained=True)
        checker.data()
        inputs, targets = read(project, "valid")
        with torch.no_grad():
            outputs = [network.module(inputs)]
        return list(checker.remarks(metric, metric(outputs, targets), outputs, targets))

    assert remarks(nn.Linear(4, 3)) == []
    constant = nn.Linear(4, 3)
    with torch.no_grad():
        constant.bias[1] = 100.0
    (remark,) = remarks(constant)
    assert "Project(samples=...)" in remark and "answers nearly the same for all samples" in remark


def test_doctor_examines_samples_without_labels(folder: Path) -> None:
    found = [finding.what for finding in examine(project_of(folder)) if finding.level == "ok"]
    assert found == ["[data] train: 60 samples", "[data] valid: 20 samples", "[data] test: 20 samples"]


def test_samples_that_repeat_the_same_numbers_have_an_agreement() -> None:
    model = nn.Conv1d(1, 2, 3)
    project = of_objects(model, np.ones((40, 1, 6), "float32"), torch.zeros(1, 1, 6))
    _, targets = read(project, "valid")
    assert measured(project, targets.reshape(-1, 2, 4)) == pytest.approx(1.0)
    assert math.isfinite(Loss(project, Network(project).structure).of_training(0 * targets.reshape(-1, 2, 4), targets))
