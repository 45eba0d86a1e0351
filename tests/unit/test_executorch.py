"""ExecuTorch: its files are read, cut and written by their bytes, and its profile leads to layers."""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nets import NETS, image, inputs_of
from torch import nn

from edgeprune import runtimes
from edgeprune.errors import UsageError
from edgeprune.graph.groups import first_units, make_recipe
from edgeprune.network.cut import formed, sliced
from edgeprune.network.survey import randomised, survey
from edgeprune.runtimes import files
from edgeprune.runtimes.device import Failed, Options, find
from edgeprune.runtimes.executorch import bindings
from edgeprune.runtimes.executorch.device import operators
from edgeprune.runtimes.executorch.program import KINDS, Program
from edgeprune.runtimes.formats import FORMATS
from edgeprune.runtimes.timing import NodeTime

RECORDED = Path(__file__).parents[1] / "recorded"
SMALL = RECORDED / "small.pte"  # two convolutions, a pooling that XNNPACK does not execute, and a linear layer


class Partly(nn.Sequential):
    """A network of which XNNPACK executes two parts. Between them, a tensor has the size of a group."""

    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=16), nn.AdaptiveAvgPool2d(2)),
            *(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 5)),
        )


def run(file: bytes, inputs: tuple[torch.Tensor, ...], folder: Path) -> np.ndarray:
    path = folder / "model.pte"
    path.write_bytes(file)
    (found,) = find("executorch").load(str(path), Options(1)).call([x.numpy() for x in inputs])
    return found


def test_what_a_file_says_about_itself() -> None:
    found = files.read(SMALL)
    assert [(one.dtype, one.shape) for one in found.inputs] == [("float32", (1, 3, 8, 8))]
    assert found.outputs == ("output_0",) and found.precision == "fp32"
    kinds = {"Transpose": 2, "Conv2d": 2, "Reshape": 1, "FullyConnected": 1, "aten::_adaptive_avg_pool2d": 1}
    assert found.operators == kinds


def test_no_damage_of_a_file_is_more_than_one_line(tmp_path: Path) -> None:
    """Every cut of the program, and many bytes that point elsewhere."""
    content, random = SMALL.read_bytes(), np.random.default_rng(0)
    damaged = [content[:size] for size in range(0, 3000, 37)]
    for _ in range(300):
        bytes_ = bytearray(content)
        bytes_[int(random.integers(8, 3000))] = int(random.integers(256))
        damaged.append(bytes(bytes_))
    refused = 0
    for one in damaged:
        (tmp_path / "m.pte").write_bytes(one)
        with suppress(UsageError):
            files.read(tmp_path / "m.pte")
            continue
        refused += 1
    assert refused > 80


def test_another_file_is_refused_by_its_first_bytes(tmp_path: Path) -> None:
    (tmp_path / "m.pte").write_bytes(b"no program at all")
    with pytest.raises(UsageError, match="is not an ExecuTorch file"):
        files.read(tmp_path / "m.pte")


def test_a_file_is_written_as_it_was_read() -> None:
    program = Program(SMALL.read_bytes())
    assert program.written(program.segments, program.content) == SMALL.read_bytes()


