"""The profile verb: measure cut variants of a network on a device until the latency model predicts unseen ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from edgeprune import graph, latency
from edgeprune.bench import Bench
from edgeprune.limits import LIMITS
from edgeprune.types import Experiment, Groups, Profile, Samples, Widths

BATCH = 12  # variants a batch; after each the model is fitted and checked
ANCHOR_EVERY = 4  # variants between two measurements of the unpruned network
TIMED_S = 0.1  # of one variant's process: processes of one variant agree to about 1 %, the model to 2
GOOD_ENOUGH = 0.02  # median relative error on configurations left out of the fit, at which measuring stops
BESIDE_S = 0.4  # of the same process, for the times by operator
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

    Stops when the cross-validated median error is at most `GOOD_ENOUGH` or after `LIMITS.profile_variants` variants.
    Yields nothing when `profile` is good enough as it is. `variant` gives the file for the device at some widths, `owners`
    maps the names of the artifact's nodes to layers, `inputs` are files with the example inputs; `on_step` is told (variants
    done, variants at most, text).
    """
    most = _most(groups)
    while not _enough(groups, profile, most):
        done = sum(experiment.role == "fit" for experiment in profile.experiments)
        widths = design(groups, most)[done : done + BATCH]
        profile = profile.with_experiments(_batch(bench, variant, groups.full(), widths, owners, profile, inputs))
        fitted = latency.fit(groups, profile)
        on_step(done + len(widths), most, f"median error on unseen widths {100 * fitted.median_error:.1f}%")
        yield profile


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
    """`count` configurations in which every candidate width of every group comes up about equally often.

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
    return [{**full, **{name: column[i] for name, column in columns.items()}} for i in range(count)]


def _batch(
    bench: Bench,
    variant: Callable[[Widths], Path],
    full: Widths,
    widths: Sequence[Widths],
    owners: Mapping[str, str],
    profile: Profile,
    inputs: Sequence[Path],
) -> list[Experiment]:
    """Measure these variants, with the unpruned network before, between and after them."""
    anchor, variants = variant(full), [variant(w) for w in widths]
    order: list[int] = []  # -1 is the anchor
    for i in range(len(variants)):
        if i % ANCHOR_EVERY == 0:
            order.append(-1)
        order.append(i)
    order.append(-1)
    measured = bench.measure([anchor if i < 0 else variants[i] for i in order], inputs, TIMED_S, profiled=True)
    anchors = [at for at, i in enumerate(order) if i < 0]
    anchor_ns = [float(np.median(measured[at].run.times_ns)) for at in anchors]
    anchor_samples = Samples(tuple(measured[at].run for at in anchors))
    known = [e for e in profile.experiments if e.role == "baseline"]
    # Scales are relative to the first anchors ever taken, so that batches of different days agree.
    reference = latency.measured_ns(known[0]) if known else float(np.median(anchor_ns))
    experiments = [
        Experiment(
            "baseline",
            dict(full),
            anchor_samples,
            *latency.by_layer(measured[0].nodes, owners),
            scale=float(reference / np.median(anchor_ns)),
        )
    ]
    for at, i in enumerate(order):
        if i >= 0:
            scale = float(reference / np.interp(at, anchors, anchor_ns))
            experiments.append(
                Experiment(
                    "fit",
                    dict(widths[i]),
                    Samples((measured[at].run,)),
                    *latency.by_layer(measured[at].nodes, owners),
                    scale=scale,
                )
            )
    return experiments
