"""A layer with a computed weight is a layer: it counts, it is cut like the plain layer, and it is saved and loaded."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import utils
from torch.nn.utils import parametrizations, parametrize

from edgeprune.errors import UsageError
from edgeprune.graph.groups import make_recipe
from edgeprune.graph.trace import trace
from edgeprune.latency.fit import draft
from edgeprune.network import weights
from edgeprune.network.computed import baked
from edgeprune.network.cut import cut, formed
from edgeprune.network.preprocessing import preprocessed
from edgeprune.network.survey import survey
from edgeprune.records import Device, Experiment, Preprocess, Profile, Run, Samples
from edgeprune.runtimes.formats import FORMATS


def normed(layer: nn.Module) -> nn.Module:
    """Weight norm as torch had it first, which still works."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return utils.weight_norm(layer)


class Standardised(nn.Conv2d):
    """The convolution of BiT: mean 0 and variance 1 for every output channel."""

    def forward(self, x: Tensor) -> Tensor:
        rows = self.weight.reshape(1, self.out_channels, -1)
        rows = F.batch_norm(rows, None, None, training=True, momentum=0.0, eps=1e-6)
        return F.conv2d(
            x, rows.reshape_as(self.weight), self.bias, self.stride, self.padding, self.dilation, self.groups
        )


class Scaled(nn.Conv2d):
    """The convolution of NFNet: standardised, times a gain."""

    def __init__(self, *sizes: int, **options: int) -> None:
        super().__init__(*sizes, **options)
        self.gain = nn.Parameter(torch.linspace(0.5, 1.5, self.out_channels)[:, None, None, None])

    def forward(self, x: Tensor) -> Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        weight = self.gain * (self.weight - mean) / (self.weight.var((1, 2, 3), keepdim=True) + 1e-5).sqrt()
        return self._conv_forward(x, weight, self.bias)


class LowRank(nn.Linear):
    """A frozen weight plus a product of two thin matrices, as in LoRA."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.weight.requires_grad_(False)
        self.thin, self.tall = nn.Parameter(torch.randn(2, inputs)), nn.Parameter(torch.randn(outputs, 2))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight + 0.5 * self.tall @ self.thin, self.bias)


class Sum(nn.Module):
    """A parametrization with two parameters."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return weight / 2, weight / 2


def summed(layer: nn.Module) -> nn.Module:
    return parametrize.register_parametrization(layer, "weight", Sum())


LAYERS: dict[str, Callable[[int, int], nn.Module]] = {
    "weight norm": lambda i, o: parametrizations.weight_norm(nn.Conv2d(i, o, 3, padding=1)),
    "weight norm by hooks": lambda i, o: normed(nn.Conv2d(i, o, 3, padding=1)),
    "spectral norm": lambda i, o: parametrizations.spectral_norm(nn.Conv2d(i, o, 3, padding=1)),
    "spectral norm by hooks": lambda i, o: utils.spectral_norm(nn.Conv2d(i, o, 3, padding=1)),
    "a parametrization": lambda i, o: summed(nn.Conv2d(i, o, 3, padding=1)),
    "weight standardisation": lambda i, o: Standardised(i, o, 3, padding=1),
    "scaled weight standardisation": lambda i, o: Scaled(i, o, 3, padding=1),
}


class Net(nn.Module):
    """A residual block of layers with a computed weight, and a low-rank head."""

    def __init__(self, layer: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.stem, self.a, self.b = layer(3, 8), layer(8, 6), layer(6, 8)
        self.head, self.last = LowRank(8, 10), LowRank(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.b(F.relu(self.a(x))))
        return self.last(F.relu(self.head(x.mean((2, 3)))))


def image() -> tuple[Tensor]:
    return (torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)),)


