"""The latency model finds steps, predicts unseen widths and says how sure it is (synthetic devices)."""

from __future__ import annotations

import numpy as np
import pytest
from nets import Residual, image

from edgeprune import graph, latency, network, profiling
from edgeprune.errors import InconclusiveError
from edgeprune.types import Device, Experiment, Groups, Profile, Run, Samples, Widths

DEVICE = Device("x86_64", "synthetic", 1, "none", "none", "0", "boot")


@pytest.fixture(scope="module")
def groups() -> Groups:
    return network.survey(Residual(), image())


def drawn(groups: Groups, random: np.random.Generator) -> dict[str, int]:
    """Candidate widths of every group, at random."""
    return groups.full() | {g.name: int(random.choice(list(graph.candidate_widths(g)))) for g in groups.free}


def truth(groups: Groups, widths: Widths, step: int) -> dict[str, float]:
    """A device that works in blocks of `step` output channels."""
    return {
        layer.name: 40 * layer.kernel * layer.inputs.size(widths) * -(-layer.outputs.size(widths) // step) * step + 900
        for layer in groups.layers
    }


def profile(groups: Groups, count: int, step: int, noise: float, seed: int = 0) -> Profile:
    random = np.random.default_rng(seed)
    experiments = []
    for i, widths in enumerate([groups.full(), *profiling.design(groups, count)]):
        layers = truth(groups, widths, step)
        total = (sum(layers.values()) + 3000) * (1 + noise * random.standard_normal())
        samples = Samples((Run((round(total),), 1),))
        nodes = {name: round(ns * 1.1) for name, ns in layers.items()}  # the profiler slows everything
        experiments.append(Experiment("fit" if i else "baseline", dict(widths), samples, nodes, other_ns=3300))
    return Profile("t", "m", groups.network, DEVICE, 1, "fp32", tuple(experiments))


@pytest.mark.parametrize("step", [1, 4, 8, 16])
def test_steps_are_found_and_unseen_widths_predicted(groups: Groups, step: int) -> None:
    fitted = latency.fit(groups, profile(groups, 40, step, noise=0.0))
    random = np.random.default_rng(7)
    for _ in range(20):
        widths = drawn(groups, random)
        wanted = sum(truth(groups, widths, step).values()) + 3000
        assert fitted.ns(widths) == pytest.approx(wanted, rel=0.03)


def test_intervals_hold(groups: Groups) -> None:
    fitted = latency.fit(groups, profile(groups, 50, 4, noise=0.02))
    held, random = 0, np.random.default_rng(3)
    for _ in range(200):
        widths = drawn(groups, random)
        seen = (sum(truth(groups, widths, 4).values()) + 3000) * (1 + 0.02 * random.standard_normal())
        interval = fitted.predict(widths)
        held += interval.low <= seen <= interval.high
    assert held / 200 >= 0.8


def test_widths_that_fall_out_of_the_fast_kernel_are_found(groups: Groups) -> None:
    """As measured: 30 depthwise channels took four times as long as 32."""

    def total(widths: Widths) -> dict[str, float]:
        times = truth(groups, widths, 1)
        slow = {layer.name: 3 if layer.inputs.size(widths) % 4 else 1 for layer in groups.layers}
        return {name: ns * slow[name] for name, ns in times.items()}

    experiments = []
    for i, widths in enumerate([groups.full(), *profiling.design(groups, 50)]):
        layers = total(widths)
        samples = Samples((Run((round(sum(layers.values())),), 1),))
        nodes = {name: round(ns) for name, ns in layers.items()}
        experiments.append(Experiment("fit" if i else "baseline", dict(widths), samples, nodes))
    fitted = latency.fit(groups, Profile("t", "m", groups.network, DEVICE, 1, "fp32", tuple(experiments)))
    aligned, fewer = groups.full() | {"stem.0": 8}, groups.full() | {"stem.0": 6}
    for widths in (aligned, fewer):
        assert fitted.ns(widths) == pytest.approx(sum(total(widths).values()), rel=0.05)
    assert fitted.ns(fewer) > fitted.ns(aligned)


def test_shares_add_up_to_at_most_one(groups: Groups) -> None:
    shares = latency.fit(groups, profile(groups, 30, 8, noise=0.0)).shares(groups.full())
    assert 0.5 < sum(shares.values()) <= 1


def test_too_few_experiments_are_an_error(groups: Groups) -> None:
    with pytest.raises(InconclusiveError, match="too few"):
        latency.fit(groups, profile(groups, 2, 1, noise=0.0))


def test_a_profile_without_a_baseline_is_an_error(groups: Groups) -> None:
    full = profile(groups, 8, 1, noise=0.0)
    empty = Profile("t", "m", "n", DEVICE, 1, "fp32", full.experiments[1:])
    with pytest.raises(InconclusiveError, match="no baseline"):
        latency.baseline(empty)


def test_node_times_are_summed_a_layer_and_the_rest_is_kept() -> None:
    sums, other = latency.by_layer({"/a/Conv": 5, "/a/Relu": 2, "reorder": 3}, {"/a/Conv": "a", "/a/Relu": "a"})
    assert sums == {"a": 7} and other == 3


def test_the_design_covers_every_width_about_equally(groups: Groups) -> None:
    design = profiling.design(groups, 48)
    for group in groups.free:
        counts = np.unique([widths[group.name] for widths in design], return_counts=True)[1]
        assert counts.max() - counts.min() <= 1
    assert design[:10] == profiling.design(groups, 48)[:10]
