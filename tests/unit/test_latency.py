"""The latency model finds steps, predicts unseen widths and knows its uncertainty (synthetic devices)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from nets import surveyed
from threadpoolctl import threadpool_info, threadpool_limits

from edgeprune.errors import InconclusiveError
from edgeprune.graph.groups import candidate_widths
from edgeprune.latency import fit as latency_fit
from edgeprune.latency.fit import draft, fit, last_error
from edgeprune.latency.observations import Observations, by_layer, measured_ns, reference_ns
from edgeprune.latency.threads import single_threaded
from edgeprune.records import Device, Experiment, Group, Groups, Profile, Run, Samples, Widths
from edgeprune.stages import experiments as profiling

DEVICE = Device("x86_64", "synthetic", 1, "none", "none", "0", "boot")


@pytest.fixture(scope="module")
def groups() -> Groups:
    return surveyed("Residual")


def drawn(groups: Groups, random: np.random.Generator) -> dict[str, int]:
    """Random candidate widths of every group."""
    return groups.full() | {g.name: int(random.choice(list(candidate_widths(g)))) for g in groups.free}


def truth(groups: Groups, widths: Widths, step: int) -> dict[str, float]:
    """Layer times of a device that processes blocks of `step` output channels, and one convolution group after the other."""
    return {
        layer.name: 40 * layer.kernel * layer.inputs.size(widths) * -(-made.size(widths) // step) * step + 900
        for layer in groups.layers
        for made in [layer.made_per_group or layer.outputs]
    }


def variants(groups: Groups, count: int) -> list[dict[str, int]]:
    """The anchor, the original network and `count` others."""
    return [profiling.anchor(groups), groups.full(), *islice(profiling.configurations(groups), count)]


def profile(groups: Groups, count: int, step: int, noise: float, seed: int = 0) -> Profile:
    random = np.random.default_rng(seed)
    experiments = []
    for i, widths in enumerate(variants(groups, count)):
        layers = truth(groups, widths, step)
        total = (sum(layers.values()) + 3000) * (1 + noise * random.standard_normal())
        samples = Samples((Run((round(total),), 1),))
        nodes = {name: round(ns * 1.1) for name, ns in layers.items()}  # the profiler slows everything
        role = ("anchor", "baseline")[i] if i < 2 else "fit"
        experiments.append(Experiment(role, 0, dict(widths), samples, nodes, other_ns=3300))
    return Profile("t", "m", groups.network, DEVICE, 1, "fp32", tuple(experiments))


Times = dict[str, float]


def recorded(
    groups: Groups, count: int, times: Callable[[Widths], Times], seen: Callable[[Times], Times] = dict
) -> Profile:
    """A profile of a device whose layers take `times`, of which its profiler reports what `seen` makes of them."""
    experiments = []
    for i, widths in enumerate(variants(groups, count)):
        layers = times(widths)
        samples = Samples((Run((round(sum(layers.values())),), 1),))
        nodes = {name: round(ns) for name, ns in seen(layers).items()}
        experiments.append(Experiment(("anchor", "baseline")[i] if i < 2 else "fit", 0, dict(widths), samples, nodes))
    return Profile("t", "m", groups.network, DEVICE, 1, "fp32", tuple(experiments))


@pytest.mark.parametrize("step", [1, 4, 8, 16])
def test_steps_are_found_and_unseen_widths_predicted(groups: Groups, step: int) -> None:
    fitted = fit(groups, profile(groups, 40, step, noise=0.0))
    random = np.random.default_rng(7)
    for _ in range(20):
        widths = drawn(groups, random)
        wanted = sum(truth(groups, widths, step).values()) + 3000
        assert fitted.ns(widths) == pytest.approx(wanted, rel=0.03)


def test_the_number_of_groups_of_a_grouped_convolution_is_known() -> None:
    """Eight groups of two outputs are slower here than two groups of eight."""
    groups = surveyed("Bottlenecks")
    fitted, random = fit(groups, profile(groups, 50, 4, noise=0.0)), np.random.default_rng(7)
    for _ in range(20):
        widths = drawn(groups, random)
        wanted = sum(truth(groups, widths, 4).values()) + 3000
        assert fitted.ns(widths) == pytest.approx(wanted, rel=0.03)


def test_intervals_cover_measurements(groups: Groups) -> None:
    fitted = fit(groups, profile(groups, 50, 4, noise=0.02))
    held, random = 0, np.random.default_rng(3)
    for _ in range(200):
        widths = drawn(groups, random)
        seen = (sum(truth(groups, widths, 4).values()) + 3000) * (1 + 0.02 * random.standard_normal())
        interval = fitted.predict(widths)
        held += interval.low <= seen <= interval.high
    assert held / 200 >= 0.8


def test_widths_with_a_slower_kernel_are_found(groups: Groups) -> None:
    """As measured: 30 depthwise channels took four times as long as 32."""

    def total(widths: Widths) -> dict[str, float]:
        times = truth(groups, widths, 1)
        slow = {layer.name: 3 if layer.inputs.size(widths) % 4 else 1 for layer in groups.layers}
        return {name: ns * slow[name] for name, ns in times.items()}

    fitted = fit(groups, recorded(groups, 50, total))
    aligned, fewer = groups.full() | {"stem.0": 8}, groups.full() | {"stem.0": 6}
    for widths in (aligned, fewer):
        assert fitted.ns(widths) == pytest.approx(sum(total(widths).values()), rel=0.05)
    assert fitted.ns(fewer) > fitted.ns(aligned)


def test_shares_add_up_to_at_most_one(groups: Groups) -> None:
    fitted = fit(groups, profile(groups, 30, 8, noise=0.0))
    shares = [ns / fitted.ns(groups.full()) for ns in fitted.layer_ns(groups.full()).values()]
    assert 0.5 < sum(shares) <= 1


def test_too_few_experiments_are_an_error(groups: Groups) -> None:
    with pytest.raises(InconclusiveError, match="too few"):
        fit(groups, profile(groups, 2, 1, noise=0.0))


def test_a_profile_without_the_original_network_is_an_error(groups: Groups) -> None:
    full = profile(groups, 8, 1, noise=0.0)
    empty = Profile("t", "m", "n", DEVICE, 1, "fp32", (full.experiments[0], *full.experiments[2:]))
    with pytest.raises(InconclusiveError, match="no measurement of the original"):
        reference_ns(empty)


def test_node_times_are_summed_by_layer_and_the_rest_is_kept() -> None:
    """A node that the runtime adds counts with the layer before it. Its name may repeat."""
    times = (("input", 1), ("/a/Conv", 5), ("reorder", 3), ("/a/Relu", 2), ("/b/Conv", 7), ("reorder", 4))
    sums, other = by_layer(times, {"/a/Conv": "a", "/a/Relu": "a", "/b/Conv": "b"})
    assert sums == {"a": 10, "b": 11} and other == 1


def test_the_sequence_is_fixed_and_covers_every_candidate_width_and_others() -> None:
    wide = Groups(
        "d", tuple(Group(name, width, ()) for name, width in (("a", 64), ("b", 96), ("c", 512))), (), operators=1
    )
    first = list(islice(profiling.configurations(wide), 128))
    for group in wide.free:
        candidates = candidate_widths(group)
        counts = np.unique([widths[group.name] for widths in first[::4]], return_counts=True)[1]
        assert len(counts) == len(candidates) and counts.max() - counts.min() <= 1
        assert {widths[group.name] for widths in first} - set(candidates)
    assert first[:10] == list(islice(profiling.configurations(wide), 10))
    assert len({tuple(widths.items()) for widths in first}) == len(first)


@pytest.mark.parametrize("few_singles", [False, True])
def test_few_configurations_are_all_measured_once(few_singles: bool) -> None:
    small = Groups("d", (Group("a", 3, ()),), (), operators=1)
    assert sorted(widths["a"] for widths in profiling.configurations(small, few_singles)) == [1, 2, 3]


def test_groups_of_one_unit_are_in_few_configurations_where_they_are_exported_anew() -> None:
    heads = tuple(Group(f"heads{number}", 3, ()) for number in range(12))
    groups = Groups("d", (*heads, Group("wide", 192, ())), (), operators=1)
    first = list(islice(profiling.configurations(groups, few_singles=True), 160))
    single = [widths for widths in first if groups.singles(widths)]
    assert 15 <= len(single) <= 24
    for head in heads:  # of each of them enough, so that the latency model knows it
        assert sum(widths[head.name] == 1 for widths in single) >= 3


def slowed(before: Profile, batch: int, factor: float) -> Profile:
    """Append the same experiments as another batch, measured on a machine that is slower by a factor."""
    moved = []
    for e in before.experiments:
        times = tuple(round(factor * ns) for ns in e.samples.runs[0].times_ns)
        moved.append(replace(e, batch=batch, samples=Samples((Run(times, 1),))))
    return before.with_experiments(moved)


def test_the_anchor_cancels_drift(groups: Groups) -> None:
    calm = profile(groups, 20, 8, noise=0.0)
    both = slowed(calm, 1, 1.3)
    first, again = both.experiments[5], both.experiments[5 + len(calm.experiments)]
    assert measured_ns(both, again) == pytest.approx(measured_ns(both, first), rel=1e-4)


def test_a_profiler_that_costs_more_than_the_network_does_not_hide_its_shape(groups: Groups) -> None:
    """As measured: ONNX Runtime's profiler adds 0.3 ms to a transformer of 0.1 ms. Layers with many nodes cost more."""
    plain = profile(groups, 40, 8, noise=0.0)
    latency = np.median([e.samples.runs[0].times_ns[0] for e in plain.experiments])
    costs = {layer.name: latency * (0.1 + 0.5 * (i % 3)) for i, layer in enumerate(groups.layers)}
    slow = [
        replace(e, layer_ns={name: round(ns + costs[name]) for name, ns in e.layer_ns.items()})
        for e in plain.experiments
    ]
    assert sum(costs.values()) > 2 * latency
    fitted, random = fit(groups, replace(plain, experiments=tuple(slow))), np.random.default_rng(6)
    tried = [drawn(groups, random) for _ in range(40)]
    errors = [abs(fitted.ns(widths) / (sum(truth(groups, widths, 8).values()) + 3000) - 1) for widths in tried]
    assert np.median(errors) < 0.04


