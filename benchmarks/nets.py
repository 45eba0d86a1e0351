"""The networks of the benchmarks, on a device. Weights are random: latency does not depend on them."""

from __future__ import annotations

import math
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from edgeprune import runtimes
from edgeprune.devices.bench import Bench, open_bench
from edgeprune.frontends import toml
from edgeprune.latency.observations import FIT_QUANTILE
from edgeprune.network.cut import formed
from edgeprune.network.survey import survey
from edgeprune.records import Profile, Target, Widths
from edgeprune.runtimes import device, timing
from edgeprune.runtimes.formats import FORMATS
from edgeprune.stages import experiments


def layer(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, act: nn.Module | None = None
) -> nn.Module:
    """Convolution, batch-norm and an optional activation."""
    parts = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        act,
    ]
    return nn.Sequential(*(part for part in parts if part is not None))


class Basic(nn.Module):
    """Two 3×3 convolutions (He et al. 2016)."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(layer(inputs, width, 3, stride, act=nn.ReLU()), layer(width, width, 3))
        same = stride == 1 and inputs == width
        self.shortcut = nn.Identity() if same else layer(inputs, width, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 (He et al. 2016, the stride in the 3×3)."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.body = nn.Sequential(
            layer(inputs, width, 1, act=nn.ReLU()),
            layer(width, width, 3, stride, act=nn.ReLU()),
            layer(width, outputs, 1),
        )
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else layer(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


class ResNet(nn.Module):
    """Four stages of residual blocks for 224×224 images."""

    def __init__(self, block: type[Basic] | type[Bottleneck], depths: tuple[int, ...]) -> None:
        super().__init__()
        self.stem = nn.Sequential(layer(3, 64, 7, 2, act=nn.ReLU()), nn.MaxPool2d(3, 2, 1))
        blocks, channels = [], 64
        for stage, depth in enumerate(depths):
            for i in range(depth):
                blocks.append(block(channels, 64 << stage, 2 if stage and not i else 1))
                channels = (64 << stage) * block.expansion
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(channels, 1000)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


class InvertedResidual(nn.Module):
    """Expand, depthwise, project (Sandler et al. 2018)."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = inputs * expand
        first = [layer(inputs, hidden, 1, act=nn.ReLU6())] if expand > 1 else []
        depthwise = layer(hidden, hidden, 3, stride, hidden, nn.ReLU6())
        self.body = nn.Sequential(*first, depthwise, layer(hidden, outputs, 1))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.residual else self.body(x)


def inverted_residuals(channels: int, settings: Sequence[tuple[int, int, int, int]]) -> list[nn.Module]:
    """A stage for each (expansion, outputs, depth, stride of its first block)."""
    blocks: list[nn.Module] = []
    for expand, width, depth, stride in settings:
        for i in range(depth):
            blocks.append(InvertedResidual(channels, width, 1 if i else stride, expand))
            channels = width
    return blocks


class MobileNetV2(nn.Module):
    """Width 1.0, for 224×224 images."""

    SETTINGS = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )

    def __init__(self) -> None:
        super().__init__()
        blocks = inverted_residuals(32, self.SETTINGS)
        self.features = nn.Sequential(layer(3, 32, 3, 2, act=nn.ReLU6()), *blocks, layer(320, 1280, 1, act=nn.ReLU6()))
        self.fc = nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).mean((2, 3)))


class Encoder(nn.Module):
    """One pre-norm transformer layer (Dosovitskiy et al. 2021)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        normal = self.before(x)
        query, key, value = (
            project(normal).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.after(x))))


class VisionTransformer(nn.Module):
    """Width 192, 3 heads, 12 layers: DeiT-Tiny (Touvron et al. 2021), a mean in place of its token."""

    def __init__(self, size: int = 224, patch: int = 16, classes: int = 1000) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 192, patch, patch)
        self.positions = nn.Parameter(torch.zeros(1, (size // patch) ** 2, 192))
        self.layers = nn.Sequential(*(Encoder(192, 3) for _ in range(12)))
        self.norm, self.fc = nn.LayerNorm(192), nn.Linear(192, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.fc(self.norm(self.layers(x)).mean(1))


sys.path.append(str(Path(__file__).parents[1] / "examples" / "digits"))
import digits  # noqa: E402

NETS: dict[str, Callable[[], nn.Module]] = {
    "digits": digits.build,  # of the example: small enough for the virtual board
    "resnet18": lambda: ResNet(Basic, (2, 2, 2, 2)),
    "resnet50": lambda: ResNet(Bottleneck, (3, 4, 6, 3)),
    "mobilenetv2": MobileNetV2,
    "vit": VisionTransformer,
}


def inputs(net: str = "") -> tuple[Tensor, ...]:
    """One 224×224 image, or the input of the example's network."""
    if net == "digits":
        return tuple(digits.example_inputs())
    return (torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0)),)


RUNTIMES = tuple(name for name in runtimes.names() if runtimes.host(name).own)  # that run on this machine


def local(runtime: str, threads: int = 1) -> Target:
    """This machine."""
    return Target(Path("benchmark.toml"), "benchmark", "local", runtime, threads)


