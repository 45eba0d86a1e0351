"""Whether times of two sessions can be compared: what changed on the device, and how well it repeats its times. Pure."""

from __future__ import annotations

from edgeprune.devices.validate import printable
from edgeprune.records import Measurement

# Facts of a device that must be the same.
DEVICE = ("machine", "cpu", "cores", "system", "runtime", "runtime_version", "emulated", "simulated")
CLOCKS = ("governor", "power_mode", "clocks_pinned")  # likewise, among its conditions
SYSTEM = ("os", "firmware")  # among its conditions too; baselines of older versions do not have them
FREQUENCY = 0.02  # a larger relative difference of a pinned clock is another setting, and not an error of the reading
WARMER_MC = 15_000  # thousandths of a degree; such a rise of temperature may lower the clock


def repeats(measured: Measurement) -> bool:
    """Whether the device repeats its times in another session. It does if its clock is pinned, or counts instructions."""
    state = measured.conditions
    pinned = state.get("governor") == "performance" or bool(state.get("clocks_pinned"))
    return measured.device.emulated or pinned


def stale(now: Measurement, then: Measurement) -> tuple[str, ...]:
    """The changes since the baseline that make times incomparable, a sentence for each; empty if there are none."""
    facts = [(name, getattr(then.device, name), getattr(now.device, name)) for name in DEVICE]
    facts += [(name, getattr(then, name), getattr(now, name)) for name in ("threads", "dla", "precision")]
    known = [name for name in SYSTEM if name in then.conditions]
    facts += [(name, then.conditions.get(name), now.conditions.get(name)) for name in (*CLOCKS, *known)]
    if repeats(now) and repeats(then):
        before, after = (_number(one, "frequency_khz") for one in (then, now))
        if before and after and abs(after / before - 1) > FREQUENCY:
            facts.append(("frequency_khz", before, after))
    return tuple(f"{name} was {_fact(before)}, is {_fact(after)}" for name, before, after in facts if before != after)


def moved(now: Measurement, then: Measurement) -> str:
    """Why recorded times may differ although the baseline is not stale; empty if there is no reason."""
    if now.device.serial != then.device.serial:
        return "this is another device of the same kind"
    before, after = (_number(one, "temperature_mc") for one in (then, now))
    if before is not None and after is not None and abs(after - before) > WARMER_MC:
        return f"the temperature was {before / 1000:.0f} °C, is {after / 1000:.0f} °C"
    return ""


def _number(measured: Measurement, condition: str) -> float | None:
    """A condition that is a number; None if the device reported none, or text."""
    value = measured.conditions.get(condition)
    return None if isinstance(value, str) else value


def _fact(value: object) -> str:
    return "not reported" if value is None else printable(str(value), 100)
