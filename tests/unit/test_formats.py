"""A variant sliced from the exported file equals an export of the pruned network, in every format."""

from __future__ import annotations

import logging
import tempfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from nets import NETS, Blocks, image, inputs_of, surveyed
from torch import Tensor, nn

from edgeprune import runtimes
from edgeprune.graph.groups import first_units, make_recipe
from edgeprune.network.attention import opened
from edgeprune.network.cut import formed, sliced
from edgeprune.network.outputs import tensors
from edgeprune.network.survey import randomised, survey
from edgeprune.runtimes.base import silenced
from edgeprune.runtimes.device import Options, find
from edgeprune.runtimes.formats import FORMATS, decompositions, sizes
from edgeprune.runtimes.formats.base import Origins
from edgeprune.runtimes.formats.onnx import OnnxTemplate
from edgeprune.runtimes.tflite import flatbuffer

aten = torch.ops.aten
OWNED = ["Plain", "Residual", "OptionA", "Concat", "Depthwise", "SqueezeExcite", "Normalised", "Recurrent"]
EXPORTED = ["Grouped", "Bottlenecks"]  # the rest is sliced: a norm over whole groups, and a shuffle inside a group
REFUSED = ["NoRule"]  # torch has no ONNX for its renorm
TFLITE = ["Plain", "Residual", "Depthwise"]  # a conversion takes seconds


def run_onnx(file: bytes, inputs: tuple[Tensor, ...] = image()) -> np.ndarray:
    onnx.checker.check_model(onnx.load_from_string(file))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return session.run(None, {f"input_{i}": x.numpy() for i, x in enumerate(inputs)})[0]


def run_tflite(file: bytes, inputs: tuple[Tensor, ...] = image()) -> np.ndarray:
    interpreter = pytest.importorskip("ai_edge_litert.interpreter").Interpreter(model_content=file)
    interpreter.allocate_tensors()
    (given,) = inputs
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], given.numpy())
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def run_ncnn(file: bytes, inputs: tuple[Tensor, ...] = image()) -> np.ndarray:
    pytest.importorskip("ncnn")
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / "exported.ncnn"
        exported.write_bytes(file)
        model, _ = runtimes.host("ncnn").convert(exported, Path(folder))
        (found,) = find("ncnn").load(str(model), Options(1)).call([x.numpy() for x in inputs])
    return found


QUICK = "Residual", "Depthwise", "Grouped", "UNet", "Recurrent", "Tokens"
RUN = {"onnx": run_onnx, "tflite": run_tflite, "ncnn": run_ncnn}
NCNN = ["SqueezeExcite", "Plain", "Depthwise", "Chunk", "Grouped", "Normalised", "UNet"]


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *(("onnx", n) for n in QUICK),
        *(pytest.param("onnx", n, marks=pytest.mark.slow) for n in sorted(NETS.keys() - {*QUICK, *REFUSED})),
        *(pytest.param("tflite", n, marks=pytest.mark.slow) for n in TFLITE),
        pytest.param("tflite", "Encoder", marks=pytest.mark.slow),
        ("ncnn", "Residual"),
        *(pytest.param("ncnn", n, marks=pytest.mark.slow) for n in NCNN),
    ],
)
def test_a_variant_equals_the_pruned_network_and_its_nodes_have_owners(kind: str, name: str) -> None:
    pytest.importorskip({"tflite": "litert_torch", "ncnn": "pnnx"}.get(kind, "onnx"))
    model, inputs, groups = opened(NETS[name]()), inputs_of(name), surveyed(name)
    model = formed(model, groups, inputs)
    template = FORMATS[kind](model, inputs, groups)
    assert template.slices == (name not in EXPORTED)
    widths = groups.full() | {group.name: max(1, group.width // 2) for group in groups.free}
    recipe = make_recipe(groups, first_units(groups, widths))
    expected = tensors(sliced(randomised(model), recipe)(*inputs))[0].detach().numpy()
    kept = template._kept(recipe)
    file = template.sliced(kept, widths) if template.slices else template._exported(recipe)
    if (kind, name) != (
        "tflite",
        "Encoder",
    ):  # a bias there holds a product with a norm's; variants have other values anyway
        np.testing.assert_allclose(RUN[kind](file, inputs), expected, rtol=1e-3, atol=1e-5)
    assert RUN[kind](template.variant(widths), inputs).shape == expected.shape

    owners = template.owners(groups.layers)
    assert set(owners.values()) <= {layer.name for layer in groups.layers}
    if name in (*OWNED, "Transposed", "Packed"):
        assert set(owners.values()) == {layer.name for layer in groups.layers}


@pytest.mark.parametrize("kind", ["onnx", pytest.param("tflite", marks=pytest.mark.slow)])
def test_a_variant_is_the_sliced_file_with_other_values(kind: str) -> None:
    if kind == "tflite":
        pytest.importorskip("litert_torch")
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 32, 3), nn.BatchNorm2d(32), nn.Flatten())
    groups = survey(model, image())
    template = FORMATS[kind](model, image(), groups)
    widths = groups.full() | {groups.free[0].name: 21}
    kept = template._kept(make_recipe(groups, first_units(groups, widths)))
    variant, sliced = template.variant(widths), template.sliced(kept, widths)
    assert len(variant) == len(sliced) and variant != sliced
    assert RUN[kind](variant).shape == RUN[kind](sliced).shape