class Subject:
    """One network on one device, set up as in `edgeprune profile`."""

    def __init__(
        self, net: str, model: nn.Module, example: tuple[Tensor, ...], target: Target, bench: Bench, folder: Path
    ) -> None:
        self.net, self.target, self.bench, self._folder = net, target, bench, folder
        self.groups = survey(model, example)
        self.model, self.example = formed(model, self.groups, example), example[0]
        self.runtime = runtimes.host(target.runtime)
        self.template = FORMATS[self.runtime.format](self.model, example, self.groups)
        self.inputs = bench.save_inputs([tensor.numpy() for tensor in example], folder)
        self.device_s = self._building_s = 0.0

    @staticmethod
    @contextmanager
    def open(net: str, runtime: str, threads: int, folder: Path, name: str | None = None) -> Iterator[Subject]:
        """One of `NETS` with random weights on this machine, or on the target of this name."""
        torch.manual_seed(0)
        model, target = NETS[net]().eval(), local(runtime, threads)
        if name is not None:
            target = toml.read_target(toml.find_target(name, Path.cwd()))
        with open_bench(target, folder) as bench:
            yield Subject(net, model, inputs(net), target, bench, folder)

    def owners(self, widths: Widths) -> Mapping[str, str]:
        """The layer that each node of an artifact with these widths belongs to."""
        return self.template.owners_of(widths)

    @property
    def exports_singles(self) -> bool:
        """See `Template.exports_singles`."""
        return self.template.exports_singles

    def file(self, widths: Widths, reference: bool = False) -> Path:
        """The file for the device at these widths, in fp32."""
        started = time.monotonic()
        place = Path(tempfile.mkdtemp(dir=self._folder))
        exported = place / f"exported.{self.runtime.format}"
        exported.write_bytes(self.template.variant(widths))
        made = self.runtime.convert(exported, place)[0]
        self._building_s += time.monotonic() - started
        return made

    def profiled(self, told: Callable[[int, int, str], None]) -> Profile:
        """A new profile. `device_s` is then the time that the device took."""
        started, before, t = time.monotonic(), self._building_s, self.target
        profile = Profile(t.name, self.net, self.groups.network, self.bench.device, t.threads, t.precision, ())
        subject = experiments.Subject(self.bench, self, self.groups, self.inputs)  # type: ignore[arg-type]
        grown = experiments.measure(subject, profile, told)
        for profile in grown:  # noqa: B007 - the last one is the whole
            pass
        self.device_s = time.monotonic() - started - (self._building_s - before)
        return profile


def alone(subject: Subject, configurations: Sequence[Widths]) -> np.ndarray:
    """Nanoseconds of every operator with weights, timed separately at these widths, summed for each configuration.

    All operators of TFLite and ncnn come from their own files. The operators of other runtimes come from the ONNX file, with
    their inputs in the network. The sum is NaN if the runtime crashes: OpenVINO 2026.4.1 reads past the end in some single
    convolutions.
    """
    if subject.runtime.format != "onnx":
        models = [subject.file(w) for w in configurations]
        found = subject.bench.measure([[m] for m in models], subject.inputs, profiled=True)
        return np.array([sum(ns for _, ns in measured.nodes) for (measured,) in found], float)
    found, t = [], subject.target
    for widths in configurations:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            job = process.submit(
                _alone, subject.template.variant(widths), subject.example.numpy(), t.runtime, t.threads
            )
            try:
                found.append(job.result())
            except BrokenProcessPool:
                found.append(math.nan)
    return np.array(found)


def _alone(variant: bytes, example: np.ndarray, runtime: str, threads: int) -> float:
    proto = onnx.load_from_string(variant)
    graph = proto.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    values = {graph.input[0].name: example} | _between(proto, example)
    total = 0.0
    with tempfile.TemporaryDirectory() as folder:
        model, file = Path(folder) / "model.onnx", Path(folder) / "input.npy"
        for node in graph.node:
            own = [weights[name] for name in node.input if name in weights]
            free = [name for name in node.input if name in values]
            if node.op_type not in ("Conv", "Gemm", "MatMul") or not own or len(free) != 1:
                continue
            ends = [onnx.helper.make_tensor_value_info(n, 1, values[n].shape) for n in (free[0], node.output[0])]
            whole = onnx.helper.make_graph([node], "one", ends[:1], ends[1:], own)
            made = onnx.helper.make_model(whole, opset_imports=proto.opset_import, ir_version=proto.ir_version)
            onnx.save(made, model)
            np.save(file, values[free[0]])
            alone = device.find(runtime).load(str(model), device.Options(threads))
            alone.feed([np.load(file)])
            times = timing.repeat(alone.run, timing.Timing(warmup_s=0.05, timed_s=0.02, runs_min=5, runs_max=50))
            total += float(np.quantile(times, FIT_QUANTILE))
    return total


def _between(proto: onnx.ModelProto, example: np.ndarray) -> dict[str, np.ndarray]:
    """All intermediate results of the network, by name."""
    known = {value.name for value in proto.graph.output}
    names = [name for node in proto.graph.node for name in node.output]
    shown = onnx.ModelProto()
    shown.CopyFrom(proto)
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(shown.SerializeToString(), options, providers=["CPUExecutionProvider"])
    wanted = [value.name for value in session.get_outputs()]
    found = session.run(wanted, {session.get_inputs()[0].name: example})
    return {name: value for name, value in zip(wanted, found, strict=True) if isinstance(value, np.ndarray)}
