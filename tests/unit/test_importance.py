"""Importance criteria against small cases computed by hand."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from typing import Any

import nets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgeprune.errors import UsageError
from edgeprune.graph.groups import make_recipe
from edgeprune.limits import LIMITS
from edgeprune.network import replay
from edgeprune.network.cut import sliced
from edgeprune.network.importance import CRITERIA, curves, probe, sampling
from edgeprune.network.observe import Extent, Reference, observe
from edgeprune.network.refit import refit_separately, refit_sequentially
from edgeprune.network.replay import Tape
from edgeprune.network.survey import survey
from edgeprune.records import Groups


class Two(nn.Module):
    """y = v·w·x with two hidden units and no activation, so that gradients are short."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.v = nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False)
        with torch.no_grad():
            self.w.weight.copy_(torch.tensor([[2.0], [3.0]]))
            self.v.weight.copy_(torch.tensor([[5.0, -1.0]]))

    def forward(self, x: Tensor) -> Tensor:
        return self.v(self.w(x))


def total(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).sum()


def score(name: str, batches: list[tuple[tuple[Tensor, ...], Tensor]]) -> tuple[float, ...]:
    model = Two()
    groups = survey(model, (torch.ones(1, 1),))
    return CRITERIA[name](model, groups, batches, total).units["w"]


def test_magnitude_sums_over_all_layers_of_the_group() -> None:
    assert score("magnitude-l1", []) == pytest.approx((2 + 5, 3 + 1))
    assert score("magnitude-l2", []) == pytest.approx((2**2 + 5**2, 3**2 + 1**2))


def test_fpgm_is_the_distance_to_all_other_filters_of_each_layer() -> None:
    assert score("fpgm", []) == pytest.approx((abs(2 - 3) + abs(5 + 1),) * 2)


def test_fpgm_compares_filters_not_their_absolute_values() -> None:
    class Mirrored(Two):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.v = nn.Linear(1, 3, bias=False), nn.Linear(3, 1, bias=False)
            with torch.no_grad():
                self.w.weight.copy_(torch.tensor([[2.0], [-2.0], [1.0]]))
                self.v.weight.copy_(torch.tensor([[1.0, 1.0, 1.0]]))

    model = Mirrored()
    groups = survey(model, (torch.ones(1, 1),))
    assert CRITERIA["fpgm"](model, groups, [], total).units["w"] == pytest.approx((4 + 1, 4 + 3, 1 + 3))