@pytest.mark.parametrize("name", LAYERS)
def test_a_computed_weight_is_replaced_by_its_value(name: str) -> None:
    torch.manual_seed(0)
    model = Net(LAYERS[name]).train()
    model(*image())  # the weight is computed with a gradient, which torch cannot copy
    model.eval()
    kinds, state = [type(m) for m in model.modules()], {n: t.clone() for n, t in model.state_dict().items()}
    plain = baked(model)
    with torch.no_grad():
        assert torch.allclose(plain(*image()), model(*image()), atol=1e-6)
    assert set(plain.state_dict()) == {
        f"{at}.{of}" for at in ("stem", "a", "b", "head", "last") for of in ("weight", "bias")
    }
    plain.load_state_dict(plain.state_dict())
    assert [type(m) for m in model.modules()] == kinds
    assert all(torch.equal(state[n], tensor) for n, tensor in model.state_dict().items())
    assert baked(plain) is plain


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_with_a_computed_weight_is_cut_saved_and_loaded(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Net(LAYERS[name]).eval()
    groups = survey(model, image())
    assert {g.name: g.width for g in groups.free} == {"stem": 8, "a": 6, "head": 10}
    assert [layer.name for layer in groups.layers] == ["stem", "a", "b", "head", "last"]
    assert groups.macs(groups.full()) == 2 * (64 * 9 * (3 * 8 + 8 * 6 + 6 * 8) + 8 * 10 + 10 * 4)
    recipe = make_recipe(groups, {"stem": [0, 3, 5], "a": [1, 4], "head": [2, 6]})
    small = cut(model, recipe, image())
    weights.save(tmp_path / "cut.safetensors", small, recipe)
    again = weights.load(tmp_path / "cut.safetensors", Net(LAYERS[name]))
    assert torch.equal(again(*image()), small(*image())) and again.a.weight.shape == (2, 3, 3, 3)


def test_a_network_with_weight_norm_by_hooks_is_loaded_with_its_preprocessing_and_without_wrappers(
    tmp_path: Path,
) -> None:
    """torch cannot copy such a network."""
    torch.manual_seed(0)
    raw = (torch.randint(0, 256, (2, 3, 8, 8)),)
    whole = baked(Net(LAYERS["weight norm by hooks"])).eval()
    model = preprocessed(whole, Preprocess((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), 1 / 255))
    recipe = make_recipe(survey(model, raw), {"a": [1, 4]})
    small = cut(model, recipe, raw)
    weights.save(tmp_path / "cut.safetensors", small, recipe)
    fresh = Net(LAYERS["weight norm by hooks"])
    fresh.a = nn.DataParallel(fresh.a)
    assert torch.equal(weights.load(tmp_path / "cut.safetensors", fresh)(*raw), small(*raw))


def test_a_weight_is_trained_if_a_parameter_behind_it_is() -> None:
    frozen = parametrizations.weight_norm(nn.Linear(4, 3)).requires_grad_(False)
    by_hook = normed(nn.Linear(4, 3)).requires_grad_(False)
    plain = baked(nn.Sequential(frozen, by_hook, LowRank(4, 3)))
    assert [layer.weight.requires_grad for layer in plain] == [False, False, True]


class Dynamic(nn.Linear):
    """Its weight depends on its input."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * x.mean(), self.bias)


class Padded(Standardised):
    """It does more than the plain layer."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, 1, 0, 1)))


class Styled(nn.Linear):
    """It needs a second argument."""

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        return F.linear(x, self.weight * style, self.bias)


@pytest.mark.parametrize("layer", [Dynamic(4, 3), Padded(3, 4, 3), Styled(4, 3), nn.Linear(4, 3)])
def test_a_layer_that_does_anything_else_stays_as_it_is(layer: nn.Module) -> None:
    model = nn.Sequential(layer)
    assert baked(model) is model


def test_weight_norm_can_be_applied_again_to_the_pruned_network() -> None:
    """Its results stay the same, so that a user's own trainer may use it."""
    torch.manual_seed(0)
    model = Net(LAYERS["weight norm"]).eval()
    small = cut(model, make_recipe(survey(model, image()), {"a": [1, 4]}), image())
    before = small(*image())
    for layer in (small.stem, small.a, small.b):
        parametrizations.weight_norm(layer)
    assert torch.allclose(small(*image()), before, atol=1e-6)


def test_the_convolutions_of_a_vocoder_are_layers() -> None:
    """HiFi-GAN's: weight norm around convolutions and transposed ones. And wav2vec2's, with one norm for each tap."""
    norm = parametrizations.weight_norm

    class Vocoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = norm(nn.Conv1d(8, 12, 7, padding=3)), norm(nn.Conv1d(12, 12, 3, padding=1))
            self.places = norm(nn.Conv1d(12, 12, 5, padding=2, groups=4), dim=2)
            self.up, self.out = norm(nn.ConvTranspose1d(12, 6, 8, 4, 2)), norm(nn.Conv1d(6, 1, 7, padding=3))

        def forward(self, x: Tensor) -> Tensor:
            x = F.leaky_relu(self.a(x), 0.1)
            x = F.leaky_relu(x + self.b(x) + self.places(x), 0.1)
            return torch.tanh(self.out(F.leaky_relu(self.up(x), 0.1)))

    groups = survey(Vocoder(), (torch.randn(1, 8, 16),))
    assert {layer.name for layer in groups.layers} == {"a", "b", "places", "up", "out"}
    assert "up" in {g.name for g in groups.free} and len({g.name.partition(":")[0] for g in groups.free}) == 2
    assert all(slot.dim < 2 for group in groups.groups for slot in group.slots)


# ---------------------------------------------------------------------- weights that a model's own forward computes


class Thin(nn.Module):
    """A linear layer whose weight is a product of two matrices."""

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.tall, self.thin = nn.Parameter(torch.randn(outputs, rank)), nn.Parameter(torch.randn(rank, inputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.tall @ self.thin)


class Written(nn.Module):
    """Weight standardisation in a module that is no convolution of torch, and a weight that depends on an input."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.next = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(6, 10, 3, padding=1)
        self.weight = nn.Parameter(torch.randn(6, 8, 3, 3))
        self.thin, self.mix, self.last = Thin(10, 12, 4), nn.Parameter(torch.randn(12, 12)), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        scale = x.mean()
        variance, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True)
        x = F.conv2d(self.stem(x).relu(), (self.weight - mean) / (variance + 1e-5).sqrt(), padding=1).relu()
        x = self.thin(self.next(x).relu().mean((2, 3))).relu()
        return self.last(F.linear(x, self.mix * scale))


def test_a_weight_that_a_model_computes_belongs_to_a_layer() -> None:
    """It has the name of the largest parameter. Positions of a kernel and the rank of a product are no groups."""
    torch.manual_seed(0)
    groups = trace(Written(), image())
    assert [layer.name for layer in groups.layers] == ["stem", "weight", "next", "thin", "last"]
    locked = {group.name: group.locked for group in groups.groups if group.locked}
    assert set(locked) == {"stem", "last"}  # the weight is normalised over the channels of stem
    assert sorted(group.width for group in groups.free) == [6, 10, 12, 12]


def test_a_weight_that_a_model_computes_is_a_parameter_of_its_graph(tmp_path: Path) -> None:
    """So the channels that its statistics are taken over can be cut, too."""
    torch.manual_seed(0)
    model = Written().eval()
    groups = survey(model, image())
    assert sorted(group.width for group in groups.free) == [6, 8, 10, 12, 12]
    graph = formed(model, groups, image())
    with torch.no_grad():
        assert torch.allclose(graph(*image()), model(*image()), atol=1e-5)
    assert set(model.state_dict()) - set(graph.state_dict()) == {"thin.thin"}
    recipe = make_recipe(groups, {group.name: range(0, group.width, 2) for group in groups.free})
    small = cut(graph, recipe, image())
    assert small.get_parameter("weight").shape == (3, 4, 3, 3) and small.get_parameter("thin.tall").shape == (6, 5)
    weights.save(tmp_path / "cut.safetensors", small, recipe)
    assert torch.equal(weights.load(tmp_path / "cut.safetensors", Written())(*image()), small(*image()))


def test_statistics_that_a_batch_norm_takes_in_eval_mode_lock_the_channels_they_are_taken_over() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.weight, self.last = nn.Linear(4, 8), nn.Parameter(torch.randn(6, 8)), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            rows = F.batch_norm(self.weight[None], None, None, training=True).squeeze(0)
            return self.last(F.linear(self.stem(x).relu(), rows).relu())

    groups = trace(Functional(), (torch.randn(3, 4),))
    assert [group.name for group in groups.free] == ["weight"]
    assert "statistics over these" in str(next(group for group in groups.groups if group.name == "stem").locked)


def test_the_exported_constant_of_a_computed_weight_belongs_to_its_layer() -> None:
    torch.manual_seed(0)
    model = Written().eval()
    groups = trace(model, image())
    template = FORMATS["onnx"](model, image(), groups)
    assert {"stem", "weight", "next", "thin", "last"} == set(template.owners(groups.layers).values())


def test_a_network_without_layers_is_an_error() -> None:
    class Gates(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Parameter(torch.randn(8))

        def forward(self, x: Tensor) -> Tensor:
            return (x[..., None] * self.gate).tanh().sum(-1)

    groups = trace(Gates(), (torch.randn(2, 3),))
    experiments = tuple(Experiment("anchor", i, {}, Samples((Run((i + 1,), 1),))) for i in range(6))
    device = Device("x86_64", "synthetic", 1, "none", "none", "0", "boot")
    with pytest.raises(UsageError, match="no convolution, linear layer or matrix product"):
        draft(groups, Profile("t", "m", groups.network, device, 1, "fp32", experiments))
