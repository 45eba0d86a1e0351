"""What a verdict rests on is kept beside it: small, and exact where a report shows a figure."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgeprune.devices.patience import Disturbances, Patience
from edgeprune.errors import UsageError
from edgeprune.limits import LIMITS
from edgeprune.network.outputs import Structure
from edgeprune.records import Discarded, Run, Samples
from edgeprune.stages.verdicts import evidence
from edgeprune.stages.verdicts.verdict import Timed
from edgeprune.storage import codec
from edgeprune.storage import evidence as files

ONE = Structure(("",), 0, None, (0,))


def samples(processes: int, times: int) -> Samples:
    runs = (Run(tuple(range(1, times + 1)), 100 + i, before={"load": 0.5}) for i in range(processes))
    return Samples(tuple(runs))


def test_few_times_are_kept_as_they_are() -> None:
    found = evidence.evidence(Timed(samples(3, 9), samples(3, 9)), [], [])
    assert [one.times_ns for one in found.pruned] == [tuple(range(1, 10))] * 3
    assert [one.peak_memory_bytes for one in found.original] == [100, 101, 102]
    assert found.before == {"load": 0.5} and found.after == {}


def test_many_times_are_thinned_and_their_median_stays() -> None:
    """The most that a verdict can measure is 80 processes of each artifact with 1000 times each."""
    found = evidence.evidence(Timed(samples(80, 1000), samples(80, 1000)), [], [])
    kept = sum(len(one.times_ns) for one in (*found.original, *found.pruned))
    assert kept <= LIMITS.evidence_times
    assert all(one.median_ns == 500.5 and one.count == 1000 for one in found.pruned)
    assert list(found.pruned[0].times_ns) == sorted(found.pruned[0].times_ns)
    assert len(codec.dumps_line(found)) < 200_000


def test_the_newest_discarded_processes_are_kept() -> None:
    lost = [Discarded("throttled", "", i) for i in range(LIMITS.evidence_discarded + 5)]
    found = evidence.evidence(Timed(samples(1, 5), samples(1, 5)), lost, [])
    assert len(found.discarded) == LIMITS.evidence_discarded and found.discarded[-1] == lost[-1]


def test_a_discarded_process_has_its_reason_and_its_median() -> None:
    disturbances = Disturbances("pi", Patience(1000.0, lambda text: None))
    run = Run((10, 30, 20), 1, waited_ns=90, waits=3, after={"others": 1.9, "busiest": "ffmpeg 98%"})
    disturbances.attempt(0, [run], 1, 1.0)
    facts = "other processes used 1.9 processors, the most by ffmpeg 98%"
    assert disturbances.lost == [Discarded("other processes used the processor", facts, 20)]


def test_differences_have_a_histogram_and_the_worst_sample() -> None:
    expected = np.ones((4, 3), np.float32)
    expected[0, 0] = -2
    got = expected.astype(np.float64)
    got[2, 1] += 0.5
    got[3] -= 1e-3
    (found,) = evidence.differences([expected], [got], "fp32", ONE)
    assert (found.worst, found.largest, found.expected, found.got) == (2, 0.5, 1.0, 1.5)
    assert (found.scale, found.samples, found.equal) == (2.0, 4, 8)
    assert found.tolerance == pytest.approx(2e-3)
    assert sum(found.counts) == 4 and found.edges[0] <= 1e-3 and found.edges[-1] >= 0.5
    assert [count for count in found.counts if count] == [3, 1]


def test_equal_outputs_have_no_histogram() -> None:
    zeros = np.zeros((2, 3), np.float32)
    (found,) = evidence.differences([zeros], [zeros], "fp32", ONE)
    assert (found.edges, found.counts, found.equal, found.largest) == ((), (), 6, 0.0)


@pytest.mark.parametrize("smallest", [1e-300, 1e-30, 0.1])
def test_a_histogram_has_few_bins_and_counts_every_value(smallest: float) -> None:
    expected = np.zeros((5, 1))
    got = np.array([[smallest], [1e-8], [1e-3], [0.1], [7.0]])
    (found,) = evidence.differences([expected], [got], "fp32", ONE)
    assert sum(found.counts) == 5 and len(found.counts) <= evidence.BINS * evidence.DECADES


def test_the_samples_of_an_output_may_be_in_any_dimension_and_the_main_output_is_first() -> None:
    structure = Structure(("state", "logits", "index"), 1, None, (1, 0, 0))
    expected = [np.zeros((7, 4)), np.zeros((4, 2)), np.zeros((4,), np.int64)]
    got = [np.zeros((7, 4)), np.zeros((4, 2)), np.ones((4,), np.int64)]
    got[0][5, 3] = 1.0
    logits, state = evidence.differences(expected, got, "fp32", structure)
    assert (logits.output, state.output, state.worst, state.samples) == ("logits", "state", 3, 4)


def test_evidence_is_read_back(tmp_path: Path) -> None:
    differences = evidence.differences([np.zeros((2, 3))], [np.ones((2, 3))], "fp32", ONE)
    kept = evidence.evidence(Timed(samples(2, 9), samples(2, 9)), [Discarded("a", "b", 3)], differences)
    files.write(tmp_path, kept)
    assert files.read(tmp_path) == kept


def test_a_run_without_evidence_is_one_line_with_the_fix(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"evidence\.json: is missing.*--fresh"):
        files.read(tmp_path)
    kept = evidence.evidence(Timed(samples(2, 9), samples(2, 9)), [], [])
    files.write(tmp_path, replace(kept, discarded=()))
    content = json.loads((tmp_path / files.NAME).read_text())
    del content["pruned"][1]["count"]
    (tmp_path / files.NAME).write_text(json.dumps(content))
    with pytest.raises(UsageError, match=r"evidence\.json: pruned\.1\.count"):
        files.read(tmp_path)
