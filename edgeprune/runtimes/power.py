"""The power that a device draws, by the rails that its kernel or its firmware reports to this user; and energy from it.

It travels to devices: standard library only, Python 3.8 and up.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from . import machine
from .device import Failed

EVERY_S = 0.01  # between readings of a power: the sensors average over about as long
TOTALS = ("VDD_IN", "VIN", "POM_5V_IN")  # rails of a Jetson that feed all others
UNLABELLED = "VIN"  # the label of the only sensor without one: it measures the board's input
UNUSED = ("", "NC")  # labels of channels without a rail
ADC = re.compile(r"(\w+)_([AV]) (?:current|volt)\(\d+\)=(\d+(?:\.\d+)?)[AV]")


@dataclass(frozen=True)
class Meter:
    """A source of power or energy.

    Attributes:
        source: what it measures, for people.
        read: the power in microwatts, or a counter in microjoules.
        wraps: the counter's end, after which it is 0 again; 0 if it reads a power.
    """

    source: str
    read: Callable[[], float]
    wraps: int = 0


@dataclass(frozen=True)
class Spent:
    """Energy over a time."""

    uj: float
    ns: int


def meter(
    powercap: str = "/sys/class/powercap",
    monitors: str = "/sys/class/hwmon",
    channels: str = "/sys/bus/iio/devices",
    tool: Callable[[], str] | None = None,
) -> Meter | None:
    """The meter of this device; None where no rail can be read.

    Args:
        powercap: the kernel's folder of energy counters.
        monitors: the kernel's folder of sensors.
        channels: the folder of sensors in Jetsons with L4T 32 (TX2, Nano, Xavier).
        tool: what a Raspberry Pi's firmware says about its rails.
    """
    return _counters(powercap) or _sensors(monitors, channels) or _firmware(tool or asked)


def conditions(found: Meter | None) -> dict[str, int | float | str]:
    """The power now, and its source. A counter has no power now."""
    if found is None:
        return {}
    now: dict[str, int | float | str] = {"rails": found.source}
    with contextlib.suppress(ValueError):  # a sensor may have no value for a moment
        if not found.wraps:
            now["power_mw"] = round(found.read() / 1e3)
    return now


class Recorder:
    """Energy over a block of code. A power is read every `EVERY_S` in a thread of its own, and integrated."""

    def __init__(self, own: Meter) -> None:
        self._meter, self._stop, self.spent = own, threading.Event(), Spent(0.0, 1)
        self._readings: list[tuple[int, float]] = []
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Recorder:
        self._read()
        if not self._meter.wraps:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if not self._meter.wraps:
            self._thread.join()
        self._read()
        if len(self._readings) < 2:
            raise Failed("run", f"{self._meter.source} gives no values")
        self.spent = energy(self._readings, self._meter.wraps)

    def _read(self) -> None:
        with contextlib.suppress(ValueError):  # a sensor may have no value for a moment
            self._readings.append((time.perf_counter_ns(), self._meter.read()))

    def _follow(self) -> None:
        while not self._stop.wait(EVERY_S):
            self._read()


def energy(readings: Sequence[tuple[int, float]], wraps: int) -> Spent:
    """The energy from the first to the last reading: nanoseconds, and a power or a counter that wraps; see `Meter`."""
    (first, begun), (last, ended) = readings[0], readings[-1]
    if wraps:
        return Spent((ended - begun) % wraps, max(1, last - first))
    steps = zip(readings, readings[1:])  # noqa: B905, RUF007 - Python 3.8 has neither
    return Spent(sum((b - a) / 1e9 * (p + q) / 2 for (a, p), (b, q) in steps), max(1, last - first))


def asked() -> str:
    """What `vcgencmd pmic_read_adc` prints: volts and amperes of a Raspberry Pi 5's rails. Empty elsewhere."""
    try:
        done = subprocess.run(
            ["vcgencmd", "pmic_read_adc"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout[: 1 << 16].decode("ascii", "replace")


def rails_uw(text: str) -> dict[str, float]:
    """The power of each rail that has both volts and amperes."""
    found = {(name, unit): float(value) for name, unit, value in ADC.findall(text)}
    return {
        name: 1e6 * found[name, "V"] * value
        for (name, unit), value in found.items()
        if (name, "V") in found and unit == "A"
    }


def _counters(powercap: str) -> Meter | None:
    """The packages of RAPL (Intel, AMD). Most systems let only root read them."""
    # "intel-rapl-mmio" shows the same package once more, by another way.
    zones = [f"{powercap}/{name}" for name in machine.listed(powercap) if "mmio" not in name]
    packages = [zone for zone in zones if machine.first_line(f"{zone}/name").startswith("package-")]
    ranges = [machine.first_line(f"{zone}/max_energy_range_uj") for zone in packages]
    values = [machine.first_line(f"{zone}/energy_uj") for zone in packages]
    if len(packages) != 1 or not all(map(str.isdigit, ranges + values)):
        return None  # several packages wrap at different times
    return Meter(
        "RAPL: the processor's package",
        lambda: float(machine.first_line(f"{packages[0]}/energy_uj")),
        int(ranges[0]) + 1,
    )


def _sensors(monitors: str, channels: str) -> Meter | None:
    """The power sensors of a board (INA3221, INA226, INA238): its input, or all of its rails together."""
    rails = _monitored(monitors) or _channelled(channels)
    total = next((label for label in TOTALS if label in rails), None)
    if total:
        return Meter(f"the board's rail {total}", rails[total])
    return (
        Meter(f"the board's rails {', '.join(rails)}", lambda: sum(read() for read in rails.values()))
        if rails
        else None
    )


def _monitored(monitors: str) -> dict[str, Callable[[], float]]:
    """The rails of the kernel's own drivers."""
    rails: dict[str, Callable[[], float]] = {}
    unlabelled: dict[str, Callable[[], float]] = {}
    for name in machine.listed(monitors):
        place = f"{monitors}/{name}"
        kind = machine.first_line(f"{place}/name")
        if not kind.startswith("ina"):
            continue
        if machine.first_line(f"{place}/power1_input").isdigit():
            label = machine.first_line(f"{place}/power1_label") or machine.first_line(f"{place}/in1_label")
            (rails if label else unlabelled)[label or f"{kind} ({name})"] = _power(f"{place}/power1_input", 1)
        for channel in (1, 2, 3) if kind == "ina3221" else ():
            label = machine.first_line(f"{place}/in{channel}_label")
            files = f"{place}/in{channel}_input", f"{place}/curr{channel}_input"
            if label not in UNUSED and all(machine.first_line(file).lstrip("-").isdigit() for file in files):
                rails[label] = _product(*files)
    if len(unlabelled) == 1:
        unlabelled = dict.fromkeys([UNLABELLED], next(iter(unlabelled.values())))
    return {**unlabelled, **rails}


def _channelled(channels: str) -> dict[str, Callable[[], float]]:
    """The rails of NVIDIA's own driver ina3221x, in milliwatts."""
    places = [f"{channels}/{name}" for name in machine.listed(channels)]
    found = [
        (machine.first_line(f"{place}/rail_name_{i}"), f"{place}/in_power{i}_input")
        for place in places
        for i in (0, 1, 2)
    ]
    return {
        label: _power(file, 1000) for label, file in found if label not in UNUSED and machine.first_line(file).isdigit()
    }


def _power(file: str, microwatts: int) -> Callable[[], float]:
    return lambda: microwatts * float(machine.first_line(file))


def _product(volts: str, amperes: str) -> Callable[[], float]:
    """Millivolts times milliamperes are microwatts."""
    return lambda: float(machine.first_line(volts)) * float(machine.first_line(amperes))


def _firmware(tool: Callable[[], str]) -> Meter | None:
    """The rails behind a Raspberry Pi 5's power controller. What USB devices draw is not in them."""
    return Meter("the PMIC's rails", lambda: sum(rails_uw(tool()).values())) if rails_uw(tool()) else None