def test_layers_that_slow_each_other_down_are_predicted(groups: Groups) -> None:
    """As measured: MobileNetV2 takes the power 1.1 of the sum of its layers."""
    plain = profile(groups, 50, 8, noise=0.0)

    def crowded(ns: float) -> float:
        return 60_000 * (ns / 60_000) ** 1.2

    grown = []
    for e in plain.experiments:
        total = e.samples.runs[0].times_ns[0]
        factor = crowded(total) / total
        nodes = {name: round(ns * factor) for name, ns in e.layer_ns.items()}
        samples = Samples((Run((round(total * factor),), 1),))
        grown.append(replace(e, samples=samples, layer_ns=nodes, other_ns=round(e.other_ns * factor)))
    fitted = fit(groups, replace(plain, experiments=tuple(grown)))
    assert fitted.exponent > 1.05
    random = np.random.default_rng(5)
    errors = []
    for _ in range(40):
        widths = drawn(groups, random)
        errors.append(abs(fitted.ns(widths) / crowded(sum(truth(groups, widths, 8).values()) + 3000) - 1))
    assert np.median(errors) < 0.015
    assert fitted.ns(groups.full()) == pytest.approx(
        fitted.middle_ns
        * ((sum(fitted.layer_ns(groups.full()).values()) + fitted.overhead_ns) / fitted.middle_ns) ** fitted.exponent
    )
    assert fitted.sum_ns(fitted.ns(groups.full())) == pytest.approx(
        sum(fitted.layer_ns(groups.full()).values()) + fitted.overhead_ns
    )


