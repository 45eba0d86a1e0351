"""What doctor finds in the state of a device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeprune.errors import DeviceError
from edgeprune.records import Deployment, Finding, Host, Prepare, Target
from edgeprune.reports import doctor

CALM = {"load": 0.1}


def target(**more: Any) -> Target:
    return Target(Path("t.toml"), "t", "local", "onnxruntime", **more)


@pytest.mark.parametrize(
    ("more", "state", "level", "text"),
    [
        ({}, {"load": 0.1}, "ok", "load average 0.1 on 4 cores"),
        ({}, {"load": 3.0}, "warn", "load average 3.0"),
        ({}, {"quota": 0.5}, "warn", "limits this device to 0.5 processors"),
        ({}, {"capped": 0.6}, "warn", "capped at 60%"),
        ({}, {"governor": "performance"}, "ok", "governor performance"),
        ({}, {"governor": "ondemand"}, "warn", "governor ondemand"),
        ({}, {"temperature_mc": 50_000}, "ok", "50 °C"),
        ({}, {"temperature_mc": 80_000}, "warn", "80 °C"),
        ({}, {"rails": "the board's rail VDD_IN"}, "ok", "power: by the board's rail VDD_IN"),
        ({}, {"power_mode": "15W"}, "ok", "power mode 15W"),
        ({"power_mode": "MAXN"}, {"power_mode": "15W"}, "fail", "MAXN is expected"),
        ({}, {"clocks_pinned": True}, "ok", "pinned"),
        ({}, {"clocks_pinned": False}, "warn", "may vary"),
        ({"clocks_pinned": True}, {"clocks_pinned": False}, "fail", "may vary"),
        ({"prepare": Prepare(jetson_clocks=True)}, {"clocks_pinned": False}, "ok", "may vary"),
        ({}, {"unheard": 1}, "warn", "does not reach the firmware"),
        ({}, {"throttled": 0}, "ok", "0x0"),
        ({}, {"throttled": 0x50000}, "warn", "0x50000"),
        ({}, {"throttled": 0x1}, "fail", "0x1"),
    ],
)
def test_each_condition_has_a_finding_and_each_problem_a_fix(
    more: dict[str, Any], state: dict[str, Any], level: str, text: str
) -> None:
    found = list(doctor._state(target(**more), {**CALM, **state}, 4))
    assert len(found) == len({**CALM, **state})
    assert found[-1].level == level and text in found[-1].what
    assert bool(found[-1].fix) == (level != "ok")


def test_a_capped_clock_of_a_jetson_is_blamed_on_its_power_mode() -> None:
    capped = [
        next(one for one in doctor._state(target(), {"capped": 0.6, **state}, 4) if "capped" in one.what)
        for state in ({}, {"power_mode": "15W"})
    ]
    assert "scaling_max_freq" in str(capped[0].fix) and "sudo nvpmodel -m ID" in str(capped[1].fix)


def test_every_host_is_examined_also_when_the_first_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    def device(target: Target) -> Iterator[Finding]:
        assert target.host is not None
        if target.host.name == "dead":
            raise DeviceError("is the device on?")
        yield Finding("ok", f"{target.host.name} answers")

    monkeypatch.setattr(doctor, "_device", device)
    deployed = Deployment(hosts=("dead", "alive"))
    target = Target(Path("t.toml"), "t", "ssh", "null", host=Host("dead"), deploy=deployed)
    found = [(finding.level, finding.what) for finding in doctor._hosts(target)]
    assert found == [
        ("ok", "host dead:"),
        ("fail", "is the device on?"),
        ("ok", "host alive:"),
        ("ok", "alive answers"),
    ]


def test_more_threads_than_cores_are_found() -> None:
    found = list(doctor._state(target(threads=4), CALM, 2))
    assert found[0].level == "warn" and found[0].fix == "set [runtime] threads = 2 in t.toml"
