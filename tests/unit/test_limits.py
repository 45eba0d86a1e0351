"""Limits on size, parameters, multiply-accumulates and live tensors: rows of the program, exact, and checked at the end."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import nets
import numpy as np
import pytest
import torch
from nets import Blocks, Concat, Grouped, Residual, image
from test_confirming import Simulated
from test_planning import CHAINS, network, stepped
from torch import nn

from edgeprune.errors import InfeasibleError, UsageError
from edgeprune.frontends import toml
from edgeprune.graph import counting
from edgeprune.graph.groups import candidate_widths, first_units, make_recipe
from edgeprune.network import activations, weights
from edgeprune.network.cut import cut, formed
from edgeprune.network.folding import fold
from edgeprune.network.importance import CRITERIA
from edgeprune.network.survey import generic
from edgeprune.records import Budget, Groups, Limit, Outcome, Plan, Scores, Widths, digest
from edgeprune.runtimes.formats.onnx import OnnxTemplate
from edgeprune.stages import bounds, confirm, measuring
from edgeprune.stages.planning import allocation
from edgeprune.stages.planning.figures import Bound, Counted, Counts, Latency
from edgeprune.stages.verdicts import ondevice
from edgeprune.storage import codec

NETS = [Residual, Concat, Grouped]


@cache
def surveyed(net: type[nn.Module]) -> tuple[nn.Module, Groups]:
    torch.manual_seed(0)
    model = net().eval()
    groups = nets.surveyed(net.__name__)
    return formed(model, groups, image()), groups


def halved(groups: Groups) -> dict[str, int]:
    return {**groups.full(), **{group.name: max(1, group.width // 2) for group in groups.free}}


def cut_to(model: nn.Module, groups: Groups, widths: Widths) -> nn.Module:
    return cut(generic(model, image()), make_recipe(groups, first_units(groups, widths)), image())


def counts(model: nn.Module, groups: Groups) -> Counts:
    """The exact figures of a network. Its files are those of ONNX Runtime."""
    template = OnnxTemplate(model, image(), groups)
    return Counts(
        groups,
        lambda: counting.parameters(groups, model),
        lambda: counting.parameters(groups, fold(model, groups.folds)),
        lambda: activations.live(model, groups, image()),
        lambda widths: len(template.variant({**groups.full(), **widths})),
        lambda: len(template.variant(groups.full())),
    )


@pytest.mark.parametrize("net", NETS)
def test_parameters_and_live_bytes_are_those_of_the_cut_network(net: type[nn.Module]) -> None:
    model, groups = surveyed(net)
    layers, live = counting.parameters(groups, model), activations.live(model, groups, image())
    for widths in (groups.full(), halved(groups)):
        small = cut_to(model, groups, widths)
        assert sum(layer.macs(widths) for layer in layers) == weights.count_parameters(small)
        peak = max(sum(layer.macs(widths) for layer in one) for one in live)
        assert peak == activations.peak_bytes(small, image())


def test_a_removed_block_takes_its_parameters_with_it() -> None:
    model, groups = surveyed(Blocks)
    assert groups.blocks
    widths = {**groups.full(), **{name: 0 for block in groups.blocks for name in block.groups}}
    found = sum(layer.macs(widths) for layer in counting.parameters(groups, model))
    assert found == weights.count_parameters(cut_to(model, groups, widths))


def test_live_tensors_of_a_chain_are_counted_by_hand() -> None:
    chain = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 4, 3, 1, 1), nn.Flatten(), nn.Linear(64, 2))
    # The first convolution's output and the second's live together. The rectifier is in place, and flattening is a view.
    assert activations.peak_bytes(chain, (torch.zeros(1, 3, 4, 4),)) == 4 * 16 * (8 + 4)


@pytest.mark.parametrize("net", NETS)
def test_a_plan_meets_each_limit_and_its_file_is_no_larger(net: type[nn.Module]) -> None:
    model, groups = surveyed(net)
    figures, scores = (
        counts(model, groups),
        CRITERIA["magnitude-l2"](model, groups, [], lambda outputs, targets: outputs),
    )
    asked = [Limit.parse("size", "60%"), Limit.parse("parameters", "50%"), Limit.parse("activations", "80%")]
    limits = tuple(map(figures.bound, asked))
    (plan,) = confirm.Loop(groups, scores, None, limits).plans({})
    assert plan.predicted is None and plan.budget_ns is None and plan.gap <= allocation.GAP
    small = cut_to(model, groups, {**groups.full(), **plan.widths})
    size, parameters, live = plan.limits
    assert size.value == len(figures_file(model, groups, plan)) <= size.limit
    assert parameters.value == weights.count_parameters(small) <= parameters.limit
    assert live.value == activations.peak_bytes(small, image()) <= live.limit
    assert plan.binding.share == max(one.share for one in plan.limits) > 0.75


def figures_file(model: nn.Module, groups: Groups, plan: Plan) -> bytes:
    return OnnxTemplate(model, image(), groups).variant({**groups.full(), **plan.widths})


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_no_other_widths_within_two_limits_have_a_smaller_loss(share: float) -> None:
    groups = network(CHAINS[1], {"a": 6, "b": 5, "c": 7})
    model = stepped(groups, [4, 1, 8, 1, 4])
    random = torch.Generator().manual_seed(1)
    scores = Scores("t", {g.name: tuple(torch.rand(g.width, generator=random).tolist()) for g in groups.free})
    macs = Counted("macs", (groups.layers,))
    limits = [
        Bound(Latency(model), 0.7 * model.ns(groups.full()), 1.0),
        Bound(macs, share * macs.of(groups.full())),
    ]
    (plan,) = allocation.planned(groups, scores, [limits], "p")
    loss = allocation.loss_of(groups, scores)
    every = itertools.product(*(candidate_widths(group) for group in groups.free))
    named = (dict(zip((g.name for g in groups.free), one, strict=True)) for one in every)
    best = min(loss(one) for one in named if all(bound.figure.of(one) <= bound.most for bound in limits))
    assert plan.loss <= best * (1 + 2 * allocation.GAP)
    assert all(bound.figure.of(plan.widths) <= bound.most for bound in limits)


@pytest.mark.parametrize("share", [0.9, 0.8, 0.65])
@pytest.mark.parametrize("bend", [0.0, 0.5, -0.5])
def test_a_plan_uses_a_measured_limit_though_the_device_follows_no_line(share: float, bend: float) -> None:
    """The figure is a constant, a line in the multiply-accumulates, and a bend in the middle that no line has."""
    groups = network(CHAINS[1], {"a": 24, "b": 24, "c": 24})
    random = torch.Generator().manual_seed(1)
    scores = Scores("t", {g.name: tuple(torch.rand(g.width, generator=random).tolist()) for g in groups.free})
    macs, full = Counted("macs", (groups.layers,)), groups.full()
    asked: list[Widths] = []

    def value(widths: Widths, original: bool) -> float:
        asked.append(widths)
        part = macs.of(widths) / macs.of(full)
        return 50e6 * (1 + part + bend * part * (1 - part))

    figures = Counts(groups, lambda: (), lambda: groups.layers, lambda: (), lambda widths: 0, lambda: 0)
    bound = figures.on_device(Limit.parse("memory", f"{100 * share:g}%"), "", value)
    (plan,) = allocation.planned(groups, scores, [[bound]], "")
    (found,) = plan.limits
    assert found.figure == "memory" and 0.93 < found.share < 0.9971 and found.limit == share * 100e6
    assert found.value == value({**full, **plan.widths}, False) and len(asked) < 40
    with pytest.raises(InfeasibleError, match=r"memory 20 MB: the smallest one needs .* MB \("):
        allocation.planned(groups, scores, [[figures.on_device(Limit.parse("memory", "20 MB"), "", value)]], "")


def test_a_measured_limit_is_decided_by_its_interval() -> None:
    limit = Limit.parse("throughput", "2 streams 200%")
    slow, fast = [8e6, 8.1e6, 7.9e6] * 3, [3.9e6, 3.8e6, 3.85e6] * 3
    found = ondevice.check(limit, slow, fast)
    assert (found.name, found.outcome) == ("throughput_limit", Outcome.PASS)
    assert found.value > found.limit == pytest.approx(250) and "2 streams 200%, of 125.0/s" in found.note
    assert ondevice.check(limit, fast, slow).outcome is Outcome.FAIL
    even = ondevice.check(Limit.parse("memory", "80 MB"), [1e8] * 6, [79e6, 81e6, 80.5e6, 79.5e6, 78e6, 82e6])
    assert even.outcome is Outcome.INCONCLUSIVE and even.limit == 80e6


def test_an_infeasible_limit_is_named_with_the_least_value() -> None:
    groups = network(CHAINS[0], {"a": 4, "b": 4})
    scores = Scores("t", {g.name: (1.0,) * g.width for g in groups.free})
    macs = Counted("macs", (groups.layers,))
    least = macs.of({"a": 1, "b": 1})
    with pytest.raises(InfeasibleError, match=rf"no plan meets macs 500: the smallest one has {least:,.0f} \("):
        allocation.planned(groups, scores, [[Bound(macs, 500.0)]], "")


def test_limits_that_exclude_each_other_are_named_with_the_least_value_beside_the_others() -> None:
    """The second layer's cost falls with `a`, so that both figures can be met alone only."""
    groups = network(CHAINS[0], {"a": 4, "b": 4})
    scores = Scores("t", {g.name: (1.0,) * g.width for g in groups.free})
    first = Counted("macs", (groups.layers[:1],))  # 432 for each unit of a
    falling = Counted("parameters", (groups.layers[:1],), factor=-1.0, constant=4 * 432.0)
    limits = [Bound(first, 432.0 * 2), Bound(falling, 432.0)]
    with pytest.raises(
        InfeasibleError, match=r"macs 864 beside parameters 432.*the least macs is predicted to be 1,296"
    ):
        allocation.planned(groups, scores, [limits], "")


