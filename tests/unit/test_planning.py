"""Plans are optimal, proved, and add up."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune.errors import InconclusiveError, InfeasibleError, SolverError
from edgeprune.graph.groups import candidate_widths
from edgeprune.latency.model import LatencyModel
from edgeprune.latency.surface import HALVED, STEPS, LayerCost, Surface, features
from edgeprune.records import Block, Group, Groups, Layer, Scores, Slot, Span
from edgeprune.stages.planning import allocation, program


def network(spans: list[tuple[Span, Span]], widths: dict[str, int], blocks: tuple[Block, ...] = ()) -> Groups:
    groups = tuple(
        Group(name, width, (Slot(f"{name}.weight", 0, tuple((i,) for i in range(width))),))
        for name, width in widths.items()
    )
    inner = {group for block in blocks for group in block.groups}

    def within(*sides: Span) -> str | None:
        """The inner group of a layer's block: the first of a side with inner groups only."""
        own = [s.terms[0][0][0] for s in sides if s.terms and not s.fixed and s.groups <= inner]
        return own[0] if own else None

    layers = tuple(
        Layer(f"l{i}", "conv", f"l{i}.weight", a, b, 16, 9, within=within(a, b)) for i, (a, b) in enumerate(spans)
    )
    if blocks:  # a layer of constant size, such as an attention that cannot be cut
        # and layers with channels of other groups on both sides, such as a convolution of the stream
        stream, both = Span(0, ((("a",), 1),)), Span(0, ((("a",), 1), (("b",), 2)))
        sides = ("f", Span(12), Span(12)), ("s", stream, stream), ("t", stream, both)
        inside = blocks[0].groups[0]
        layers += tuple(Layer(n, "linear", f"{n}.weight", i, o, 16, 9, within=inside) for n, i, o in sides)
    return Groups("digest", groups, layers, blocks=blocks, operators=1)


def stepped(groups: Groups, steps: list[int], exponent: float = 1.0) -> LatencyModel:
    """A power of a sum of layers. Each takes 100 ns for every input × output, inputs rounded up, and a constant."""
    costs = []
    for layer, step in zip(groups.layers, steps, strict=True):
        coefficients = [0.0] * features(layer, np.ones(1), np.ones(1)).shape[1]
        coefficients[STEPS.index(step) * (len(STEPS) + len(HALVED) + 1)] = 100.0
        coefficients[-1] = 50.0
        surface = Surface(layer, np.array(coefficients), np.zeros((0, 2)), np.zeros(0), 0.0)
        costs.append(LayerCost(layer, surface))
    return LatencyModel(tuple(costs), 1000.0, exponent, 5000.0)


def brute_force(groups: Groups, model: LatencyModel, scores: Scores, budget: float) -> float | None:
    inner = groups.block_of
    names = [group.name for group in groups.free]
    candidates = [(*candidate_widths(g), *([0] if g.name in inner else [])) for g in groups.free]
    best = None
    for widths in itertools.product(*candidates):
        chosen = dict(zip(names, widths, strict=True))
        removed = {group for block in groups.removed(chosen) for group in block.groups}
        if {name for name, width in chosen.items() if not width} == removed and model.ns(chosen) <= budget:
            loss = sum(allocation.losses(g, scores, inner.get(g.name))[chosen[g.name]] for g in groups.free)
            best = loss if best is None else min(best, loss)
    return best


CHAINS = [
    [
        (Span(3), Span(0, ((("a",), 1),))),
        (Span(0, ((("a",), 1),)), Span(0, ((("b",), 1),))),
        (Span(0, ((("b",), 1),)), Span(10)),
    ],
    [  # a residual stream read twice, and a concatenation of two groups
        (Span(3), Span(0, ((("a",), 1),))),
        (Span(0, ((("a",), 1),)), Span(0, ((("b",), 2),))),
        (Span(0, ((("a",), 1), (("b",), 2))), Span(0, ((("c",), 1),))),
        (Span(0, ((("c",), 1),)), Span(0, ((("a",), 1),))),
        (Span(0, ((("a",), 1), (("b",), 2), (("c",), 1))), Span(5)),
    ],
    [  # heads and their width, then a concatenation with one of them
        (Span(3), Span(0, ((("a", "b"), 1),))),
        (Span(0, ((("a", "b"), 1),)), Span(0, ((("c",), 1),))),
        (Span(2, ((("a", "b"), 1), (("a",), 2))), Span(4)),
    ],
]


