"""Kinds of cores (big.LITTLE): what the device reports, and pinning. Profiles of two clusters are of two devices."""

from __future__ import annotations

import os
import threading
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from edgeprune.devices import wire
from edgeprune.devices.bench import Bench, identified
from edgeprune.devices.transports.base import Refusal, ask
from edgeprune.devices.transports.local import Local
from edgeprune.errors import DeviceError, UsageError
from edgeprune.frontends import toml
from edgeprune.records import Target
from edgeprune.reports import doctor
from edgeprune.runtimes import cores
from edgeprune.runtimes.cores import Cluster
from edgeprune.runtimes.device import Failed

LAST = str(max(os.sched_getaffinity(0)))


def target(**more: Any) -> Target:
    return Target(Path("t.toml"), "t", "local", "null", **more)


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def test_cores_are_written_as_linux_writes_them() -> None:
    assert cores.listed("0-2,5,4") == [0, 1, 2, 4, 5] and cores.written([5, 0, 2, 1, 4]) == "0-2,4-5"
    for wrong in ("", "a", "3-1", "1,,2", "-1", "99999"):
        with pytest.raises(ValueError, match="no list of cores"):
            cores.listed(wrong)


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight cores as on a RK3588 with one that is faster: 4 small, 3 large, 1 with another capacity."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    info = ""
    for core in range(8):
        capacity, khz, part = ("414", "1800000", "0xd05") if core < 4 else ("1024", "2400000", "0xd0b")
        if core == 7:
            capacity, khz = "1100", "2800000"
        write(tmp_path / f"cpu{core}" / "cpu_capacity", capacity)
        write(tmp_path / f"cpu{core}" / "cpufreq" / "cpuinfo_max_freq", khz)
        write(tmp_path / f"cpu{core}" / "cpufreq" / "scaling_max_freq", khz if core != 6 else "1200000")
        info += f"processor\t: {core}\nBogoMIPS\t: 48.00\nCPU implementer\t: 0x41\nCPU part\t: {part}\n\n"
    write(tmp_path / "cpuinfo", info)
    return tmp_path


def test_clusters_are_the_cores_of_one_part_and_capacity(board: Path) -> None:
    assert cores.clusters(str(board), str(board), ()) == (
        Cluster("0-3", "Cortex-A55", 1_800_000, 414),
        Cluster("4-6", "Cortex-A76", 2_400_000, 1024),
        Cluster("7", "Cortex-A76", 2_800_000, 1100),
    )


def test_cores_that_report_nothing_are_one_cluster_and_a_hybrid_processor_has_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    assert cores.clusters(str(tmp_path), str(tmp_path), ()) == (Cluster("0-3", "", None),)
    write(tmp_path / "atom", "2-3\n")
    hybrid = [(str(tmp_path / "none"), "performance"), (str(tmp_path / "atom"), "efficient")]
    assert cores.clusters(str(tmp_path), str(tmp_path), hybrid) == (Cluster("0-1", ""), Cluster("2-3", "efficient"))


def test_the_cap_of_every_own_core_counts(board: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeprune.devices.agent import contention

    assert contention.limits("none", "none", str(board)) == {"capped": 0.5}
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    assert contention.limits("none", "none", str(board)) == {}


# --------------------------------------------------------------------------------------------------------- pinning


def test_a_measurement_runs_on_the_named_cores_and_the_device_is_another_one(tmp_path: Path) -> None:
    model = tmp_path / "model.json"
    model.write_text('{"ns": 1000}')
    with closing(Local()) as link:
        bench = Bench(target(cores=LAST), link, tmp_path)
        (samples,) = bench.time([model], [], processes=1)
        assert samples.runs[0].before["cores"] == LAST == bench.device.pinned
        whole = identified(link, target())
    assert whole.pinned == "" and whole.cores == bench.device.cores
    assert whole.identity != bench.device.identity
    assert replace(bench.device, pinned="0").identity != bench.device.identity


def test_a_device_that_is_not_pinned_keeps_its_identity_of_earlier_versions(tmp_path: Path) -> None:
    with closing(Local()) as link:
        device = identified(link, target())
    facts = asdict(device)
    for name in ("boot_id", "serial", "simulated", "pinned"):
        del facts[name]
    from edgeprune.records.digests import digest

    assert device.identity == digest(facts)


def test_cores_that_the_device_does_not_have_are_an_error_before_anything_is_measured() -> None:
    with closing(Local()) as link, pytest.raises(Refusal, match=r"\[runtime\] cores = 1000: .*cannot have 1000"):
        identified(link, target(cores="1000"))
    with closing(Local()) as link, pytest.raises(Refusal, match="cannot have 900"):
        ask(link, "t", wire.Identify(20.0, "null", f"{LAST},900"))


def test_a_thread_that_left_its_cores_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "1" / "status", "Name:\tpython\nCpus_allowed_list:\t4-7\n")
    cores.require_pinned("4-7", str(tmp_path))
    write(tmp_path / "2" / "status", "Name:\tpool\nCpus_allowed_list:\t0,4-7\n")
    with pytest.raises(Failed, match="may also use 0, outside of 4-7"):
        cores.require_pinned("4-7", str(tmp_path))


