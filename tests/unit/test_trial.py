"""What can be known early is checked early: model, data, loss, metric and a backward pass, before a device is used."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path

import pytest
from small import command

from edgeprune.devices import bench
from edgeprune.errors import RuntimeMissing, UsageError
from edgeprune.frontends import trial as trying
from edgeprune.limits import LIMITS
from edgeprune.pipeline.request import request
from edgeprune.pipeline.run import open_run
from edgeprune.records import Tried
from edgeprune.runtimes.null.host import Null
from edgeprune.stages import trial
from edgeprune.stages.registry import RULES

NULL = '[connect]\ntransport = "local"\n[runtime]\nname = "null"\n'


def changed(project: Path, code: str = "", **replaced: str) -> Path:
    """The project with more code in its module, and other lines in its file."""
    module = project.with_name("blobs.py")
    module.write_text(module.read_text() + "\n" + code)
    text = project.read_text()
    for old, new in replaced.items():
        assert f"{old} = " in text
        lines = [new if line.startswith(f"{old} = ") else line for line in text.splitlines()]
        text = "\n".join(lines) + "\n"
    project.write_text(text)
    return project


def tried(project: Path) -> Tried:
    with open_run(request(project), RULES) as run:
        return run.record(trial.STAGE)


def test_a_sound_project_passes_and_its_metric_is_known(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = tried(project)
    assert found.outputs == ("",) and found.samples == 96 and found.metric is not None and found.metric > 0.9
    assert not caplog.records


SHORT = """
class Short(Net):
    def forward(self, x):
        return super().forward(x)[:1]
build = Short
"""
TEXT = """
class Text(Net):
    def forward(self, x):
        return "blob"
build = Text
"""
IN_PLACE = """
class Broken(Net):
    def forward(self, x):
        y = torch.sigmoid(super().forward(x))
        z = y * 1
        y.mul_(2)
        return z
build = Broken
"""
LABEL = """
def valid():
    return [*_data(1, 64), (torch.zeros(1, 1, 24, 24), torch.tensor([4]))]
"""
BAD = {
    "train": ("def train():\n    return iter(_data(0, 64))\n", "read once"),
    "valid": ("def valid():\n    return map(tuple, _data(0, 64))\n", "read once"),
    "test": ("def test():\n    return zip([torch.zeros(1, 1, 24, 24)], [torch.tensor([0])])\n", "read once"),
    "loss": ("def loss(outputs, targets):\n    return outputs\n", "return a scalar tensor"),
    "metric": ("def metric(outputs, targets):\n    return outputs.nothing\n", "nothing"),
    "outputs": (SHORT, r"returns \(1, 4\) for 32 targets"),
    "no tensor": (TEXT, "returns no tensor"),
    "backward": (IN_PLACE, "backward pass"),
    "label": (LABEL, "batch 2 has the label 4"),
}


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        pytest.param(
            *case, id=name, marks=() if name in ("train", "metric", "outputs", "backward") else pytest.mark.slow
        )
        for name, case in BAD.items()
    ],
)
def test_a_mistake_is_reported_before_a_device_is_opened(
    code: str, reason: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*arguments: object) -> None:
        raise AssertionError("a device is opened")

    monkeypatch.setattr(bench, "open_bench", forbidden)
    text = project.read_text()
    for name in ("loss", "metric"):
        if f"def {name}(" in code:
            project.write_text(text.replace("[budget]", f'{name} = "blobs:{name}"\n[budget]'))
    changed(project, code)
    for stage in ("profile", "verify"):
        with open_run(request(project), RULES) as run, pytest.raises(UsageError, match=reason):
            run.record(RULES.stages[stage])


def test_a_device_is_opened_if_all_is_well(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the test above means something."""

    def forbidden(*arguments: object) -> None:
        raise AssertionError("a device is opened")

    monkeypatch.setattr(bench, "open_bench", forbidden)
    with open_run(request(project), RULES) as run, pytest.raises(AssertionError, match="a device is opened"):
        run.record(RULES.stages["profile"])