BLOCKS = [(), (Block("one", ("b",), ()),), (Block("both", ("b", "c"), ()),)]  # of the second chain


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    st.sampled_from([(chain, ()) for chain in CHAINS] + [(CHAINS[1], blocks) for blocks in BLOCKS[1:]]),
    st.lists(st.sampled_from([1, 4, 8]), min_size=8, max_size=8),
    st.floats(0.2, 0.95),
    st.sampled_from([1.0, 1.2]),
    st.sampled_from([None, 1, 8]),
    st.integers(0, 10_000),
)
def test_no_other_widths_have_a_smaller_loss(
    given: tuple[list[tuple[Span, Span]], tuple[Block, ...]],
    steps: list[int],
    share: float,
    exponent: float,
    steep: int | None,
    seed: int,
) -> None:
    """With summed scores or measured curves, and with losses far below the largest one."""
    chain, blocks = given
    names = sorted({group for spans in chain for span in spans for group in span.groups})
    groups = network(chain, dict(zip(names, (6, 5, 7), strict=False)), blocks)
    model = stepped(groups, steps[: len(groups.layers)], exponent)
    random = torch.Generator().manual_seed(seed)
    units = {g.name: tuple(torch.rand(g.width, generator=random).tolist()) for g in groups.free}
    drawn = {
        name: sorted((torch.rand(len(own) - 1, generator=random) ** (steep or 1)).tolist())
        for name, own in units.items()
    }
    curves = {name: (*reversed(own), 0.0) for name, own in drawn.items()} if steep else {}
    lost = {block.name: float(torch.rand(1, generator=random)) for block in blocks} if steep else {}
    scores = Scores("t", units, curves, lost)
    budget = share * model.ns(groups.full())
    expected = brute_force(groups, model, scores, budget)
    if expected is None:
        with pytest.raises(InfeasibleError, match="fastest one"):
            allocation.plans(groups, model, scores, budget, "p")
        return
    (plan,) = allocation.plans(groups, model, scores, budget, "p")
    assert plan.loss <= expected * (1 + 2 * allocation.GAP) + 1e-15
    assert model.ns(plan.widths) <= budget * (1 + 1e-6)
    assert plan.gap <= allocation.GAP
    assert plan.bound <= expected + 1e-9


def test_the_best_units_are_kept() -> None:
    groups = network(CHAINS[0], {"a": 4, "b": 4})
    scores = Scores("t", {"a": (0.1, 5.0, 0.2, 4.0), "b": (1.0, 1.0, 1.0, 1.0)})
    assert allocation.best_units(groups.groups[0], scores, 2) == (1, 3)
    assert allocation.best_units(groups.groups[1], scores, 2) == (0, 1)
    assert allocation.losses(groups.groups[0], scores)[2] == pytest.approx(0.3)
    measured = Scores("t", scores.units, {"a": (9.0, 8.0, 8.0, 0.0)})
    assert allocation.losses(groups.groups[0], measured) == {1: 9.0, 2: 8.0, 3: 8.0, 4: 0.0}
    assert allocation.losses(groups.groups[1], measured)[2] == pytest.approx(2.0)


def test_the_loss_of_a_block_is_measured_or_summed_and_counts_once() -> None:
    groups = network(CHAINS[0], {"a": 2, "b": 2})
    block = Block("both", ("a", "b"), ())
    units = {"a": (0.1, 5.0), "b": (1.0, 1.0)}
    added = [allocation.losses(group, Scores("t", units), block)[0] for group in groups.groups]
    assert added == pytest.approx([5.1, 2.0])
    measured = Scores("t", units, blocks={"both": 7.0})
    assert [allocation.losses(group, measured, block)[0] for group in groups.groups] == [7.0, 0.0]


def test_a_removed_block_is_restored_with_all_groups_at_their_narrowest() -> None:
    groups = network(CHAINS[1], {"a": 6, "b": 5, "c": 7}, (Block("both", ("b", "c"), ()),))
    wider = allocation.wider(groups, {"a": 5, "b": 0, "c": 0})
    assert wider == [{"a": 5, "b": 1, "c": 1}, {"a": 6, "b": 0, "c": 0}]


@pytest.mark.parametrize("curve", [(1.0, 0.0), (1.0, 2.0, 0.0), (2.0, 1.0, 0.5), (float("nan"), 1.0, 0.0)])
def test_an_invalid_loss_curve_is_refused(curve: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="of a "):
        Scores("t", {"a": (1.0, 1.0, 1.0)}, {"a": curve})


