"""Files of weights: checkpoints with other content, shards, and models that torch wrapped or exported."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file, save_model
from small import SMALLEST
from torch import nn

import edgeprune
from edgeprune.errors import EdgepruneError, SecurityError, UsageError
from edgeprune.frontends import checkpoint, toml
from edgeprune.frontends.model import Built, Network, build_model, built
from edgeprune.network import weights
from edgeprune.network.wrappers import unwrapped
from edgeprune.pipeline.request import Quiet, request
from edgeprune.pipeline.run import open_run
from edgeprune.records import Project
from edgeprune.stages import survey
from edgeprune.stages.registry import RULES

CODE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(1, 4, 3, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(torch.relu(self.bn(self.a(x))).mean((2, 3)))

def inputs():
    return torch.zeros(1, 1, 8, 8)

def build():
    return MODEL
"""


def made(folder: Path, model: str = "Net()", weights: str = "") -> Project:
    """A project whose factory returns `model`."""
    folder.mkdir(exist_ok=True)
    (folder / "m.py").write_text(CODE.replace("MODEL", model))
    key = f'[model]\nweights = "{weights}"' if weights else "[model]"
    (folder / "edgeprune.toml").write_text(SMALLEST.replace("[model]", key))
    return toml.read_project(folder / "edgeprune.toml")


@pytest.fixture
def state(tmp_path: Path) -> dict[str, torch.Tensor]:
    """The state of a trained network of the project's class."""
    torch.manual_seed(9)
    names: dict[str, Any] = {}
    exec(CODE.replace("MODEL", "Net()"), names)
    return dict(names["build"]().state_dict())


