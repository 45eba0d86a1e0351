"""Least-squares refits, in small cases with a known answer."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeprune.graph.groups import make_recipe
from edgeprune.limits import LIMITS
from edgeprune.network import observe as observing
from edgeprune.network.cut import cut
from edgeprune.network.observe import observe
from edgeprune.network.refit import refit_separately, refit_sequentially, removal_losses
from edgeprune.network.survey import survey


def batches(*shape: int, count: int = 4) -> list[tuple[tuple[Tensor], Tensor]]:
    """Random inputs, the same every time."""
    generator = torch.Generator().manual_seed(0)
    return [((torch.randn(16, *shape, generator=generator),), torch.zeros(16)) for _ in range(count)]


class Twins(nn.Module):
    """Hidden units 0 and 1 are equal, unit 2 is constant, unit 3 is independent. The output is a weighted sum."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(2, 4), nn.Linear(4, 1, bias=bias)
        with torch.no_grad():
            self.hidden.weight.copy_(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]))
            self.hidden.bias.copy_(torch.tensor([0.0, 0.0, 3.0, 0.0]))
            self.out.weight.copy_(torch.tensor([[1.0, 2.0, 1.0, 4.0]]))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.hidden(x))


def distances(model: nn.Module, shape: tuple[int, ...], keep: dict[str, tuple[int, ...]], data: list) -> list[float]:
    """Relative distance of the outputs from the original's: of the pruned network, and of the refitted one."""
    inputs = (data[0][0][0][:2],)
    groups = survey(model, inputs)
    recipe = make_recipe(groups, keep)
    small = cut(model, recipe, inputs)
    reference = observe(model, data)
    fitted = refit_sequentially(model, small, recipe, reference)
    x = batches(*shape, count=8)[-1][0][0]  # not among the data of the refit
    with torch.no_grad():
        whole = model(x)
        return [float((whole - candidate(x)).norm() / whole.norm()) for candidate in (small, fitted)]


def test_a_unit_replaces_an_equal_one() -> None:
    plain, fitted = distances(Twins(), (2,), {"hidden": (0, 2, 3)}, batches(2))
    assert plain > 0.3
    assert fitted < 0.02


def test_the_bias_replaces_a_constant_unit() -> None:
    plain, fitted = distances(Twins(), (2,), {"hidden": (0, 1, 3)}, batches(2))
    assert plain > 0.3
    assert fitted < 0.02


class Chain(nn.Module):
    """Two hidden layers and an output."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.second(self.first(x).relu()).relu())


def test_a_separate_refit_skips_layers_that_read_all_their_channels() -> None:
    torch.manual_seed(0)
    model, data = Chain().eval(), batches(4, count=32)
    groups = survey(model, data[0][0])
    recipe = make_recipe(groups, {"first": (0, 1, 2, 3, 4), "second": tuple(range(6))})
    small = cut(model, recipe, data[0][0])
    reference = observe(model, data)
    start = refit_separately(model, small, recipe, reference)
    untrained = refit_sequentially(model, small, recipe, reference)
    assert torch.equal(start.out.weight, model.out.weight)  # it reads all its inputs, though they have changed
    assert not torch.equal(untrained.out.weight, model.out.weight)
    assert not torch.equal(start.second.weight, small.second.weight)
    x = batches(4, count=40)[-1][0][0]
    with torch.no_grad():
        plain, by_itself, in_turn = (float((model(x) - net(x)).norm()) for net in (small, start, untrained))
    assert max(in_turn, by_itself) < plain


def test_units_are_removed_in_order_of_their_loss() -> None:
    model = Twins()
    groups = survey(model, (torch.ones(2, 2),))
    reference = observe(model, batches(2, count=128))
    lost = removal_losses(model, groups.groups[0], reference, {"out.weight": reference.layers["out.weight"].moments()})
    assert list(lost)[:2] in ([0, 2], [2, 0], [1, 2], [2, 1])
    # Of y = 3·a + 4·b, with a and b of variance 1, nine of 25 go with a, and sixteen with b.
    assert list(lost.values())[2:] == pytest.approx([9 / 25, 16 / 25], rel=0.15)


class Spelled(nn.Module):
    """A hidden layer, and a layer that reads it, in one of several spellings."""

    def __init__(self, first: nn.Module, act: nn.Module, weight: Tensor, how: str) -> None:
        super().__init__()
        self.first, self.act, self.how = first, act, how
        self.w, self.b = nn.Parameter(weight), nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.first(x))
        match self.how:
            case "linear":
                return F.linear(x, self.w, self.b)
            case "addmm":
                return torch.addmm(self.b, x, self.w)
            case "matmul":
                return x @ self.w + self.b
            case "conv1d":
                return F.conv1d(x, self.w, self.b)
        return F.conv2d(x, self.w, self.b, padding=1)


SPELLED = {
    "linear": (lambda: nn.Linear(4, 8), (3, 8), (4,)),
    "addmm": (lambda: nn.Linear(4, 8), (8, 3), (4,)),
    "matmul": (lambda: nn.Linear(4, 8), (8, 3), (4,)),
    "conv1d": (lambda: nn.Conv1d(4, 8, 1), (3, 8, 2), (4, 5)),
    "conv2d": (lambda: nn.Conv2d(4, 8, 1), (3, 8, 3, 3), (4, 5, 5)),
}


@pytest.mark.parametrize("how", SPELLED)
def test_a_layer_is_refitted_in_any_spelling(how: str) -> None:
    first, shape, inputs = SPELLED[how]
    torch.manual_seed(0)
    model = Spelled(first(), nn.Identity(), torch.randn(shape), how).eval()
    before = copy.deepcopy(model.state_dict())
    plain, fitted = distances(model, inputs, {"first": (0, 1, 2, 3, 4, 5)}, batches(*inputs))
    assert fitted < 0.5 * plain  # six combinations of four inputs determine the other two, except for the ridge
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


class Tied(nn.Module):
    """Its last layer shares the weight of its embedding, as in language models."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.hidden, self.last = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9, bias=False)
        self.last.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.last(self.hidden(self.embedding(ids)))


