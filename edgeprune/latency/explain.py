"""Explain a latency model: the measured points of every layer, its steps, and the best channel multiples; pure."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgeprune.latency.fit import draft, fit
from edgeprune.latency.model import LatencyModel
from edgeprune.latency.surface import LayerCost
from edgeprune.records import ExplainedGroup, ExplainedLayer, Explanation, Groups, Profile, Widths

WIDTHS = 1024  # most widths of a curve
BLOCKS = (64, 32, 16, 8)  # channels that a kernel may process at a time, largest first
GRAIN = 4  # multiples of it count as aligned
MOSTLY = 0.6  # share of a curve's rise that must fall on the first channels of blocks
PENALTY = 0.03  # smallest relative extra cost of unaligned widths that is reported as a step


def explain(groups: Groups, profile: Profile, beside: Mapping[str, Profile]) -> Explanation:
    """Explain the latency model of a profile.

    Args:
        groups: The channel groups and layers of the network.
        profile: The profile to explain.
        beside: Profiles of the same network on other targets, by name, to compare steps with.

    Raises:
        InconclusiveError: The profile has too few experiments for a model.
    """
    model = fit(groups, profile)
    models = {profile.target: model, **{name: draft(groups, other) for name, other in beside.items()}}
    full = groups.full()
    spent = model.layer_ns(full)
    total = sum(spent.values()) + model.overhead_ns
    return Explanation(
        target=profile.target,
        runtime=f"{profile.device.runtime} {profile.device.runtime_version}",
        emulated=profile.device.emulated,
        simulated=profile.device.simulated,
        experiments=len(profile.variants),
        median_error=model.median_error,
        error=model.error,
        exponent=model.exponent,
        overhead=model.overhead_ns / total,
        layers=tuple(_layer(cost, profile, full, spent[cost.layer.name] / total) for cost in model.layers),
        groups=tuple(
            ExplainedGroup(
                group.name,
                group.width,
                {name: steps(curve(own, full, group.name, group.width)) for name, own in models.items()},
            )
            for group in groups.free
        ),
    )


def curve(model: LatencyModel, widths: Widths, group: str, width: int) -> np.ndarray:
    """Nanoseconds of a group's layers if it has 1, 2, … channels, and other groups are as in `widths`: (channels,)."""
    tried = np.arange(1, min(width, WIDTHS) + 1)
    total = np.zeros(len(tried))
    for cost in model.layers:
        spans = cost.layer.sides
        if any(group in span.groups for span in spans):
            ins, outs = (np.array([span.size({**widths, group: n}) for n in tried.tolist()]) for span in spans)
            total += cost.ns(ins, outs)
    return total


def steps(costs: np.ndarray) -> tuple[int, float]:
    """Find the step of a latency curve.

    Args:
        costs: The latency of 1, 2, … channels, (channels,).

    Returns:
        The step, and the relative extra cost of unaligned widths over the aligned ones around them. A step is the number of
        channels with the same latency: the largest of `BLOCKS` with most of the curve's rise on the first channels of blocks.
    """
    aligned = costs[GRAIN - 1 :: GRAIN]
    if len(aligned) < 4 or not costs.all():  # too short, or unknown
        return 1, 0.0
    between = np.interp(np.arange(len(costs)), np.arange(GRAIN - 1, len(costs), GRAIN), aligned)
    odd = (np.arange(1, len(costs) + 1) % GRAIN != 0) & (np.arange(len(costs)) >= GRAIN)
    extra = float(np.median(costs[odd] / between[odd] - 1)) if odd.any() else 0.0
    rises = np.maximum(np.diff(aligned), 0)
    for block in BLOCKS:
        begins = np.arange(1, len(aligned)) * GRAIN % block == 0
        if begins.sum() >= 2 and rises[begins].sum() >= MOSTLY * rises.sum() > 0:
            return block, extra
    return (GRAIN if extra > PENALTY else 1), extra


def _layer(cost: LayerCost, profile: Profile, full: Widths, share: float) -> ExplainedLayer:
    layer = cost.layer
    reads, makes = layer.sides
    ins, outs = reads.size(full), makes.size(full)
    points = {}
    for experiment in profile.variants:
        if layer.name in experiment.layer_ns:
            sizes = layer.sizes(experiment.widths)
            points[sizes] = experiment.layer_ns[layer.name]
    over_ins = cost.ns(np.arange(1, ins + 1), np.full(ins, outs))
    over_outs = cost.ns(np.full(outs, ins), np.arange(1, outs + 1))
    return ExplainedLayer(
        name=layer.name,
        share=share,
        inputs=ins,
        outputs=outs,
        points=tuple((i, o, ns) for (i, o), ns in sorted(points.items())),
        input_step=steps(over_ins)[0] if reads.terms else None,
        output_step=steps(over_outs)[0] if makes.terms else None,
    )