def test_a_limit_of_the_tail_is_a_limit_of_the_median_divided_by_what_the_tail_adds() -> None:
    device = Simulated(Budget(fraction=0.6), 1.0, noise=0.005)
    (median,) = confirm.Loop(device.groups, device.scores, Budget(fraction=0.6)).plans({"": device.profile})[:1]
    slow = Budget.parse("p90 1 s")
    assert measuring.tail(device.profile, 0.9) == 1.0  # each process has one time
    (whole,) = confirm.Loop(device.groups, device.scores, slow).plans({"": device.profile})
    assert not whole.cuts(device.groups) and median.cuts(device.groups)
    assert Latency(stepped(device.groups, [1] * len(device.groups.layers)), 2.0).of(
        device.groups.full()
    ) == pytest.approx(2 * stepped(device.groups, [1] * len(device.groups.layers)).ns(device.groups.full()))


def test_a_full_limit_ends_the_confirm_loop_though_the_latency_is_far_below_its_own() -> None:
    device = Simulated(Budget(fraction=0.9), 1.0, noise=0.005)
    macs = Counted("macs", (device.groups.layers,))
    limit = Bound(macs, 0.4 * macs.of(device.groups.full()))
    found = confirm.Loop(device.groups, device.scores, device.budget, (limit,)).confirm(
        {"": device.profile}, device.measure
    )
    assert found.rounds == 1 and found.measurement is not None and found.measurement.share < measuring.LEAST
    assert found.plan.binding.figure == "macs" and found.plan.binding.share > measuring.LEAST


