"""Rails of boards, as their kernels and firmware write them, and the energy of a call beyond that of the idle device."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from edgeprune.devices import wire
from edgeprune.devices.agent import measure
from edgeprune.devices.bench import Bench
from edgeprune.errors import DeviceError, InconclusiveError, UsageError
from edgeprune.records import Limit, Target
from edgeprune.runtimes import power
from edgeprune.runtimes.device import Failed
from edgeprune.runtimes.tensorrt import jetson
from edgeprune.stages.verdicts import ondevice

PMIC = """   3V7_WL_SW_A current(0)=0.10000000A
   VDD_CORE_A current(7)=2.50000000A
   3V7_WL_SW_V volt(8)=3.70000000V
   VDD_CORE_V volt(15)=0.80000000V
     EXT5V_V volt(24)=5.10000000V
"""


def write(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(f"{content}\n")


def meter(folder: Path, text: str = "") -> power.Meter | None:
    return power.meter(f"{folder}/powercap", f"{folder}/hwmon", f"{folder}/iio", lambda: text)


def ina3221(folder: Path, *rails: tuple[str, int, int]) -> None:
    """A sensor of three channels: (label, mV, mA). The fourth current is the sum, as the driver has it."""
    write(folder, name="ina3221", in7_label="sum of shunt voltages", curr4_input=sum(ma for _, _, ma in rails))
    for channel, (label, mv, ma) in enumerate(rails, 1):
        files: dict[str, Any] = {f"in{channel}_label": label, f"in{channel}_input": mv, f"curr{channel}_input": ma}
        write(folder, **files)


def test_a_jetson_is_measured_at_its_input_or_over_all_its_rails(tmp_path: Path) -> None:
    ina3221(
        tmp_path / "nano/hwmon/hwmon1", ("VDD_IN", 5000, 1200), ("VDD_CPU_GPU_CV", 5000, 400), ("VDD_SOC", 5000, 200)
    )
    found = meter(tmp_path / "nano")
    assert found is not None and found.source == "the board's rail VDD_IN" and found.read() == 6e6
    ina3221(
        tmp_path / "agx/hwmon/hwmon3",
        ("VDD_GPU_SOC", 19000, 200),
        ("VDD_CPU_CV", 19000, 100),
        ("VIN_SYS_5V0", 5000, 600),
    )
    ina3221(tmp_path / "agx/hwmon/hwmon4", ("NC", 0, 0), ("VDDQ_VDD2_1V8AO", 1800, 500), ("NC", 0, 0))
    found = meter(tmp_path / "agx")
    assert found is not None and found.read() == 3.8e6 + 1.9e6 + 3e6 + 0.9e6
    assert found.source.startswith("the board's rails VDD_GPU_SOC, VDD_CPU_CV, VIN_SYS_5V0, VDDQ")
    write(tmp_path / "thor/hwmon/hwmon2", name="ina238", power1_input=45_000_000, in1_label="VIN")
    ina3221(tmp_path / "thor/hwmon/hwmon3", ("VDD_GPU", 12000, 500), ("VDD_CPU_SOC_MSS", 12000, 400), ("NC", 0, 0))
    found = meter(tmp_path / "thor")
    assert found is not None and found.source == "the board's rail VIN" and found.read() == 45e6
    assert power.conditions(found) == {"rails": "the board's rail VIN", "power_mw": 45_000}


def test_a_jetson_with_l4t_32_has_its_rails_elsewhere_in_milliwatts(tmp_path: Path) -> None:
    nano = {"POM_5V_IN": 2875, "POM_5V_GPU": 123, "POM_5V_CPU": 820}
    xavier = {"GPU": 310, "CPU": 620, "SOC": 900, "NC": 0}
    for board, rails in (("nano", nano), ("agx", xavier)):
        for i, (label, mw) in enumerate(rails.items()):
            number, channel = divmod(i, 3)
            files = {f"rail_name_{channel}": label, f"in_power{channel}_input": mw}
            write(tmp_path / board / f"iio/iio:device{number}", name="ina3221x", **files)
    found = meter(tmp_path / "nano")
    assert found is not None and found.source == "the board's rail POM_5V_IN" and found.read() == 2.875e6
    found = meter(tmp_path / "agx")
    assert found is not None and found.source == "the board's rails GPU, CPU, SOC" and found.read() == 1.83e6


def test_no_one_of_several_sensors_without_labels_is_taken_for_the_input(tmp_path: Path) -> None:
    """A Kria has one sensor for the board. A ZCU102 has one for each of eighteen rails."""
    write(tmp_path / "kria/hwmon/hwmon0", name="ina260_u14", power1_input=7_000_000)
    found = meter(tmp_path / "kria")
    assert found is not None and found.source == "the board's rail VIN" and found.read() == 7e6
    for i, uw in enumerate((400_000, 100_000)):
        write(tmp_path / f"zcu/hwmon/hwmon{i}", name=f"ina226_u7{i}", power1_input=uw)
    found = meter(tmp_path / "zcu")
    assert found is not None and found.read() == 5e5
    assert found.source == "the board's rails ina226_u70 (hwmon0), ina226_u71 (hwmon1)"


def test_a_raspberry_pi_5_is_measured_over_the_rails_that_have_volts_and_amperes(tmp_path: Path) -> None:
    found = meter(tmp_path, PMIC)
    assert found is not None and found.source == "the PMIC's rails" and found.read() == pytest.approx(2.37e6)
    assert meter(tmp_path, "error=1 error_msg=Command not registered") is None


def test_a_processor_is_measured_by_its_package_if_this_user_may_read_it(tmp_path: Path) -> None:
    zone = tmp_path / "powercap/intel-rapl:0"
    write(zone, name="package-0", energy_uj=900, max_energy_range_uj=999)
    write(tmp_path / "powercap/intel-rapl:0:0", name="core", energy_uj=5, max_energy_range_uj=999)
    write(tmp_path / "powercap/intel-rapl-mmio:0", name="package-0", energy_uj=7, max_energy_range_uj=999)  # in laptops
    found = meter(tmp_path)
    assert found is not None and found.wraps == 1000 and power.conditions(found) == {"rails": found.source}
    with power.Recorder(found) as recorder:
        (zone / "energy_uj").write_text("300\n")  # it began again at 0
    assert recorder.spent.uj == 400 and recorder.spent.ns > 0
    (zone / "energy_uj").unlink()  # as for a user who may not
    assert meter(tmp_path) is None and power.conditions(None) == {}


def test_a_power_is_integrated_over_time() -> None:
    steady = [(0, 2e6), (500_000_000, 2e6), (1_000_000_000, 4e6)]
    assert power.energy(steady, 0) == power.Spent(2.5e6, 1_000_000_000)
    readings = iter([1e6, 3e6])
    with power.Recorder(power.Meter("a rail", lambda: next(readings, 3e6))) as recorder:
        time.sleep(0.05)
    assert 0.8 < recorder.spent.uj / (3e6 * recorder.spent.ns / 1e9) < 1

    def silent() -> float:
        raise ValueError

    with pytest.raises(Failed, match="a rail gives no values"), power.Recorder(power.Meter("a rail", silent)):
        pass


def test_the_clock_of_a_jetsons_memory_is_read_where_the_user_may(tmp_path: Path) -> None:
    write(tmp_path / "clock", rate=3_199_000_000)
    write(tmp_path / "caps", emc=0)
    assert jetson.memory_clock(f"{tmp_path}/clock", f"{tmp_path}/caps") == {"emc_hz": 3_199_000_000}
    assert jetson.memory_clock(f"{tmp_path}/none", f"{tmp_path}/none") == {}


def job(path: Path) -> wire.GetEnergy:
    return wire.GetEnergy(20.0, "null", 1, str(path), (), 0.01, 0.05, 3)


def test_the_agent_takes_the_idle_device_and_the_running_model_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model.json"
    model.write_text('{"ns": 1000000}')
    monkeypatch.setattr(power, "meter", lambda: power.Meter("a rail", lambda: 3e6))
    found = measure.energy(job(model))
    assert found.source == "a rail" and len(found.cycles) == 3
    for one in found.cycles:
        assert one.runs > 0 and one.idle_uj == pytest.approx(3e6 * one.idle_ns / 1e9, rel=1e-3)
    monkeypatch.setattr(power, "meter", lambda: None)
    none = measure.energy(job(model))
    assert none.source == "" and none.cycles == ()


class Device(Bench):
    """A bench whose device gives a reply."""

    def __init__(self, reply: wire.Energy) -> None:
        self.reply = reply
        self._target = Target(Path("t.toml"), "t", "local", "null")
        self._runtime: Any = type("Runtime", (), {"deadline_s": 1.0})
        self._options = {"runtime": "null", "threads": 1, "dla": None, "cores": None}

    def _put(self, model: Path) -> str:
        return str(model)

    def _ask(self, jobs: Any) -> Any:
        return [self.reply]


def test_energy_is_that_beyond_the_idle_device_and_none_without_rails() -> None:
    second = 1_000_000_000
    cycles = tuple(wire.Cycle(2e6, second, 5e6 + extra, second, 100) for extra in (0.0, 1e5, -1e5))
    found = Device(wire.Energy("a rail", cycles, {}, {})).energy(Path("m"), [])
    assert found is not None and found.source == "a rail" and found.each_uj == (30_000, 31_000, 29_000)
    assert Device(wire.Energy("", (), {}, {})).energy(Path("m"), []) is None
    with pytest.raises(DeviceError, match="no runs"):
        Device(wire.Energy("a rail", (wire.Cycle(1.0, 1, 1.0, 1, 0),), {}, {})).energy(Path("m"), [])
    limit = Limit.parse("energy", "50 mJ")
    assert limit.most == 50_000 and str(limit) == "energy 50 mJ"
    subject = ondevice.Subject(Device(wire.Energy("a rail", cycles, {}, {})), [], 1)
    assert ondevice.values(limit, subject, Path("m"), 3) == [30_000, 31_000, 29_000]
    check = ondevice.check(limit, [60_000.0] * 8, [30_000.0] * 8)
    assert check.outcome == "pass" and "of 60 mJ; 60.0 to 60.0% of the limit, over 8 cycles" in check.note


def test_a_limit_on_energy_where_nothing_measures_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = Limit.parse("energy", "50%")
    opened = Device(wire.Energy("", (), {}, {}))
    monkeypatch.setattr(Bench, "state", lambda self: {"load": 0.1})
    with pytest.raises(UsageError, match="the device cannot measure it"):  # as soon as the device is opened
        ondevice.require([limit], opened)
    ondevice.require([Limit.parse("memory", "50%")], opened)
    monkeypatch.setattr(Bench, "state", lambda self: {"load": 0.1, "rails": "the board's rail VDD_IN"})
    ondevice.require([limit], opened)
    without = ondevice.Subject(Device(wire.Energy("", (), {}, {})), [], 1)
    with pytest.raises(UsageError, match=r"\[budget\] energy: the device cannot measure it"):
        ondevice.values(limit, without, Path("m"), 3)
    idle = tuple(wire.Cycle(2e6, 10**9, 2e6 - 1, 10**9, 10) for _ in range(8))
    with pytest.raises(InconclusiveError, match="too little to be told from the idle device by a rail"):
        ondevice.values(limit, ondevice.Subject(Device(wire.Energy("a rail", idle, {}, {})), [], 1), Path("m"), 3)
