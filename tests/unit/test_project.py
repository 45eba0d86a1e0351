"""The user's code: where it is looked up, and what its data may be."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgeprune.errors import UsageError
from edgeprune.frontends import toml
from edgeprune.frontends.data import Metric, Split, _cross_entropy, _top1
from edgeprune.frontends.functions import FileFunction
from edgeprune.frontends.model import build_model, example_inputs
from edgeprune.frontends.trial import check_data
from edgeprune.records import Artifact, Budget, BudgetSection, DataSection, ModelSection, Preprocess, Project
from edgeprune.stages.training import evaluate
from edgeprune.stages.verdicts import accuracy

HEAD = "import torch\nfrom torch import nn\n"


def made(folder: Path, code: str = "", **changes: str) -> Project:
    """A project whose functions are all in `m.py`."""
    folder.mkdir(exist_ok=True)
    (folder / "m.py").write_text(HEAD + code)
    path = folder / "edgeprune.toml"

    def function(key: str, name: str) -> FileFunction:
        return FileFunction(path, key, name)

    names = {"train": "m:train", "valid": "m:valid", **changes}
    return Project(
        path=path,
        name="p",
        model=ModelSection(function("[model] factory", "m:build"), function("[model] inputs", "m:inputs")),
        data=DataSection(**{key: function(f"[data] {key}", name) for key, name in names.items()}),
        budget=BudgetSection(Budget(fraction=0.5)),
    )


def changed(project: Project, **names: str) -> Project:
    """The project with other functions of its data."""
    functions = {key: FileFunction(project.path, f"[data] {key}", name) for key, name in names.items()}
    return replace(project, data=replace(project.data, **functions))


def test_modules_of_one_name_in_two_projects_are_separate(tmp_path: Path) -> None:
    code = "import helper\ndef build():\n    from late import NAME\n    return helper.NAME + NAME\n"
    projects = [made(tmp_path / name, code) for name in "ab"]
    for project in projects:
        for module in ("helper", "late"):
            project.path.with_name(f"{module}.py").write_text(f"NAME = {project.path.parent.name!r}\n")
    before = list(sys.path)
    for project in (*projects, *projects):
        with project.model.factory.guarded():
            answer = project.model.factory.load()()
        assert answer == 2 * project.path.parent.name
    assert sys.path == before


def test_an_edited_module_is_read_again(tmp_path: Path) -> None:
    for width in (3, 4):  # as long as before and within a second: Python's own cache would not notice
        project = made(tmp_path / "a", f"def build():\n    return nn.Linear({width}, 1)\n")
        model = build_model(project)
        assert isinstance(model, nn.Linear) and model.in_features == width


def test_a_mask_that_was_not_made_permanent_is_reported(tmp_path: Path) -> None:
    code = "from torch.nn.utils import prune\ndef build():\n    return prune.l1_unstructured(nn.Linear(3, 1), 'weight', 0.5)\n"
    with pytest.raises(UsageError, match=r"weight is a computed tensor.*prune\.remove"):
        build_model(made(tmp_path / "a", code))


def test_packages_and_installed_modules(tmp_path: Path) -> None:
    project = made(tmp_path / "a")
    package = tmp_path / "a" / "garden"
    package.mkdir()
    (package / "__init__.py").write_text("from .deep import value\n")
    (package / "deep.py").write_text("from . import side\ndef value():\n    return side.NUMBER\n")
    (package / "side.py").write_text("NUMBER = 7\n")
    assert FileFunction(project.path, "k", "garden:value").load()() == 7
    assert FileFunction(project.path, "k", "garden.deep:value").load()() == 7
    assert FileFunction(project.path, "k", "os.path:join").load()("a", "b") == str(Path("a", "b"))


def test_an_error_names_the_user_s_own_line(tmp_path: Path) -> None:
    project = made(tmp_path / "a", "def build():\n    return torch.zeros(2) @ torch.zeros(3)\n")
    with pytest.raises(UsageError, match=r"m:build.*RuntimeError.*\(m\.py, line 4\)"):
        build_model(project)


def test_a_model_without_weights_is_the_same_every_time_and_leaves_the_random_numbers_alone(tmp_path: Path) -> None:
    project = made(tmp_path / "a", "def build():\n    return nn.Linear(2, 2)\n")
    state = torch.get_rng_state()
    first, second = (build_model(project).state_dict()["weight"] for _ in range(2))
    assert torch.equal(first, second) and torch.equal(torch.get_rng_state(), state)


def test_an_infinite_mask_is_a_valid_buffer(tmp_path: Path) -> None:
    code = (
        "class Masked(nn.Linear):\n"
        "    def __init__(self):\n"
        "        super().__init__(2, 2)\n"
        "        self.register_buffer('mask', torch.full((2, 2), float('-inf')))\n"
        "build = Masked\n"
    )
    assert build_model(made(tmp_path / "a", code))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("()", "tuple of tensors"),
        ("(1,)", "tuple of tensors"),
        ("(torch.zeros(()),)", "batch dimension"),
        ("(torch.zeros(0, 3),)", "empty"),
        ("(torch.zeros(1, 3), torch.zeros(2, 3))", "batch sizes"),
        ("(torch.full((1, 3), float('nan')),)", "NaN"),
    ],
)
def test_example_inputs(answer: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\[model\] inputs.*" + reason):
        example_inputs(made(tmp_path / "a", f"def inputs():\n    return {answer}\n"))


def test_batches_are_made_once_read_again_and_receive_the_epoch(tmp_path: Path) -> None:
    code = (
        "class Data:\n"
        "    made, epoch = 0, 0\n"
        "    def set_epoch(self, epoch):\n"
        "        self.epoch = epoch\n"
        "    def __iter__(self):\n"
        "        yield torch.full((2, 3), float(self.epoch)), torch.tensor([0, 1])\n"
        "        yield [torch.ones(1, 3), torch.ones(1)], torch.tensor([0])\n"
        "def train():\n"
        "    Data.made += 1\n"
        "    data = Data()\n"
        "    data.number = Data.made\n"
        "    return data\n"
    )
    project = made(tmp_path / "a", code)
    for epoch in (1, 2):
        batches = Split(project, "train")
        batches.set_epoch(epoch)
        for _ in range(2):
            (first, _), (second, _) = batches
            assert float(first[0][0, 0]) == epoch and len(first) == 1 and len(second) == 2
        assert batches._data.number == 1


def test_a_missing_batch_does_not_end_the_data_unseen(tmp_path: Path) -> None:
    batch = "(torch.zeros(1, 3), torch.tensor([0]))"
    project = made(tmp_path / "a", f"def train():\n    return [{batch}, None, {batch}]\n")
    with pytest.raises(UsageError, match="batch 1 is None"):
        list(Split(project, "train"))


def test_data_that_ends_early_is_reported(tmp_path: Path) -> None:
    code = (
        "class Once:\n"
        "    def __init__(self):\n"
        "        self.left = iter([(torch.zeros(1, 3), torch.tensor([0]))])\n"
        "    def __iter__(self):\n"
        "        return self.left\n"
        "train = Once\n"
    )
    batches = Split(made(tmp_path / "a", code), "train")
    assert len(list(batches)) == 1
    with pytest.raises(UsageError, match="only be read once"):
        list(batches)


def test_targets_of_another_loss_and_metric_are_not_checked(tmp_path: Path) -> None:
    code = (
        "def train():\n    return [(torch.zeros(2, 3), torch.tensor([0, 500]))]\n"
        "valid = train\n"
        "def near(outputs, targets):\n    return ((outputs[:, 0] - targets) ** 2).mean()\n"
    )
    model = nn.Linear(3, 1)
    with pytest.raises(UsageError, match="label 500"):
        check_data(model, made(tmp_path / "a", code))
    check_data(model, made(tmp_path / "b", code, loss="m:near", metric="m:near"))


def test_top_1_refuses_targets_of_another_shape() -> None:
    assert _top1(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([1, 1])) == 0.5
    one_hot: Tensor = torch.eye(2, dtype=torch.long)
    with pytest.raises(ValueError, match="do not fit"):
        _top1(torch.zeros(2, 2), one_hot)


def test_the_default_loss_takes_classes_of_any_integer_type_and_probabilities() -> None:
    outputs, classes = torch.tensor([[1.0, 2.0], [0.0, 3.0]]), torch.tensor([1, 0])
    wanted = nn.functional.cross_entropy(outputs, classes)
    for targets in (classes.int(), classes.to(torch.uint8), torch.eye(2)[classes]):
        assert _cross_entropy(outputs, targets) == pytest.approx(wanted)
    for targets in (classes[:, None], classes.float(), torch.eye(2, dtype=torch.long)):
        with pytest.raises(
            ValueError, match=r"do not fit targets .* of type .*; give each sample the number of its class"
        ):
            _cross_entropy(outputs, targets)


def test_preprocessing_must_fit_the_first_input(project: Path) -> None:
    known = replace(toml.read_project(project), preprocess=Preprocess((0.1, 0.2), (1.0, 1.0)))
    with pytest.raises(UsageError, match=r"\[preprocess\] mean has 2 numbers, and the first input has 1 channels"):
        example_inputs(known)


def test_preprocessing_is_part_of_the_model(project: Path) -> None:
    known = toml.read_project(project)
    (x,) = example_inputs(known)
    raw = 255 * torch.rand(x.shape)
    model = build_model(replace(known, preprocess=Preprocess((0.5,), (0.25,), 1 / 255)))
    assert torch.allclose(model(raw), build_model(known)((raw / 255 - 0.5) / 0.25), atol=1e-5)


CLEANED = """
def train():
    return [(torch.full((4, 1), float(i)), torch.tensor([0, 1, 9, 9 * i])) for i in range(3)]
