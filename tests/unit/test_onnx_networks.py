"""Networks of PyTorch come back from their .onnx files: what can be cut, the blocks, the names, and what is exported again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from nets import NETS, inputs_of, surveyed
from onnx_files import computed, exported, model, node, saved, weights
from torch import nn

from edgeprune import Project
from edgeprune.errors import UsageError
from edgeprune.frontends.model import Network, build_model
from edgeprune.frontends.onnx import example_inputs, network
from edgeprune.graph.groups import first_units, make_recipe
from edgeprune.network.adapter import file_names
from edgeprune.network.cut import cut, formed
from edgeprune.network.survey import survey
from edgeprune.records import Groups
from edgeprune.runtimes.formats import FORMATS

SMALL = "Residual", "Depthwise", "Grouped", "UNet", "Recurrent", "Packed"


def shares(groups: Groups) -> tuple[int, float]:
    """The multiply-accumulates, and the share of them that can go."""
    full = groups.macs(groups.full())
    return full, 1 - groups.macs(groups.least()) / full


def require_alike(original: Groups, made: Groups) -> None:
    (macs, share), (ours, left) = shares(original), shares(made)
    assert abs(ours / macs - 1) < 0.01 and abs(left - share) < 0.01


@pytest.mark.parametrize("name", SMALL)
def test_as_much_can_be_cut_as_of_the_original(name: str, tmp_path: Path) -> None:
    original, inputs = NETS[name]().eval(), inputs_of(name)
    made = network(exported(tmp_path / "net.onnx", original, inputs))
    torch.testing.assert_close(made(*inputs), original(*inputs), rtol=1e-4, atol=1e-5)
    require_alike(surveyed(name), survey(made, inputs))


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_as_much_can_be_cut_by_the_newer_exporter(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    original, inputs = NETS[name]().eval(), inputs_of(name)
    made = network(exported(tmp_path / "net.onnx", original, inputs, dynamo=True))
    require_alike(surveyed(name), survey(made, inputs))


@pytest.mark.parametrize("folded", [True, False])
def test_blocks_and_names_are_those_of_the_original(folded: bool, tmp_path: Path) -> None:
    options = {} if folded else {"training": torch.onnx.TrainingMode.PRESERVE, "do_constant_folding": False}
    original = NETS["Blocks"]().eval()
    for module in original.modules():  # exporters write equal weights once
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            for tensor in [*module.parameters(), *module.buffers()][:4]:
                nn.init.uniform_(tensor, 0.5, 1.5)
    made = network(exported(tmp_path / "net.onnx", original, inputs_of("Blocks"), **options))
    layers = tuple(
        type(module) for module in original.modules() if isinstance(module, nn.Conv2d | nn.Linear | nn.LayerNorm)
    )
    theirs, ours = ({n for n, m in net.named_modules() if isinstance(m, layers)} for net in (original, made))
    assert ours == theirs
    assert folded or {name for name, _ in made.named_parameters()} == {name for name, _ in original.named_parameters()}
    assert [block.name for block in survey(made, inputs_of("Blocks")).blocks] == ["stage.0", "stage.1", "attending"]


def test_blocks_are_found_in_a_file_of_the_newer_exporter(tmp_path: Path) -> None:
    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Conv2d(8, 12, 1), nn.Conv2d(12, 8, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.down(self.up(x).relu())

    original = nn.Sequential(nn.Conv2d(3, 8, 3), Body(), Body(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    inputs = (torch.randn(1, 3, 8, 8),)
    made = network(exported(tmp_path / "net.onnx", original, inputs, dynamo=True))
    assert [block.name for block in survey(made, inputs).blocks] == ["1", "2"]
    assert {name for name, _ in made.named_parameters()} == {name for name, _ in original.named_parameters()}


@pytest.mark.parametrize("name", ["Encoder", "Layers", "Shuffle"])
def test_a_file_for_one_sample_takes_any_batch(name: str, tmp_path: Path) -> None:
    """Training needs batches, and exporters write a batch of 1 into shapes. Attention merges it with heads and positions."""
    original, inputs = NETS[name]().eval(), inputs_of(name)
    made = network(exported(tmp_path / "net.onnx", original, inputs))
    x = torch.randn(5, *inputs[0].shape[1:])
    torch.testing.assert_close(made(x), original(x), rtol=1e-4, atol=1e-5)


class Listener(nn.Module):
    """A recurrence as torch has it by default: (steps, samples, channels)."""

    def __init__(self, batch_first: bool = False) -> None:
        super().__init__()
        self.core, self.head = nn.GRU(8, 6, batch_first=batch_first), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor, state: torch.Tensor | None = None) -> torch.Tensor | tuple[torch.Tensor, ...]:
        y, last = self.core(x, state)
        return self.head(y) if state is None else (self.head(y), last)


def test_samples_are_found_in_the_second_dimension_of_a_time_major_recurrence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    original = Listener().eval()
    path = exported(tmp_path / "net.onnx", original, (torch.randn(7, 1, 8),))
    made, x = network(path), torch.randn(7, 4, 8)
    torch.testing.assert_close(made(x), original(x), rtol=1e-4, atol=1e-5)
    assert made.batch_dims == (1,)
    batch = [(x, torch.randn(7, 4, 3))]
    options = {"train": lambda: batch, "valid": lambda: batch, "folder": tmp_path / "runs"}
    with pytest.raises(UsageError, match=r"batch_dims=\.\.\.\) must be \[1, 0\], the last number for the targets"):
        assert Network(Project.from_onnx(path, **options).record).module
    assert Network(Project.from_onnx(path, batch_dims=[1, 1], **options).record).module


def test_a_state_has_its_samples_in_the_second_dimension(tmp_path: Path) -> None:
    original = Listener(batch_first=True).eval()
    path = exported(tmp_path / "net.onnx", original, (torch.randn(1, 7, 8), torch.randn(1, 1, 6)))
    made, x, state = network(path), torch.randn(4, 7, 8), torch.randn(1, 4, 6)
    assert made.batch_dims == (0, 1)
    for ours, theirs in zip(made(x, state), original(x, state), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_network_that_mixes_samples_takes_the_batch_of_its_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "edgeprune")
    path = saved(tmp_path / "net.onnx", model([node("ReduceMean", "x", "y", axes=[0])], {"x": (2, 3)}, ["y"]))
    assert network(path)(torch.ones(2, 3)).shape == (1, 3)
    assert "takes a batch of 2 only" in caplog.text


def test_a_split_may_leave_out_a_result(tmp_path: Path) -> None:
    """ONNX Runtime 1.32 ends the process that runs such a file."""
    nodes = [node("Split", "x", "a b", axis=1), node("MatMul", "b w", "y")]
    nodes[0].output[0] = ""
    path = saved(tmp_path / "net.onnx", model(nodes, {"x": (1, 8)}, ["y"], {"w": weights(4, 3)}))
    x = torch.randn(1, 8)
    torch.testing.assert_close(network(path)(x), x[:, 4:] @ torch.from_numpy(weights(4, 3)))


FIXED = {
    "ScatterND": ("x places new", {"places": np.array([[0], [2]]), "new": weights(2, 4, 4)}),
    "Expand": ("x shape", {"shape": np.array([4, 4, 4])}),
}


@pytest.mark.parametrize("op", FIXED)
def test_a_file_whose_constants_fix_the_batch_takes_this_batch(op: str, tmp_path: Path) -> None:
    inputs, constants = FIXED[op]
    shape = (4, 4, 1) if op == "Expand" else (4, 4, 4)
    path = saved(tmp_path / "net.onnx", model([node(op, inputs, "y")], {"x": shape}, ["y"], constants))
    made, x = network(path), torch.randn(shape)
    assert made.batch_dims is None
    np.testing.assert_array_equal(made(x).detach().numpy(), computed(path, (x,))[0])


def test_example_inputs_give_dynamic_dimensions_their_sizes(tmp_path: Path) -> None:
    nodes = [node("Conv", "x w", "c", pads=[1] * 4), node("GlobalAveragePool", "c", "y")]
    path = saved(
        tmp_path / "net.onnx", model(nodes, {"x": ("n", 3, "height", "width")}, ["y"], {"w": weights(4, 3, 3, 3)})
    )
    assert network(path, torch.zeros(1, 3, 10, 12))(torch.randn(2, 3, 10, 12)).shape == (2, 4, 1, 1)
    with pytest.raises(UsageError, match=r"\(n, 3, height, width\), whose sizes are not fixed; give \[model\] inputs"):
        example_inputs(path)
    with pytest.raises(UsageError, match=r"the network has 1 inputs, and \[model\] inputs returns 2"):
        network(path, (torch.zeros(1), torch.zeros(1)))


@pytest.mark.parametrize("form", ["module", "graph"])
def test_a_cut_network_is_written_with_the_names_of_the_file(form: str, tmp_path: Path) -> None:
    """Also names that are no identifiers, and also if the exported graph is cut."""
    name = "Depthwise" if form == "module" else "Shuffle"
    inputs = inputs_of(name)
    options = {"input_names": ["images:0"], "output_names": ["Identity/scores:0"]}
    made = network(exported(tmp_path / "net.onnx", NETS[name]().eval(), inputs, **options))
    groups = survey(made, inputs)
    assert groups.form == form
    halves = {group.name: max(1, group.width // 2) for group in groups.free}
    pruned = cut(formed(made, groups, inputs), make_recipe(groups, first_units(groups, halves)), inputs)
    written = tmp_path / "cut.onnx"
    written.write_bytes(FORMATS["onnx"].export(pruned, inputs, groups.folds))
    graph = onnx.load(written).graph
    assert ([value.name for value in graph.input], [value.name for value in graph.output]) == (
        ["images:0"],
        ["Identity/scores:0"],
    )
    with torch.no_grad():
        np.testing.assert_allclose(computed(written, inputs)[0], pruned(*inputs).numpy(), rtol=1e-4, atol=1e-5)


def test_a_project_is_made_of_a_file(tmp_path: Path) -> None:
    """It has the file's name, and its key follows from the network in it."""
    made, keys = [], []
    names = {"input_names": ["image"], "output_names": ["scores"]}
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        path = exported(tmp_path / "My net-2.onnx", NETS["Plain"](), inputs_of("Plain"), **names)
        made.append(Project.from_onnx(path, samples=torch.randn(20, 3, 8, 8).numpy(), folder=tmp_path / "runs"))
        keys.append(made[-1].record.model.factory.sources())
    assert {project.record.name for project in made} == {"my_net-2"}
    assert keys[0] == keys[1] != keys[2]
    assert [tuple(tensor.shape) for tensor in made[0].record.model.inputs.load()()] == [(1, 3, 8, 8)]
    assert file_names(build_model(made[0].record)) == (("image",), ("scores",))