def test_a_shorter_constant_moves_those_after_it() -> None:
    program = Program(SMALL.read_bytes())
    segments = [segment[: len(segment) // 2] for segment in program.segments[:3]] + program.segments[3:]
    assert Program(program.written(segments, program.content)).segments == segments


def test_times_by_operator_are_in_the_order_of_execution() -> None:
    runs = operators((RECORDED / "small.etdp").read_bytes())
    assert len(runs) == 3
    names = [name.partition(" #")[0] for name, _ in runs[0]]
    kinds = ["Transpose (ND, X32)", "Convolution (NHWC, F32) IGEMM", "Fully Connected (NC, F32) GEMM"]
    assert names[:3] == kinds and "native_call__adaptive_avg_pool2d.out" in names
    assert all(ns >= 0 for one in runs for _, ns in one)


def test_an_operator_without_weights_is_reported_with_the_layer_before_it() -> None:
    """XNNPACK executes a convolution of single pixels as a fully connected operator."""
    names = (
        "Transpose (ND, X32) #1",
        "Convolution (NHWC, F32) IGEMM #1",
        "Clamp (NC) #1",
        "Fully Connected (NC) GEMM #1",
    )
    found = runtimes.host("executorch").node_times([NodeTime(name, 5) for name in names])
    assert [name for name, _ in found] == [names[0], "layer:0", "layer:0", "layer:1"]


def test_an_int8_artifact_is_made_from_the_program_of_torch() -> None:
    runtime = runtimes.host("executorch")
    assert [runtime.exported_as(one) for one in ("fp32", "int8")] == ["pte", "pt2"]


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24, dtype="int16").reshape(2, 3, 4),
        np.array(3.5),
        np.zeros((0, 2), bool),
        np.ones((1, 3), "float16"),
        np.arange(6, dtype="int64").reshape(2, 3),
    ],
    ids=lambda array: f"{array.dtype}-{array.ndim}",
)
def test_an_array_is_the_same_after_its_way_through_cpp(array: np.ndarray) -> None:
    tensor = bindings.tensor(array)
    found = bindings.copied(bindings.Value(ctypes.pointer(tensor), bindings.TENSOR))
    assert found.dtype == array.dtype and found.shape == array.shape and (found == array).all()


