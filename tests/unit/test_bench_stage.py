"""Which files go to which targets, how long they are measured, and what is compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from modelfiles import write_ir, write_onnx, write_tflite

from edgeprune.devices.bench import Measured
from edgeprune.devices.boards import Boards
from edgeprune.devices.patience import FEW_ATTEMPTS, Patience
from edgeprune.devices.transports import base
from edgeprune.devices.transports.base import Refusal
from edgeprune.devices.wire import Failure, Time
from edgeprune.errors import UsageError
from edgeprune.frontends import feeds
from edgeprune.limits import Limits
from edgeprune.pipeline.request import Quiet
from edgeprune.records import Device, Energy, Host, OperatorChange, OperatorTime, Run, Target
from edgeprune.reports.bench import tables
from edgeprune.runtimes import host
from edgeprune.runtimes.timing import NodeTime
from edgeprune.stages import bench
from edgeprune.stages.bench import Asked
from edgeprune.stages.verdicts import operators

DEVICE = Device("x86_64", "a cpu", 2, "Linux 6.1", "onnxruntime", "1.2.3", "boot")


@pytest.fixture
def onnx(tmp_path: Path) -> Path:
    return write_onnx(tmp_path / "m.onnx")


# --------------------------------------------------------------------------------------------- files and targets


def test_each_file_is_measured_by_its_own_runtime_by_default(tmp_path: Path, onnx: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    paths = onnx, write_ir(tmp_path / "m.xml"), write_tflite(tmp_path / "m.tflite")
    found = bench.subjects(Asked(paths))
    assert [one.target.runtime for one in found] == ["onnxruntime", "openvino", "tflite"]
    assert [one.label for one in found] == ["m.onnx on local", "m.xml on local-openvino", "m.tflite on local-tflite"]


def test_every_target_gets_every_file_that_it_takes(tmp_path: Path, onnx: Path) -> None:
    ir = write_ir(tmp_path / "m.xml")
    found = bench.subjects(Asked((onnx, ir), ("local", "local-openvino")))
    assert [one.label for one in found] == ["m.onnx on local", "m.onnx on local-openvino", "m.xml on local-openvino"]


def test_a_file_that_no_target_takes_is_one_line(onnx: Path) -> None:
    with pytest.raises(UsageError) as refused:
        bench.subjects(Asked((onnx,), ("local-tflite",)))
    reason = "no target takes this file; local-tflite (tflite) takes .tflite; for this file: --target local"
    assert str(refused.value) == f"{onnx}: {reason}"


def test_a_target_that_takes_no_file_is_one_line(onnx: Path) -> None:
    with pytest.raises(UsageError, match=r"--target local-tflite: tflite takes none of the files; it takes .tflite"):
        bench.subjects(Asked((onnx,), ("local", "local-tflite")))


def test_operators_of_open_shapes_are_refused_where_they_are_timed_alone(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    asked = Asked((write_tflite(tmp_path / "m.tflite", (1, 16), (-1, 16)),), given=feeds.Given({}, {}, 2))
    assert len(bench.subjects(asked)) == 1
    with pytest.raises(UsageError, match="--layers: tflite has no profiler"):
        bench.subjects(replace(asked, layers=True))


def test_files_of_one_name_are_told_apart(tmp_path: Path, onnx: Path) -> None:
    (tmp_path / "b").mkdir()
    other = write_onnx(tmp_path / "b" / "m.onnx")
    assert [one.label for one in bench.subjects(Asked((onnx, other)))] == [str(onnx), str(other)]
    assert [one.label for one in bench.subjects(Asked((onnx, onnx)))] == ["m.onnx", "m.onnx (2)"]


# --------------------------------------------------------------------------------------------------- measuring


class Machine:
    """Stands in for `Bench`: a run of model i takes `ns[i]` nanoseconds, give or take `noise`."""

    def __init__(self, ns: dict[str, float], noise: float = 0.0, disturbed: bool = False) -> None:
        self.ns, self.noise, self.discarded, self.device = ns, noise, 0, DEVICE
        self.batches: list[list[str]] = []
        self.estimated: list[str] = []
        self._waited = 1 << 40 if disturbed else 0
        self._random = np.random.default_rng(0)

    def measure(self, batches, inputs, timed_s=0.0, profiled=False):  # type: ignore[no-untyped-def]
        (batch,) = batches
        self.batches.append([self._name(model) for model in batch])
        return [[self._measured(self._name(model), profiled) for model in batch]]

    def estimate(self, model, inputs):  # type: ignore[no-untyped-def]
        self.estimated.append(self._name(model))
        return self._measured(self._name(model), False).run

    def throughput(self, model, inputs, streams, timed_s):  # type: ignore[no-untyped-def]
        return streams * 1e9 / self.ns[self._name(model)]

    def _name(self, model: Path) -> str:
        assert [path.name for path in model.parent.iterdir()] == [model.name], "only the model's files are sent"
        return model.name

    def _measured(self, name: str, profiled: bool) -> Measured:
        process = self.ns[name] * (1 + self.noise * self._random.standard_normal())
        times = tuple(int(process * (1 + 0.001 * self._random.random())) for _ in range(100))
        run = Run(times, 1 << 20, waited_ns=self._waited, waits=min(self._waited, 100))
        nodes = (NodeTime("conv", int(0.8 * process), kind="Conv"), NodeTime("relu", int(0.2 * process), kind="Relu"))
        return Measured(run, (), nodes if profiled else (), load_ns=5_000_000)


def measured(monkeypatch: pytest.MonkeyPatch, machine: Machine, asked: Asked):  # type: ignore[no-untyped-def]
    monkeypatch.setattr(Boards, "bench", lambda self, target: machine)
    return bench.measure(asked, bench.subjects(asked), FEW_ATTEMPTS, Quiet())


def test_a_device_that_repeats_itself_is_measured_briefly(monkeypatch: pytest.MonkeyPatch, onnx: Path) -> None:
    found, samples = measured(monkeypatch, machine := Machine({"m.onnx": 1e6}), Asked((onnx,)))
    (row,) = found.files
    assert row.p50_ms.mid == pytest.approx(1.0, rel=0.01) and row.processes < bench.LEAST_ROUNDS == 6
    assert found.status == "pass" and not row.disturbed
    assert (row.load_ms.mid, row.peak_memory_bytes, row.too_few) == (5.0, 1 << 20, {})  # type: ignore[union-attr]
    assert row.throughput_per_s.mid == pytest.approx(1000, rel=0.01) and set(row.latency_ms) == {"p50", "p90", "p99"}
    assert len(samples[0].runs) == row.processes == len(machine.batches) and row.inputs == {"x": "float32 1x3x8x8"}


def test_a_noisy_device_is_measured_as_long_as_is_allowed(monkeypatch: pytest.MonkeyPatch, onnx: Path) -> None:
    monkeypatch.setattr("edgeprune.stages.bench.LIMITS", Limits(bench_processes=9))
    found, _ = measured(monkeypatch, Machine({"m.onnx": 1e6}, noise=0.3), Asked((onnx,)))
    (row,) = found.files
    assert row.processes == 9 > bench.LEAST_ROUNDS and row.p50_ms.low < row.p50_ms.mid < row.p50_ms.high


def test_a_quantile_with_too_few_timings_is_not_invented(monkeypatch: pytest.MonkeyPatch, onnx: Path) -> None:
    found, _ = measured(monkeypatch, Machine({"m.onnx": 1e6}), Asked((onnx,), seconds=1e-9))
    (row,) = found.files
    assert row.processes == 1 and set(row.latency_ms) == {"p50", "p90"}
    assert row.too_few == {"p99": "100 of 368 independent timings"}


def test_throughput_counts_samples_of_all_streams(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "m.onnx", ("n", 3, 8, 8))
    asked = Asked((path,), given=feeds.Given({}, {}, 4), streams=2)
    found, _ = measured(monkeypatch, Machine({"m.onnx": 1e6}), asked)
    assert found.files[0].throughput_per_s.mid == pytest.approx(8000)
    assert (found.files[0].batch, found.files[0].streams) == (4, 2)


def test_two_files_are_interleaved_and_compared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, onnx: Path) -> None:
    other = write_onnx(tmp_path / "half.onnx", width=2)
    found, _ = measured(
        monkeypatch, machine := Machine({"m.onnx": 1e6, "half.onnx": 5e5}), Asked((onnx, other), layers=True)
    )
    (compared,) = found.comparisons
    assert compared.ratio.mid == pytest.approx(0.5, rel=0.01) and (compared.first, compared.second) == (
        "m.onnx",
        "half.onnx",
    )
    first, second, together = ["m.onnx"], ["half.onnx"], ["m.onnx", "half.onnx"]
    assert machine.estimated == ["m.onnx", "half.onnx"], "a file that cannot be run is found first"
    assert machine.batches[:6] == [first, second, together, second, first, together[::-1]]
    assert [one.name for one in compared.nodes] == ["conv", "relu"] and compared.executed
    assert [round(one.share, 2) for one in found.files[0].operators] == [0.8, 0.2]


def test_a_ratio_is_that_of_shared_processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, onnx: Path) -> None:
    """The noise between processes affects both files of one process."""
    machine = Machine({"m.onnx": 1e6, "half.onnx": 5e5})
    factor = iter(np.random.default_rng(1).uniform(1, 3, 1000))

    def noisy(batches, inputs, timed_s=0.0, profiled=False):  # type: ignore[no-untyped-def]
        machine.ns = {"m.onnx": 1e6 * (now := next(factor)), "half.onnx": 5e5 * now}
        return Machine.measure(machine, batches, inputs)

    machine.measure = noisy  # type: ignore[method-assign]
    other = write_onnx(tmp_path / "half.onnx", width=2)
    monkeypatch.setattr("edgeprune.stages.bench.LIMITS", Limits(bench_processes=12))
    found, _ = measured(monkeypatch, machine, Asked((onnx, other)))
    ratio, p50 = found.comparisons[0].ratio, found.files[0].p50_ms
    assert ratio.high - ratio.low < 0.01 < p50.high - p50.low


def test_disturbed_processes_are_marked(monkeypatch: pytest.MonkeyPatch, onnx: Path) -> None:
    found, _ = measured(monkeypatch, Machine({"m.onnx": 1e6}, disturbed=True), Asked((onnx,), seconds=1e-9))
    assert found.files[0].disturbed == ("other processes used the processor",) and found.status == "inconclusive"


def test_a_file_that_the_runtime_refuses_is_the_users_mistake(monkeypatch: pytest.MonkeyPatch, onnx: Path) -> None:
    def refuse(self: object, *_: object, **__: object) -> None:
        raise Refusal("local", Time(1, "null", 1, (), (), 0, 0, 1, 1), Failure("load", "no kernel for\\nConv(99)"))

    monkeypatch.setattr(Machine, "estimate", refuse)
    with pytest.raises(UsageError) as refused:
        measured(monkeypatch, Machine({"m.onnx": 1e6}), Asked((onnx,)))
    assert str(refused.value) == f"{onnx}: onnxruntime on local cannot run it: load: Conv(99)"


def test_the_users_file_stays_as_it_is_where_a_runtime_needs_fixed_shapes(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "m.onnx", ("n", 3, 8, 8))
    content = path.read_bytes()
    target = Target(tmp_path / "t.toml", "t", "local", "tensorrt")
    (known,) = bench.subjects(Asked((path,), given=feeds.Given({}, {}, 2)))
    staged = bench._staged(replace(known, target=target), tmp_path / "staged", Asked((path,)))
    import onnx

    dims = onnx.load(staged.model).graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in dims] == [2, 3, 8, 8] and path.read_bytes() == content
    assert (staged.model.parent / "build.json").is_file() and host("tensorrt").files(staged.model)[1].is_file()


# --------------------------------------------------------------------------------------------------- comparing


def test_operators_that_differ_are_listed_largest_first() -> None:
    found = operators.stored_changes({"Conv": 5, "Relu": 2, "Add": 1}, {"Conv": 2, "Relu": 2, "Mul": 1})
    expected = OperatorChange("Conv", 5, 2), OperatorChange("Add", 1, 0), OperatorChange("Mul", 0, 1)
    assert found == expected


def test_nodes_are_matched_only_where_most_names_are_the_same() -> None:
    one, two = OperatorTime("conv", "Conv", 10.0, 0.9), OperatorTime("relu", "Relu", 1.0, 0.1)
    slower = replace(one, us=30.0)
    assert operators.same_nodes([one, two], [slower, two])[0] == OperatorChange("conv", 1, 1, 10.0, 30.0)
    assert operators.same_nodes([one, two], [replace(one, name="0:CONV_2D"), replace(two, name="1:RELU")]) == ()
    kinds = operators.executed_changes([one, one], [two])
    assert kinds == (OperatorChange("Conv", 2, 0, 20.0, 0.0), OperatorChange("Relu", 0, 1, 0.0, 1.0))


# ------------------------------------------------------------------------------------------------------- boards


class Link(base.Transport):
    """A transport that only counts."""

    opened: list[Host | None] = []  # noqa: RUF012 - of all instances
    closed = 0

    def put(self, files):  # type: ignore[no-untyped-def]
        raise AssertionError

    get = call = put  # type: ignore[assignment]

    def close(self) -> None:
        Link.closed += 1


def test_targets_of_one_board_share_its_lease(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A second connection to the same board would wait for the first one's lease."""

    def connect(target: Target, wait_s: float, notice: object) -> Link:
        Link.opened.append(target.host)
        return Link()

    monkeypatch.setattr("edgeprune.devices.boards.transports.connect", connect)
    monkeypatch.setattr("edgeprune.devices.boards.Bench", lambda target, link, scratch, patience: (target.name, link))
    Link.opened, Link.closed = [], 0
    old, new = Host("pi", python="/opt/old/bin/python"), Host("pi", python="/opt/new/bin/python")
    ort, vino = (Target(tmp_path / f"{name}.toml", name, "ssh", name, host=old) for name in ("onnxruntime", "openvino"))
    other = Target(tmp_path / "new.toml", "new", "ssh", "onnxruntime", host=new)
    with Boards(tmp_path, 0.0, Patience()) as boards:
        assert boards.bench(ort)[1] is boards.bench(vino)[1] and Link.opened == [old]  # type: ignore[index]
        assert boards.bench(ort) is boards.bench(ort)
        boards.bench(other)
        assert (Link.opened, Link.closed) == ([old, new], 1)
        boards.bench(ort)
        assert (Link.opened, Link.closed) == ([old, new, old], 2)
    assert Link.closed == 3


@pytest.mark.parametrize("rails", ["the board's rail VDD_IN", ""])
def test_the_energy_of_a_call_is_shown_with_its_rails_or_as_none(
    rails: str, monkeypatch: pytest.MonkeyPatch, onnx: Path
) -> None:
    class Railed(Machine):
        def energy(self, model: Path, inputs: object) -> Energy:
            return Energy(rails, tuple(2000.0 + i for i in range(8)))

        def _measured(self, name: str, profiled: bool) -> Measured:
            found = super()._measured(name, profiled)
            return replace(found, run=replace(found.run, after={"rails": rails} if rails else {}))

    found, _ = measured(monkeypatch, Railed({"m.onnx": 1e6}), Asked((onnx,)))
    (row,) = found.files
    assert row.rails == rails and (row.energy_mj.mid if row.energy_mj else None) == (2.0035 if rails else None)
    shown = next(line for _, rows in tables(found) for line in rows if line[0] == "energy of a call, mJ")
    assert (rails in shown[1] and "2.00" in shown[1]) if rails else shown[1] == "none"