def holds(found: Built, state: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, state[name]) for name, tensor in found.module.state_dict().items())


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "ema", "net"])
def test_a_checkpoint_with_other_objects_loads(key: str, tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    """A training loop saves the epoch, settings and the optimiser's state beside the weights."""
    optimiser = torch.optim.Adam([nn.Parameter(torch.ones(2))])
    optimiser.param_groups[0]["params"][0].sum().backward()
    optimiser.step()
    module = {f"module.{name}": tensor for name, tensor in state.items()}
    content = {
        "epoch": 3,
        "best": 0.5,
        key: module,
        "optimizer": optimiser.state_dict(),
        "history": [1, 2],
        "note": "x",
    }
    project = made(tmp_path / "p", weights="w.pt")
    torch.save(content, tmp_path / "p" / "w.pt")
    found = built(project)
    assert holds(found, state) and found.notes == (f"weights: prefix {key}.module. stripped",)


def test_a_checkpoint_with_an_object_that_runs_code_is_refused_with_its_name(
    tmp_path: Path, state: dict[str, torch.Tensor]
) -> None:
    project = made(tmp_path / "p", weights="w.pt")
    torch.save({"model": state, "args": argparse.Namespace(lr=1)}, tmp_path / "p" / "w.pt")
    with pytest.raises(
        SecurityError, match=r"w\.pt is refused: it holds an object of argparse\.Namespace, .* save its tensors"
    ):
        build_model(project)


def test_shards_of_safetensors_load_by_their_index(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    project, folder = made(tmp_path / "p", weights="model.safetensors.index.json"), tmp_path / "p"
    first = dict(list(state.items())[:2])
    save_file(first, folder / "model-1.safetensors")
    save_file({name: tensor for name, tensor in state.items() if name not in first}, folder / "model-2.safetensors")
    places = {name: f"model-{1 if name in first else 2}.safetensors" for name in state}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    assert holds(built(project), state)

    def key() -> str:
        with open_run(request(folder), RULES) as run:
            return run.key(survey.STAGE)

    before = key()
    save_file({name: tensor + 1 for name, tensor in first.items()}, folder / "model-1.safetensors")
    assert key() != before, "the key must cover every shard"
    (folder / "model-2.safetensors").unlink()
    with pytest.raises(UsageError, match=r"index\.json needs .*model-2\.safetensors, which does not exist"):
        build_model(project)
    index.write_text("{}")
    with pytest.raises(UsageError, match="no index of shards"):
        build_model(project)
    index.write_text(json.dumps({"weight_map": {"a.weight": "../evil.safetensors"}}))
    with pytest.raises(SecurityError, match="outside its folder"):
        build_model(project)


def test_a_file_of_safetensors_that_stores_a_tied_tensor_once_loads(tmp_path: Path) -> None:
    tied = "nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 4, bias=False))"
    model = f"(lambda m: (setattr(m[1], 'weight', m[0].weight), m)[1])({tied})"
    project = made(tmp_path / "p", model)
    source = build_model(project)
    nn.init.normal_(source.get_parameter("0.weight"))
    save_model(source, str(tmp_path / "p" / "w.safetensors"))
    found = built(made(tmp_path / "p", model, "w.safetensors"))
    first, second = (found.module.get_parameter(f"{i}.weight") for i in range(2))
    assert torch.equal(first, source.get_parameter("0.weight")) and second is first
    assert found.notes == ("weights: 1 tied tensor filled",)


def test_the_survey_says_what_was_adapted(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    project = made(tmp_path / "p", "nn.DataParallel(Net())", weights="w.pt")
    torch.save({f"module.{name}": tensor for name, tensor in state.items()}, tmp_path / "p" / "w.pt")
    network = Network(project)
    groups = survey.run(survey.Reads(network, ()), SimpleNamespace(watch=Quiet()))  # type: ignore[arg-type]
    shown = survey.describe(groups, survey.Reads(network, ()))
    assert shown.endswith("; model: taken out of a DataParallel; weights: prefix module. stripped")


@pytest.mark.parametrize(
    "model",
    [
        "nn.DataParallel(Net())",
        "torch.optim.swa_utils.AveragedModel(Net())",
        "nn.DataParallel(torch.optim.swa_utils.AveragedModel(Net()))",
        "torch.compile(Net())",
        "torch.compile(nn.DataParallel(Net()))",
    ],
)
def test_a_wrapped_model_is_taken_out_and_its_wrapped_weights_fit(
    model: str, tmp_path: Path, state: dict[str, torch.Tensor]
) -> None:
    project = made(tmp_path / "p", model, "w.pt")
    torch.save({f"_orig_mod.module.{name}": tensor for name, tensor in state.items()}, tmp_path / "p" / "w.pt")
    found = built(project)
    assert type(found.module).__name__ == "Net" and holds(found, state)
    assert found.module(torch.zeros(1, 1, 8, 8)).shape == (1, 2)


def test_a_wrapped_part_of_a_model_is_taken_out() -> None:
    model = nn.Sequential(nn.DataParallel(nn.Linear(2, 2)), nn.Module())
    model[1] = torch.compile(nn.Linear(2, 2))  # type: ignore[assignment]
    found = unwrapped(model)
    assert [type(module) for module in found.children()] == [nn.Linear, nn.Linear]
    assert isinstance(model[0], nn.DataParallel), "the user's model must stay as it is"


def test_a_saved_network_loads_into_a_wrapped_model(tmp_path: Path) -> None:
    weights.save(tmp_path / "pruned.safetensors", nn.Sequential(nn.Linear(2, 2)), {})
    found = edgeprune.load(tmp_path / "pruned.safetensors", nn.DataParallel(nn.Sequential(nn.Linear(2, 2))))
    assert type(found) is nn.Sequential


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (
            "torch.export.export(Net().eval(), (inputs(),))",
            "returns an exported program, .*; return the torch.nn.Module",
        ),
        ("torch.export.export(Net().eval(), (inputs(),)).module()", "returns an exported program"),
        ("torch.jit.trace(Net().eval(), inputs())", "returns TorchScript, .*; return the torch.nn.Module"),
        ("nn.Sequential(torch.jit.trace(Net().eval(), inputs()))", "0 is TorchScript"),
        ("Net().double()", r"parameter a\.weight is float64; return model\.float\(\)"),
        ("Net().half()", "is float16"),
        ("Net().bfloat16()", "is bfloat16"),
        ("nn.Sequential(Net(), nn.LazyLinear(3))", r"1\.weight has no shape yet; call the model once"),
        ("nn.Sequential(Net(), torch.ao.quantization.FakeQuantize())", "1 is fake quantisation; .* before prepare_qat"),
        (
            "torch.ao.quantization.quantize_dynamic(nn.Sequential(Net()))",
            "0.* is quantised; return the model from before",
        ),
        ("Net().to('meta')", r"has no values \(device meta\); build the model on the CPU"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # of torch.jit and of lazy modules
def test_a_model_that_cannot_be_cut_is_one_line_with_the_fix(model: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        build_model(made(tmp_path / "p", model))
    assert "[model] factory" in str(caught.value) and "\n" not in str(caught.value)


def test_names_of_files_are_checked_without_reading_weights(tmp_path: Path) -> None:
    assert checkpoint.files(tmp_path / "w.pt") == [tmp_path / "w.pt"]
    assert checkpoint.files(tmp_path / "w.safetensors.index.json") == [tmp_path / "w.safetensors.index.json"]


@pytest.mark.parametrize("content", [[1], {"a": 1}, {3: torch.ones(2)}, torch.ones(3)])
def test_a_file_without_named_tensors_is_refused(content: object, tmp_path: Path) -> None:
    project = made(tmp_path / "p", weights="w.pt")
    torch.save(content, tmp_path / "p" / "w.pt")
    with pytest.raises(EdgepruneError, match="holds no tensors with names"):
        build_model(project)
