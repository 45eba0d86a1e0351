"""What a verdict rests on, small enough to keep: pure functions of samples and outputs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edgeprune.latency import stats
from edgeprune.limits import LIMITS
from edgeprune.network.outputs import Structure
from edgeprune.records import Differences, Discarded, Evidence, Precision, Samples, TimedProcess
from edgeprune.stages.verdicts import accuracy, verdict
from edgeprune.stages.verdicts.verdict import Timed

BINS = 4  # of a histogram, for each factor of ten
DECADES = 12  # factors of ten that a histogram covers at most


def evidence(timed: Timed, discarded: Sequence[Discarded], differences: Sequence[Differences]) -> Evidence:
    """What is kept of a verdict's measurement. Of many times, an even choice is kept; see `LIMITS.evidence_times`."""
    assert timed.original is not None
    runs = timed.samples.runs
    most = max(1, LIMITS.evidence_times // (2 * len(runs)))
    return Evidence(
        original=_processes(timed.original, most),
        pruned=_processes(timed.samples, most),
        discarded=tuple(discarded[-LIMITS.evidence_discarded :]),
        before=runs[0].before,
        after=runs[-1].after,
        differences=tuple(differences),
    )


def _processes(samples: Samples, most: int) -> tuple[TimedProcess, ...]:
    return tuple(
        TimedProcess(
            stats.thinned(run.times_ns, most), len(run.times_ns), float(np.median(run.times_ns)), run.peak_memory_bytes
        )
        for run in samples.runs
    )


def differences(
    expected: Sequence[np.ndarray], got: Sequence[np.ndarray], precision: Precision, structure: Structure
) -> tuple[Differences, ...]:
    """How far an artifact's outputs are from torch's. Arguments as in `accuracy.compared`. The main output is first."""
    chosen = sorted(accuracy.comparable(expected), key=lambda i: i != structure.main)[: LIMITS.evidence_outputs]
    relative, dims, found = verdict.TOLERANCES[precision].relative, structure.batch_dims, []
    for i in chosen:
        found.append(_difference(structure.names[i], _rows(expected[i], dims[i]), _rows(got[i], dims[i]), relative))
    return tuple(found)


def _rows(array: np.ndarray, dim: int) -> np.ndarray:
    """(samples, values)"""
    return np.moveaxis(array, dim, 0).reshape(array.shape[dim], -1).astype(np.float64)


def _difference(name: str, expected: np.ndarray, got: np.ndarray, relative: float) -> Differences:
    found = np.abs(expected - got)
    worst, at = (int(i) for i in np.unravel_index(found.argmax(), found.shape))
    scale, moved = float(np.abs(expected).max()), found[found > 0]
    edges, counts = _histogram(moved)
    return Differences(
        output=name,
        scale=scale,
        tolerance=relative * scale,
        equal=int(found.size - moved.size),
        edges=edges,
        counts=counts,
        worst=worst,
        largest=float(found[worst, at]),
        expected=float(expected[worst, at]),
        got=float(got[worst, at]),
        samples=len(found),
    )


def _histogram(values: np.ndarray) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Edges and counts of positive values, on a logarithmic scale."""
    if not values.size:
        return (), ()
    last = math.floor(BINS * math.log10(values.max())) + 1
    first = max(math.floor(BINS * math.log10(values.min())), last - BINS * DECADES)
    edges = 10.0 ** (np.arange(first, last + 1) / BINS)
    edges[-1] = max(edges[-1], values.max())
    counts, _ = np.histogram(np.maximum(values, edges[0]), edges)
    return tuple(edges.tolist()), tuple(counts.tolist())