def test_a_shared_weight_is_not_refitted() -> None:
    ids = torch.randint(9, (32, 5), generator=torch.Generator().manual_seed(0))
    assert set(observe(Tied(), [((ids,), torch.zeros(32))]).layers) == {"hidden.weight"}


class Twice(nn.Module):
    """A layer that reads its own outputs at its second call."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.last = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.again(self.again(self.first(x)).relu()))


def test_a_layer_that_is_called_twice_is_refitted_on_what_it_reads_at_both_calls() -> None:
    torch.manual_seed(0)
    model, data = Twice(), batches(4)
    layer = observe(model, data).layers["again.weight"]
    first = model.first(observe(model, data).inputs[0])
    with torch.no_grad():
        both = torch.cat([first, model.again(first).relu()])
    assert torch.equal(layer.rows, both) and (layer.calls, layer.positions) == (2, len(both))
    plain, fitted = distances(model, (4,), {"first": (0, 1, 2, 3, 5)}, data)
    assert fitted < plain


def test_layers_that_read_few_positions_are_not_refitted() -> None:
    assert not observe(nn.Linear(64, 2), batches(64, count=1)).layers


def test_grouped_convolutions_are_not_dense() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3, groups=4))
    assert set(observe(model, batches(4, 8, 8)).layers) == {"0.weight"}


def test_a_refit_that_increases_the_error_is_discarded() -> None:
    """y = a + b, and b is removed. The refit sees samples with a = b, so it gives 2·a. In held-out samples b = −a."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    for weight, value in zip(model.parameters(), (torch.eye(2), torch.ones(1, 2)), strict=True):
        weight.data.copy_(value)
    a = torch.randn(64, 1, generator=torch.Generator().manual_seed(0))
    data = [((torch.cat([a, torch.cat([-a[:8], a[8:]])], 1),), torch.zeros(64))]
    inputs = (torch.ones(2, 2),)
    groups = survey(model, inputs)
    recipe = make_recipe(groups, {"0": (0,)})
    small = cut(model, recipe, inputs)
    reference = observe(model, data)
    assert refit_sequentially(model, small, recipe, reference) is small
    assert refit_separately(model, small, recipe, reference) is small


class OverSpace(nn.Module):
    """Its second layer mixes space, and channels are among its positions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.over, self.last = nn.Conv2d(2, 8, 1), nn.Linear(16, 4), nn.Conv1d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.over(self.conv(x).flatten(2)))


def test_channels_may_be_positions_of_another_layer() -> None:
    torch.manual_seed(0)
    plain, fitted = distances(OverSpace(), (2, 4, 4), {"conv": (0, 1, 2, 3, 4)}, batches(2, 4, 4))
    assert fitted < 0.5 * plain  # the last layer is refitted, the one over space is not


class Changing(nn.Module):
    """Changes in place what its layer has read."""

    def __init__(self, place: bool) -> None:
        super().__init__()
        self.a, self.place = nn.Linear(4, 4), place

    def forward(self, x: Tensor) -> Tensor:
        x = x + 0
        y = self.a(x)
        return x.add_(y) if self.place else x + y


def test_inputs_are_recorded_before_a_change_in_place() -> None:
    found = [observe(Changing(place), batches(4)).layers["a.weight"].rows for place in (False, True)]
    assert torch.equal(*found)


def test_products_that_are_no_layer_are_not_refitted() -> None:
    class Products(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vector, self.stack = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(3, 4, 4))
            self.matrix, self.one = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            pooled = x * (x @ self.vector).softmax(-1)[..., None]
            return torch.addmm(self.one, (pooled[:, None] @ self.stack).sum((1, 2)), self.matrix)

    found = observe(Products(), batches(3, 4))
    assert set(found.layers) == {"matrix"} and not found.layers["matrix"].bias


def test_memory_limits_the_samples_and_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Conv2d(2, 8, 1), nn.Conv2d(8, 2, 1))
    few = observe(model, batches(2, 16, 16))
    assert len(few.inputs[0]) == 56  # and eight of 64 are held out
    assert few.layers["1.weight"].rows.shape == (56 * 256, 8)
    monkeypatch.setattr(observing, "LIMITS", LIMITS.__class__(reconstruction_bytes=1 << 18))
    bounded = observe(model, batches(2, 16, 16))
    assert len(bounded.inputs[0]) < 16
    assert sum(layer.rows.numel() * 4 for layer in bounded.layers.values()) <= 1 << 18


def test_a_model_may_fix_its_batch_size() -> None:
    class Small(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            assert len(x) <= 16
            return super().forward(x)

    for first in (nn.Unflatten(0, (4, 4)), Small(4, 4)):
        model = nn.Sequential(first, nn.Linear(4, 2))
        assert len(observe(model, batches(4)).inputs[0]) == 16


def test_batches_of_other_lengths_end_the_sample() -> None:
    data = [*batches(6, count=2), *batches(8, count=1)]
    model = nn.Sequential(nn.Unflatten(1, (-1, 2)), nn.Linear(2, 2))
    assert observe(model, data).inputs[0].shape == (28, 6)
