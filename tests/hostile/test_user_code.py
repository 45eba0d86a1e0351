"""Errors of the user's model, weights and data name the file, the key and what to do."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small import command

from edgeprune.errors import EdgepruneError, SecurityError, UsageError
from edgeprune.frontends import toml
from edgeprune.frontends.data import Loss, Metric, Split
from edgeprune.frontends.model import build_model
from edgeprune.frontends.trial import check_data
from edgeprune.pipeline.request import request
from edgeprune.pipeline.run import open_run
from edgeprune.records import Project
from edgeprune.stages.registry import RULES
from edgeprune.stages.training import Checkpoint, Course, Networks, evaluate, train


def read(path: Path, old: str = "", new: str = "") -> Project:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new) if old else text)
    return toml.read_project(path)


def add(path: Path, code: str) -> None:
    module = path.with_name("blobs.py")
    module.write_text(module.read_text() + code)


@pytest.mark.parametrize(
    ("reference", "code", "reason"),
    [
        ("nowhere:build", "", "No module named 'nowhere'"),
        ("blobs:bild", "", "bild"),
        ("blobs:number", "\nnumber = 3\n", "number"),
        ("blobs:broken", "\ndef broken():\n    raise KeyError('the reason')\n", "the reason"),
        ("blobs:nothing", "\ndef nothing():\n    pass\n", "None"),
        ("blobs:leaves", "\ndef leaves():\n    raise SystemExit(0)\n", "SystemExit"),
    ],
)
def test_a_factory_that_fails_is_named(reference: str, code: str, reason: str, project: Path) -> None:
    add(project, code)
    with pytest.raises(UsageError) as caught:
        build_model(read(project, "blobs:build", reference))
    assert str(project) in str(caught.value) and "factory" in str(caught.value) and reason in str(caught.value)


def test_a_module_that_cannot_be_imported_is_named(project: Path) -> None:
    add(project, "\nimport not_a_package\n")
    with pytest.raises(UsageError, match="not_a_package"):
        build_model(read(project))


def weights(project: Path, change: object) -> Project:
    file = project.with_name("blobs.safetensors")
    state = load_file(file)
    change(state)  # type: ignore[operator]
    save_file(state, file)
    return read(project)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: s.pop("a.weight"), "a.weight"),
        (lambda s: s.update(extra=torch.zeros(1)), "extra"),
        (lambda s: s.update({"fc.bias": torch.zeros(9)}), "fc.bias"),
        (lambda s: s["a.weight"].fill_(float("nan")), "a.weight"),
        (lambda s: s["bn.running_var"].fill_(float("inf")), "bn.running_var"),
    ],
)
def test_weights_that_do_not_fit_are_named(change: object, reason: str, project: Path) -> None:
    with pytest.raises(UsageError) as caught:
        build_model(weights(project, change))
    assert reason in str(caught.value) and "blobs.safetensors" in str(caught.value)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("code ran",)


def test_a_pickle_that_runs_code_is_refused(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, data in (("evil.pt", None), ("evil.pkl", pickle.dumps(Evil()))):
        file = project.with_name(name)
        if data is None:
            torch.save({"a": Evil()}, file)
        else:
            file.write_bytes(data)
        known = read(project, "blobs.safetensors", name)
        with pytest.raises(SecurityError, match="refused") as caught:
            build_model(known)
        assert caught.value.exit_code == 6
        read(project, name, "blobs.safetensors")
    assert "code ran" not in capsys.readouterr().out


def test_a_state_dict_saved_by_torch_is_fine(project: Path) -> None:
    torch.save(load_file(project.with_name("blobs.safetensors")), project.with_name("blobs.pt"))
    assert build_model(read(project, "blobs.safetensors", "blobs.pt"))


@pytest.mark.parametrize("data", [b"", b"garbage", b"\x80\x04."])
def test_weights_that_cannot_be_read_are_named(data: bytes, project: Path) -> None:
    for name in ("x.safetensors", "x.pt"):
        project.with_name(name).write_bytes(data)
        known = read(project, "blobs.safetensors", name)
        with pytest.raises(EdgepruneError, match=name):
            build_model(known)
        read(project, name, "blobs.safetensors")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("def train():\n    return []\n", "empty"),
        ("def train():\n    return (b for b in _data(0, 32))\n", "read once"),
        ("def train():\n    return 5\n", "int"),
        ("def train():\n    return [1]\n", "batch 0"),
        ("def train():\n    return [(torch.zeros(2, 1, 24, 24), torch.tensor([0, 4]))]\n", "4"),
        ("def train():\n    return [(torch.zeros(2, 1, 24, 24), torch.tensor([0, -1]))]\n", "-1"),
        ("def train():\n    return [(torch.full((1, 1, 24, 24), float('nan')), torch.tensor([0]))]\n", "NaN"),
        ("def train():\n    return [(torch.zeros(1, 3, 9, 9), torch.tensor([0]))]\n", "train"),
        ("def train():\n    return [(torch.zeros(2, 1, 24, 24), torch.tensor([0]))]\n", "2"),
        ("def train():\n    raise OSError('no such data')\n", "no such data"),
    ],
)
def test_data_that_cannot_be_used_is_named(code: str, reason: str, project: Path) -> None:
    add(project, "\n" + code)
    known = read(project)
    with pytest.raises(UsageError) as caught:
        check_data(build_model(known), known)
    assert str(project) in str(caught.value) and reason in str(caught.value), str(caught.value)


def test_a_loss_that_turns_nan_names_the_batch(project: Path) -> None:
    add(project, "\ndef loss(outputs, targets):\n    return outputs.sum() * float('nan')\n")
    known = read(project, 'test = "blobs:test"', 'loss = "blobs:loss"')
    model = build_model(known)
    course = Course(Split(known, "train"), Split(known, "valid"), Loss(known), Metric(known), known.finetune)
    checkpoint = Checkpoint(project.with_name("none"), lambda path, write: write(path))
    with pytest.raises(UsageError, match=r"epoch 1, batch 0.*learning rate"):
        train(course, Networks(model, model), checkpoint, lambda epoch: None)


def test_a_metric_that_is_not_a_number_is_an_error(project: Path) -> None:
    add(project, "\ndef metric(outputs, targets):\n    return float('nan')\n")
    known = read(project, 'test = "blobs:test"', 'metric = "blobs:metric"')
    with pytest.raises(UsageError, match="metric"):
        evaluate(build_model(known), Metric(known), Split(known, "valid"))


# The backward pass of a sigmoid reads its result. The line after it changes that result.
IN_PLACE = """
class Broken(Net):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        x = torch.sigmoid(x * self.scale)  # HERE
        if {condition}:
            x.mul_(2)
        return super().forward(x)
