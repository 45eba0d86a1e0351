"""Profiles that a real machine gave: what the latency model and the planner make of them, the same on every machine."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgeprune.graph.groups import candidate_widths
from edgeprune.latency.fit import draft, fit
from edgeprune.latency.model import LatencyModel
from edgeprune.latency.observations import measured_ns, reference_ns
from edgeprune.network.survey import survey
from edgeprune.records import Groups, Profile, Scores
from edgeprune.stages.planning import allocation
from edgeprune.storage import codec

ROOT = Path(__file__).parents[2]
RECORDED = sorted((ROOT / "profiles").glob("*/digits-*.json"))


@pytest.fixture(scope="module")
def groups() -> Groups:
    sys.path.insert(0, str(ROOT / "examples" / "digits"))
    try:
        import digits
    finally:
        sys.path.pop(0)
    return survey(digits.build(), digits.example_inputs())


def read(path: Path) -> Profile:
    return codec.loads_kept(Profile, path.read_text(), str(path))


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.parent.name)
def test_the_profile_is_of_this_network(path: Path, groups: Groups) -> None:
    profile = read(path)
    assert profile.network == groups.network
    names = {layer.name for layer in groups.layers}
    assert all(set(e.layer_ns) <= names for e in profile.experiments)
    for experiment in profile.experiments:
        if experiment.layer_ns:  # almost all of the profiler's time finds its layer
            assert experiment.other_ns <= 0.1 * sum(experiment.layer_ns.values())


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.parent.name)
def test_unseen_configurations_are_predicted(path: Path, groups: Groups) -> None:
    profile = read(path)
    fits = [e for e in profile.experiments if e.role == "fit"]
    others = [e for e in profile.experiments if e.role != "fit"]
    errors = []
    for start in range(4):  # four folds, each predicted by a model that never saw it
        held = fits[start::4]
        seen = tuple(others + [e for e in fits if e not in held])
        model = draft(groups, replace(profile, experiments=seen))
        errors += [abs(measured_ns(profile, e) / model.ns(e.widths) - 1) for e in held]
    assert np.median(errors) < 0.03
    assert np.quantile(errors, 0.9) < 0.08


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.parent.name)
def test_latency_does_not_follow_from_macs(path: Path, groups: Groups) -> None:
    """Multiply-accumulates predict latency with several times the model's error, so latency is measured."""
    profile = read(path)
    model = fit(groups, profile)
    base, macs = reference_ns(profile), groups.macs(groups.full())
    fits = [e for e in profile.experiments if e.role == "fit"]
    flops = [abs(measured_ns(profile, e) / (base * groups.macs(e.widths) / macs) - 1) for e in fits]
    ours = [abs(measured_ns(profile, e) / model.ns(e.widths) - 1) for e in fits]
    assert np.median(flops) > 3 * np.median(ours)


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.parent.name)
@pytest.mark.parametrize("share", [0.8, 0.5, 0.3])
def test_plans_are_proved_and_beat_uniform_widths(path: Path, share: float, groups: Groups) -> None:
    profile = read(path)
    model = fit(groups, profile)
    random = np.random.default_rng(0)
    scores = Scores("random", {g.name: tuple(random.exponential(size=g.width).tolist()) for g in groups.free})
    budget = share * model.ns(groups.full())
    (plan,) = allocation.plans(groups, model, scores, budget, "recorded")
    assert model.ns(plan.widths) <= budget
    assert plan.gap <= allocation.GAP
    uniform = best_uniform(groups, model, scores, budget)
    assert plan.loss <= uniform


def best_uniform(groups: Groups, model: LatencyModel, scores: Scores, budget: float) -> float:
    """The loss of the widest network that keeps the same share of every group and meets the budget."""
    losses = []
    for kept in np.linspace(0.05, 1, 96):
        widths = {g.name: min(candidate_widths(g), key=lambda w: abs(w - kept * g.width)) for g in groups.free}
        if model.ns(widths) <= budget:
            losses.append(sum(allocation.losses(g, scores)[widths[g.name]] for g in groups.free))
    return min(losses)
