"""ncnn's files, from the program pnnx. It reads the traced network (TorchScript)."""

from __future__ import annotations

import copy
import importlib.util
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from edgeprune.errors import RuntimeMissing, UsageError, quoted
from edgeprune.graph.trace import exporting
from edgeprune.limits import LIMITS
from edgeprune.network.adapter import file_names
from edgeprune.network.outputs import tensors
from edgeprune.records import Widths
from edgeprune.runtimes.base import silenced
from edgeprune.runtimes.device import Failed
from edgeprune.runtimes.formats.base import Dims, Node, Origin, Origins, Template, pattern, refusal
from edgeprune.runtimes.formats.sizes import Constants
from edgeprune.runtimes.ncnn.device import module
from edgeprune.runtimes.ncnn.network import FEATURES, FP32, Layer, pack, parse, read, save, unpack

INSTALL = "pip install 'edgeprune[ncnn]'"
PARAMS = 100  # the position of the first parameter among the constants of a layer, which follow its weights
RESHAPED = (0, 1, 11, 2)  # the sizes of a Reshape. One of them may be -1
SIZES = (), (0,), (1, 0), (2, 1, 0), (2, 11, 1, 0)  # parameters of an Input: the sizes of a sample, by their number
CHECK = """
import sys
import numpy
from edgeprune.runtimes.device import Failed, Options
from edgeprune.runtimes.ncnn.device import NcnnModel
given = numpy.load("given.npz")
try:
    outputs = NcnnModel("check.param", Options(1)).call([given[name] for name in given.files])
except Failed as error:
    sys.exit(str(error))
numpy.savez("got.npz", *outputs)
"""
CAST = "Tensor.to"  # the kind of a layer that pnnx leaves
RELATIVE = 1e-3  # of the largest output: how much ncnn's outputs may differ from torch's


class NcnnTemplate(Template):
    """The .param and the .bin, sliced as objects. ncnn infers the shapes of blobs."""

    _known: list[Layer] | None = None

    @property
    def layers(self) -> list[Layer]:
        """The layers of the exported file."""
        if self._known is None:
            self._known = unpack(self.exported)
            origins = Origins(self._folded, self._computed)
            found = {place: origins.find(value) for place, (value, _) in _weights(self._known)}
            self.origins: dict[tuple[int, int], Origin] = {
                place: origin for place, origin in found.items() if origin is not None
            }
        return self._known

    @staticmethod
    def written(model: nn.Module, inputs: tuple[Tensor, ...]) -> bytes:
        """See `Template.written`. ncnn must also compute what torch computes."""
        if any(x.shape[:1] != (1,) or x.ndim > len(SIZES) for x in inputs):
            shapes = ", ".join("x".join(map(str, x.shape)) for x in inputs)
            most = f"ncnn takes one sample of at most {len(SIZES) - 1} dimensions a call"
            raise UsageError(f"{most}, and the inputs are {shapes}; give example inputs of batch 1")
        with torch.no_grad():
            outputs = model.eval()(*inputs)
        with tempfile.TemporaryDirectory(prefix="edgeprune-") as scratch:
            layers = _converted(model, inputs, outputs, Path(scratch))
            _named(layers, model, inputs)
            for layer in layers:
                if layer.kind == CAST:  # a device feeds fp32, whatever torch casts to it
                    layer.kind, layer.params = "Noop", {}
                layer.params[FEATURES] = FP32
            wanted = [tensor.numpy() for tensor in tensors(outputs)]
            _require_equal(layers, [x.numpy() for x in inputs], wanted, Path(scratch))
        return pack(layers)

    @staticmethod
    def operators(file: bytes) -> int:
        """See `Template.operators`."""
        return sum(layer.kind not in ("Input", "MemoryData", "Split", "Noop") for layer in unpack(file))

    def nodes(self) -> Iterator[Node]:
        """A profiler uses the name of a layer."""
        for number, layer in enumerate(self.layers):
            parameters = tuple(origin.parameter for (own, _), origin in self.origins.items() if own == number)
            yield Node((layer.name,), tuple(layer.inputs), tuple(layer.outputs), parameters)

    @staticmethod
    def constants(file: bytes) -> Constants:
        """See `Template.constants`. Whole numbers among the parameters are constants, too."""
        layers = unpack(file)
        weights = {place: value for place, (value, _) in _weights(layers)}
        return weights | {
            (number, PARAMS + keys[0]): np.array([layer.params.get(key, 0) for key in keys]).ravel()
            for number, layer in enumerate(layers)
            for keys in _numeric(layer)
        }

    def sliced(self, kept: Mapping[str, Dims], widths: Widths, filled: bool = False) -> bytes:
        """See `Template.sliced`."""
        grouped = {layer.weight: layer for layer in self._groups.layers if layer.per_group is not None}
        layers = copy.deepcopy([Layer(**{**vars(layer), "weights": []}) for layer in self.layers])
        for number, layer in enumerate(layers):
            for position, (value, tagged) in enumerate(self.layers[number].weights):
                origin, resized = self.origins.get((number, position)), self._sizes.get((number, position))
                if origin is not None:
                    value = origin.patterned(value, kept) if filled else origin.take(value, kept)
                elif filled:
                    value = pattern(value)
                if resized is not None and not resized.fits(value.shape, widths):
                    value = resized.at(value, widths)
                layer.weights.append((value, tagged))
            origin = self.origins.get((number, 0))
            if origin is not None and origin.parameter in grouped and "DepthWise" in layer.kind:
                _regroup(layer, grouped[origin.parameter].convolution_groups(widths))
            layer.fit()
            for keys in _numeric(layer):
                resized = self._sizes.get((number, PARAMS + keys[0]))
                if resized is not None:
                    values = np.array([layer.params.get(key, 0) for key in keys]).ravel()
                    _set(layer, keys, resized.at(values, widths).tolist())
        return pack(layers)

    @staticmethod
    def filled(file: bytes) -> bytes:
        """See `Template.filled`."""
        layers = unpack(file)
        for layer in layers:
            layer.weights = [(pattern(value), tagged) for value, tagged in layer.weights]
        return pack(layers)

    def agrees(self, kept: Mapping[str, Dims], widths: Widths, exported: bytes) -> bool:
        """See `Template.agrees`."""
        try:
            ours, theirs = unpack(self.sliced(kept, widths)), unpack(exported)
        except ValueError:  # a parameter that was not cut contradicts the weights
            return False
        return len(ours) == len(theirs) and all(map(_same, ours, theirs))