def clean(inputs, targets):
    good = targets < 2
    return inputs[good], targets[good]
def nothing(inputs, targets):
    return inputs[:0], targets[:0]
"""


def test_cleaning_leaves_the_good_samples_of_every_batch(tmp_path: Path) -> None:
    known = made(tmp_path, CLEANED, clean="m:clean")
    assert [targets.tolist() for _, targets in Split(known, "train")] == [[0, 1, 0], [0, 1], [0, 1]]
    with pytest.raises(UsageError, match=r"\[data\] clean = 'm:nothing' removes all samples of 3 batches"):
        list(Split(changed(known, clean="m:nothing"), "train"))


AUGMENTED = """
def train():
    return [(torch.rand(8, 1, 6, 6), torch.zeros(8, dtype=torch.long))]
def flipped():
    import kornia.augmentation as K
    return K.AugmentationSequential(K.RandomCrop((6, 6), padding=2), K.RandomHorizontalFlip(), data_keys=["input"])
def no_function():
    return 3
def smaller():
    return lambda x: x[..., :2]
"""


def test_augmentation_changes_training_batches_alone_and_by_the_seed(tmp_path: Path) -> None:
    pytest.importorskip("kornia")
    known = made(tmp_path, AUGMENTED, augment="m:flipped")
    ((plain,), _) = next(iter(Split(known, "train")))

    def augmented() -> torch.Tensor:
        torch.manual_seed(1)
        return next(iter(Split(known, "train", augmented=True)))[0][0]

    assert (
        torch.equal(augmented(), augmented())
        and not torch.equal(augmented(), plain)
        and augmented().shape == plain.shape
    )
    for name, reason in (
        ("no_function", "returns a int; return a function"),
        ("smaller", r"must return finite tensors of the"),
    ):
        with pytest.raises(UsageError, match=reason):
            next(iter(Split(changed(known, augment=f"m:{name}"), "train", augmented=True)))


LOOP = """
import numpy as np
def valid():
    return []
