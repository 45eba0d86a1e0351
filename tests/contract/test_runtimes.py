"""Every runtime fulfils the same contract, with its real software."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from nets import NETS, inputs_of
from onnx import TensorProto, helper, numpy_helper
from standin import put_stand_in
from torch import nn

from edgeprune import runtimes
from edgeprune.devices.bench import Bench, interleaved, open_bench
from edgeprune.errors import DeviceError, UsageError
from edgeprune.network.adapter import adapted
from edgeprune.network.cut import formed
from edgeprune.network.preprocessing import preprocessed
from edgeprune.network.survey import randomised, survey
from edgeprune.records import Artifact, Groups, Preprocess, Target
from edgeprune.runtimes.formats import FORMATS
from edgeprune.runtimes.openvino.device import without_first
from edgeprune.stages.compile import Compiler
from edgeprune.stages.verdicts import accuracy

RANDOM = np.random.default_rng(0)
PACKAGES = {"tflite": "litert_torch", "tensorrt": "onnx", "ncnn": "pnnx"}  # without which a runtime is not tested
REAL = ("onnxruntime", "openvino", "tflite", "ncnn", "executorch")
STAND_IN = pytest.param("tensorrt", marks=pytest.mark.slow)  # only NVIDIA's devices have the real one
WEIGHT = RANDOM.standard_normal((16, 3, 1, 1)).astype("float32")
# OpenVINO reports the time of a node in microseconds, so the network must take several.


def pointwise(path: Path) -> Path:
    """y = relu(w·x): one 1×1 convolution, so that numpy knows the answer."""
    value = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, s)
        for n, s in (("x", [1, 3, 64, 64]), ("y", [1, 16, 64, 64]))
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["conv_out"], name="/layer/Conv"),
        helper.make_node("Relu", ["conv_out"], ["y"], name="/layer/Relu"),
    ]
    graph = helper.make_graph(nodes, "g", value[:1], value[1:], [numpy_helper.from_array(WEIGHT, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


class Pointwise(nn.Module):
    """The same in torch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 16, 1, bias=False)
        self.layer.weight.data = torch.from_numpy(WEIGHT)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.layer(x))


@pytest.fixture(scope="module", params=[*REAL, STAND_IN])
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """The real runtimes, and the stand-in."""
    name, folder = request.param, tmp_path_factory.mktemp("bench")
    pytest.importorskip(PACKAGES.get(name, name))
    with pytest.MonkeyPatch.context() as monkeypatch:
        if name == "tensorrt":
            put_stand_in("10.3.0", folder, monkeypatch)
        target = Target(folder / "t.toml", "t", "local", name, simulated=name == "tensorrt")
        with open_bench(target, folder) as opened:
            yield opened


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Bench], Path]:
    """Makes the convolution's artifact for a bench's runtime, once a runtime. Tests must not change it."""

    @cache
    def of(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        runtime = runtimes.host(name)
        exported = folder / f"exported.{runtime.format}"
        if runtime.format == "onnx":
            pointwise(exported)
        else:
            exported.write_bytes(FORMATS[runtime.format].export(Pointwise(), (torch.zeros(1, 3, 64, 64),), ()))
        (folder / "model").mkdir()
        files = runtime.convert(exported, folder / "model")
        assert all(file.parent == folder / "model" and file.stat().st_size for file in files)
        return files[0]

    return lambda bench: of(bench.device.runtime)


def test_outputs_agree_with_numpy_in_full_precision(
    bench: Bench, built: Callable[[Bench], Path], tmp_path: Path
) -> None:
    """1e-5 is far below what bf16 or tf32 would leave."""
    inputs = RANDOM.standard_normal((2, 1, 3, 64, 64)).astype("float32")
    (got,) = bench.outputs(built(bench), [inputs])
    expected = np.maximum(np.einsum("oi,nbihw->nbohw", WEIGHT[:, :, 0, 0], inputs), 0)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)  # trtexec writes six digits


