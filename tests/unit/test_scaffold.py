"""`edgeprune init` finds what a folder defines and runs nothing of it; `edgeprune targets` lists what can be named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from small import FILE, MODULE, InProcess

from edgeprune.cli import scaffold
from edgeprune.errors import UsageError
from edgeprune.frontends import toml

EXAMPLES = Path(__file__).parents[2] / "examples"
NETWORK = """
import torch
raise SystemExit("this file was run")
class Part(torch.nn.Module):
    def __init__(self): super().__init__()
class Base(torch.nn.Module): ...
class Net(Base):
    def __init__(self, width=8):
        self.part = Part()
def train(model, data): return 1
def train_loader(): return []
def val_loader():
    yield 1
def accuracy(outputs, targets): return 0.5
def evaluate_score(model, data): return 0.5
def test_nothing(): pass
"""


def references(folder: Path, model: str | None = None) -> dict[str, str]:
    found = scaffold.find(folder / model if model else None, folder)
    return {role.key: name for role, name in found.references.items()}


def test_init_finds_the_functions_of_the_example(tmp_path: Path) -> None:
    for name in ("digits.py", "train.py", "digits.safetensors"):
        shutil.copy(EXAMPLES / "digits" / name, tmp_path)
    found = scaffold.find(tmp_path / "digits.py", tmp_path)
    assert not found.missing and found.weights == "digits.safetensors"
    project, wanted = (
        toml.read_project(scaffold.write(found)),
        toml.read_project(EXAMPLES / "digits" / "edgeprune.toml"),
    )
    assert project.model.factory.name == wanted.model.factory.name  # type: ignore[attr-defined]
    for key in ("train", "valid", "test", "metric"):
        assert getattr(project.data, key).name == getattr(wanted.data, key).name


def test_init_runs_no_code_and_reports_what_is_missing(edgeprune: InProcess, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NETWORK)
    assert references(tmp_path) == {
        "factory": "net:Net",
        "train": "net:train_loader",
        "valid": "net:val_loader",
        "metric": "net:accuracy",
    }
    code, out, err = edgeprune("init")
    assert (code, err) == (0, "") and "found    [model] factory = net:Net" in out
    assert "fill in  [model] inputs: a function that returns a tuple of tensors" in out and "fill in  [data]" not in out
    with pytest.raises(UsageError, match=r"\[model\] inputs is missing"):
        toml.read_project(tmp_path / "edgeprune.toml")


def test_init_without_data_mentions_samples_without_labels(edgeprune: InProcess, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("import torch\nclass Net(torch.nn.Module): ...\ndef inputs(): return ()\n")
    assert edgeprune("init")[0] == 0
    file = tmp_path / "edgeprune.toml"
    file.write_text(file.read_text().replace('# samples = "FOLDER"', 'samples = "FOLDER"'))
    assert toml.read_project(file).data.samples == "FOLDER"


@pytest.mark.parametrize(
    ("name", "key"), [("net.onnx", "onnx"), ("net.keras", "keras"), ("net.h5", "keras"), ("net.tflite", "tensorflow")]
)
def test_init_takes_a_model_file(name: str, key: str, edgeprune: InProcess, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    code, out, _ = edgeprune("init", name)
    assert code == 0 and f"found    [model] {key} = {name}" in out and out.count("fill in") == 1
    file = tmp_path / "edgeprune.toml"
    assert "factory" not in file.read_text() and "inputs =" not in file.read_text()
    file.write_text(file.read_text().replace('# samples = "FOLDER"', 'samples = "FOLDER"'))
    project = toml.read_project(file)
    assert (project.model.factory.key, project.model.factory.file) == (key, tmp_path / name)  # type: ignore[attr-defined]


def test_init_finds_data_beside_a_model_file_and_a_single_model_file(edgeprune: InProcess, tmp_path: Path) -> None:
    (tmp_path / "mydata.py").write_text("def train_batches(): return []\ndef valid_batches(): return []\n")
    (tmp_path / "net.onnx").touch()
    code, out, _ = edgeprune("init")
    assert code == 0 and "[model] onnx = net.onnx" in out and "fill in" not in out
    assert toml.read_project(tmp_path / "edgeprune.toml").data.train.name == "mydata:train_batches"  # type: ignore[attr-defined]


@pytest.mark.parametrize(("name", "key"), [("saved_model.pb", "tensorflow"), ("config.json", "transformers")])
def test_init_takes_the_folder_of_a_model(name: str, key: str, tmp_path: Path) -> None:
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / name).touch()
    found = scaffold.find(tmp_path / "bert", tmp_path)
    assert found.file == (key, "bert") and found.folder == tmp_path


def test_init_never_overwrites(edgeprune: InProcess, tmp_path: Path) -> None:
    (tmp_path / "blobs.py").write_text(MODULE)
    (tmp_path / "edgeprune.toml").write_text(FILE)
    code, _, err = edgeprune("init", "blobs.py")
    assert code == 2 and "never overwrites" in err and (tmp_path / "edgeprune.toml").read_text() == FILE


@pytest.mark.parametrize(
    ("files", "text"),
    [
        ({}, "no Python file .* defines a network"),
        ({"a.py": "def f(): return 1"}, "no Python file .* defines a network"),
        ({"a.py": MODULE, "b.py": MODULE}, "several files define a network: a.py, b.py; name one: edgeprune init a.py"),
        ({"a.py": "def f(:"}, r"a.py, line 1: is not Python"),
    ],
)
def test_init_asks_where_it_cannot_choose(files: dict[str, str], text: str, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=text):
        scaffold.find(None, tmp_path)


def test_init_says_what_to_do_with_weights_alone(tmp_path: Path) -> None:
    (tmp_path / "best.pt").touch()
    with pytest.raises(UsageError, match=r"best\.pt holds weights only; name the Python file"):
        scaffold.find(tmp_path / "best.pt", tmp_path)


def test_init_does_not_choose_between_files_of_weights(tmp_path: Path) -> None:
    (tmp_path / "blobs.py").write_text(MODULE)
    for name in ("last.pt", "best.pt"):
        (tmp_path / name).touch()
    found = scaffold.find(None, tmp_path)
    assert found.weights is None and found.ambiguous == ("best.pt", "last.pt")
    assert any("one of best.pt, last.pt" in line for line in scaffold.report(found, tmp_path))
    (tmp_path / "blobs.pth").touch()
    assert scaffold.find(None, tmp_path).weights == "blobs.pth"


def test_targets_lists_those_of_edgeprune_and_those_beside_the_project(edgeprune: InProcess, tmp_path: Path) -> None:
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets" / "mine.toml").write_text(
        '[connect]\ntransport = "ssh"\nhost = "board"\nuser = "pi"\nport = 2222\n[runtime]\nname = "openvino"\n'
    )
    (tmp_path / "targets" / "wrong.toml").write_text("[runtime]\n")
    code, out, _ = edgeprune("targets", "--json")
    found = {one["name"]: one for one in json.loads(out)}
    assert code == 0 and {"local", "raspberrypi", "jetson", "mine", "wrong"} <= set(found)
    assert (found["mine"]["runtime"], found["mine"]["precision"], found["mine"]["host"]) == (
        "openvino",
        "fp32",
        "pi@board:2222",
    )
    assert "[connect] is missing" in found["wrong"]["error"] and found["local"]["host"] == "this machine"
    out = edgeprune("targets")[1]
    assert "pi@board:2222" in out and "tensorrt" in out
    assert edgeprune("run", "-t", "nothing")[0] == 2


def test_names_of_targets_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeprune.cli import options

    monkeypatch.chdir(tmp_path)
    assert options._targets("virtual-p") == [
        f"virtual-pi{rest}" for rest in ("", "-executorch", "-ncnn", "-onnxruntime")
    ]