def test_a_budget_above_the_original_latency_cuts_nothing() -> None:
    groups = network(CHAINS[0], {"a": 4, "b": 4})
    model = stepped(groups, [1, 1, 1])
    scores = Scores("t", {"a": (1.0,) * 4, "b": (1.0,) * 4})
    (plan,) = allocation.plans(groups, model, scores, 2 * model.ns(groups.full()), "p", (0.97, 0.99, 1.01))
    assert plan.widths == {"a": 4, "b": 4} and plan.loss == 0


def test_each_aim_gives_a_different_plan_and_the_budget_is_used_if_none_is_feasible() -> None:
    groups = network(CHAINS[0], {"a": 64, "b": 64})
    model = stepped(groups, [1, 1, 1])
    scores = Scores("t", {"a": (1.0,) * 64, "b": (2.0,) * 64})
    budget = 0.7 * model.ns(groups.full())
    found = allocation.plans(groups, model, scores, budget, "p", (0.8, 0.8, 0.9, 1.2))
    assert [plan.predicted.mid <= aim * budget for plan, aim in zip(found, (0.8, 0.9, 1.2), strict=True)] == [True] * 3
    assert len({tuple(plan.widths.values()) for plan in found}) == 3
    fastest = model.ns({"a": 4, "b": 4})
    (only,) = allocation.plans(groups, model, scores, fastest * 1.001, "p", (0.9, 0.95))
    assert only.predicted.mid == pytest.approx(fastest)


def test_units_without_importance_are_kept_where_the_budget_allows() -> None:
    groups = network(CHAINS[0], {"a": 64, "b": 64})
    model = stepped(groups, [1, 1, 1])
    scores = Scores("t", {"a": (1.0,) * 8 + (0.0,) * 56, "b": (1.0,) * 8 + (0.0,) * 56})
    budget = 0.6 * model.ns(groups.full())
    (plan,) = allocation.plans(groups, model, scores, budget, "p")
    assert plan.loss == 0 and plan.gap == 0
    assert all(model.ns(widths) > budget for widths in allocation.wider(groups, plan.widths))


def test_a_network_with_nothing_to_cut_is_an_error() -> None:
    layer = Layer("fc", "linear", "fc.w", Span(8), Span(10), 1, 1)
    groups = Groups("d", (Group("fc", 10, (), "output of the model"),), (layer,), operators=1)
    model = stepped(groups, [1])
    with pytest.raises(InfeasibleError, match=r"nothing in the model can be cut.*output of the model"):
        allocation.plans(groups, model, Scores("t", {}), 10.0, "p")


def test_candidates_end_with_the_full_width() -> None:
    for width in (1, 2, 7, 16, 100, 512):
        candidates = candidate_widths(Group("g", width, ()))
        assert candidates[-1] == width and candidates[0] >= 1 and len(candidates) <= 16
        assert list(candidates) == sorted(set(candidates))


def small_case() -> tuple[Groups, LatencyModel, Scores, float]:
    side = Span(0, ((("a",), 1),))
    groups = network([(Span(3), side)], {"a": 6})
    model = stepped(groups, [1], 1.0)
    return groups, model, Scores("t", {"a": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)}), 0.7 * model.ns(groups.full())


def test_a_plan_that_was_not_proved_in_time_is_used_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    groups, model, scores, budget = small_case()
    (proved,) = allocation.plans(groups, model, scores, budget, "p")
    solve = program.Program.solve

    def stopped(self: program.Program, limits: list[float]) -> tuple[dict[str, int], float] | None:
        found = solve(self, limits)
        return found and (found[0], 0.98 * found[1])

    monkeypatch.setattr(program.Program, "solve", stopped)
    (plan,) = allocation.plans(groups, model, scores, budget, "p")
    assert plan.widths == proved.widths and plan.gap == pytest.approx(0.02)
    assert caplog.messages == [
        "the solver was stopped after 60 s: another plan may have up to 2% less loss; a quieter machine proves more"
    ]


def test_a_plan_without_any_proof_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    groups, model, scores, budget = small_case()
    solve = program.Program.solve
    monkeypatch.setattr(program.Program, "solve", lambda self, limits: (solve(self, limits)[0], -np.inf))
    with pytest.raises(SolverError, match="proved nothing"):
        allocation.plans(groups, model, scores, budget, "p")


def test_no_plan_in_time_does_not_mean_that_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    groups, model, scores, budget = small_case()
    late = SimpleNamespace(status=1, x=None, mip_dual_bound=0.0)
    monkeypatch.setattr(program, "milp", lambda *given, **named: late)
    with pytest.raises(InconclusiveError, match="found no plan in 60 s; run again on a quieter machine"):
        allocation.plans(groups, model, scores, budget, "p")
