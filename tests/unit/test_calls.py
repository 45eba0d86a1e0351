"""A module that is called several times is one layer: its work and its latency are those of all its calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import islice

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeprune.graph.editable import as_graph, trace_graph
from edgeprune.graph.trace import trace
from edgeprune.latency.fit import fit
from edgeprune.latency.observations import by_layer
from edgeprune.network.folding import fold
from edgeprune.network.survey import randomised, survey
from edgeprune.records import Device, Experiment, Groups, Profile, Run, Samples
from edgeprune.runtimes.formats import FORMATS
from edgeprune.runtimes.formats.base import Template
from edgeprune.stages import experiments as profiling


def conv(i: int, o: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU())


class Siamese(nn.Module):
    """One encoder for two images of different sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = conv(3, 16), conv(16, 24), nn.Conv2d(24, 4, 1)

    def forward(self, small: Tensor, large: Tensor) -> Tensor:
        a, b = (self.second(F.max_pool2d(self.first(x), 2)) for x in (small, large))
        return self.last(F.interpolate(a, scale_factor=2.0) - b)


def pair() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    return torch.randn(1, 3, 8, 8, generator=random), torch.randn(1, 3, 16, 16, generator=random)


@pytest.fixture(scope="module")
def groups() -> Groups:
    torch.manual_seed(0)
    return survey(Siamese(), pair())


def test_a_layer_counts_the_work_of_all_its_calls(groups: Groups) -> None:
    positions = {layer.name: layer.positions for layer in groups.layers}
    assert positions == {"first.0": 64 + 256, "second.0": 16 + 64, "last": 64}
    assert groups.macs(groups.full()) == 9 * (320 * 3 * 16 + 80 * 16 * 24) + 64 * 24 * 4


def test_a_loop_over_frames_and_a_tied_block_are_one_layer_each() -> None:
    class Frames(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.up, self.down = nn.Conv2d(3, 8, 3), nn.Linear(8, 12), nn.Linear(12, 8)

        def forward(self, x: Tensor) -> Tensor:
            y = sum(self.stem(frame).relu().mean((2, 3)) for frame in x.unbind(1))
            for _ in range(3):
                y = y + self.down(self.up(y).relu())
            return y[:, :1] + y.mean(1, keepdim=True)

    groups = trace(Frames(), (torch.randn(2, 5, 3, 6, 6),))
    assert {layer.name: layer.positions for layer in groups.layers} == {"stem": 5 * 2 * 16, "up": 6, "down": 6}


def test_a_batch_norm_is_folded_if_it_follows_its_layer_at_every_call(groups: Groups) -> None:
    assert groups.folds == (("first.0", "first.1"), ("second.0", "second.1"))
    graph = as_graph(randomised(Siamese()), pair())
    assert trace_graph(graph).folds == groups.folds
    with torch.no_grad():
        assert torch.allclose(fold(graph, groups.folds)(*pair()), graph(*pair()), atol=1e-5)

    assert not trace(Levels(), (torch.randn(1, 3, 6, 6),)).folds


class Levels(nn.Module):
    """One convolution with a norm for each level, as in EfficientDet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 6, 1), nn.Conv2d(8, 2, 1)
        self.conv, self.norms = nn.Conv2d(6, 8, 3), nn.ModuleList(nn.BatchNorm2d(8) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        levels = (x, F.max_pool2d(x, 2))
        made = [norm(self.conv(self.stem(x).relu())) for norm, x in zip(self.norms, levels, strict=True)]
        return sum(self.last(x.relu()).mean((2, 3)) for x in made)


def test_a_shared_layer_with_a_norm_for_each_call_has_all_its_calls() -> None:
    """The exporter folds each norm into the layer, so that the file has two weights."""
    torch.manual_seed(0)
    model, inputs = Levels().eval(), (torch.randn(1, 3, 12, 12),)
    groups = trace(model, inputs)
    assert {layer.name: layer.positions for layer in groups.layers} == {"stem": 180, "conv": 116, "last": 116}
    assert owners_of_convolutions(FORMATS["onnx"](model, inputs, groups), groups) == {"stem": 2, "conv": 2, "last": 2}


def owners_of_convolutions(template: Template, groups: Groups) -> Counter[str | None]:
    owners = template.owners(groups.layers)
    return Counter(owners.get(name) for node in template.nodes() for name in node.names[:1] if "Conv" in name)


@pytest.fixture(scope="module")
def template(groups: Groups) -> Template:
    torch.manual_seed(0)
    return FORMATS["onnx"](Siamese().eval(), pair(), groups)


def test_every_call_belongs_to_its_layer(groups: Groups, template: Template) -> None:
    assert owners_of_convolutions(template, groups) == {"first.0": 2, "second.0": 2, "last": 1}
    assert template.slices


def test_the_latency_of_all_calls_is_predicted(groups: Groups, template: Template) -> None:
    """On a synthetic device, where every convolution takes time, and a profiler that knows nodes only."""
    owners, layers = template.owners(groups.layers), {layer.name: layer for layer in groups.layers}
    nodes = [name for node in template.nodes() for name in node.names[:1] if "Conv" in name]

    def experiment(role: str, widths: Mapping[str, int]) -> Experiment:
        times = [(node, 5_000 + layers[owners[node]].macs(widths) // nodes_of[owners[node]]) for node in nodes]
        total = 40_000 + sum(ns for _, ns in times)
        return Experiment(role, 0, dict(widths), Samples((Run((total,), 1),)), *by_layer(times, owners))

    nodes_of = Counter(owners[node] for node in nodes)
    variants = [profiling.anchor(groups), groups.full(), *islice(profiling.configurations(groups), 40)]
    found = [experiment(("anchor", "baseline")[i] if i < 2 else "fit", widths) for i, widths in enumerate(variants)]
    device = Device("x86_64", "synthetic", 1, "none", "none", "0", "boot")
    assert fit(groups, Profile("t", "m", groups.network, device, 1, "fp32", tuple(found))).median_error < 0.01