"""
FUNCTION = """
class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, gradient):
        raise {error}("no gradient")  # HERE

class Broken(Net):
    def forward(self, x):
        return super().forward(x) + Straight.apply(self.fc.bias)
"""
BUILT = """
def build():
    return Broken()

def train():
    return _data(0, 80)  # the last of three batches has 16 samples
"""
FAILING = {
    "in place": (IN_PLACE.format(condition="len(x) > 1"), "batch 0"),
    "in place, in a later batch": (IN_PLACE.format(condition="len(x) == 16"), "batch 2"),
    "function": (FUNCTION.format(error="ValueError"), "ValueError: no gradient"),
    "function, as torch raises": (FUNCTION.format(error="RuntimeError"), "RuntimeError: no gradient"),
}


def failing(project: Path, code: str) -> str:
    """Make the project's model fail in its backward pass. The place that an error must name."""
    add(project, code + BUILT)
    lines = project.with_name("blobs.py").read_text().splitlines()
    (number,) = (number for number, line in enumerate(lines, 1) if line.endswith("# HERE"))
    return f"(blobs.py, line {number})"


@pytest.mark.parametrize(("code", "named"), FAILING.values(), ids=list(FAILING))
def test_a_backward_pass_that_fails_names_the_user_s_line_when_channels_are_scored(
    code: str, named: str, project: Path
) -> None:
    place = failing(project, code)
    read(project, 'weights = "blobs.safetensors"\n', "")
    project.write_text(project.read_text() + '[prune]\nimportance = "taylor"\n')
    with open_run(request(project), RULES) as run, pytest.raises(UsageError) as caught:
        run.record(RULES.stages["scores"])
    assert caught.value.exit_code == 2
    assert place in str(caught.value) and named in str(caught.value), str(caught.value)


@pytest.mark.slow
def test_a_backward_pass_that_fails_names_the_user_s_line_in_training(project: Path) -> None:
    """On the null runtime, which needs no device. No gradient is needed before training."""
    place = failing(project, FAILING["in place, in a later batch"][0])
    read(project, 'weights = "blobs.safetensors"\n', "")
    project.write_text(project.read_text() + '[prune]\nimportance = "magnitude-l2"\n')
    target = project.with_name("null.toml")
    target.write_text('[connect]\ntransport = "local"\n[runtime]\nname = "null"\n')
    done = command("finetune", "--project", project, "--target", target, "--json")
    assert done.code == 2 and "prune " in done.err, done.err
    assert place in done.err and "batch 2" in done.err and "Traceback" not in done.err, done.err


def test_a_model_that_the_runtime_cannot_express_is_refused_before_the_device_is_opened(project: Path) -> None:
    module = project.with_name("blobs.py")
    module.write_text(
        module.read_text().replace("return self.fc(", "return torch.special.bessel_j0(x.mean()) + self.fc(")
    )
    place = r"^blobs\.py:\d+: special_bessel_j0 cannot be written as ONNX; use other operators$"
    with open_run(request(project), RULES) as run:
        with pytest.raises(UsageError, match=place):
            run.value("device")
        assert run.device is None