def test_uncertainty_grows_with_distance_from_measurements(groups: Groups) -> None:
    known = profile(groups, 30, 8, noise=0.0)
    narrow = replace(known, experiments=tuple(e for e in known.experiments if e.role != "fit" or e.widths["b2.0"] >= 8))
    fitted = draft(groups, narrow)
    seen, unseen = narrow.experiments[5].widths, groups.full() | {g.name: 1 for g in groups.free}
    covariance = fitted.covariance([seen, unseen])
    assert covariance[1, 1] > covariance[0, 0] > 0
    np.testing.assert_allclose(covariance, covariance.T)


def test_the_next_experiments_are_half_the_sequence_and_half_the_most_informative(groups: Groups) -> None:
    known = profile(groups, 24, 8, noise=0.0)
    chosen = profiling.choose(groups, known, 12)
    assert len({tuple(widths.items()) for widths in chosen}) == 12
    assert not [widths for widths in chosen if widths in [e.widths for e in known.experiments]]
    following = list(islice(profiling.configurations(groups), 24, 30))
    assert chosen[:6] == following
    pool = list(islice(profiling.configurations(groups), 24, 120))
    model = draft(groups, known)

    def left(choice: list[dict[str, int]]) -> float:
        """The variance over the pool after these are measured."""
        covariance = model.covariance([*choice, *pool])
        for pivot in range(len(choice)):
            covariance = profiling._given(covariance, pivot)
        return float(np.trace(covariance))

    assert left(chosen) <= left(pool[:12])