def test_an_output_in_another_order_of_dimensions_is_read_by_its_strides() -> None:
    """Channels last: XNNPACK's own order."""
    array = np.arange(24, dtype="float32").reshape(1, 2, 3, 4)
    turned = np.ascontiguousarray(array.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    found = bindings.copied(bindings.Value(ctypes.pointer(bindings.tensor(turned)), bindings.TENSOR))
    assert (found == array).all() and found.flags.c_contiguous


@pytest.mark.parametrize(("tag", "dtype", "reason"), [(4, 6, "is no tensor"), (1, 15, "type bfloat16"), (1, 99, "99")])
def test_an_output_that_numpy_cannot_hold_is_named(tag: int, dtype: int, reason: str) -> None:
    tensor = bindings.tensor(np.zeros(3, "float32"))
    tensor.type = dtype
    with pytest.raises(Failed, match=reason):
        bindings.copied(bindings.Value(ctypes.pointer(tensor), tag))


def test_an_input_of_a_type_that_torch_lacks_is_named() -> None:
    with pytest.raises(Failed, match="no type uint32"):
        bindings.tensor(np.zeros(3, "uint32"))


def test_another_release_is_refused_since_its_functions_are_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Libraries:
        """Libraries without functions."""

    monkeypatch.setattr(bindings, "CDLL", lambda path: Libraries())
    monkeypatch.setattr(bindings, "version", lambda name: "9.0")
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(bindings, "find_spec", lambda name: spec)
    with pytest.raises(Failed, match=r"executorch 9\.0 lacks a function .*; install executorch 1\.5") as caught:
        bindings.functions.__wrapped__()
    assert caught.value.kind == "runtime-missing"


def test_a_device_needs_no_torch(tmp_path: Path) -> None:
    pytest.importorskip("executorch")
    script = (
        "import sys, numpy; from edgeprune.runtimes.device import Options, find;"
        f"print(find('executorch').load({str(SMALL)!r}, Options(1)).call([numpy.ones((1, 3, 8, 8), 'float32')])[0].shape,"
        "'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=600, check=True)
    assert done.stdout == "(1, 2) False\n"


def test_a_model_that_cannot_be_loaded_or_fed_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("executorch")
    runtime, damaged = find("executorch"), tmp_path / "damaged.pte"
    damaged.write_bytes(SMALL.read_bytes()[:-100])
    for path in (damaged, tmp_path / "missing.pte"):
        with pytest.raises(Failed, match="cannot load the model") as caught:
            runtime.load(str(path), Options(1))
        assert caught.value.kind == "load"
    model = runtime.load(str(SMALL), Options(1))
    for inputs in ([np.zeros((1, 3, 9, 9), "float32")], [np.zeros((1, 3, 8, 8))], []):
        with pytest.raises(Failed, match="do they have the right shapes and types"):
            model.call(inputs)


class Anchored(nn.Module):
    """As a detector's head that computes its anchors once, with a transposition."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("anchors", torch.arange(6.0).view(2, 3).T, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 + self.anchors


def test_a_buffer_is_stored_that_is_neither_contiguous_nor_in_the_state_dict(tmp_path: Path) -> None:
    pytest.importorskip("executorch")
    x = torch.randn(3, 2)
    found = run(FORMATS["pte"].written(Anchored(), (x,)), (x,), tmp_path)
    np.testing.assert_allclose(found, Anchored()(x).numpy(), rtol=1e-6)


def test_modules_may_have_the_names_that_graph_modules_use(tmp_path: Path) -> None:
    pytest.importorskip("executorch")
    model = nn.Sequential(OrderedDict(code=nn.Linear(3, 4), meta=nn.ReLU())).eval()
    x = torch.randn(2, 3)
    found = run(FORMATS["pte"].export(model, (x,), ()), (x,), tmp_path)
    np.testing.assert_allclose(found, model(x).detach().numpy(), rtol=1e-5, atol=1e-6)


class Maxima(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x * nn.functional.adaptive_max_pool2d(x, 1) + x.max(1, keepdim=True)[0]
        return x.amax((2, 3)) + x.max(3)[0].amax(2)


def test_maxima_are_written_that_xnnpack_and_executorch_lack(tmp_path: Path) -> None:
    pytest.importorskip("executorch")
    found = run(FORMATS["pte"].export(Maxima(), image(), ()), image(), tmp_path)
    np.testing.assert_allclose(found, Maxima()(*image()).numpy(), rtol=1e-5, atol=1e-6)


def test_a_convolution_over_three_dimensions_is_refused_by_its_place() -> None:
    pytest.importorskip("executorch")
    for layer in (nn.Conv3d(3, 4, 3), nn.ConvTranspose3d(3, 4, 3)):
        with pytest.raises(UsageError, match=r"^module 0: executorch has no convolution over three dimensions"):
            FORMATS["pte"].written(nn.Sequential(layer).eval(), (torch.randn(1, 3, 4, 8, 8),))
        with pytest.raises(UsageError, match=r"^module 0: executorch has no convolution over three dimensions"):
            FORMATS["pte"].written(nn.Sequential(layer).eval(), (torch.randn(3, 4, 8, 8),))  # without a batch


def test_the_kinds_of_nodes_are_those_of_the_installed_schema() -> None:
    package = Path(pytest.importorskip("executorch").__path__[0])
    text = (package / "backends" / "xnnpack" / "serialization" / "schema.fbs").read_text()
    union = re.search(r"union XNodeUnion \{(.*?)\}", text, re.DOTALL)
    assert union is not None
    names = [line.partition(":")[0].strip(" ,") for line in union[1].split("\n") if line.strip()]
    assert [f"XNN{kind}" for kind, _ in KINDS] == [re.sub("XNNStatic", "XNN", name) for name in names]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Partly", "Residual"])
def test_a_variant_equals_the_pruned_network_and_its_nodes_have_owners(name: str, tmp_path: Path) -> None:
    pytest.importorskip("executorch")
    torch.manual_seed(0)
    inputs = image() if name == "Partly" else inputs_of(name)
    model = randomised(Partly() if name == "Partly" else NETS[name]())
    groups = survey(model, inputs)
    model = formed(model, groups, inputs)
    template = FORMATS["pte"](model, inputs, groups)
    assert template.slices
    widths = groups.full() | {group.name: max(1, group.width // 2) for group in groups.free}
    recipe = make_recipe(groups, first_units(groups, widths))
    expected = sliced(model, recipe)(*inputs).detach().numpy()
    np.testing.assert_allclose(
        run(template.sliced(template._kept(recipe), widths), inputs, tmp_path), expected, rtol=1e-3, atol=1e-5
    )
    assert run(template.variant(widths), inputs, tmp_path).shape == expected.shape
    assert set(template.owners(groups.layers).values()) == {layer.name for layer in groups.layers}