def _weights(layers: list[Layer]) -> Iterator[tuple[tuple[int, int], tuple[np.ndarray, bool]]]:
    for number, layer in enumerate(layers):
        for position, weight in enumerate(layer.weights):
            yield (number, position), weight


def _numeric(layer: Layer) -> Iterator[tuple[int, ...]]:
    """The parameters that are whole numbers. Those of a target shape come together, since one size may be inferred."""
    together = tuple(key for key in RESHAPED if key in layer.params) if layer.kind == "Reshape" else ()
    if together:
        yield together
    yield from ((key,) for key, value in layer.params.items() if key not in together and not isinstance(value, str))


def _set(layer: Layer, keys: tuple[int, ...], values: list[int]) -> None:
    if isinstance(layer.params[keys[0]], tuple):
        layer.params[keys[0]] = tuple(values)
    else:
        layer.params |= dict(zip(keys, values, strict=True))


def _regroup(layer: Layer, groups: int) -> None:
    """Set the number of groups. pnnx writes one group as the other kind of layer."""
    layer.params[7] = groups
    if groups == 1:
        layer.kind = layer.kind.replace("DepthWise", "")
        del layer.params[7]


def _same(first: Layer, second: Layer) -> bool:
    """Whether kinds, blobs, parameters and weights are the same. An inferred size of a shape may be any."""
    inferred = {key for key in RESHAPED if first.kind == "Reshape" and first.params.get(key) == -1}
    parts = [
        (one.kind, one.inputs, one.outputs, {k: v for k, v in one.params.items() if k not in inferred})
        for one in (first, second)
    ]
    shapes = [[value.shape for value, _ in one.weights] for one in (first, second)]
    return (
        parts[0] == parts[1]
        and shapes[0] == shapes[1]
        and all(np.allclose(a, b, rtol=1e-5) for (a, _), (b, _) in zip(first.weights, second.weights, strict=True))
    )


# ---------------------------------------------------------------------------------------------------------- conversion


def _converted(model: nn.Module, inputs: tuple[Tensor, ...], outputs: Any, folder: Path) -> list[Layer]:
    """The layers that pnnx makes of a model, which returns `outputs`.

    Raises:
        UsageError: ncnn lacks one of them, or pnnx fails.
    """
    found = importlib.util.find_spec("pnnx")
    if found is None or found.origin is None:
        raise RuntimeMissing(f"pnnx is not installed; {INSTALL}")
    try:
        with exporting(), silenced(), _without_ceil(model):
            flat = _Flat(model).eval() if _is_nested(outputs) else model
            traced: Any = torch.jit.trace(flat, inputs, check_trace=False)  # type: ignore[no-untyped-call]
            traced.save(str(folder / "model.pt"))
        argv = [str(Path(found.origin).with_name("pnnx")), "model.pt", "fp16=0"]
        done = _ended("pnnx", argv, folder)
        if done.returncode or not (folder / "model.ncnn.bin").is_file():
            raise UsageError(f"the model cannot be exported to ncnn: {_reason(done)}")
        network = (folder / "model.ncnn.param").read_text()
        _require_known(parse(network), model, inputs)
        return read(network, (folder / "model.ncnn.bin").read_bytes())
    except (RuntimeError, ValueError, OSError) as error:
        raise refusal("ncnn", model, inputs, error) from error


