"""The profile verb: measure cut variants of a network on a device until the latency model predicts unseen ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from edgeprune import graph, latency
from edgeprune.bench import Bench, Measured
from edgeprune.errors import EdgepruneError
from edgeprune.limits import LIMITS
from edgeprune.types import Experiment, Groups, Profile, Samples, Widths

BATCH = 12  # variants a batch; after each the model is fitted and checked
ANCHOR_EVERY = 4  # variants between two measurements of the unpruned network
TIMED_S = 0.1  # of one variant's process: processes of one variant agree to about 1 %, the model to 2
GOOD_ENOUGH = 0.02  # median relative error on configurations left out of the fit, at which measuring stops
BESIDE_S = 0.4  # of the same process, for the times by operator
ANCHORS = -(-BATCH // ANCHOR_EVERY) + 1
VARIANTS_PER_GROUP = 5  # at most: after that, more of the same does not help


def measure(
    bench: Bench,
    variant: Callable[[Widths], Path],
    owners: Mapping[str, str],
    groups: Groups,
    profile: Profile,
    inputs: Sequence[Path],
    on_step: Callable[[int, int, str], None],
) -> Iterator[Profile]:
    """Measure more variants and yield the grown profile after every batch, until it predicts well enough.

    When the device fails in the middle of a batch, what it had answered is yielded before the error goes on.

    Stops when the cross-validated median error is at most `GOOD_ENOUGH` or after `LIMITS.profile_variants` variants.
    Yields nothing when `profile` is good enough as it is. `variant` gives the file for the device at some widths, `owners`
    maps the names of the artifact's nodes to layers, `inputs` are files with the example inputs; `on_step` is told (variants
    done, variants at most, text).
    """
    most = _most(groups)
    while not _enough(groups, profile, most):
        known = [e.widths for e in profile.experiments if e.role == "fit"]
        widths = [w for w in design(groups, most) if w not in known][:BATCH]
        if not widths:
            return
        order = _order(len(widths))
        models = [variant(groups.full() if i < 0 else widths[i]) for i in order]
        measured: dict[int, Measured] = {}

        def keep(place: int, found: Measured, measured: dict[int, Measured] = measured, done: int = len(known)) -> None:
            measured[place] = found
            on_step(done + len(measured) * BATCH // (BATCH + ANCHORS), most, "")

        try:
            bench.measure(models, inputs, TIMED_S, profiled=True, on_done=keep)
        except (EdgepruneError, KeyboardInterrupt):
            yield profile.with_experiments(_experiments(order, measured, widths, groups.full(), owners, profile))
            raise
        profile = profile.with_experiments(_experiments(order, measured, widths, groups.full(), owners, profile))
        yield profile
        error = latency.fit(groups, profile).median_error
        on_step(len(known) + len(widths), most, f"median error on unseen widths {100 * error:.1f}%")


def _most(groups: Groups) -> int:
    return max(BATCH, min(LIMITS.profile_variants, VARIANTS_PER_GROUP * len(groups.free)))


def experiments(groups: Groups) -> tuple[int, int]:
    """The fewest and the most processes that a profile of this network takes, those of the unpruned network among them."""
    least = min(_most(groups), -(-3 * len(groups.free) // BATCH) * BATCH)

    def with_anchors(variants: int) -> int:
        return variants + -(-variants // ANCHOR_EVERY) + -(-variants // BATCH)

    return with_anchors(least), with_anchors(_most(groups))


def _enough(groups: Groups, profile: Profile, most: int) -> bool:
    done = sum(experiment.role == "fit" for experiment in profile.experiments)
    if done == 0:
        return False
    if done >= most or not groups.free:
        return True
    # Two groups of k widths have k² pairs: below three variants a group a small error is luck.
    return done >= 3 * len(groups.free) and latency.fit(groups, profile).median_error <= GOOD_ENOUGH


def design(groups: Groups, count: int) -> list[dict[str, int]]:
    """Up to `count` different configurations in which every candidate width of every group comes up about equally often.

    A Latin hypercube over the candidate widths (McKay et al. 1979), the same on every call, so that a profile that was
    interrupted goes on where it stopped.
    """
    random = np.random.default_rng(0)
    columns = {}
    for group in groups.free:
        candidates = graph.candidate_widths(group)
        repeats = -(-count // len(candidates))
        order = np.concatenate([random.permutation(len(candidates)) for _ in range(repeats)])
        columns[group.name] = [candidates[i] for i in order[:count]]
    full = groups.full()
    rows = [{**full, **{name: column[i] for name, column in columns.items()}} for i in range(count)]
    return [row for i, row in enumerate(rows) if row not in rows[:i]]


def _order(variants: int) -> list[int]:
    """Which variant is measured when; -1 is the unpruned network: before, between and after them."""
    order: list[int] = []
    for i in range(variants):
        if i % ANCHOR_EVERY == 0:
            order.append(-1)
        order.append(i)
    return [*order, -1]


def _experiments(
    order: Sequence[int],
    measured: Mapping[int, Measured],
    widths: Sequence[Widths],
    full: Widths,
    owners: Mapping[str, str],
    profile: Profile,
) -> list[Experiment]:
    """What was measured of a batch, as experiments; nothing without the unpruned network beside it.

    The latency of a variant is scaled by the unpruned network's around it, relative to the first ever taken, so that
    batches of different days agree.
    """
    anchors = [at for at in sorted(measured) if order[at] < 0]
    if not anchors:
        return []
    anchor_ns = [float(np.median(measured[at].run.times_ns)) for at in anchors]
    known = [e for e in profile.experiments if e.role == "baseline"]
    reference = latency.measured_ns(known[0]) if known else float(np.median(anchor_ns))

    def experiment(role: str, at: Widths, samples: Samples, nodes: Mapping[str, int], anchor: float) -> Experiment:
        return Experiment(role, dict(at), samples, *latency.by_layer(nodes, owners), scale=reference / anchor)

    samples = Samples(tuple(measured[at].run for at in anchors))
    found = [experiment("baseline", full, samples, measured[anchors[0]].nodes, float(np.median(anchor_ns)))]
    for at in sorted(measured):
        if order[at] >= 0:
            around = float(np.interp(at, anchors, anchor_ns))
            one = Samples((measured[at].run,))
            found.append(experiment("fit", widths[order[at]], one, measured[at].nodes, around))
    return found