def test_times_and_nodes(bench: Bench, built: Callable[[Bench], Path], tmp_path: Path) -> None:
    model = built(bench)
    inputs = bench.save_inputs([np.zeros((1, 3, 64, 64), "float32")], tmp_path)
    first, second = bench.time([model, model], inputs, 1)
    assert len(first.runs) == len(second.runs) == 1
    assert all(len(run.times_ns) >= 5 and run.before["boot_id"] == run.after["boot_id"] for run in first.runs)
    ((measured,),) = bench.measure([[model]], inputs, profiled=True)
    assert all(ns >= 0 for _, ns in measured.nodes)
    names = {name for name, _ in measured.nodes}
    assert {"/layer/Conv", "/layer/Relu", "y", "conv_out", "1:CONV_2D", "0:CONV_2D", "convrelu_0", "layer:0"} & names


def test_models_are_interleaved_in_one_process(bench: Bench, built: Callable[[Bench], Path], tmp_path: Path) -> None:
    model = built(bench)
    inputs = bench.save_inputs([np.zeros((1, 3, 64, 64), "float32")], tmp_path)
    ((first, second),) = bench.measure([[model, model]], inputs, timed_s=0.05)
    assert min(len(first.run.times_ns), len(second.run.times_ns)) >= 5
    assert first.run.before == second.run.before and first.run.peak_memory_bytes == second.run.peak_memory_bytes
    assert [len(samples.runs) for samples in bench.compare([model, model], inputs, 2)] == [2, 2]


def test_a_model_that_cannot_be_loaded_is_named(bench: Bench, built: Callable[[Bench], Path], tmp_path: Path) -> None:
    bad = tmp_path / ("bad" + built(bench).suffix)
    bad.write_bytes(b"not a model")
    with pytest.raises(DeviceError, match="load"):
        bench.time([bad], bench.save_inputs([np.zeros((1, 3, 64, 64), "float32")], tmp_path), 1)


def test_the_device_identifies_itself(bench: Bench) -> None:
    device = bench.device
    assert device.cores >= 1 and device.cpu and not device.emulated
    assert device.simulated == (device.runtime == "tensorrt")
    if device.runtime != "tensorrt":
        assert device.runtime_version == version({"tflite": "ai-edge-litert"}.get(device.runtime, device.runtime))


def test_openvino_s_first_run_does_not_count() -> None:
    """Its counters are means over all runs so far, and a first run allocates: 100 µs, then three of 4 µs, read 28 µs."""

    assert without_first(mean=(100 + 3 * 4) / 4, runs=4, first=100) == 4


def test_a_process_that_only_measures_imports_openvino_without_its_converter() -> None:
    """The converter imports HTTP clients and more, and takes most of the time. A program that uses a release keeps it."""
    pytest.importorskip("openvino")
    code = (
        "import sys; from edgeprune.runtimes.device import {0}; {0}('openvino').version(); import openvino;"
        " print(hasattr(openvino, 'convert_model'), 'openvino_telemetry' in sys.modules)"
    )

    def printed(name: str) -> str:
        return subprocess.run(
            [sys.executable, "-c", code.format(name)], check=True, capture_output=True, text=True
        ).stdout

    assert printed("find_alone") == "False False\n"
    assert printed("find").startswith("True")


def test_what_openvino_cannot_convert_is_our_error(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"not a model")
    with pytest.raises(UsageError, match="openvino cannot convert"):
        runtimes.host("openvino").convert(bad, tmp_path)


def test_samples_that_are_run_in_parts_give_the_same_outputs(
    bench: Bench, built: Callable[[Bench], Path], tmp_path: Path
) -> None:
    inputs = RANDOM.standard_normal((2, 1, 3, 64, 64)).astype("float32")
    model = built(bench)
    (whole,), (parts,) = bench.outputs(model, [inputs]), bench.outputs(model, [inputs], seconds=0.0)
    np.testing.assert_array_equal(parts, whole)