class Normed(Two):
    """A batch-norm between the two."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        with torch.no_grad():
            self.norm.weight.copy_(torch.tensor([0.5, -4.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.v(self.norm(self.w(x)))


def test_batch_norm_scales_count_by_their_size() -> None:
    model = Normed()
    groups = survey(model, (torch.ones(1, 1),))
    assert CRITERIA["bn-scale"](model, groups, [], total).units["w"] == pytest.approx((0.5, 4.0))


def test_batch_norm_scales_need_batch_norm() -> None:
    with pytest.raises(UsageError, match="w pass no batch-norm"):
        score("bn-scale", [])


def test_fisher_is_half_the_mean_squared_gradient_of_single_samples_times_the_squared_weight() -> None:
    # d/dw_j = v_j·x and d/dv_j = w_j·x, so ½·(E[x²]·v²·w² twice) = 2.5·w²·v² for x = 1 and 2, in one batch or in two.
    batches = [((torch.tensor([[1.0], [2.0]]),), torch.zeros(2, 1))]
    assert score("fisher", batches) == pytest.approx((2.5 * 100, 2.5 * 9))


def test_loss_curves_are_the_measured_rise_of_the_loss() -> None:
    # y = (10 − 3)·x. Without the second unit, which Taylor ranks last, y = 10·x: 3·x more, and x is 1.5 on average.
    batches = [((torch.full((1, 1), x),), torch.zeros(1, 1)) for x in (1.0, 2.0)]
    model = Two()
    found = CRITERIA["loss-curves"](model, survey(model, (torch.ones(1, 1),)), batches, total)
    assert found.curves["w"] == pytest.approx((4.5, 0.0))
    assert found.units["w"][0] > found.units["w"][1]


def test_the_loss_of_removing_a_block_is_measured() -> None:
    """y = 2·(x + v·w·|x|) with v·w = 10 − 3. Without the block y = 2·x, so the loss rises by 14·|x|.

    A refit of the last layer cannot compensate that, since x does not predict |x|.
    """

    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.two = Two()

        def forward(self, x: Tensor) -> Tensor:
            return x + self.two(x.abs())

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.around, self.last = Around(), nn.Linear(1, 1, bias=False)
            nn.init.constant_(self.last.weight, 2.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.around(x))

    model = Net()
    groups = survey(model, (torch.ones(1, 1),))
    batches = [((torch.full((1, 1), x),), torch.zeros(1, 1)) for x in (1.5, 1.0, -1.0, 2.0, -2.0)]
    found = CRITERIA["loss-curves"](model, groups, batches, lambda outputs, targets: 100 - total(outputs, targets))
    assert found.blocks == {"around": pytest.approx(14 * 1.5)}


def test_loss_curves_use_batch_statistics() -> None:
    # The stored statistics are far from the data's. With the batch's own, both units are at ±γ for any input.
    model = Normed().eval()
    with torch.no_grad():
        model.norm.running_mean.fill_(1e3)
        model.v.weight.copy_(torch.tensor([[1.0, 0.1]]))

    def squared(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs**2).mean()

    batches = [((torch.tensor([[1.0], [-1.0]]),), torch.zeros(2, 1))]
    groups = survey(model, (torch.ones(2, 1),))
    found = CRITERIA["loss-curves"](model, groups, batches, squared)
    # outputs ±(0.5 − 0.4), and ±0.5 or ±0.4 with one unit removed
    assert found.curves["w"][0] in (pytest.approx(0.25 - 0.01, rel=1e-3), pytest.approx(0.16 - 0.01, rel=1e-3))
    assert float(model.norm.running_mean[0]) == 1e3


def images(count: int, size: int = 8) -> list[tuple[tuple[Tensor, ...], Tensor]]:
    """Batches of random images and labels."""
    generator = torch.Generator().manual_seed(0)
    return [
        ((torch.randn(size, 3, 8, 8, generator=generator),), torch.randint(5, (size,), generator=generator))
        for _ in range(count)
    ]


@cache
def blocks() -> tuple[nn.Module, Groups]:
    """A network with blocks, and its groups. Criteria do not change it."""
    torch.manual_seed(0)
    model = nets.Blocks().eval()
    return model, nets.surveyed("Blocks")


def test_loss_curves_equal_those_of_networks_that_are_cut_and_run_as_a_whole() -> None:
    batches = images(4)
    model, groups = blocks()
    found = CRITERIA["loss-curves"](model, groups, batches, F.cross_entropy)
    reference = observe(model, batches)

    def rise(network: nn.Module, narrow: bool = False) -> float:
        measured = batches[:2] if narrow else batches
        with torch.no_grad():
            before, after = (
                np.mean([F.cross_entropy(one(*inputs), targets) for inputs, targets in measured])
                for one in (model, network)
            )
        return float(after - before)

    refitted = [group for group in groups.free if reference.readers(group)]
    assert len(refitted) > 2
    for group in refitted:
        wide_first = sorted(
            {max(1, round(share * group.width)) for share in curves.SHARES} - {group.width}, reverse=True
        )
        highest = 0.0
        for width in wide_first:
            kept = np.argsort(found.units[group.name], kind="stable")[group.width - width :].tolist()
            recipe = make_recipe(groups, {group.name: sorted(kept)})
            fit = refit_sequentially if group.normalised else refit_separately
            narrow = width <= curves.NARROW * group.width and not group.normalised
            highest = max(highest, rise(fit(model, sliced(model, recipe), recipe, reference), narrow))
            assert found.curves[group.name][width - 1] == pytest.approx(highest, abs=1e-4)
    for block in groups.blocks:
        recipe = make_recipe(groups, dict.fromkeys(block.groups, ()))
        small = refit_sequentially(model, sliced(model, recipe), recipe, reference)
        assert found.blocks[block.name] == pytest.approx(max(0.0, rise(small)), abs=1e-4)


@pytest.mark.parametrize("net", [nets.Blocks, nets.Depthwise])
def test_loss_curves_do_not_depend_on_what_is_kept_in_memory(
    net: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model, batches, groups = net().eval(), images(4), nets.surveyed(net.__name__)
    found = CRITERIA["loss-curves"](model, groups, batches, F.cross_entropy)
    assert found == CRITERIA["loss-curves"](model, groups, batches, F.cross_entropy)
    monkeypatch.setattr(probe, "LIMITS", LIMITS.__class__(curve_bytes=0))
    plain = CRITERIA["loss-curves"](model, groups, batches, F.cross_entropy)
    for name, curve in found.curves.items():
        assert curve == pytest.approx(plain.curves[name], abs=1e-5)
    assert found.blocks == pytest.approx(plain.blocks, abs=1e-5)


def test_loss_curves_keep_no_more_than_their_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    most, kept = 100_000, list[int]()

    def counted(tapes: Iterable[Tape], model: nn.Module, parameters: Iterable[str], cap: int) -> None:
        tapes = list(tapes)
        replay.advance(tapes, model, parameters, cap)
        kept.append(sum(tape.kept_bytes for tape in tapes))

    monkeypatch.setattr(probe, "advance", counted)
    monkeypatch.setattr(probe, "LIMITS", LIMITS.__class__(curve_bytes=most))
    CRITERIA["loss-curves"](*blocks(), images(4), F.cross_entropy)
    assert 0 < max(kept) <= most


def test_the_refit_uses_other_samples_than_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    used: dict[str, Tensor] = {}

    def observed(model: nn.Module, batches: sampling.Sample, extent: Extent, call: Any) -> Reference:
        used["refit"] = torch.cat([inputs[0] for inputs, _ in batches])
        return observe(model, batches, extent, call)

    def first(model: nn.Module, batches: Iterable[Any], count: int) -> sampling.Sample:
        sample = sampling.first(model, batches, count)
        used["loss"] = torch.cat([inputs[0] for inputs, _ in sample])
        return sample

    monkeypatch.setattr(probe, "observe", observed)
    monkeypatch.setattr(curves, "first", first)
    monkeypatch.setattr(sampling, "REFIT_SAMPLES", (16, 16))
    monkeypatch.setattr(sampling, "CURVE_SAMPLES", (8, 8))
    model = nets.Plain().eval()
    CRITERIA["loss-curves"](model, nets.surveyed("Plain"), images(4), F.cross_entropy)
    assert (len(used["refit"]), len(used["loss"])) == (16, 8)
    assert not (used["refit"][:, None] == used["loss"][None]).flatten(2).all(2).any()


def test_a_batch_larger_than_the_sample_is_read_in_part() -> None:
    [((inputs,), targets)] = sampling.first(nets.Plain().eval(), images(2, size=20), 8)
    assert len(inputs) == len(targets) == 8


def test_larger_networks_are_measured_on_fewer_samples_down_to_a_least_number() -> None:
    groups = nets.surveyed("Plain")

    def counted(scale: int) -> int:
        layers = tuple(replace(layer, positions=scale * layer.positions) for layer in groups.layers)
        return sampling.counts(replace(groups, layers=layers), len(curves.SHARES)).curve

    assert counted(1) == 256
    assert counted(10**9) == 64
    assert any(64 < counted(2**power) < 256 for power in range(40))


@pytest.mark.parametrize("name", ["loss-curves", "taylor", "fisher"])
def test_long_criteria_report_progress(name: str) -> None:
    seen: list[tuple[int, int]] = []
    model, groups = blocks()
    CRITERIA[name](model, groups, images(3), F.cross_entropy, lambda done, total, note: seen.append((done, total)))
    assert len(seen) >= 3
    assert seen == sorted(seen)
    assert all(done <= total == seen[0][1] for done, total in seen)


@settings(deadline=None)
@given(
    st.lists(st.floats(-10, 10), min_size=1, max_size=8),
    st.integers(0, 60),
)
def test_a_loss_curve_falls_with_every_unit_kept(rises: list[float], more: int) -> None:
    widths = list(range(1, 2 * len(rises), 2))
    curve = curves._interpolated(widths[-1] + 1 + more, widths, rises)
    assert list(curve) == sorted(curve, reverse=True)
    assert curve[-1] == 0
    assert curve[widths[0] - 1] >= max(0.0, *rises)


def test_taylor_is_the_squared_sum_of_gradient_times_weight_averaged_over_batches() -> None:
    # d/dw_j = v_j·x and d/dv_j = w_j·x, so Σ g·p = 2·v_j·w_j·x: 20 and -6 for x = 1, twice that for x = 2.
    batches = [((torch.full((1, 1), x),), torch.zeros(1, 1)) for x in (1.0, 2.0)]
    assert score("taylor", batches) == pytest.approx(((400 + 1600) / 2, (36 + 144) / 2))


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    with pytest.raises(UsageError, match="batch 0"):
        score("taylor", [((torch.full((1, 1), float("nan")),), torch.zeros(1, 1))])


@pytest.mark.parametrize("name", sorted(CRITERIA))
def test_the_model_stays_unchanged(name: str) -> None:
    model = Normed().eval()
    groups = survey(model, (torch.ones(1, 1),))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = CRITERIA[name](model, groups, [((torch.ones(2, 1),), torch.zeros(2, 1))], total)
    assert found.criterion == name
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.norm.training


def test_what_observing_computes_is_not_recorded_as_the_model_s() -> None:
    model, batches = nets.Blocks().eval(), images(4)
    found = probe.Resuming.of(model, batches, Extent(32, 1000, 1 << 20, 1 << 20))
    alone, _ = Tape.recorded(model, found.reference.inputs)
    beside = found.tapes[id(found.reference.inputs)]
    last = [nets.surveyed("Blocks").layers[-1].weight]
    assert beside.first_use(last) == alone.first_use(last) > 0
    assert len(found.tapes) == 2


def test_a_share_of_the_sample_is_its_first_batches() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    sample = [((torch.randn(5, 4),), torch.randint(3, (5,))) for _ in range(4)]
    whole, half = (probe.Probe(model, part, F.cross_entropy) for part in (sample, sample[:2]))
    with torch.no_grad():
        model.weight.mul_(3)
    assert whole.rise(model, 0.5) == pytest.approx(half.rise(model))
    assert whole.rise(model, 0.5) != pytest.approx(whole.rise(model))