def _is_nested(output: Any) -> bool:
    """Whether an output is neither a tensor nor a tuple of tensors. torch.jit traces no others."""
    parts = output if isinstance(output, tuple) else (output,)
    return not all(isinstance(part, Tensor) for part in parts)


class _Flat(nn.Module):
    """A model whose output is a tuple of its tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensors(self.model(*inputs)))


@contextmanager
def _without_ceil(model: nn.Module) -> Iterator[None]:
    """A context in which a model computes average pools in ceil mode by other operators.

    In ceil mode torch divides a window's sum by how many numbers are inside. ncnn divides by another number, and reads beyond
    the end of an input that is smaller than the window. pnnx knows torch's modules by their class, so these get another one.
    """
    pools = [module for module in model.modules() if type(module) is nn.AvgPool2d and module.ceil_mode]
    try:
        for module in pools:
            module.__class__ = _Pool
        with _Pools():
            yield
    finally:
        for module in pools:
            module.__class__ = nn.AvgPool2d


class _Pool(nn.AvgPool2d):
    def forward(self, x: Tensor) -> Tensor:
        return _averaged(
            x, self.kernel_size, self.stride, self.padding, True, self.count_include_pad, self.divisor_override
        )


class _Pools(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        name = getattr(func, "__name__", "").partition(".")[0]
        in_ceil_mode = given.get("ceil_mode", args[4] if len(args) > 4 else False)
        return (_averaged if name == "avg_pool2d" and in_ceil_mode else func)(*args, **given)


def _averaged(
    x: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """`F.avg_pool2d` in ceil mode, without ceil mode: zeros behind the end, and factors for the windows that reach over it."""
    kernel, step, pad = (_pair(value) for value in (kernel_size, stride or kernel_size, padding))
    if divisor_override is not None:
        return F.avg_pool2d(x, kernel, step, pad, ceil_mode, count_include_pad, divisor_override)
    sizes = int(x.shape[-2]), int(x.shape[-1])  # while torch traces, a size is a tensor
    (above, rows), (left, columns) = (
        _inside(*each, count_include_pad) for each in zip(sizes, kernel, step, pad, strict=True)
    )
    if (rows, columns) == ([sizes[0]], [sizes[1]]):
        return x.mean((-2, -1), keepdim=True)
    padded = F.pad(x, (pad[1], left, pad[0], above))
    factors = torch.outer(kernel[0] / torch.tensor(rows), kernel[1] / torch.tensor(columns))
    found = F.avg_pool2d(padded, kernel, step)
    return found if bool((factors == 1).all()) else found * factors


def _inside(size: int, kernel: int, step: int, pad: int, padded: bool) -> tuple[int, list[int]]:
    """The zeros behind the end of a dimension, and how many numbers of each window torch counts."""
    count = -(-(size + 2 * pad - kernel) // step) + 1
    count -= (count - 1) * step >= size + pad  # a window must begin before the end
    starts = [i * step - pad for i in range(count)]
    if padded:
        counted = [min(start + kernel, size + pad) - start for start in starts]
    else:
        counted = [min(start + kernel, size) - max(start, 0) for start in starts]
    return max(pad, starts[-1] + kernel - size), counted


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    sizes = (value,) if isinstance(value, int) else tuple(value)
    return sizes[0], sizes[-1]


def _ended(name: str, argv: list[str], folder: Path) -> subprocess.CompletedProcess[bytes]:
    """A program that has ended. It finds this edgeprune. Raises `UsageError` where it takes too long."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    try:
        return subprocess.run(
            argv, cwd=folder, env=environment, capture_output=True, timeout=LIMITS.convert_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        text = f"the model cannot be exported to ncnn: {name} took over {LIMITS.convert_s:g} s"
        raise UsageError(text) from error


def _reason(done: subprocess.CompletedProcess[bytes]) -> str:
    """Why pnnx failed: the signal that ended it, or its last line."""
    if done.returncode < 0:
        return f"pnnx crashes with {signal.Signals(-done.returncode).name}"
    lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
    return f"pnnx: {quoted(lines[-1])}"


def _require_known(layers: list[Layer], model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Raises `UsageError`, which names the operator and its line, if ncnn has no such layer."""
    ncnn = _ncnn()
    kinds = dict.fromkeys(layer.kind for layer in layers if layer.kind != CAST)
    unknown = [kind for kind in kinds if ncnn.layer_to_index(kind) < 0]
    # Expressions, lists and constants are parts of another operator that pnnx could not convert.
    telling = sorted(unknown, key=lambda kind: kind.startswith(("pnnx.", "prim::")))
    if telling:
        operator = re.split(r"[.:]+", telling[0])[-1].lower()
        raise refusal("ncnn", model, inputs, ValueError(f"aten::{operator}"))


def _named(layers: list[Layer], model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Give inputs and outputs the user's names, if there are any, and their order. An input gets its shape, too."""
    given, made = file_names(model) or ([], [])
    starts = sorted((layer for layer in layers if layer.kind == "Input"), key=lambda layer: _number(layer.outputs[0]))
    if len(starts) != len(inputs):
        raise UsageError("the model cannot be exported to ncnn: nothing reads one of its inputs; leave this input out")
    for layer, x in zip(starts, inputs, strict=True):
        layer.params |= dict(zip(SIZES[x.ndim - 1], x.shape[1:], strict=True))
    layers[:] = [*starts, *(layer for layer in layers if layer.kind != "Input")]
    blobs = [blob for layer in layers for blob in layer.outputs]
    ends = sorted((blob for blob in blobs if re.fullmatch(r"out\d+", blob)), key=_number)
    known = (*zip((layer.outputs[0] for layer in starts), given, strict=False), *zip(ends, made, strict=False))
    names = {old: _free(new, blobs) for old, new in known}
    _rename(layers, names)
    wanted = [names.get(blob, blob) for blob in ends]
    if wanted != [blob for layer in layers for blob in layer.outputs if blob in wanted]:
        _rename(layers, {blob: f"{blob}_" for blob in wanted})
        layers += [Layer("Noop", f"output_{i}", [f"{blob}_"], [blob]) for i, blob in enumerate(wanted)]


def _rename(layers: list[Layer], names: Mapping[str, str]) -> None:
    for layer in layers:
        layer.inputs = [names.get(blob, blob) for blob in layer.inputs]
        layer.outputs = [names.get(blob, blob) for blob in layer.outputs]


def _number(blob: str) -> int:
    return int(re.sub(r"\D", "", blob) or 0)


def _free(name: str, blobs: list[str]) -> str:
    """A name that no blob inside has, without spaces."""
    name = re.sub(r"\s", "_", name)[:200] or "_"
    return name if name not in blobs else f"{name}_"


def _require_equal(layers: list[Layer], inputs: list[np.ndarray], wanted: list[np.ndarray], folder: Path) -> None:
    """Raises `UsageError` if ncnn's outputs differ from torch's: pnnx converts some networks wrongly."""
    save(layers, folder / "check.param")
    got = _run(inputs, folder)
    for number, (mine, other) in enumerate(zip(got, wanted, strict=False)):
        if mine.shape != other.shape:
            raise UsageError(
                f"the model cannot be exported to ncnn: output {number} has the shape {mine.shape} there, not"
                f" {other.shape}; an output needs its sample first, and another dimension"
            )
        gap = float(np.abs(mine - other).max()) / max(float(np.abs(other).max()), 1e-6)
        if not gap <= RELATIVE:
            raise UsageError(f"the model cannot be exported to ncnn: output {number} differs from torch's by {gap:.1%}")
    if len(got) != len(wanted):
        raise UsageError(f"the model cannot be exported to ncnn: it has {len(got)} outputs there, not {len(wanted)}")


def _run(inputs: list[np.ndarray], folder: Path) -> list[np.ndarray]:
    """The outputs of check.param, from a separate process: some files of pnnx crash ncnn."""
    np.savez(folder / "given.npz", *inputs)
    done = _ended("ncnn", [sys.executable, "-c", CHECK], folder)
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise UsageError(f"the model cannot be exported to ncnn: ncnn crashes with {name} on what pnnx wrote")
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
        raise UsageError(f"the model cannot be exported to ncnn: {quoted(lines[-1])}")
    with np.load(folder / "got.npz") as found:
        return [found[name] for name in found.files]


def _ncnn() -> Any:
    try:
        return module()
    except Failed as error:
        raise RuntimeMissing(f"ncnn is not installed; {INSTALL}") from error