class Words(nn.Module):
    """Token ids and a mask in, classes out."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.up, self.fc = nn.Embedding(50, 16), nn.Linear(16, 32), nn.Linear(32, 4)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.fc((torch.relu(self.up(self.words(ids))) * mask[..., None]).mean(1))


@pytest.mark.parametrize("precision", ["fp32", pytest.param("int8", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [*REAL, STAND_IN])
def test_token_ids_and_several_inputs(
    name: str, precision: str, tmp_path: Path, stand_in: Callable[[str], None]
) -> None:
    """torch counts tokens in 64 bits, and a device may feed 64 bits."""
    pytest.importorskip(PACKAGES.get(name, name))
    if name == "tensorrt":
        stand_in("8.5.2")  # which has but 32
    torch.manual_seed(0)
    model = Words().eval()
    ids, masks = torch.randint(0, 50, (3, 1, 12)), (torch.rand(3, 1, 12) > 0.2).float()
    example, calls = (ids[0], masks[0]), list(zip(ids.numpy(), masks.numpy(), strict=True))
    artifact = Compiler(runtimes.host(name), precision, calls).compile(model, example, (), tmp_path, "s")
    with open_bench(Target(tmp_path / "t.toml", "t", "local", name, simulated=name == "tensorrt"), tmp_path) as bench:
        (got,) = bench.outputs(artifact.files[0], [ids.numpy(), masks.numpy()])
    with torch.no_grad():
        wanted = np.stack([model(*call).numpy() for call in zip(ids, masks, strict=True)])
    assert np.abs(got - wanted).max() <= (0.3 if precision == "int8" else 1e-4) * np.abs(wanted).max()


class Many(nn.Module):
    """Outputs by name, more than one digit can count, and one of them twice. ncnn has no outputs that are indices."""

    def __init__(self, indices: bool) -> None:
        super().__init__()
        self.indices = indices
        self.heads = nn.ModuleList(nn.Linear(6, 2 + i) for i in range(11))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor | tuple[torch.Tensor, ...]]:
        found = [torch.tanh(head(x)) for head in self.heads]
        best = {"best": found[0].argmax(1)} if self.indices else {}
        return {"last": found[-1], "all": tuple(found)} | best


@pytest.mark.parametrize("precision", ["fp32", pytest.param("int8", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [*REAL, STAND_IN])
def test_several_outputs_keep_their_order(
    name: str, precision: str, tmp_path: Path, stand_in: Callable[[str], None]
) -> None:
    pytest.importorskip(PACKAGES.get(name, name))
    if name == "tensorrt":
        stand_in("10.3.0")
    torch.manual_seed(0)
    dims = (0,) * (12 if name == "ncnn" else 13)
    model, x = adapted(Many(name != "ncnn").eval()), torch.randn((5, 1, 6) if name == "ncnn" else (3, 2, 6))
    artifact = Compiler(runtimes.host(name), precision, [(call.numpy(),) for call in x]).compile(
        model, (x[0],), (), tmp_path, "s"
    )
    with open_bench(Target(tmp_path / "t.toml", "t", "local", name, simulated=name == "tensorrt"), tmp_path) as bench:
        got = accuracy.outputs_of(bench, artifact, [x.numpy()], 5, dims)
    wanted = accuracy.computed(model, [x.numpy()], 5, dims)
    assert [array.shape for array in got] == [array.shape for array in wanted] and len(got[0]) == 5
    for one, other in list(zip(got, wanted, strict=True))[:12]:  # the last one is an index
        assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > (0.9 if precision == "int8" else 0.99999)


class Residual(nn.Module):
    """What the quantisers must get through: a convolution with its normalisation, one by channel, an addition, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(16, 64, 3, padding=1), nn.BatchNorm2d(64)
        self.depthwise = nn.Conv2d(64, 64, 3, padding=1, groups=64)
        self.head = nn.Linear(64, 400)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.first(x)))
        return self.head((x + torch.relu(self.depthwise(x))).mean((2, 3)))


@dataclass(frozen=True)
class Subject:
    """A network, inputs for it, and what is made from it, once each. Tests must not change the files."""

    model: nn.Module
    inputs: torch.Tensor  # (calls, batch, channels, height, width)
    groups: Groups
    compiled: Callable[[str, str], Artifact]  # by runtime and precision
    owners: Callable[[str], Mapping[str, str]]  # by format


