"""Models that keep state from call to call: they are surveyed, cut and exported like any other, and stay as they are."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import onnxruntime
import openvino
import pytest
import torch
from nets import image
from torch import Tensor, nn
from zoo import ZOO

from edgeprune.graph.groups import make_recipe
from edgeprune.network.cut import cut
from edgeprune.network.importance import CRITERIA
from edgeprune.network.outputs import tensors
from edgeprune.network.survey import randomised, survey
from edgeprune.runtimes.formats import FORMATS

Attributes = dict[str, Any]


class Anchored(nn.Module):
    """Anchors in an attribute of the class, made when the shape of the input is new, as in YOLOv8's head."""

    shape = None
    anchors = torch.empty(0)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x).relu())
        if self.shape != x.shape:
            self.anchors, self.shape = self.made(x), x.shape
        return (x + self.anchors).mean((2, 3))

    def made(self, x: Tensor) -> Tensor:
        return torch.arange(x.shape[-1]) / math.sqrt(float(torch.tensor(4.0)))  # a number that a graph cannot hold


class InInstance(Anchored):
    def __init__(self) -> None:
        super().__init__()
        self.shape, self.anchors = None, torch.zeros(0)


class InBuffer(Anchored):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("grid", torch.zeros(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x).relu())
        if self.grid.shape[0] != x.shape[-1]:
            self.grid = self.made(x)
        return (x + self.grid).mean((2, 3))


class Split(Anchored):
    """A size in the code. The anchors are made anew for each batch size, since `shape` has it."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(torch.cat(self.a(x).relu().split(4, 1)[::-1], 1))
        if self.shape != x.shape:
            self.anchors, self.shape = self.made(x), x.shape
        return (x + self.anchors).mean((2, 3))


class LazyBuffer(Anchored):
    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x).relu())
        if not hasattr(self, "grid"):
            self.register_buffer("grid", self.made(x), persistent=False)
        return (x + self.grid).mean((2, 3))


class InDictionary(Anchored):
    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[int, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x).relu())
        if x.shape[-1] not in self.kept:
            self.kept[x.shape[-1]] = self.made(x)
        return (x + self.kept[x.shape[-1]]).mean((2, 3))


class Remembers(Anchored):
    """Every call keeps its features, and counts itself."""

    def __init__(self) -> None:
        super().__init__()
        self.features: list[Tensor] = []
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = self.a(x)
        self.features = [self.last]
        return self.b(self.last.relu()).mean((2, 3))


class Materialised(Anchored):
    """Lazy layers, after their first call."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.LazyConv2d(8, 3), nn.LazyConv2d(4, 1)
        with torch.no_grad():
            self(image()[0][:, :, :5])


STATEFUL = [Anchored, InInstance, InBuffer, LazyBuffer, InDictionary, Remembers, Materialised]


def attributes(model: nn.Module) -> list[Attributes]:
    """Everything that the modules hold, without their children."""
    return [{k: v for k, v in vars(module).items() if k != "_modules"} for module in model.modules()]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return type(a) is type(b) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or not isinstance(a, int | float | str | bool))


@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize("called", [False, True])
@pytest.mark.parametrize("net", STATEFUL)
def test_a_model_that_keeps_state_is_cut_and_exported_and_stays_as_it_is(net: type[nn.Module], called: bool) -> None:
    torch.manual_seed(0)
    model = net().train()
    if called:
        with torch.no_grad():
            model(torch.randn(2, *image()[0].shape[1:]))  # another batch size
    before = copy.deepcopy(attributes(model))
    groups = survey(model, image())
    assert [group.name for group in groups.free] == ["a"]
    recipe = make_recipe(groups, {"a": range(0, 8, 2)})
    small = cut(model, recipe, image())
    for each in (model, small):
        kept = copy.deepcopy(attributes(each))
        file = FORMATS["onnx"].export(each, image(), groups.folds)
        assert same(kept, attributes(each))
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    x = torch.randn(image()[0].shape)
    (got,) = session.run(None, {"input_0": x.numpy()})
    np.testing.assert_allclose(got, small.eval()(x).detach().numpy(), rtol=1e-3, atol=1e-5)
    assert same(before, attributes(model)) and model.training


def test_a_graph_of_a_model_that_keeps_state_for_each_batch_size_takes_any() -> None:
    torch.manual_seed(0)
    groups = survey(Split().eval(), image())
    assert groups.form == "graph" and {group.name: group.width for group in groups.free} == {"a": 8}
    small = cut(randomised(Split()), make_recipe(groups, {"a": [0, 1, 5]}), image())
    assert small(torch.zeros(4, *image()[0].shape[1:])).shape == (4, 4)


@pytest.mark.parametrize("criterion", ["taylor", "fisher"])
def test_features_that_a_call_with_gradients_leaves_do_not_matter(criterion: str) -> None:
    torch.manual_seed(0)
    model = Remembers()
    model(torch.randn(2, *image()[0].shape[1:]))
    last = model.last
    groups = survey(model, image())
    batches = [((torch.randn(2, *image()[0].shape[1:]),), torch.zeros(2))] * 2
    found = CRITERIA[criterion](model.eval(), groups, batches, lambda out, _: tensors(out)[0].square().mean())
    assert len(found.units["a"]) == 8
    cut(model, make_recipe(groups, {"a": (0, 1)}), image())
    assert model.last is last and last.grad_fn is not None


def outputs(kind: str, file: bytes, inputs: tuple[Tensor, ...]) -> list[np.ndarray]:
    given = [x.numpy() for x in inputs]
    if kind == "onnxruntime":
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        return session.run(None, {f"input_{i}": x for i, x in enumerate(given)})
    if kind == "openvino":
        core = openvino.Core()
        found = core.compile_model(core.read_model(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(given)
        return [found[i] for i in range(len(found))]
    interpreter = pytest.importorskip("ai_edge_litert.interpreter").Interpreter(model_content=file)
    interpreter.allocate_tensors()
    for detail, x in zip(interpreter.get_input_details(), given, strict=True):
        interpreter.set_tensor(detail["index"], x)
    interpreter.invoke()
    return [interpreter.get_tensor(detail["index"]) for detail in interpreter.get_output_details()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("title", "kinds"),
    [
        ("YOLOv5 head", ("onnx", "tflite")),
        ("YOLOv8", ("onnx",)),
        pytest.param("YOLO11", ("tflite",), marks=pytest.mark.slow),
        pytest.param("RT-DETR", ("onnx", "tflite"), marks=pytest.mark.slow),
    ],
    ids=lambda value: value if isinstance(value, str) else "+".join(value),
)
def test_detectors_are_cut_and_run_on_all_runtimes(title: str, kinds: tuple[str, ...]) -> None:
    """YOLOv8 and YOLO11 are alike, so that each is tried in one format. `make test-models` tries all in both."""
    torch.manual_seed(0)
    model, inputs = ZOO[title]()
    model = randomised(model)
    groups = survey(model, inputs)
    assert len(groups.free) > 0.4 * len(groups.groups)
    small = cut(model, make_recipe(groups, {g.name: range(0, g.width, 2) for g in groups.free}), inputs)
    inputs = tuple(torch.rand(x.shape) for x in inputs)
    expected = [tensor.detach().numpy() for tensor in tensors(small(*inputs))]
    for kind in kinds:
        if kind == "tflite":
            pytest.importorskip("litert_torch")
        file = FORMATS[kind].export(small, inputs, groups.folds)
        for runtime in {"onnx": ("onnxruntime", "openvino"), "tflite": ("tflite",)}[kind]:
            for a, b in zip(outputs(runtime, file, inputs), expected, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-3 * np.abs(b).max())