def test_a_converter_that_is_not_installed_is_reported_first(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = project.with_name("null.toml")
    target.write_text(NULL)
    monkeypatch.setattr(Null, "converter", "not-a-package")
    with open_run(request(project, str(target)), RULES) as run, pytest.raises(RuntimeMissing, match="not-a-package"):
        run.record(RULES.stages["profile"])


ONCE = """
class Once:
    def __init__(self, batches):
        self.batches = (batch for batch in batches)
    def __iter__(self):
        return {how}
def train():
    return Once(_data(0, 256))
"""


@pytest.mark.parametrize("how", ["self.batches", "map(tuple, self.batches)"])
def test_data_of_an_object_that_can_only_be_read_once_is_an_error(how: str, project: Path) -> None:
    with pytest.raises(UsageError, match=r"\[data\] train.* can only be read once"):
        tried(changed(project, ONCE.format(how=how)))


def test_a_second_reading_that_goes_on_where_the_first_one_ended_is_an_error_at_once(project: Path) -> None:
    """Nothing else of the data is read: it may be large."""
    code = (
        "import itertools\n"
        "class Stream:\n"
        "    batches = (_data(number, 32)[0] for number in itertools.count())\n"
        "    def __iter__(self):\n"
        "        return self.batches\n"
        "train = Stream\n"
    )
    with pytest.raises(UsageError, match=r"\[data\] train: .*can only be read once; return .* list or a DataLoader"):
        tried(changed(project, code))


def test_shuffled_data_can_be_read_again(project: Path) -> None:
    code = (
        "def train():\n"
        "    images, labels = (torch.cat(part) for part in zip(*_data(0, 256)))\n"
        "    data = torch.utils.data.TensorDataset(images, labels)\n"
        "    return torch.utils.data.DataLoader(data, 32, shuffle=True)\n"
    )
    assert tried(changed(project, code))


ENDLESS = """
class Endless:
    def __iter__(self):
        batch = _data(0, 32)[0]
        while True:
            yield batch
{length}
def train():
    return Endless()
"""


@pytest.mark.parametrize(
    "length", ["", pytest.param("    def __len__(self):\n        return 3\n", marks=pytest.mark.slow)]
)
def test_data_without_an_end_is_remarked_on_and_then_an_error(
    length: str, project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trying, "LIMITS", replace(LIMITS, trial_read_s=0.4))
    monkeypatch.setattr(trying, "REMARKED_S", 0.1)
    began = time.monotonic()
    with pytest.raises(
        UsageError, match=r"\[data\] train.* gave .* batches in .* without an end: .*give the object a __len__"
    ):
        tried(changed(project, ENDLESS.format(length=length)))
    assert "has no end yet" in caplog.text and "len()" in caplog.text
    assert time.monotonic() - began < 60


def test_the_first_remark_comes_within_ten_seconds() -> None:
    assert trying.REMARKED_S + LIMITS.trial_metric_s < 10


def test_a_large_split_of_known_length_is_read_in_bounded_time(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trying, "LIMITS", replace(LIMITS, trial_read_s=0.05))
    length = "    def __len__(self):\n        return 10**9\n"
    assert tried(changed(project, ENDLESS.format(length=length)))


ACCURACY = """
def metric(outputs, targets):
    return {factor} * float((outputs.argmax(1) == targets).float().mean())
"""


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.mark.parametrize(
    "metric", ["", "def metric(outputs, targets):\n    return float((outputs.argmax(1) == targets).float().mean())\n"]
)
def test_weights_that_were_forgotten_are_remarked_on(
    metric: str, project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if metric:
        project.write_text(project.read_text().replace("[budget]", 'metric = "blobs:metric"\n[budget]'))
    tried(changed(project, metric, weights="", epochs="epochs = 1\nseed = 1"))
    (line,) = lines(caplog)
    assert (
        "[model] weights is missing" in line
        and "at chance" in line
        and "check the weights" in line
        and "96 validation samples" in line
    )


def test_probabilities_with_a_loss_of_logits_are_remarked_on(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    code = (
        "\nclass Soft(Net):\n    def forward(self, x):\n        return super().forward(x).softmax(1)\n\nbuild = Soft\n"
    )
    tried(changed(project, code))
    (line,) = lines(caplog)
    assert "[data] loss is missing" in line and "the model returns probabilities" in line


def test_a_metric_in_percent_is_remarked_on(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    code = ACCURACY.format(factor=100)
    project.write_text(project.read_text().replace("[budget]", 'metric = "blobs:metric"\n[budget]'))
    tried(changed(project, code))
    (line,) = lines(caplog)
    assert "max_metric_drop = 0.02 is tiny" in line and "write 2 for 2%" in line


def test_a_metric_for_which_smaller_is_better_is_remarked_on(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    code = "\ndef metric(outputs, targets):\n    return float((outputs.argmax(1) != targets).float().mean())\n"
    project.write_text(project.read_text().replace("[budget]", 'metric = "blobs:metric"\n[budget]'))
    tried(changed(project, code))
    (line,) = lines(caplog)
    assert "[data] metric: " in line and "larger must be better: return -value" in line


def test_a_drop_that_allows_anything_is_remarked_on(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    tried(changed(project, max_metric_drop="max_metric_drop = 2.0"))
    (line,) = lines(caplog)
    assert "max_metric_drop = 2 allows any drop" in line


def test_a_metric_that_ignores_the_targets_is_not_judged(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    code = "def metric(outputs, targets):\n    return float(outputs.softmax(1).max())\n"
    project.write_text(project.read_text().replace("[budget]", 'metric = "blobs:metric"\n[budget]'))
    tried(changed(project, code))
    assert not lines(caplog)


def test_a_trial_is_kept_and_shared_by_all_targets(project: Path) -> None:
    target = project.with_name("null.toml")
    target.write_text(NULL)
    tried(project)
    with open_run(request(project, str(target)), RULES) as run:
        run.record(trial.STAGE)
        assert (
            sorted(path.name.partition("-")[0] for path in (project.parent / "runs" / "shared").iterdir()).count(
                "trial"
            )
            == 1
        )


def test_a_command_prints_the_trial_before_anything_is_measured(project: Path) -> None:
    target = project.with_name("null.toml")
    changed(project, weights="")
    target.write_text(NULL)
    done = command("profile", "--project", project, "--target", target)
    shown = done.out + done.err
    assert 0 <= shown.index("trial  ") < shown.index("profile  "), shown