@pytest.fixture(scope="module")
def residual(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    torch.manual_seed(0)
    example = (torch.randn(1, 16, 32, 32),)
    model = randomised(Residual())
    groups = survey(model, example)
    inputs = torch.randn(8, 1, 16, 32, 32)

    @cache
    def compiled(name: str, precision: str) -> Artifact:
        samples = [] if precision == "fp32" else [(sample,) for sample in inputs.numpy()]
        compiler = Compiler(runtimes.host(name), precision, samples)
        return compiler.compile(model, example, groups.folds, tmp_path_factory.mktemp(f"{name}-{precision}"), "s")

    @cache
    def owners(kind: str) -> Mapping[str, str]:
        return FORMATS[kind](model, example, groups).owners(groups.layers)

    return Subject(model, inputs, groups, compiled, owners)


LOWER = {
    "onnxruntime": ("fp16", "int8"),
    "openvino": ("fp16", "int8"),
    "tflite": ("fp16", "int8", "int8-dynamic"),
    "executorch": ("int8",),
    "ncnn": ("fp16", "int8"),
    "tensorrt": ("fp16", "int8"),
}
QUICK = {
    ("onnxruntime", "fp16"),
    ("onnxruntime", "int8"),
    ("openvino", "int8"),
}  # the others take seconds


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        pytest.param(name, p, marks=[] if (name, p) in QUICK else pytest.mark.slow)
        for name, all_ in LOWER.items()
        for p in all_
    ],
)
def test_lower_precisions_agree_and_their_nodes_are_known(
    name: str, precision: str, residual: Subject, tmp_path: Path, stand_in: Callable[[str], None]
) -> None:
    """Inputs and outputs stay fp32, the file shrinks, outputs agree, and the profiler's names lead to the layers."""
    pytest.importorskip(PACKAGES.get(name, name))
    if name == "tensorrt":
        stand_in("8.5.2")  # which takes no type that no flag allows
    runtime = runtimes.host(name)
    assert precision in runtime.candidates("auto") and precision in runtime.candidates(precision.partition("-")[0])
    whole, lower = residual.compiled(name, "fp32"), residual.compiled(name, precision)
    owners = residual.owners(runtime.format)
    raw = residual.inputs
    target = Target(tmp_path / "t.toml", "t", "local", name, simulated=name == "tensorrt")
    with open_bench(target, tmp_path) as bench:
        (got,) = bench.outputs(lower.files[0], [raw.numpy()])
        ((measured,),) = bench.measure([[lower.files[0]]], bench.save_inputs([raw[0].numpy()], tmp_path), profiled=True)
    with torch.no_grad():
        wanted = np.stack([residual.model(x).numpy() for x in raw])
    assert got.dtype == np.float32
    # TensorRT wants the weights in fp32 before a pair of their own: they shrink in the engine.
    assert lower.size_bytes < whole.size_bytes * (1.1 if (name, precision) == ("tensorrt", "int8") else 1)
    assert np.abs(got - wanted).max() <= (0.1 if "int8" in precision else 0.01) * np.abs(wanted).max()
    assert {"first", "depthwise", "head"} <= {owners[node] for node, _ in measured.nodes if node in owners}


@pytest.mark.slow
def test_an_int8_layer_that_is_never_active_loads(tmp_path: Path) -> None:
    """XNNPACK refuses a convolution whose outputs were all zero when it was calibrated."""
    pytest.importorskip("litert_torch")
    example = (torch.randn(1, 16, 8, 8),)
    model = randomised(Residual())
    with torch.no_grad():
        model.depthwise.bias.fill_(-100)
    exported = FORMATS["tflite"].export(model, example, ())
    with open_bench(Target(tmp_path / "t.toml", "t", "local", "tflite"), tmp_path) as bench:
        inputs = bench.save_inputs([example[0].numpy()], tmp_path)
        for exact in (True, False):
            path = tmp_path / "exported.tflite"  # a conversion takes it away
            path.write_bytes(exported)
            (file,) = runtimes.host("tflite").convert(path, tmp_path, "int8", [(example[0].numpy(),)], exact=exact)
            bench.measure([[file]], inputs, timed_s=0.01)


