"""Experiments: measure variants of a network on a device until the latency model predicts unseen ones."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import qmc

from edgeprune.devices.bench import Bench, Measured
from edgeprune.devices.pool import Pool
from edgeprune.errors import EdgepruneError
from edgeprune.graph.groups import candidate_widths
from edgeprune.latency import stats
from edgeprune.latency.fit import draft, last_error
from edgeprune.latency.observations import by_layer
from edgeprune.limits import LIMITS
from edgeprune.records import Experiment, Groups, Profile, Role, Samples, Widths

if TYPE_CHECKING:
    from edgeprune.stages.inputs import Variants

TOGETHER = 6  # variants that are interleaved in one process, besides the anchors
ANCHORS = 2  # copies of the anchor in a process: the place in memory changes its latency by 1 %
PROCESSES = 2  # that are measured between two fits
STEP = PROCESSES * TOGETHER
TIMED_S = 0.08  # time of each variant, interleaved; with four times as much, the model predicts no better
BASELINE_EVERY = 3  # one process in so many also holds the original network
DRIFT = 0.15  # a process whose anchor is slower than usual by this share is measured again
MOST_CONFIGURATIONS = 4096  # length of the sequence
SINGLES_EVERY = 9  # of the configurations, where a group of one unit needs an export; odd, since Sobol points alternate
POOL = 96  # configurations that the next ones to measure are chosen from
TINY = 1e-12  # keeps divisions by a variance of zero finite
GOOD_ENOUGH = 0.01  # measuring stops at this median relative error on configurations that were not measured yet
WORTHWHILE = 0.2  # it also stops if twice as many variants lowered this error by less than this share
VARIANTS_PER_GROUP = 2, 7  # fewest and most; with more, the error does not fall any further

log = logging.getLogger("edgeprune")
Batch = list[tuple[Role, dict[str, int]]]  # (role, widths) of the networks that share a process


@dataclass(frozen=True)
class Subject:
    """The subject of measurements: variants of a network, on a device.

    `groups` are the network's. `inputs` are the files of the example inputs.
    """

    device: Bench
    variants: Variants
    groups: Groups
    inputs: Sequence[Path]

    def files(self, batch: Batch) -> list[Path]:
        """The files for the device of (role, widths) pairs. Those with the role "reference" are in fp32."""
        return [self.variants.file(widths, role == "reference") for role, widths in batch]


def measure(
    subject: Subject, profile: Profile, on_step: Callable[[int, int, str], None], pool: Pool | None = None
) -> Iterator[Profile]:
    """Measure more variants, until the latency model predicts well enough.

    It stops in one of these cases:

    - The variants of a step were predicted to a median error of `GOOD_ENOUGH` before they were measured.
    - More variants no longer lower this error, see `_converged`.
    - There are `LIMITS.profile_variants` variants.

    Args:
        subject: the network's variants and the device.
        profile: all measurements so far.
        on_step: called with (variants measured, variants at most, text).
        pool: the boards that share the work; by default only the subject's device. With more boards, a step is longer.

    Yields:
        The profile with the new measurements, after every step. Nothing, if `profile` is good enough already. If the device
        fails during a step, the measurements before the failure are yielded, and then the error is raised.
    """
    groups, begun = subject.groups, profile
    pool = pool or Pool(subject.device)
    most = _most(groups)
    while True:
        known = sum(e.role == "fit" for e in profile.experiments)
        error = last_error(groups, profile, STEP)
        if error is not None and profile is not begun:
            on_step(known, most, f"median error on unseen widths {100 * error:.1f}%")
        enough = known >= VARIANTS_PER_GROUP[0] * len(groups.free)  # with fewer, the error may be small by chance
        if known >= most or (enough and error is not None and _converged(groups, profile, error)):
            return
        boards = pool.open(subject.variants.file(anchor(groups)), subject.inputs)
        count = min(TOGETHER * max(PROCESSES, boards), most - known)
        chosen = choose(groups, profile, count, subject.variants.exports_singles)
        if not chosen and profile.experiments:
            return
        batches = _batches(groups, chosen, profile)
        measured: dict[int, list[Measured]] = {}
        try:
            _run(subject, profile, batches, measured, pool)
        except (EdgepruneError, KeyboardInterrupt):
            if measured:
                yield _with(profile, batches, measured, subject.variants.owners)
            raise
        profile = _with(profile, batches, measured, subject.variants.owners)
        yield profile


def _run(
    subject: Subject, profile: Profile, batches: Sequence[Batch], measured: dict[int, list[Measured]], pool: Pool
) -> None:
    """Fill `measured` with the measurements, by index in `batches`. A process whose anchor was slow is measured again."""
    models = [subject.files(batch) for batch in batches]
    pool.measure(models, subject.inputs, TIMED_S, profiled=True, on_done=measured.__setitem__)
    for place in _drifted(profile, measured):
        log.warning("the machine was slower for a while: %d models are measured again", len(batches[place]))
        (again,) = subject.device.measure([models[place]], subject.inputs, TIMED_S, profiled=True)
        measured[place] = min(again, measured[place], key=_anchor_ns)


def _converged(groups: Groups, profile: Profile, error: float) -> bool:
    """Whether the error on the variants of the last step is small, or was about the same with half the variants before.

    Both errors are on the same variants, so that hard and easy ones do not matter.
    """
    fits = [e for e in profile.experiments if e.role == "fit"]
    before, last = fits[:-STEP], fits[-STEP:]
    batches = {e.batch for e in [*before[: len(before) // 2], *last]}
    half = replace(profile, experiments=tuple(e for e in profile.experiments if e.batch in batches))
    with_half = last_error(groups, half, STEP)
    return error <= GOOD_ENOUGH or (with_half is not None and error > (1 - WORTHWHILE) * with_half)


def _most(groups: Groups) -> int:
    return max(2 * STEP, min(LIMITS.profile_variants, -(-VARIANTS_PER_GROUP[1] * len(groups.free) // STEP) * STEP))


def processes(groups: Groups) -> tuple[int, int]:
    """The fewest and the most processes that a profile of this network needs, with `TOGETHER` variants each."""
    least = max(2 * STEP, VARIANTS_PER_GROUP[0] * len(groups.free))
    return -(-least // TOGETHER), -(-_most(groups) // TOGETHER)


def anchor(groups: Groups) -> dict[str, int]:
    """The variant that is measured in every process: the middle candidate width of every group."""
    middle = {group.name: candidate_widths(group) for group in groups.free}
    return groups.full() | {name: widths[len(widths) // 2] for name, widths in middle.items()}


def configurations(groups: Groups, few_singles: bool = False) -> Iterator[dict[str, int]]:
    """A fixed sequence of different configurations that cover the widths evenly (Sobol 1967).

    Four kinds alternate:

    - candidate widths.
    - any widths, so that kernels for unaligned channels are measured, too.
    - for each group, either of these.
    - wide configurations, since most plans are wide.

    `few_singles`: groups keep one unit in one of `SINGLES_EVERY` configurations only, and two in the others.
    """
    free = groups.free
    kinds = [qmc.Sobol(2 * len(free) + 1, seed=kind) for kind in range(4)]
    seen, drawn = list[dict[str, int]](), 0
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
                drawn += 1
                if few_singles and drawn % SINGLES_EVERY != 1:
                    widths |= dict.fromkeys(groups.singles(widths), 2)
                if widths not in seen:
                    seen.append(widths)
                    yield widths


def choose(groups: Groups, profile: Profile, count: int, few_singles: bool = False) -> list[dict[str, int]]:
    """The next `count` configurations to measure.

    Half of them are the next ones of the sequence. Their errors show how well any other configuration is predicted. The others
    are chosen greedily to reduce the variance of the relative error over the pool most (Cohn, Ghahramani & Jordan 1996).
    """
    known = [e.widths for e in profile.experiments]
    pool = list(islice((w for w in configurations(groups, few_singles) if w not in known), POOL))
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
    """The covariance after the configuration `pivot` has been measured."""
    column = covariance[:, pivot]
    reduced: np.ndarray = covariance - np.outer(column, column) / (column[pivot] + TINY)
    return reduced


def _batches(groups: Groups, chosen: Sequence[dict[str, int]], profile: Profile) -> list[Batch]:
    """The networks of each process: the anchor first, then the chosen variants, and the original network in some."""
    batches: list[Batch] = []
    for start in range(0, max(1, len(chosen)), TOGETHER):  # if nothing can be cut, one process for the original network
        batch: Batch = [("anchor", anchor(groups))] * ANCHORS
        batch += [("fit", widths) for widths in chosen[start : start + TOGETHER]]
        if (profile.next_batch + len(batches)) % BASELINE_EVERY == 0:
            batch.append(("baseline", groups.full()))
            if profile.precision != "fp32":
                batch.append(("reference", groups.full()))
        batches.append(batch)
    return batches


def _drifted(profile: Profile, measured: Mapping[int, list[Measured]]) -> list[int]:
    """The indices of processes whose anchor was much slower than usual."""
    now = {place: _anchor_ns(found) for place, found in measured.items()}
    usual = np.median(
        [*(stats.latency(e.samples).mid for e in profile.experiments if e.role == "anchor"), *now.values()]
    )
    return [place for place, ns in now.items() if ns > (1 + DRIFT) * usual]


def _anchor_ns(found: Sequence[Measured]) -> float:
    """The anchor's latency in a process, in nanoseconds. The anchor comes first in each process."""
    return float(np.mean([np.median(measured.run.times_ns) for measured in found[:ANCHORS]]))


def _with(
    profile: Profile,
    batches: Sequence[Batch],
    measured: Mapping[int, list[Measured]],
    owners: Callable[[Widths], Mapping[str, str]],
) -> Profile:
    """The profile with the new measurements: one batch for each process."""
    first = profile.next_batch
    return profile.with_experiments(
        Experiment(role, first + place, widths, Samples((found.run,)), *by_layer(found.nodes, owners(widths)))
        for place in sorted(measured)
        for (role, widths), found in zip(batches[place], measured[place], strict=True)
    )
