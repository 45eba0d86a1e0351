"""Fronts: the expected loss over the whole range of latency, from one profile and before anything is trained."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edgeprune.errors import UsageError
from edgeprune.latency.fit import fit
from edgeprune.latency.model import LatencyModel
from edgeprune.latency.observations import reference_ns
from edgeprune.limits import LIMITS
from edgeprune.pipeline.run import Run
from edgeprune.records import Front, FrontPoint, Groups, Interval, Scores, Widths
from edgeprune.stages import profile, scores, survey
from edgeprune.stages.planning import allocation
from edgeprune.stages.planning.figures import Latency
from edgeprune.stages.planning.program import Program

SCHEMA = 1  # of the record; changes when a key changes its meaning
POINTS = 20
# The first plan may be so much slower than the fastest network, and the last limit is so much below the original network's
# latency: the solver's sums are rounded.
NEAR = 1e-4


def front(run: Run, count: int = POINTS) -> Front:
    """The front of a project on a target. Stages that are missing run first.

    Args:
        run: a run of the project on the target.
        count: how many plans, evenly spaced in latency.

    Raises:
        UsageError: `count` is too small or too large.
    """
    if not 2 <= count <= LIMITS.front_points:
        raise UsageError(
            f"a front has 2 to {LIMITS.front_points} points, not {count}; give another number: --points 20"
        )
    groups, known, importance = run.record(survey.STAGE), run.record(profile.STAGE).profile, run.record(scores.STAGE)
    model = fit(groups, known)
    reference = reference_ns(known)
    points = plans(groups, model, importance, reference, count)
    device, target = known.device, run.request.target
    return Front(
        schema=SCHEMA,
        project=run.request.project.name,
        target=target.name,
        runtime=target.runtime,
        precision=known.precision,
        emulated=device.emulated,
        simulated=device.simulated,
        original_ms=reference / 1e6,
        error=model.error,
        points=tuple(points),
        knee=knee(points),
    )


def plans(groups: Groups, model: LatencyModel, scores: Scores, scale_ns: float, count: int) -> list[FrontPoint]:
    """Exact plans from the least latency that any plan reaches to the original network, the fastest one first.

    Equal plans of neighbouring latencies are one point, so there may be fewer than `count`. Shares are of `scale_ns`.
    """
    full = groups.full()
    whole = _point(groups, model, full, (0.0, 0.0), scale_ns)
    if not groups.free:
        return [whole]
    top = model.ns(full) * (1 - NEAR)
    least = model.ns({**full, **fastest(groups, model, scores)}) * (1 + NEAR)
    if least >= top:
        return [whole]
    aims = np.linspace(least, top, count)[:-1] / top
    found = allocation.plans(groups, model, scores, top, "", aims.tolist())
    cut = [_point(groups, model, {**full, **one.widths}, (one.loss, one.gap), scale_ns) for one in found]
    return [*sorted(cut, key=lambda one: one.latency_ms.mid), whole]


def fastest(groups: Groups, model: LatencyModel, scores: Scores) -> Widths:
    """The widths with the least predicted latency."""
    inner, latency = groups.block_of, Latency(model)
    rows = latency.rows(latency.of(groups.full()))
    program = Program.build(groups, rows, lambda group: allocation.losses(group, scores, inner.get(group.name)))
    return program.least(0)


def _point(
    groups: Groups, model: LatencyModel, widths: Widths, proof: tuple[float, float], scale_ns: float
) -> FrontPoint:
    predicted = model.predict(widths)
    latency = Interval(predicted.low / 1e6, predicted.mid / 1e6, predicted.high / 1e6)
    removed = tuple(block.name for block in groups.removed(widths))
    free = {group.name: widths[group.name] for group in groups.free}
    return FrontPoint(latency, predicted.mid / scale_ns, *proof, sum(free.values()), removed, free)


def knee(points: Sequence[FrontPoint]) -> int | None:
    """The place of the knee: below its latency, the expected loss rises steeply.

    It is the largest distance to the chord in the unit square, as of a convex curve (Satopää et al. 2011, "Finding a Kneedle
    in a Haystack"). The loss enters as a logarithm, since it spans orders of magnitude. Points without loss do not count.

    Returns:
        None if no point lies below the chord.
    """
    lossy = [(i, one.latency_ms.mid, math.log(one.loss)) for i, one in enumerate(points) if one.loss > 0]
    if len(lossy) < 3:
        return None
    (_, x0, y0), (_, x1, y1) = lossy[0], lossy[-1]
    if y0 <= y1:
        return None
    below = {i: (y0 - y) / (y0 - y1) - (x - x0) / (x1 - x0) for i, x, y in lossy}
    place = max(below, key=below.__getitem__)
    return place if below[place] > 0 else None