def test_models_are_interleaved_so_that_drift_cancels() -> None:
    assert interleaved(2, 4) == [0, 1, 1, 0, 0, 1, 1, 0]
    assert interleaved(3, 2) == [0, 1, 2, 2, 1, 0]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, torch.uint8) for name in REAL),
        ("onnxruntime", torch.float32),
        *(
            pytest.param(name, torch.float32, marks=pytest.mark.slow)
            for name in ("openvino", "tflite", "ncnn", "executorch")
        ),
    ],
)
def test_preprocessing_is_in_the_artifact(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """A device feeds raw pixels, as bytes if it likes."""
    pytest.importorskip(PACKAGES.get(name, name))
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 5)).eval()
    preprocess = Preprocess((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), 1 / 255)
    model = preprocessed(copy.deepcopy(plain), preprocess)
    raw = torch.randint(0, 256, (3, 1, 3, 8, 8)).to(dtype)
    groups = survey(model, (raw[0],))
    assert [group.name for group in groups.free] == ["0"]
    target = Target(tmp_path / "t.toml", "t", "local", name)
    folder = tmp_path / "model"
    folder.mkdir()
    artifact = Compiler(runtimes.host(name), "fp32").compile(model, (raw[0],), groups.folds, folder, "s")
    with open_bench(target, tmp_path) as bench:
        (got,) = bench.outputs(artifact.files[0], [raw.numpy()])
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocess.mean, preprocess.std))
    wanted = np.stack([plain((x / 255 - mean) / std).detach().numpy() for x in raw])
    assert np.abs(got - wanted).max() <= 1e-4 * np.abs(wanted).max()


class Mlp(torch.nn.Sequential):
    """Linear layers, which runtimes fuse with what follows them, and one with a normalisation between."""

    def __init__(self) -> None:
        super().__init__(
            *(
                torch.nn.Linear(32, 768),
                torch.nn.ReLU(),
                torch.nn.Linear(768, 768, bias=False),
                torch.nn.BatchNorm1d(768),
            ),
            *(torch.nn.ReLU(), torch.nn.Linear(768, 512), torch.nn.GELU(), torch.nn.Linear(512, 500)),
        )


@pytest.mark.parametrize(
    ("name", "net"),
    [
        ("openvino", "Mlp"),  # it counts microseconds, and a node of the small encoder takes less than one
        ("onnxruntime", "Mlp"),
        pytest.param("ncnn", "Mlp", marks=pytest.mark.slow),
        pytest.param("onnxruntime", "Encoder", marks=pytest.mark.slow),
        pytest.param("tflite", "Mlp", marks=pytest.mark.slow),
        pytest.param("executorch", "Mlp", marks=pytest.mark.slow),
        pytest.param("executorch", "Encoder", marks=pytest.mark.slow),
        pytest.param("tflite", "Encoder", marks=pytest.mark.slow),
    ],
)
def test_the_nodes_of_every_layer_are_found_in_what_the_profiler_names(name: str, net: str, tmp_path: Path) -> None:
    pytest.importorskip(PACKAGES.get(name, name))
    runtime = runtimes.host(name)
    torch.manual_seed(0)
    model = randomised(Mlp() if net == "Mlp" else NETS[net]())
    example = (torch.randn(1, 32),) if net == "Mlp" else inputs_of(net)
    groups = survey(model, example)
    model = formed(model, groups, example)
    (tmp_path / "a").mkdir()
    artifact = Compiler(runtime, "fp32").compile(model, example, groups.folds, tmp_path / "a", "s")
    owners = FORMATS[runtime.format](model, example, groups).owners(groups.layers)
    with open_bench(Target(tmp_path / "t.toml", "t", "local", name), tmp_path) as bench:
        files = bench.save_inputs([x.numpy() for x in example], tmp_path)
        ((measured,),) = bench.measure([[artifact.files[0]]], files, profiled=True)
    found = {owners[node] for node, _ in measured.nodes if node in owners}
    wanted = {layer.name for layer in groups.layers}
    assert len(found & wanted) >= 0.75 * len(wanted), (
        wanted - found,
        [n for n, _ in measured.nodes if n not in owners],
    )