def test_the_check_reads_the_threads_of_this_process() -> None:
    seen: list[str] = []

    def elsewhere() -> None:
        os.sched_setaffinity(threading.get_native_id(), {int(LAST)})
        try:
            cores.require_pinned("0" if LAST != "0" else "1")
        except Failed as error:
            seen.append(str(error))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen and "outside of" in seen[0]


def test_times_from_other_cores_are_refused(tmp_path: Path) -> None:
    with closing(Local()) as link:
        bench = Bench(target(cores=LAST), link, tmp_path)
        with pytest.raises(DeviceError, match=f"cores = {LAST}, and the device measured on 0-63"):
            bench._require_state({"cores": "0-63"})


# ------------------------------------------------------------------------------------------------------ target file


def read(tmp_path: Path, runtime: str) -> Target:
    path = tmp_path / "board.toml"
    path.write_text(f'[connect]\ntransport = "local"\n[runtime]\nname = "null"\n{runtime}\n')
    return toml.read_target(path)


def test_the_target_file_names_cores_and_they_are_part_of_its_settings(tmp_path: Path) -> None:
    plain, pinned = read(tmp_path, ""), read(tmp_path, 'threads = 4\ncores = "7,4-6"')
    assert pinned.cores == "4-7" and plain.cores is None
    assert plain.state == () and pinned.state == ("4-7",) and replace(pinned, dla=0).state[-1] == "4-7"


@pytest.mark.parametrize(
    ("runtime", "reason"),
    [
        ('cores = "big"', r'\[runtime\] cores must be cores as Linux writes them, such as "4-7"'),
        ('cores = "7-4"', "write the first core first"),
        ('threads = 4\ncores = "4-5"', r"threads = 4 do not fit on cores = '4-5'; set threads = 2"),
    ],
)
def test_cores_that_are_no_list_or_too_few_are_refused(runtime: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=reason):
        read(tmp_path, runtime)


# ----------------------------------------------------------------------------------------------------------- doctor


def test_doctor_names_the_clusters_and_pins_to_the_fastest() -> None:
    clusters = (Cluster("0-3", "Cortex-A55", 1_800_000), Cluster("4-7", "Cortex-A76", 2_400_000))
    (found,) = doctor._clusters(target(), clusters)
    assert found.level == "warn"
    assert found.what == "2 kinds of cores: 0-3 Cortex-A55, up to 1.8 GHz; 4-7 Cortex-A76, up to 2.4 GHz"
    assert found.fix == 'pin the measurements: [runtime] cores = "4-7" in t.toml'
    assert [one.level for one in doctor._clusters(target(cores="4-7"), clusters)] == ["ok"]
    assert list(doctor._clusters(target(), clusters[:1])) == []


@pytest.mark.parametrize(
    ("clusters", "threads", "pinned"),
    [
        ((Cluster("0-1", "Cortex-A53", 1_896_000, 631), Cluster("2-5", "Cortex-A73", 1_800_000, 1024)), 1, '"2-5"'),
        ((Cluster("0-1", "Cortex-A53", 1_896_000), Cluster("2-5", "Cortex-A73", 1_800_000)), 1, '"2-5"'),
        ((Cluster("0-3", "Cortex-A55"), Cluster("4-7", "Cortex-A76")), 1, '"4-7"'),
        ((Cluster("0-7", "performance", 5_000_000), Cluster("8-15", "efficient", 3_900_000)), 8, '"0-7"'),
        (
            (Cluster("0-3", "0x805", None, 400), Cluster("4-6", "0x804", None, 900), Cluster("7", "0x804", None, 1024)),
            3,
            '"4-6"',
        ),
        ((Cluster("0-1", "Cortex-A55"), Cluster("2-3", "Cortex-A76")), 4, '"2-3" in t.toml, with threads = 2'),
        ((Cluster("all\x1b[31m", "x", None, 2000), Cluster("0-1", "Cortex-A55")), 1, '"0-1"'),
    ],
    ids=["ODROID-N2", "with an old kernel", "no clocks", "PC", "phone", "too few everywhere", "hostile"],
)
def test_doctor_pins_to_the_fastest_cluster_that_has_a_core_for_each_thread(
    clusters: tuple[Cluster, ...], threads: int, pinned: str
) -> None:
    """A small core may have the higher clock. Fewer cores than threads are refused in the target file."""
    (found,) = doctor._clusters(target(threads=threads), clusters)
    assert f"cores = {pinned}" in found.fix and found.fix.isprintable()
