"""ncnn's files: read, written, named, refused; and what int8 stores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from nets import NETS, image
from torch import nn

from edgeprune import runtimes
from edgeprune.errors import UsageError
from edgeprune.runtimes import files
from edgeprune.runtimes.device import Options, find
from edgeprune.runtimes.formats import ncnn as exporter
from edgeprune.runtimes.ncnn.host import _end
from edgeprune.runtimes.ncnn.network import FEATURES, FP32, Layer, pack, parse, read, unpack, write

PARAM = """7767517
3 3
Input                    x                        0 1 x 0=8 1=8 2=3
Convolution              conv                     1 1 x 1 0=4 1=1 11=1 5=1 6=12 -23310=2,0.0,6.0
ReLU                     relu                     1 1 1 y
"""


def network() -> list[Layer]:
    """A convolution with its bias, and an activation."""
    layers = parse(PARAM)
    weight = np.arange(12, dtype=np.float32).reshape(4, 3, 1, 1)
    layers[1].weights = [(weight, True), (np.ones(4, np.float32), False)]
    for layer in layers:
        layer.params[FEATURES] = FP32  # as every export
    return layers


def written(path: Path, text: str = PARAM, weights: bytes = b"") -> Path:
    path.write_text(text)
    path.with_suffix(".bin").write_bytes(weights)
    return path


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_network_is_read_as_it_was_written(dtype: type) -> None:
    layers = network()
    layers[1].weights[0] = (layers[1].weights[0][0].astype(dtype), True)
    found = unpack(pack(layers))
    assert [(one.kind, one.inputs, one.outputs, one.params) for one in found] == [
        (one.kind, one.inputs, one.outputs, one.params) for one in layers
    ]
    for (mine, tagged), (other, own) in zip(found[1].weights, layers[1].weights, strict=True):
        assert mine.dtype == other.dtype and tagged == own
        np.testing.assert_array_equal(mine, other)
    assert write(found) == write(layers)


def test_the_counts_of_a_layer_follow_from_its_weights() -> None:
    layer = network()[1]
    layer.weights = [(layer.weights[0][0][:2, :2], True), (np.ones(2, np.float32), False)]
    layer.fit()
    assert (layer.params[0], layer.params[6]) == (2, 4)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no .param of ncnn"),
        ("7767517\n", "no .param of ncnn"),
        ("7767517\n99999999 1\n", "over 50000 layers"),
        ("7767517\n2 2\nInput x 0 1 x\n", "has 1 layers and says 2"),
        ("7767517\n1 1\nInput x 0 5 x\n", "line 3 has fewer blobs"),
        ("7767517\n1 1\nInput x 0 -1 x\n", "line 3 is no layer"),
        ("7767517\n1 1\nInput x 0 1 x 0=\n", "line 3 has a parameter"),
        ("7767517\n1 1\n\x1b[2J x 0 1 x y\n", "line 3 has a parameter"),
    ],
)
def test_a_damaged_param_is_one_line(text: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        files.read(written(tmp_path / "m.param", text))
    assert "m.param" in str(caught.value) and "\n" not in str(caught.value)


def test_weights_of_another_network_are_refused() -> None:
    text, weights = write(network())
    for wrong in (weights[:-4], weights + b"0000", b"\1\2\3\4" + weights[4:], b""):
        with pytest.raises(ValueError, match=r"\.bin has"):
            read(text, wrong)
    with pytest.raises(ValueError, match="cannot be read"):
        read(text.replace("0=4", "8=2 0=4"), weights)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("import os; os.abort()", "ncnn crashes with SIGABRT"),
        ("import sys; sys.exit('no layer x')", "ncnn: no layer x"),
    ],
)
def test_a_crash_of_ncnn_on_a_file_of_pnnx_is_one_line(
    script: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "CHECK", script)
    with pytest.raises(UsageError, match=f"cannot be exported to ncnn: .*{reason.removeprefix('ncnn: ')}"):
        exporter._run([np.zeros(1, "float32")], tmp_path)


def test_a_text_with_commas_is_no_list() -> None:
    """A shape as an expression, in the files of GLPN and other networks with `unbind`."""
    text = '7767517\n2 2\nInput x 0 1 x 0=4,5\nReshape r 1 1 x y 12=0 6="0w,0h,0n"\n'
    layers = parse(text)
    assert layers[0].params == {0: (4, 5)} and layers[1].params == {12: 0, 6: '"0w,0h,0n"'}
    assert '6="0w,0h,0n"' in write(layers)[0] and parse(write(layers)[0])[1].params == layers[1].params


@pytest.mark.parametrize("array", ["1,0.1", "2,0.0,6.0", "1,3", "2,3,4", "0"])
def test_an_array_is_written_as_it_was(array: str) -> None:
    """The slope of a leaky ReLU that is part of a convolution is an array of one."""
    text = f"7767517\n2 2\nInput x 0 1 x\nReLU r 1 1 x y 0=1 -23310={array}\n"
    (again,) = (line for line in write(parse(text))[0].splitlines() if line.startswith("ReLU"))
    assert again.split()[-1].rstrip(",") == f"-23310={array}"


def test_leaky_activations_of_convolutions_are_exported() -> None:
    exported(nn.Sequential(nn.Conv2d(3, 8, 3), nn.LeakyReLU(0.1), nn.Conv2d(8, 4, 1), nn.ReLU6()), image())


def test_a_constant_of_bytes_is_read_and_written() -> None:
    """As pnnx writes the mask of a transformer."""
    text = "7767517\n2 2\nMemoryData mask 0 1 mask 0=1 1=5 2=1 21=3\nMemoryData one 0 1 one 0=1\n"
    content = b"\1\0\1\1\0\0\0\0" + np.float32(7).tobytes()
    layers = read(text, content)
    assert layers[0].weights[0][0].ravel().tolist() == [1, 0, 1, 1, 0] and layers[1].weights[0][0] == 7
    assert write(layers)[1] == content


def test_an_empty_constant_is_named() -> None:
    """pnnx writes one, such as the register tokens of a transformer that has none, and ncnn reads it wrongly."""
    with pytest.raises(ValueError, match="the constant tokens has no numbers, and ncnn has no empty tensors"):
        read("7767517\n1 1\nMemoryData tokens 0 1 tokens 0=48 1=0\n", b"")


def test_a_file_says_what_bench_needs(tmp_path: Path) -> None:
    path = written(tmp_path / "m.param", *write(network()))
    found = files.read(path)
    (given,) = found.inputs
    assert (given.name, given.dtype, given.shape) == ("x", "float32", (1, 3, 8, 8))
    assert found.outputs == ("y",) and found.operators == {"Convolution": 1, "ReLU": 1} and found.precision == "fp32"
    path.with_suffix(".bin").unlink()
    with pytest.raises(UsageError, match=r"its weights m\.bin are missing"):
        files.read(path)


def convert(tmp_path: Path, precision: str, exact: bool = False) -> list[Layer]:
    (tmp_path / "exported.ncnn").write_bytes(pack(network()))
    model, weights = runtimes.host("ncnn").convert(tmp_path / "exported.ncnn", tmp_path, precision, (), exact)
    assert files.read(model).precision == precision and weights.stat().st_size
    return parse(model.read_text())


def test_the_precision_is_in_the_file(tmp_path: Path) -> None:
    """ncnn uses fp16 by default: what is fp32 must forbid it in every layer."""
    assert all(layer.params[FEATURES] == 7 for layer in convert(tmp_path, "fp32"))
    assert all(FEATURES not in layer.params for layer in convert(tmp_path, "fp16"))
    layers = convert(tmp_path, "int8")
    assert layers[1].params[8] == 2 and all(layer.params[FEATURES] == 7 for layer in layers)


def test_a_range_leaves_out_rare_values_only_if_that_rounds_better() -> None:
    even = np.linspace(0, 1, 1000)
    assert _end(even) == 1.0
    assert _end(np.append(np.random.default_rng(0).random(100_000), 3.0)) < 3.0


def test_convolutions_in_int8_pass_bytes_to_each_other_and_stay_accurate(tmp_path: Path) -> None:
    pytest.importorskip("ncnn")
    random = np.random.default_rng(0)
    text = "7767517\n3 3\nInput x 0 1 x\nConvolution a 1 1 x b 0=8 1=3 11=3 6=216 4=1 9=1\n"
    layers = parse(text + "ConvolutionDepthWise c 1 1 b y 0=8 1=3 11=3 6=72 7=8\n")
    for layer, inputs in ((layers[1], 3), (layers[2], 1)):
        layer.weights = [(random.standard_normal((8, inputs, 3, 3)).astype(np.float32), True)]
    for layer in layers:
        layer.params[FEATURES] = FP32
    calls = [(random.standard_normal((1, 3, 12, 12)).astype(np.float32),) for _ in range(4)]
    found = {}
    for precision in ("fp32", "int8"):
        folder = tmp_path / precision
        folder.mkdir()
        (folder / "exported.ncnn").write_bytes(pack(layers))
        model, _ = runtimes.host("ncnn").convert(folder / "exported.ncnn", folder, precision, calls)
        (found[precision],) = find("ncnn").load(str(model), Options(1)).call(calls[0])
    assert [layer.params.get(8) for layer in parse(model.read_text())] == [None, 102, 1]
    assert np.abs(found["int8"] - found["fp32"]).max() < 0.03 * np.abs(found["fp32"]).max()
    assert np.abs(found["int8"] - found["fp32"]).max() > 0


def exported(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> list[Layer]:
    pytest.importorskip("pnnx")
    pytest.importorskip("ncnn")
    from edgeprune.runtimes.formats.ncnn import NcnnTemplate

    return unpack(NcnnTemplate.export(model.eval(), inputs, ()))


def test_an_operator_that_ncnn_lacks_is_named_with_its_line() -> None:
    with pytest.raises(UsageError, match=r"nets\.py:\d+: \w+ cannot be written as ncnn"):
        exported(NETS["NoRule"](), image())


def test_a_batch_is_refused_before_the_conversion() -> None:
    with pytest.raises(UsageError, match=r"one sample .* a call, and the inputs are 2x3x8x8"):
        exported(NETS["Plain"](), (torch.zeros(2, 3, 8, 8),))


class Two(nn.Module):
    """The second output is computed first."""

    names_in_file = (["picture"], ["late", "early one"])

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        early = torch.relu(self.a(x))
        return torch.tanh(self.b(early)), early


def test_inputs_and_outputs_have_the_users_names_and_order() -> None:
    layers = exported(Two(), (torch.randn(1, 6),))
    read_in = {blob for layer in layers for blob in layer.inputs}
    (given,) = [layer for layer in layers if layer.kind == "Input"]
    assert given.outputs == ["picture"] and given.params == {0: 6, FEATURES: FP32}
    assert [blob for layer in layers for blob in layer.outputs if blob not in read_in] == ["late", "early_one"]


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> dict[str, object]:
        first = self.a(x)
        return {"out": self.b(first.relu()), "features": [first]}


def test_outputs_in_dicts_and_lists_are_exported() -> None:
    layers = exported(Nested(), image())
    assert [layer.kind for layer in layers].count("Convolution") == 2


class Pooled(nn.Module):
    def __init__(self, pool: nn.AvgPool2d, functional: bool) -> None:
        super().__init__()
        self.a, self.pool, self.functional = nn.Conv2d(3, 8, 1), pool, functional

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, pool = self.a(x), self.pool
        if not self.functional:
            return pool(x)
        return nn.functional.avg_pool2d(
            x, pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode, pool.count_include_pad
        )


@pytest.mark.parametrize("functional", [False, True])
@pytest.mark.parametrize(
    "pool",
    [
        nn.AvgPool2d(512, ceil_mode=True),  # as the whole input, in transformers' EfficientNet
        nn.AvgPool2d((3, 2), (2, 3), (1, 0), ceil_mode=True),
        nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
        nn.AvgPool2d(2, ceil_mode=True),
    ],
    ids=["whole", "sides differ", "without padding", "two"],
)
def test_average_pools_in_ceil_mode_are_exact(pool: nn.AvgPool2d, functional: bool) -> None:
    """ncnn's own divides by another number. The conversion compares its outputs with torch's."""
    exported(Pooled(pool, functional), (torch.randn(1, 3, 8, 7),))
    assert type(pool) is nn.AvgPool2d, "the model is as it was"


@pytest.mark.parametrize("sides", [(1, 1, 1, 1), (0, 1, 0, 1), (2, 0, 1, 3)])
def test_a_padding_before_weights_has_none_itself(sides: tuple[int, ...]) -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 3)
            self.pad = nn.ConstantPad2d(sides, 0.0)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(nn.functional.max_pool2d(self.pad(self.a(x)), 3, 2))

    layers = exported(Padded(), (torch.randn(1, 3, 8, 8),))
    assert [len(layer.weights) for layer in layers if layer.kind == "Padding"] == [0]


@given(
    size=st.integers(1, 12),
    kernel=st.integers(1, 14),
    step=st.integers(1, 5),
    share=st.floats(0, 0.5),
    padded=st.booleans(),
)
def test_an_average_without_ceil_mode_is_torchs(size: int, kernel: int, step: int, share: float, padded: bool) -> None:
    pad = int(kernel * share)
    assume(kernel - size - 2 * pad < step)  # torch refuses what has no window
    x = torch.randn(1, 2, size, size + 1)
    pool = {"stride": step, "padding": pad, "ceil_mode": True, "count_include_pad": padded}
    wanted = nn.functional.avg_pool2d(x, kernel, **pool)
    torch.testing.assert_close(exporter._averaged(x, kernel, **pool), wanted)
