"""`edgeprune setup`: the device's own pip first, then wheels from this machine."""

from __future__ import annotations

import zipfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from edgeprune.devices import install, wire
from edgeprune.devices.transports.base import slowness
from edgeprune.devices.transports.fake import Fake
from edgeprune.errors import DeviceError, UsageError
from edgeprune.limits import LIMITS
from edgeprune.records import Host, Target

PLATFORM = wire.Platform("3.11", "aarch64", "2.36", free_bytes=1 << 30, clock_s=0.0, cores=4, pip=True)
IDENTITY = wire.Identity("aarch64", "cpu", 4, "Linux", "onnxruntime", "1.2", "boot", "serial", False, False)
TARGET = Target(Path("targets/board.toml"), "board", "ssh", "onnxruntime", host=Host("board"))


def failure(kind: str) -> dict[str, Any]:
    return {"error": kind, "message": "no network"}


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a device with or without the runtime, whose pip works or fails; wheels are one file."""

    def make(present: bool, pip_works: bool) -> Fake:
        installed = {"there": present}

        def answer(job: Any) -> dict[str, Any]:
            reply: dict[str, Any] = {}
            if job["mode"] == "examine":
                reply = {**asdict(PLATFORM), "clusters": []}
            elif job["mode"] == "identify":
                reply = asdict(IDENTITY) if installed["there"] else failure("runtime-missing")
            elif job["wheels"] or pip_works:
                installed["there"] = True
            else:
                reply = failure("pip")
            return {"id": job["id"], **reply}

        fake = Fake(answer)
        monkeypatch.setattr("edgeprune.devices.transports.connect", lambda target, wait_s: fake)
        return fake

    def fetched(packages: object, options: list[str], folder: Path) -> list[Path]:
        wanted.append("--no-deps" not in options)
        with zipfile.ZipFile(folder / "a.whl", "w") as wheel:
            wheel.writestr("a.py", "#" * 1000)
        return [folder / "a.whl"]

    wanted: list[bool] = []
    monkeypatch.setattr(install, "fetch", fetched)
    make.dependencies = wanted  # type: ignore[attr-defined]
    return make


def installs(fake: Fake) -> list[tuple[int, int]]:
    """How many wheels and requirements each install job has."""
    return [(len(job["wheels"]), len(job["requirements"])) for job in fake.jobs if job["mode"] == "install"]


@pytest.mark.parametrize(
    ("present", "pip_works", "expected"),
    [(True, True, []), (False, True, [(0, 1)]), (False, False, [(0, 1), (1, 0)])],
    ids=["installed", "pip", "wheels"],
)
def test_a_runtime_is_installed_once(present: bool, pip_works: bool, expected: list[Any], device: Any) -> None:
    fake, lines = device(present, pip_works), []
    assert install.setup(TARGET, lines.append) == "1.2"
    assert [(wheels, min(1, packages)) for wheels, packages in installs(fake)] == expected
    assert lines[0] == "board answers: aarch64, Python 3.11, glibc 2.36" and "onnxruntime 1.2 is" in lines[-1]


@pytest.mark.parametrize(("runtime", "whole"), [("onnxruntime", True), ("executorch", False)])
def test_packages_that_a_runtime_does_not_import_are_left_out(runtime: str, whole: bool, device: Any) -> None:
    """ExecuTorch's own list has packages of its exporter, and one without a wheel."""
    fake = device(False, False)
    install.setup(replace(TARGET, runtime=runtime), print)
    by_pip, _ = (job for job in fake.jobs if job["mode"] == "install")
    assert by_pip["dependencies"] is whole and device.dependencies == [whole]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"free_bytes": 500}, "onnxruntime needs 0 MB on the device, and 0 MB are free"),
        ({"bits": 32}, r"board has a 32-bit system \(its kernel is aarch64\)"),
        ({"noexec": True}, "mounted noexec"),
    ],
)
def test_nothing_is_sent_to_a_device_that_cannot_hold_or_load_it(
    change: dict[str, Any], reason: str, device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.PLATFORM", replace(PLATFORM, **change))
    fake = device(False, False)
    with pytest.raises(DeviceError, match=reason):
        install.setup(TARGET, print)
    assert fake.files == [] and all(not job["wheels"] for job in fake.jobs if job["mode"] == "install")


def test_an_emulated_device_gets_more_time_for_every_step(device: Any) -> None:
    """Its clock is slow, and a busy machine makes it slower."""
    deadlines = {}
    for emulated in (False, True):
        target = replace(TARGET, emulated=emulated)
        fake = device(False, False)
        fake.slowness, call, seen = slowness(target), fake.call, deadlines.setdefault(emulated, [])
        fake.call = lambda jobs, deadline_s, call=call, seen=seen: seen.append(deadline_s) or call(jobs, deadline_s)
        install.setup(target, print)
    assert deadlines[True] == [LIMITS.emulated_slowness * each for each in deadlines[False]]


def test_this_machine_is_not_set_up() -> None:
    with pytest.raises(UsageError, match="this machine is the device"):
        install.setup(Target(Path("t.toml"), "t", "local", "onnxruntime"), print)