def test_the_last_error_is_of_a_model_fitted_before(groups: Groups) -> None:
    first = profile(groups, 24, 8, noise=0.0)
    assert last_error(groups, first, 12) is None  # nothing came before this batch
    wrong = slowed(profile(groups, 36, 8, noise=0.0, seed=1), 1, 1.0)
    error = last_error(groups, wrong, 12)
    assert error is not None and error < 0.03


def test_a_removed_block_takes_no_time_and_its_measurement_improves_the_model() -> None:
    groups = surveyed("Blocks")
    profiled = profile(groups, 60, 1, noise=0.002)
    random = np.random.default_rng(3)

    def truth_ns(widths: Widths) -> float:
        there = [layer.name for layer in groups.layers if layer.channels(widths)[1]]
        return sum(truth(groups, widths, 1)[name] for name in there) + 3000

    def removed(names: set[str]) -> dict[str, int]:
        gone = {group for block in groups.blocks if block.name in names for group in block.groups}
        return {name: 0 if name in gone else width for name, width in drawn(groups, random).items()}

    model = fit(groups, profiled)
    tried = [removed(names) for names in ({"stage.0"}, {"attending"}, {"stage.1", "attending"})]
    before = [abs(model.ns(widths) / truth_ns(widths) - 1) for widths in tried]
    assert max(before) < 0.05, before
    assert all(model.predict(widths).high > model.ns(widths) for widths in tried)
    whole = model.layer_ns(groups.full())
    assert all(
        (ns == 0) == name.startswith("attending.") for name, ns in model.layer_ns(removed({"attending"})).items()
    )
    assert min(whole.values()) > 0
    more = [
        Experiment("confirm", 0, widths, Samples((Run((round(truth_ns(widths)),), 1),)))  # measured without a profiler
        for widths in tried
    ]
    model = fit(groups, profiled.with_experiments(more))
    assert max(abs(model.ns(widths) / truth_ns(widths) - 1) for widths in tried) < 0.02


def test_a_layer_of_a_removed_block_is_not_observed_as_taking_no_time() -> None:
    groups = surveyed("Blocks")
    plain = profile(groups, 10, 8, noise=0.0)
    inner = {group for block in groups.blocks for group in block.groups}
    last = plain.experiments[-1]
    widths = {name: 0 if name in inner else width for name, width in last.widths.items()}
    there = {layer.name for layer in groups.layers if layer.macs(widths)}
    times = {name: ns for name, ns in last.layer_ns.items() if name in there}
    removed = replace(last, widths=widths, layer_ns=times)
    seen = Observations.of(groups, replace(plain, experiments=(*plain.experiments[:-1], removed))).nodes
    assert 0 < len(there) < len(groups.layers) and np.isfinite(seen[:-1]).all()
    assert [name in there for name in (layer.name for layer in groups.layers)] == np.isfinite(seen[-1]).tolist()