@pytest.mark.parametrize("kind", ["onnx", pytest.param("tflite", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "grouped",
    [
        nn.Conv2d(16, 24, 3, groups=4),
        nn.Conv2d(16, 48, 3, groups=16),
        pytest.param(nn.ConvTranspose2d(16, 24, 2, 2, groups=4), id="transposed"),
    ],
)
def test_a_grouped_convolution_is_sliced_by_groups_and_inside_them(kind: str, grouped: nn.Module) -> None:
    if kind == "tflite":
        pytest.importorskip("litert_torch")
        if isinstance(grouped, nn.ConvTranspose2d):
            pytest.skip("its converter writes one convolution for each group")
    model = nn.Sequential(
        nn.Conv2d(3, 16, 1), nn.ReLU(), grouped, nn.ReLU(), nn.Conv2d(grouped.out_channels, 5, 1)
    ).eval()
    groups = survey(model, image())
    template = FORMATS[kind](model, image(), groups)
    assert template.slices and len(groups.free) > 1
    for cut in (*([group.name] for group in groups.free), [group.name for group in groups.free]):
        widths = groups.full() | {name: groups.full()[name] // 2 for name in cut}
        recipe = make_recipe(groups, first_units(groups, widths))
        expected = sliced(randomised(model), recipe)(*image()).detach().numpy()
        got = RUN[kind](template.sliced(template._kept(recipe), widths), image())
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-5)


class FeedForward(nn.Module):
    """Half of a transformer layer. In a TFLite file the linear layer absorbs the weight and bias of the normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(24, 8, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(1, 2)
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


@pytest.mark.slow
def test_a_tflite_file_with_a_folded_normalisation_is_sliced() -> None:
    pytest.importorskip("litert_torch")
    model = FeedForward()
    groups = survey(model, image())
    template = FORMATS["tflite"](model, image(), groups)
    assert template.slices
    assert set(template.owners(groups.layers).values()) == {"up", "down"}
    widths = groups.full() | {"up": 7}
    recipe = make_recipe(groups, first_units(groups, widths))
    expected = sliced(randomised(model), recipe)(*image()).detach().numpy()
    got = run_tflite(template.sliced(template._kept(recipe), widths))
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-5)


def test_nodes_without_effect_are_removed_from_the_file() -> None:
    """Identities, known shapes, and a branch of constants."""

    class Wasteful(NETS["Plain"]):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x + torch.zeros(1, 3, 1, 1) * x.shape[0]
            return super().forward(x) + torch.ones(5).cumsum(0).mean()

    file = OnnxTemplate.export(Wasteful().eval(), image(), ())
    kinds = {node.op_type for node in onnx.load_from_string(file).graph.node}
    assert not kinds & {"Identity", "Constant", "Shape", "CumSum", "ReduceMean", "Reshape"}, kinds


@pytest.mark.parametrize("kind", ["onnx", pytest.param("tflite", marks=pytest.mark.slow)])
def test_a_variant_has_no_nodes_of_a_removed_block(kind: str) -> None:
    if kind == "tflite":
        pytest.importorskip("litert_torch")
    groups = surveyed("Blocks")
    template = FORMATS[kind](Blocks(), image(), groups)
    gone = dict.fromkeys((group for block in groups.blocks for group in block.groups), 0)
    file = template.variant({**groups.full(), **gone})
    assert RUN[kind](file).shape == (1, 5)
    nodes = (
        len(onnx.load_from_string(file).graph.node)
        if kind == "onnx"
        else len(flatbuffer.read(file).subgraphs[0].operators)
    )
    whole = template.variant(groups.full())
    assert (
        nodes
        <= (
            len(onnx.load_from_string(whole).graph.node)
            if kind == "onnx"
            else len(flatbuffer.read(whole).subgraphs[0].operators)
        )
        - 8
    )


X = torch.randn(2, 3, 4, 5)
PATCHES = torch.randn(2, 3 * 2 * 3, 10)
CALLS: list[tuple[str, Any, tuple[Any, ...]]] = [
    ("TFLITE", aten.pow.Tensor_Scalar, (X, 2)),
    ("TFLITE", aten.pow.Tensor_Scalar, (X, 3)),
    ("TFLITE", aten.pow.Tensor_Scalar, (X, -1)),
    ("TFLITE", aten.pow.Tensor_Scalar, (X.abs(), 0.5)),
    ("TFLITE", aten.pow.Tensor_Scalar, (X.abs(), -0.5)),
    ("TFLITE", aten.repeat.default, (X, [1, 2, 1, 3])),
    ("TFLITE", aten.adaptive_max_pool2d.default, (X, [1, 1])),
    ("TFLITE", aten.col2im.default, (PATCHES, [4, 15], [2, 3], [1, 1], [0, 0], [2, 3])),
    ("TFLITE", aten.col2im.default, (PATCHES[0], [4, 15], [2, 3], [1, 1], [0, 0], [2, 3])),
    ("EXECUTORCH", aten.adaptive_max_pool2d.default, (X, [1, 1])),
    ("EXECUTORCH", aten.amax.default, (X, [1, -1])),
    ("EXECUTORCH", aten.amax.default, (X,)),
    ("EXECUTORCH", aten.max.dim, (X, 1)),
    ("EXECUTORCH", aten.max.dim, (X, -1, True)),
]
KEPT = [
    ("TFLITE", aten.pow.Tensor_Scalar, (X, 5)),
    ("TFLITE", aten.repeat.default, (X, [2, 1, 1, 1, 1])),
    ("TFLITE", aten.repeat.default, (X, [1, 0, 1, 1])),
    ("TFLITE", aten.adaptive_max_pool2d.default, (X, [2, 1])),
    ("TFLITE", aten.col2im.default, (PATCHES, [4, 11], [2, 3], [1, 1], [0, 0], [2, 2])),  # patches overlap
    ("TFLITE", aten.col2im.default, (PATCHES, [6, 18], [2, 3], [2, 2], [0, 0], [2, 3])),
    ("TFLITE", aten.col2im.default, (PATCHES, [2, 13], [2, 3], [1, 1], [1, 1], [2, 3])),
    ("EXECUTORCH", aten.amax.default, (X, [1], True)),
]


@pytest.mark.parametrize(("form", "operator", "arguments"), CALLS)
def test_a_decomposition_computes_what_its_operator_does(form: str, operator: Any, arguments: tuple[Any, ...]) -> None:
    found, expected = getattr(decompositions, form)[operator](*arguments), operator(*arguments)
    torch.testing.assert_close(found, tuple(expected) if isinstance(found, tuple) else expected)


@pytest.mark.parametrize(("form", "operator", "arguments"), KEPT)
def test_an_operator_is_kept_that_its_decomposition_does_not_cover(
    form: str, operator: Any, arguments: tuple[Any, ...]
) -> None:
    assert getattr(decompositions, form)[operator](*arguments) is NotImplemented


class Maxima(nn.Module):
    """Maxima over places and over channels, and repeated channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(16, 8, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        x = x * F.adaptive_max_pool2d(x, 1).sigmoid() * x.max(1, keepdim=True)[0]
        return self.c(self.b(x.repeat(1, 2, 1, 1)).amax((2, 3)))


class Separable(nn.Module):
    """Separable attention between patches, as in MobileViT V2 (Mehta and Rastegari 2022): an expansion, and a fold."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 17, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        patches = F.unfold(self.a(x), 2, stride=2).reshape(x.shape[0], 17, 4, -1)
        query, key, value = torch.split(patches, [1, 8, 8], 1)
        context = (key * query.softmax(-1)).sum(-1, keepdim=True).expand_as(value)
        mixed = self.b(value.relu() * context).reshape(x.shape[0], 32, -1)
        return self.c(F.fold(mixed, x.shape[2:], 2, stride=2))


@pytest.mark.slow
@pytest.mark.parametrize("network", [Maxima, Separable])
def test_operators_that_the_converter_lacks_are_written_as_tflite(network: type[nn.Module]) -> None:
    pytest.importorskip("litert_torch")
    model = network().eval()
    expected = model(*image()).detach().numpy()
    np.testing.assert_allclose(run_tflite(FORMATS["tflite"].export(model, image(), ())), expected, rtol=1e-4, atol=1e-5)


class Codec(nn.Module):
    """Its children have names of torch's graph modules."""

    def __init__(self) -> None:
        super().__init__()
        self.code, self.meta = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)
        self.register_buffer("graph", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.meta(self.code(x).relu().mean((2, 3))) * self.graph


@pytest.mark.parametrize("kind", ["onnx", "ncnn", pytest.param("tflite", marks=pytest.mark.slow)])
def test_modules_may_have_any_name(kind: str) -> None:
    pytest.importorskip({"tflite": "litert_torch", "ncnn": "pnnx"}.get(kind, "onnx"))
    model = Codec().eval()
    groups = survey(model, image())
    template = FORMATS[kind](model, image(), groups)
    assert set(template.owners(groups.layers).values()) == {"code", "meta"}
    file = template._exported(make_recipe(groups, first_units(groups, groups.full())))
    expected = randomised(model)(*image()).detach().numpy()
    np.testing.assert_allclose(RUN[kind](file), expected, rtol=1e-3, atol=1e-5)


def test_batch_norm_is_folded() -> None:
    model, groups = NETS["Residual"](), surveyed("Residual")
    kinds = {node.op_type for node in OnnxTemplate(model, image(), groups).proto.graph.node}
    assert "BatchNormalization" not in kinds


def test_logging_handlers_of_a_converter_are_removed() -> None:
    """absl adds one on import, on a temporary standard error that is closed soon."""
    before = logging.root.handlers[:]
    with silenced():
        logging.root.addHandler(logging.StreamHandler())
    assert logging.root.handlers == before


@pytest.mark.slow
def test_a_tflite_file_is_written_as_it_was_read() -> None:
    pytest.importorskip("litert_torch")
    model = NETS["Plain"]()
    groups = survey(model, image())
    file = FORMATS["tflite"].export(model.eval(), image(), groups.folds)
    np.testing.assert_array_equal(run_tflite(flatbuffer.pack(flatbuffer.read(file))), run_tflite(file))


def test_a_variant_compresses_well() -> None:
    model = nn.Sequential(nn.Conv2d(3, 256, 3), nn.ReLU(), nn.Conv2d(256, 256, 3))
    groups = survey(model, image())
    file = OnnxTemplate(model, image(), groups).variant(groups.full())
    assert len(file) > 2_000_000
    assert len(zlib.compress(file, 1)) < 40_000


def test_a_constant_is_identified_in_any_dimension_order() -> None:
    weight = torch.randn(4, 3, 2, 5)
    layer = nn.ParameterDict({"w": nn.Parameter(weight)})
    origin = Origins(layer).find(weight.permute(0, 2, 3, 1).contiguous().numpy())
    assert origin is not None
    assert origin.dims == (0, 2, 3, 1)
    taken = origin.take(weight.permute(0, 2, 3, 1).numpy(), {"w": {0: (1, 3), 1: (0, 2)}})
    np.testing.assert_array_equal(taken, weight[[1, 3]][:, [0, 2]].permute(0, 2, 3, 1).numpy())
    assert Origins(layer).find(np.zeros((4, 3, 2, 5), "float32")) is None


class Summed(nn.Module):
    """Two branches of one width, whose sizes are written into the code."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.last = nn.Linear(8, 24), nn.Linear(8, 24), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(1, -1, 8)
        return self.last((self.one(x).reshape(-1, 4, 6) * self.other(x).reshape(-1, 24).reshape(-1, 4, 6)).sum(1))


def test_sizes_in_a_file_follow_the_widths() -> None:
    model, inputs = Summed().eval(), image()
    groups = survey(model, inputs)
    template = OnnxTemplate(formed(model, groups, inputs), inputs, groups)
    assert template.slices
    for widths in ({g.name: width for g in groups.free} for width in (1, 2, 3)):
        full = groups.full() | {name: min(width, groups.full()[name]) for name, width in widths.items()}
        recipe = make_recipe(groups, first_units(groups, full))
        expected = sliced(template._model, recipe)(*inputs).detach().numpy()
        np.testing.assert_allclose(
            run_onnx(template.sliced(template._kept(recipe), full)), expected, rtol=1e-3, atol=1e-5
        )


def test_a_trial_cut_removes_some_units_of_every_group() -> None:
    groups = surveyed("Encoder")
    widths = sizes.distinct(groups)
    assert all(0 < widths[group.name] < group.width for group in groups.free)


def test_a_trial_cut_keeps_two_units_where_it_can() -> None:
    groups = surveyed("Encoder")
    threes = tuple(replace(group, name=f"{group.name} {i}", width=3) for group in groups.free for i in range(8))
    assert set(sizes.distinct(replace(groups, groups=threes)).values()) == {2}


class Heads(nn.Module):
    """An attention layer of three heads, as in a vision transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(24)
        self.query, self.key, self.value, self.out = (nn.Linear(24, 24) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        normal = self.norm(x)
        query, key, value = (
            part(normal).unflatten(-1, (3, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        return x + self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("kind", ["onnx", pytest.param("tflite", marks=pytest.mark.slow)])
def test_a_variant_of_a_single_head_has_the_operators_of_its_export(kind: str) -> None:
    if kind == "tflite":
        pytest.importorskip("litert_torch")
    model, inputs = (
        nn.Sequential(nn.Linear(12, 24), Heads(), nn.LayerNorm(24), nn.Linear(24, 5)),
        (torch.rand(1, 6, 12),),
    )
    groups = survey(model, inputs)
    template = FORMATS[kind](formed(model, groups, inputs), inputs, groups)
    assert template.slices
    heads = [group.name for group in groups.free if group.width == 3]
    single = {**groups.full(), **dict.fromkeys(heads, 1)}
    exported = template.filled(template._exported(make_recipe(groups, first_units(groups, single))))
    assert heads and template.operators(template.variant(single)) == template.operators(exported)
    sliced = template.sliced(template._kept(make_recipe(groups, first_units(groups, single))), single, filled=True)
    assert template.singles_differ == (template.operators(sliced) != template.operators(exported))
    layers = [layer.name for layer in groups.layers]
    found, of_all = template.owners_of(single), template.owners(groups.layers)
    assert set(found.values()) == set(of_all.values()) == set(layers)
    assert template.singles_differ == (found != of_all)
    own = [name.partition(":")[2] for name in found], [name.partition(":")[2] for name in of_all]
    assert kind != "tflite" or own[0].count("BATCH_MATMUL") < own[1].count("BATCH_MATMUL")