test = valid
def build():
    return nn.Linear(2, 1, bias=False)
def loop(policy, split):
    state, total = np.full((3, 2), {"valid": 1, "test": 2}[split], np.float32), 0.0
    for _ in range(4):
        state = state + 0.5 * policy(state)
        total += float((state**2).mean())
    return -total
def broken(policy, split):
    return float("nan")
"""


class OneAtATime:
    """A bench whose artifact is a linear layer; remembers the shapes of the calls."""

    def __init__(self, weight: np.ndarray) -> None:
        self.weight, self.calls = weight, list[tuple[int, ...]]()

    def outputs(self, model: Path, stacked: list[np.ndarray], count: int) -> list[np.ndarray]:
        self.calls.append(stacked[0].shape)
        return [stacked[0] @ self.weight.T]


def test_the_metric_may_be_what_the_network_does_in_closed_loop(tmp_path: Path) -> None:
    """The torch network in training, the artifact on its device in the verdict: the same number."""
    project = made(tmp_path / "a", LOOP, closed_loop="m:loop", test="m:test")
    model = build_model(project)
    in_torch = evaluate(model, Metric(project), Split(project, "valid"))
    assert -12 < in_torch < 0 and evaluate(model, Metric(project), Split(project, "test")) == pytest.approx(
        4 * in_torch
    )
    (weight,) = (parameter.detach().numpy() for parameter in model.parameters())
    bench = OneAtATime(weight)
    artifact = Artifact((tmp_path / "model.onnx",), "d", "onnxruntime", "fp32", "s", 1)
    evaluation = accuracy.Evaluation(Split(project, "valid"), Metric(project), (torch.zeros(2, 2),), 0)
    on_device = accuracy.metric(bench, artifact, evaluation, [np.zeros((0,))], torch.zeros(0))  # type: ignore[arg-type]
    assert on_device == pytest.approx(in_torch, rel=1e-6)
    assert bench.calls == [(2, 2, 2)] * 4  # three samples in calls of two
    with pytest.raises(UsageError, match=r"\[data\] closed_loop.* gives nan"):
        Metric(changed(project, closed_loop="m:broken")).of_policy(lambda x: [x], "test")


def test_a_project_has_one_metric(tmp_path: Path) -> None:
    path = tmp_path / "edgeprune.toml"
    path.write_text(
        '[model]\nfactory = "m:b"\ninputs = "m:i"\n[data]\ntrain = "m:t"\nvalid = "m:v"\nmetric = "m:a"\n'
        'closed_loop = "m:c"\n[budget]\nlatency = "50%"\n'
    )
    with pytest.raises(UsageError, match="exclude each other; keep one"):
        toml.read_project(path)
