"""What a board's sensors say: the processor's own temperature, and whether heat or power lowers its clock."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeprune.devices.agent import facts
from edgeprune.runtimes import machine


def zones(folder: Path, **found: tuple[str, str]) -> str:
    """A folder of thermal zones: {name: (type, millidegrees)}."""
    for name, (kind, value) in found.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "type").write_text(kind + "\n")
        (folder / name / "temp").write_text(value + "\n")
    return str(folder)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"a": ("cpu-thermal", "48000"), "b": ("gpu-thermal", "51000")}, 51_000),
        ({"a": ("CPU-therm", "45500"), "b": ("PMIC-Die", "100000"), "c": ("AO-therm", "49000")}, 45_500),
        ({"a": ("cpu-thermal", "45500"), "b": ("cv0-thermal", "-256000")}, 45_500),
        ({"a": ("x86_pkg_temp", "60000"), "b": ("iwlwifi_1", "72000"), "c": ("acpitz", "27800")}, 60_000),
        ({"a": ("acpitz", "41000"), "b": ("pmic_thermal", "99000")}, 41_000),
        ({"a": ("PMIC-Die", "50000")}, None),
        ({"a": ("cpu-thermal", "")}, None),
        ({}, None),
    ],
)
def test_the_temperature_is_that_of_the_processor(
    found: dict[str, tuple[str, str]], expected: int | None, tmp_path: Path
) -> None:
    assert machine.temperature_mc(zones(tmp_path / "thermal", **found), "none") == expected


def cooling(folder: Path, *devices: tuple[str, str]) -> str:
    for number, (kind, state) in enumerate(devices):
        place = folder / f"cooling_device{number}"
        place.mkdir(parents=True)
        (place / "type").write_text(kind + "\n")
        (place / "cur_state").write_text(state + "\n")
    return str(folder)


def test_a_clock_that_heat_lowers_is_found_on_any_board(tmp_path: Path) -> None:
    assert machine.heat_caps(cooling(tmp_path / "fan", ("pwm-fan", "3"))) is None
    assert machine.heat_caps(cooling(tmp_path / "cool", ("pwm-fan", "3"), ("cpufreq-cpu0", "0"))) is False
    hot = cooling(tmp_path / "hot", ("cpufreq-cpu0", "0"), ("thermal-cpufreq-4", "2"))
    assert machine.heat_caps(hot) is True


@pytest.mark.parametrize(
    ("answer", "kernel", "capped", "expected"),
    [
        ("throttled=0x50005\n", "", None, 0x50005),
        ("throttled=0x0\n", "50000", None, 0),
        ("VCHI initialization failed\n", "50000\n", None, 0x50000),
        (None, "0\n", None, 0),
        ("VCHI initialization failed\n", "", None, None),
        (None, "", True, facts.HEAT),
        (None, "", False, 0),
        (None, "", None, None),
    ],
)
def test_throttling_is_asked_of_the_firmware_then_of_the_kernel(
    answer: str | None,
    kernel: str,
    capped: bool | None,
    expected: int | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "get_throttled").write_text(kernel)
    monkeypatch.setattr(facts, "vcgencmd", lambda question: answer)
    monkeypatch.setattr(machine, "heat_caps", lambda: capped)
    assert facts.throttled(str(tmp_path / "get_throttled")) == expected


def test_a_firmware_that_answers_nobody_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/vcgencmd")
    for answer, kernel, expected in (
        ("VCHI initialization failed", "", True),
        ("throttled=0x0", "", False),
        (None, "0", False),
    ):
        (tmp_path / "get_throttled").write_text(kernel)
        monkeypatch.setattr(facts, "vcgencmd", lambda question, answer=answer: answer)
        assert facts.is_unheard(str(tmp_path / "get_throttled")) is expected
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert facts.is_unheard(str(tmp_path / "none")) is False