@pytest.mark.parametrize(
    ("figure", "text", "most", "fraction"),
    [
        ("size", "4 MB", 4_000_000, None),
        ("size", "1.5MiB", 1_572_864, None),
        ("activations", "256 kB", 256_000, None),
        ("parameters", "200k", 200_000, None),
        ("macs", "1.5 G", 1_500_000_000, None),
        ("macs", "1234", 1234, None),
        ("memory", "64 MB", 64_000_000, None),
        ("throughput", "200/s", 5_000_000, None),  # nanoseconds a sample
        ("throughput", "4 streams 200 /s", 5_000_000, None),
        ("throughput", "200%", None, 0.5),
        ("size", "50%", None, 0.5),
    ],
)
def test_limits_are_read(figure: str, text: str, most: int | None, fraction: float | None) -> None:
    found = Limit.parse(figure, text)  # type: ignore[arg-type]
    assert (found.most, found.fraction) == (most, fraction)
    assert found.resolve(1000) == (500 if most is None else most)


@pytest.mark.parametrize(
    "text", ["", "4", "4 mB", "200k", "-4 MB", "1e9 B", "0 MB", "50 %%", "4 MB extra", "9" * 400 + " B"]
)
def test_another_text_is_one_line_that_says_how_to_write_it(text: str) -> None:
    with pytest.raises(UsageError) as error:
        Limit.parse("size", text)
    assert "\n" not in str(error.value) and ("4 MB" in str(error.value) or "above zero" in str(error.value))


