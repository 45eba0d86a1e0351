"""Experiments: measure variants of a network on a device until the latency model predicts unseen ones."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import qmc

from edgeprune.devices.bench import Bench, Measured
from edgeprune.errors import EdgepruneError
from edgeprune.graph.groups import candidate_widths
from edgeprune.latency import stats
from edgeprune.latency.fit import draft, last_error
from edgeprune.latency.observations import by_layer
from edgeprune.limits import LIMITS
from edgeprune.records import Experiment, Groups, Profile, Role, Samples

if TYPE_CHECKING:
    from edgeprune.stages.inputs import Variants

TOGETHER = 6  # variants that are interleaved in one process, with the anchors
ANCHORS = 2  # copies of the anchor in a process: its place in memory alone changes its latency by 1 %
PROCESSES = 2  # between two fits
STEP = PROCESSES * TOGETHER
TIMED_S = 0.3  # of each variant, interleaved
PROFILED_S = 0.4  # of each variant, after that: it is loaded again, and timed by operator
BASELINE_EVERY = 3  # one process in so many holds the original network, too
DRIFT = 0.15  # of the anchor: a process that much slower than the others is measured again
MOST_CONFIGURATIONS = 4096  # of the endless sequence
POOL = 96  # configurations among which the next to measure are chosen
TINY = 1e-12  # a variance that is as good as none
GOOD_ENOUGH = 0.01  # median relative error on configurations before they were measured, at which measuring stops
VARIANTS_PER_GROUP = 2, 7  # at least, and at most: after that, more of the same does not help

log = logging.getLogger("edgeprune")
Batch = list[tuple[Role, dict[str, int]]]  # (role, widths) of the networks that share a process


@dataclass(frozen=True)
class Subject:
    """What is measured: variants of a network with these groups, on a device, with these example input files."""

    device: Bench
    variants: Variants
    groups: Groups
    inputs: Sequence[Path]

    def files(self, batch: Batch) -> list[Path]:
        """The files for the device of (role, widths) pairs; those with the role "reference" are in fp32."""
        return [self.variants.file(widths, role == "reference") for role, widths in batch]


def measure(subject: Subject, profile: Profile, on_step: Callable[[int, int, str], None]) -> Iterator[Profile]:
    """Measure more variants and yield the grown profile after every step, until it predicts well enough.

    It stops when a step's variants were predicted, before they were measured, to a median error of `GOOD_ENOUGH`, or after
    `LIMITS.profile_variants` variants. It yields nothing when `profile` is good enough already. When the device fails in the
    middle of a step, what it had answered is yielded before the error is raised.

    Args:
        subject: the network's variants and the device.
        profile: what is known.
        on_step: called with (variants measured, variants at most, text).
    """
    groups, begun = subject.groups, profile
    most = _most(groups)
    while True:
        known = sum(e.role == "fit" for e in profile.experiments)
        error = last_error(groups, profile, STEP)
        if error is not None and profile is not begun:
            on_step(known, most, f"median error on unseen widths {100 * error:.1f}%")
        enough = known >= VARIANTS_PER_GROUP[0] * len(groups.free)  # with fewer, a small error is luck
        if known >= most or (enough and error is not None and error <= GOOD_ENOUGH):
            return
        chosen = choose(groups, profile, min(STEP, most - known))
        if not chosen and profile.experiments:
            return
        batches = _batches(groups, chosen, profile)
        measured: dict[int, list[Measured]] = {}
        try:
            _run(subject, profile, batches, measured)
        except (EdgepruneError, KeyboardInterrupt):
            if measured:
                yield _with(profile, batches, measured, subject.variants.owners)
            raise
        profile = _with(profile, batches, measured, subject.variants.owners)
        yield profile


def _run(subject: Subject, profile: Profile, batches: Sequence[Batch], measured: dict[int, list[Measured]]) -> None:
    """Fill `measured` with the answers by place in `batches`; a process whose anchor was slow is measured again."""
    models = [subject.files(batch) for batch in batches]
    subject.device.measure(models, subject.inputs, TIMED_S, profiled=True, on_done=measured.__setitem__)
    for place in _drifted(profile, measured):
        log.warning("the machine was slower for a while: %d models are measured again", len(batches[place]))
        (again,) = subject.device.measure([models[place]], subject.inputs, TIMED_S, profiled=True)
        measured[place] = min(again, measured[place], key=_anchor_ns)


def _most(groups: Groups) -> int:
    return max(2 * STEP, min(LIMITS.profile_variants, -(-VARIANTS_PER_GROUP[1] * len(groups.free) // STEP) * STEP))


def processes(groups: Groups) -> tuple[int, int]:
    """The fewest and the most processes that a profile of this network takes, of `TOGETHER` variants each."""
    least = max(2 * STEP, VARIANTS_PER_GROUP[0] * len(groups.free))
    return -(-least // TOGETHER), -(-_most(groups) // TOGETHER)


def anchor(groups: Groups) -> dict[str, int]:
    """The variant that is measured in every process: the middle candidate width of every group."""
    middle = {group.name: candidate_widths(group) for group in groups.free}
    return groups.full() | {name: widths[len(widths) // 2] for name, widths in middle.items()}


def configurations(groups: Groups) -> Iterator[dict[str, int]]:
    """An endless, fixed sequence of different configurations that cover the widths evenly (Sobol 1967).

    Four kinds alternate: candidate widths; any widths; either of them for each group; and wide ones, which most plans are
    like. Any width occurs, so that kernels for unaligned channels are measured, too.
    """
    free = groups.free
    kinds = [qmc.Sobol(2 * len(free) + 1, seed=kind) for kind in range(4)]
    seen: list[dict[str, int]] = []
    most = math.prod(group.width for group in free)
    while free and len(seen) < min(most, MOST_CONFIGURATIONS):
        for points in zip(*(kind.random(16) for kind in kinds), strict=True):
            for kind, point in enumerate(points):
                place, coins, last = point[: len(free)], point[len(free) : -1], float(point[-1])
                if kind == 3:
                    place = 1 - (1 - place) * (0.2 + 0.6 * last)
                widths = groups.full()
                for group, u, coin in zip(free, place.tolist(), coins.tolist(), strict=True):
                    candidates = candidate_widths(group)
                    aligned = coin >= (0.0, 1.0, 0.5, 0.25)[kind]
                    widths[group.name] = candidates[int(u * len(candidates))] if aligned else 1 + int(u * group.width)
                if widths not in seen:
                    seen.append(widths)
                    yield widths


def choose(groups: Groups, profile: Profile, count: int) -> list[dict[str, int]]:
    """The next `count` configurations to measure.

    Half of them are the next of the sequence: their errors show how well any other configuration is predicted. The others
    reduce the variance of the relative error most, over the whole pool, chosen greedily (Cohn, Ghahramani & Jordan 1996).
    """
    known = [e.widths for e in profile.experiments]
    pool = list(islice((w for w in configurations(groups) if w not in known), POOL))
    if not known or not pool:
        return pool[:count]
    covariance = draft(groups, profile).covariance(pool)
    chosen = list(range(min(count // 2, len(pool))))
    for pivot in chosen:
        covariance = _given(covariance, pivot)
    while len(chosen) < min(count, len(pool)):
        gain = (covariance**2).sum(axis=1) / (np.diag(covariance) + TINY)
        gain[chosen] = -1
        chosen.append(int(np.argmax(gain)))
        covariance = _given(covariance, chosen[-1])
    return [pool[i] for i in chosen]


def _given(covariance: np.ndarray, pivot: int) -> np.ndarray:
    """The covariance after entry `pivot` has been measured."""
    column = covariance[:, pivot]
    left: np.ndarray = covariance - np.outer(column, column) / (column[pivot] + TINY)
    return left


def _batches(groups: Groups, chosen: Sequence[dict[str, int]], profile: Profile) -> list[Batch]:
    """The networks that share a process: the anchor first, the original network in some, and the chosen variants."""
    batches: list[Batch] = []
    for start in range(0, max(1, len(chosen)), TOGETHER):  # one where nothing can be cut: the original network
        batch: Batch = [("anchor", anchor(groups))] * ANCHORS
        batch += [("fit", widths) for widths in chosen[start : start + TOGETHER]]
        if (profile.next_batch + len(batches)) % BASELINE_EVERY == 0:
            batch.append(("baseline", groups.full()))
            if profile.precision != "fp32":
                batch.append(("reference", groups.full()))
        batches.append(batch)
    return batches


def _drifted(profile: Profile, measured: Mapping[int, list[Measured]]) -> list[int]:
    """The places of processes whose anchor took much longer than usual."""
    now = {place: _anchor_ns(found) for place, found in measured.items()}
    usual = np.median(
        [*(stats.latency(e.samples).mid for e in profile.experiments if e.role == "anchor"), *now.values()]
    )
    return [place for place, ns in now.items() if ns > (1 + DRIFT) * usual]


def _anchor_ns(found: Sequence[Measured]) -> float:
    """The anchor's latency in a process, where it comes first, in nanoseconds."""
    return float(np.mean([np.median(measured.run.times_ns) for measured in found[:ANCHORS]]))


def _with(
    profile: Profile,
    batches: Sequence[Batch],
    measured: Mapping[int, list[Measured]],
    owners: Mapping[str, str],
) -> Profile:
    """The profile with the new measurements, one batch for each process."""
    first = profile.next_batch
    return profile.with_experiments(
        Experiment(role, first + place, widths, Samples((found.run,)), *by_layer(found.nodes, owners))
        for place in sorted(measured)
        for (role, widths), found in zip(batches[place], measured[place], strict=True)
    )