def test_widths_with_a_kernel_of_their_own_do_not_mislead_about_their_neighbours(groups: Groups) -> None:
    """As measured by others on a phone and a GPU: single widths take 5 to 40 % more than those on either side."""

    def latency(widths: Widths) -> dict[str, float]:
        times = truth(groups, widths, 1)
        odd = {x.name: 1 + 0.4 * (sum(x.channels(widths)) % 7 == 3) for x in groups.layers}
        return {name: ns * odd[name] for name, ns in times.items()}

    fitted = fit(groups, recorded(groups, 60, latency))
    random = np.random.default_rng(8)
    tried = [drawn(groups, random) for _ in range(60)]
    errors = [abs(fitted.ns(widths) / sum(latency(widths).values()) - 1) for widths in tried]
    assert np.median(errors) < 0.0075  # 0.0087 if a width shares all of its error with its neighbours


def error(groups: Groups, profile: Profile, times: Callable[[Widths], Times]) -> float:
    """The median relative error of the model on random widths."""
    fitted, random = fit(groups, profile), np.random.default_rng(9)
    tried = [drawn(groups, random) for _ in range(40)]
    return float(np.median([abs(fitted.ns(widths) / sum(times(widths).values()) - 1) for widths in tried]))


def test_layers_of_one_geometry_may_take_different_times() -> None:
    """As of an attention: what is computed without weights counts with the projection before it."""
    groups = surveyed("Encoder")
    slow = {"key": 1.6, "value": 3.0}

    def times(widths: Widths) -> Times:
        return {name: ns * slow.get(name.split(".")[-1], 1.0) for name, ns in truth(groups, widths, 1).items()}

    assert error(groups, recorded(groups, 40, times), times) < 0.01


def test_node_times_that_differ_between_networks_count_less_than_latencies() -> None:
    """Each process slows some layers down while it is profiled, by half or more."""
    groups, random = surveyed("Encoder"), np.random.default_rng(4)

    def times(widths: Widths) -> Times:
        return truth(groups, widths, 1)

    def disturbed(found: Times) -> Times:
        return {name: ns * float(np.exp(0.5 * random.standard_normal())) for name, ns in found.items()}

    assert error(groups, recorded(groups, 60, times, disturbed), times) < 0.04


def test_several_times_at_one_point_tell_as_much_as_each_of_them() -> None:
    """The covariance of the distinct points gives what that of all points does (Rasmussen and Williams 2006, eq. 2.25)."""
    groups = surveyed("Blocks")
    data, random = Observations.of(groups, profile(groups, 12, 1, 0.0)), np.random.default_rng(0)
    row = next(row for row, layer in enumerate(groups.layers) if layer.outputs.terms)
    family = latency_fit._Family(groups, [row, row], data)  # each point is there twice, or more often by chance
    points = family.points.each
    assert len(family.points.distinct) <= len(points) / 2
    seen = random.random(len(points)) < 0.8
    noise, error = random.uniform(0.01, 0.2, len(seen)), random.normal(0, 0.2, len(seen)) * seen
    rough = replace(latency_fit._Rough.of(family, data), error=error, seen=seen)
    count = len(data.total)
    found = latency_fit._fitted(rough, noise)

    kernel = found.surface.kernel(points, points)
    inverse = np.linalg.inv(kernel + np.diag(np.where(seen, noise, 1e9)))
    networks = np.tile(np.eye(count), 2) * rough.base  # (networks, points)
    np.testing.assert_allclose(found.mean, networks @ (1 + kernel @ inverse @ error), rtol=1e-4)
    np.testing.assert_allclose(
        found.covariance, networks @ (kernel - kernel @ inverse @ kernel) @ networks.T, rtol=1e-3
    )


def test_blas_has_one_thread_in_a_fit_and_the_users_number_afterwards() -> None:
    def numbers() -> list[int]:
        return [one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"]

    with threadpool_limits(3, "blas"):
        before = numbers()
        assert set(single_threaded(numbers)()) == {1}
        assert numbers() == before
