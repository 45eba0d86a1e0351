"""Equal boards share the experiments of a profile. A board that differs or fails is left out."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Mapping
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import pytest

from edgeprune.devices.bench import Bench, Measured
from edgeprune.devices.pool import Pool, differs
from edgeprune.devices.transports.fake import Fake
from edgeprune.errors import BusyError, DeviceError, LinkError
from edgeprune.records import Run, Samples, Target

FACTS = {
    **{"machine": "x86_64", "cpu": "c", "cores": 1, "system": "s", "runtime": "onnxruntime"},
    **{"runtime_version": "1", "boot_id": "b", "serial": "s", "emulated": False, "simulated": False},
}


class Board:
    """A simulated board, `slowness` times as slow as the first. It answers `left` jobs, and then its link is gone."""

    def __init__(self, folder: Path, slowness: float = 1.0, **facts: Any) -> None:
        self.slowness, self.left, self.models, self.facts = slowness, 1000, 0, facts
        self.meeting: threading.Barrier | None = None
        self.bench = Bench(Target(folder / "t.toml", "t", "local", "onnxruntime"), Fake(self.answer), folder)

    def answer(self, job: Mapping[str, Any]) -> Mapping[str, Any]:
        if job["mode"] == "identify":
            return {**FACTS, **self.facts}
        if self.meeting is not None:
            self.meeting.wait(10)  # it only passes if boards measure at the same time
        if self.left == 0:
            if self.meeting is not None:
                self.meeting.abort()  # nobody waits for it
            raise LinkError("gone")
        self.left -= 1
        self.models += len(job["models"])
        times = [round(self.slowness * (1_000_000 + i)) for i in range(5)]
        each = {"times_ns": times, "waited_ns": 0, "waits": 1, "nodes": []}
        return {"models": [each] * len(job["models"]), "peak_memory_bytes": 1, "before": {}, "after": {}}


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    """The files of four models, each in a folder."""
    paths = [tmp_path / str(i) / "model.onnx" for i in range(4)]
    for path in paths:
        path.parent.mkdir()
        path.write_bytes(b"")
    return paths


def pool(first: Board, **others: Board) -> Pool:
    return Pool(first.bench, {name: lambda board=board: nullcontext(board.bench) for name, board in others.items()})


def shared(boards: Pool, models: list[Path]) -> dict[int, list[Measured]]:
    """All models measured, one a process, by number."""
    found: dict[int, list[Measured]] = {}
    boards.measure([[model] for model in models], [], 0.1, False, found.__setitem__)
    return found


def test_equal_boards_measure_at_the_same_time(tmp_path: Path, models: list[Path]) -> None:
    first, second = Board(tmp_path), Board(tmp_path, 1.005)
    with closing(pool(first, second=second)) as boards:
        assert boards.open(models[0], []) == 2
        first.models = second.models = 0
        first.meeting = second.meeting = threading.Barrier(2)
        assert sorted(shared(boards, models)) == [0, 1, 2, 3]
    assert first.models == second.models == 2


@pytest.mark.parametrize(
    ("slowness", "facts", "reason"),
    [
        (1.02, {}, r"its latency is 1.020 times that of the first board .* 1 % is allowed"),
        (1.0, {"cpu": "Cortex-A72"}, "another kind of device: cpu Cortex-A72 and not c"),
    ],
)
def test_a_board_that_differs_is_left_out_with_a_warning(
    tmp_path: Path,
    models: list[Path],
    caplog: pytest.LogCaptureFixture,
    slowness: float,
    facts: dict[str, str],
    reason: str,
) -> None:
    with caplog.at_level(logging.WARNING), closing(pool(Board(tmp_path), pi=Board(tmp_path, slowness, **facts))) as one:
        assert one.open(models[0], []) == 1
        assert sorted(shared(one, models)) == [0, 1, 2, 3]
    (warning,) = caplog.messages
    assert warning.startswith("pi is left out: ")
    assert re.search(reason, warning)


def test_a_board_that_is_taken_or_disconnects_leaves_its_work_to_the_others(
    tmp_path: Path, models: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    first, weak = Board(tmp_path), Board(tmp_path)

    def taken() -> Any:
        raise BusyError("t: in use by somebody")

    boards = Pool(first.bench, {"taken": taken, "weak": lambda: nullcontext(weak.bench)})
    assert boards.open(models[0], []) == 2
    weak.left = 1
    assert sorted(shared(boards, models)) == [0, 1, 2, 3]
    assert sorted(shared(boards, models)) == [0, 1, 2, 3]
    assert caplog.messages == ["taken is left out: t: in use by somebody", "weak is left out: gone"]


def test_a_board_that_drifts_away_is_left_out_and_its_last_work_is_repeated(
    tmp_path: Path, models: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    first, second = Board(tmp_path), Board(tmp_path)
    with closing(pool(first, second=second)) as boards:
        boards.open(models[0], [])
        first.meeting = second.meeting = threading.Barrier(2)
        second.slowness = 1.1
        shared(boards, models)
        first.models = 0
        first.meeting = second.meeting = threading.Barrier(2)

        def alone(place: int, measured: list[Measured]) -> None:
            if second.models == 4 + 2:  # its last batch: the first board works alone from here on
                first.meeting = None
            found[place] = measured

        found: dict[int, list[Measured]] = {}
        boards.measure([[model] for model in models], [], 0.1, False, alone)
    assert all(measured[0].run.times_ns[0] == 1_000_000 for measured in found.values())
    assert first.models == 4 and [text.partition(":")[0] for text in caplog.messages] == ["second is left out"]


def test_an_error_of_the_first_board_is_raised_and_what_was_measured_is_kept(
    tmp_path: Path, models: list[Path]
) -> None:
    first, second = Board(tmp_path), Board(tmp_path)
    with closing(pool(first, second=second)) as boards:
        boards.open(models[0], [])
        first.left = 0
        first.meeting = second.meeting = threading.Barrier(2)
        found: dict[int, list[Measured]] = {}
        with pytest.raises(DeviceError, match="gone"):
            boards.measure([[model] for model in models], [], 0.1, False, found.__setitem__)
    assert len(found) < len(models)


def test_boards_differ_only_if_all_of_the_interval_is_beyond_a_percent() -> None:
    def samples(*medians: float) -> Samples:
        return Samples(tuple(Run((round(ns),) * 5, 1) for ns in medians))

    steady = samples(1e6, 1e6, 1e6)
    assert differs(steady, samples(1.009e6, 1.008e6, 1.009e6)) is None
    assert differs(steady, samples(1.05e6, 1e6, 1.05e6)) is None  # it is too noisy to say
    found = differs(steady, samples(0.97e6, 0.98e6, 0.97e6))
    assert found is not None and found.high < 0.99


def test_the_other_boards_are_opened_at_the_first_measurement_and_closed_once(tmp_path: Path) -> None:
    board, events = Board(tmp_path), []

    class Opened:
        def __enter__(self) -> Bench:
            events.append("opened")
            return board.bench

        def __exit__(self, *error: object) -> None:
            events.append("closed")

    model = tmp_path / "m" / "model.onnx"
    model.parent.mkdir()
    model.write_bytes(b"")
    boards = Pool(Board(tmp_path).bench, {"other": Opened})
    assert events == []
    boards.open(model, [])
    boards.open(model, [])
    boards.close()
    boards.close()
    assert events == ["opened", "closed"]