def written(folder: Path, budget: str) -> Path:
    file = folder / "edgeprune.toml"
    file.write_text(
        '[model]\nfactory = "m:b"\ninputs = "m:i"\n[data]\ntrain = "m:t"\nvalid = "m:v"\nloss = "m:l"\nmetric = "m:c"\n'
        f"[budget]\n{budget}\n"
    )
    return file


def test_a_project_file_with_limits_needs_no_latency(tmp_path: Path) -> None:
    budget = toml.read_project(written(tmp_path, 'size = "4 MB"\nmacs = "40%"')).budget
    assert budget.latency is None and budget.prunes and str(budget) == "size 4 MB, macs 40%"
    assert toml.read_project(written(tmp_path, 'latency = "p90 5 ms"')).budget.latency == Budget(
        5_000_000, quantile=0.9
    )


def test_a_wrong_limit_names_the_file_and_the_key(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"edgeprune.toml: \[budget\] size: cannot read the limit '4 mb'"):
        toml.read_project(written(tmp_path, 'size = "4 mb"'))


def test_a_project_without_limits_has_the_keys_and_files_that_it_had(tmp_path: Path) -> None:
    project = toml.read_project(written(tmp_path, 'latency = "50%"'))
    run = SimpleNamespace(request=SimpleNamespace(project=project))
    assert bounds.settings(run, lambda run: {"unused": 1}, lambda run: {"unused": 2}) == {}  # type: ignore[arg-type]
    from edgeprune.stages.inputs import INPUTS

    assert set(INPUTS["budget_section"].settings(run)) == {"[budget] latency", "[budget] max_metric_drop"}  # type: ignore[arg-type]
    plan = Simulated(Budget(fraction=0.6), 1.0, 0.0)
    (first, *_) = confirm.Loop(plan.groups, plan.scores, plan.budget).plans({"": plan.profile})
    assert "limits" not in codec.dumps(first) and codec.loads(Plan, codec.dumps(first), "p") == first
    assert digest(first) == digest(codec.loads(Plan, codec.dumps(first), "p"))


def test_the_verdict_checks_each_limit() -> None:
    limits = [Limit.parse("size", "4 MB"), Limit.parse("parameters", "50%")]
    before, after = {"size": 8e6, "parameters": 1000}, {"size": 3.9e6, "parameters": 501}
    size, parameters = bounds.checks(limits, before, after)
    assert (size.name, size.outcome, size.limit) == ("size_limit", Outcome.PASS, 4e6)
    assert (parameters.name, parameters.outcome, parameters.limit) == ("parameters_limit", Outcome.FAIL, 500)


def test_the_size_of_another_file_than_predicted_corrects_the_plan() -> None:
    """A file that takes a tenth more than its numbers is still within the limit."""
    model, groups = surveyed(Residual)
    honest = counts(model, groups)
    scores = CRITERIA["magnitude-l2"](model, groups, [], lambda outputs, targets: outputs)
    full = groups.full()

    def larger(widths: Widths) -> int:
        least = {**full, **widths} not in (full, {**full, **halved(groups)})
        return round(honest.bytes_at(widths) * (1.1 if least else 1.0))

    bound = replace(honest, bytes_at=larger).bound(Limit.parse("size", "60%"))
    (plan,) = allocation.planned(groups, scores, [[bound]], "")
    assert larger(plan.widths) <= bound.most and np.isfinite(plan.loss)
