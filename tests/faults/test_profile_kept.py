"""A device disconnects or slows down during a profile. Good measurements are kept, the others are repeated."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nets import surveyed
from test_latency import truth

from edgeprune.devices.bench import Bench
from edgeprune.devices.transports.fake import Fake
from edgeprune.errors import LinkError
from edgeprune.latency.fit import last_error
from edgeprune.latency.observations import measured_ns
from edgeprune.records import Experiment, Groups, Profile, Target
from edgeprune.stages import experiments

FACTS = {
    **{"machine": "x86_64", "cpu": "c", "cores": 1, "system": "s", "runtime": "onnxruntime"},
    **{"runtime_version": "1", "boot_id": "b", "serial": "s", "emulated": False, "simulated": False},
}


class Machine:
    """A simulated device, and the profile that is measured on it. The groups are by default those of a residual network."""

    def __init__(self, folder: Path, groups: Groups | None = None) -> None:
        self.folder, self.groups = folder, groups or surveyed("Residual")
        self.left = 10_000  # answers until it disconnects
        self.slowness: list[float] = []  # of the next processes; 1 after that
        self.unexplained = 0.0  # spread of a factor that each variant has, and that no model predicts
        self.asked: list[list[dict[str, int]]] = []  # widths, a list a process
        self.bench = Bench(Target(folder / "t.toml", "t", "local", "onnxruntime"), Fake(self.answer), folder)
        self.profile = Profile("t", "m", self.groups.network, self.bench.device, 1, "fp32", ())

    exports_singles = False

    def owners(self, widths: Mapping[str, int]) -> dict[str, str]:
        return {layer.name: layer.name for layer in self.groups.layers}

    def file(self, widths: Mapping[str, int], reference: bool = False) -> Path:
        path = self.folder / "_".join(map(str, widths.values())) / "model.onnx"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
        return path

    def answer(self, job: Mapping[str, Any]) -> Mapping[str, Any]:
        if job["mode"] == "identify":
            return FACTS
        if self.left == 0:
            raise LinkError("gone")
        self.left -= 1
        slow = self.slowness.pop(0) if self.slowness else 1.0
        self.asked.append([])
        models = []
        for model in job["models"]:
            widths = dict(zip(self.groups.full(), map(int, Path(model).parent.name.split("_")), strict=True))
            self.asked[-1].append(widths)
            layers = {name: max(1, round(ns)) for name, ns in truth(self.groups, widths, 8).items()}
            nodes = [{"name": name, "ns": ns} for name, ns in layers.items()]
            factor = np.exp(self.unexplained * np.random.default_rng([*widths.values()]).standard_normal())
            total = round(slow * factor * sum(layers.values()))
            models.append({"times_ns": [total] * 5, "waited_ns": 0, "waits": 1, "nodes": nodes})
        return {"models": models, "peak_memory_bytes": 1, "before": {}, "after": {}}

    def grow(self) -> None:
        subject = experiments.Subject(self.bench, self, self.groups, [])  # type: ignore[arg-type]
        for grown in experiments.measure(subject, self.profile, lambda done, most, note: None):
            self.profile = grown

    def measured(self, role: str) -> list[Experiment]:
        return [e for e in self.profile.experiments if e.role == role]


@pytest.mark.parametrize("answers", [0, 1, 3])
def test_what_was_measured_is_kept_and_not_measured_again(answers: int, tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.left = answers
    with pytest.raises(LinkError):
        machine.grow()
    fits = [e.widths for e in machine.measured("fit")]
    assert len(fits) == answers * experiments.TOGETHER  # an answer is of a process
    machine.left = 10_000
    machine.asked.clear()
    machine.grow()
    assert not [widths for process in machine.asked for widths in process if widths in fits]
    measured = [tuple(e.widths.values()) for e in machine.measured("fit")]
    assert len(measured) == len(set(measured)) > experiments.STEP
    assert machine.measured("baseline")[0].batch == 0
    assert {e.batch for e in machine.measured("anchor")} == {e.batch for e in machine.profile.experiments}


def test_measuring_stops_when_more_variants_no_longer_lower_the_error(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.unexplained = 0.1
    machine.grow()
    _, most = experiments.processes(machine.groups)
    assert 2 <= len(machine.asked) < most - 1
    assert last_error(machine.groups, machine.profile, experiments.STEP) > experiments.GOOD_ENOUGH


def test_a_process_that_drifted_is_measured_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine(tmp_path)
    machine.slowness = [1.0, 1.6]
    machine.grow()
    assert machine.asked[2] == machine.asked[1]
    assert "measured again" in caplog.text
    anchors = {e.samples.runs[0].times_ns for e in machine.measured("anchor")}
    assert len(anchors) == 1


def test_a_machine_that_stays_slower_is_corrected_by_its_anchor(tmp_path: Path) -> None:
    calm, slow = Machine(tmp_path / "calm"), Machine(tmp_path / "slow")
    slow.slowness = [1.0, 1.6, 1.6]  # again as slow as before
    for machine in (calm, slow):
        machine.folder.mkdir()
        machine.grow()
    for one, other in zip(calm.measured("fit")[: experiments.STEP], slow.measured("fit"), strict=False):
        times = measured_ns(calm.profile, one), measured_ns(slow.profile, other)
        assert one.widths == other.widths and times[0] == pytest.approx(times[1], rel=1e-3)
