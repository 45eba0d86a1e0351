"""Boards that few people have: what their kernels and tools write, and what edgeprune makes of it."""

from __future__ import annotations

import errno
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeprune.devices.agent import contention, facts
from edgeprune.records import Host, Target
from edgeprune.reports import doctor
from edgeprune.runtimes import cores, machine
from edgeprune.runtimes.cores import Cluster
from edgeprune.runtimes.null.device import RUNTIME
from edgeprune.runtimes.tensorrt import jetson

Tree = Callable[[dict[str, str]], str]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Writes files as a kernel has them: {path: content}. Returns their folder."""

    def write(files: dict[str, str]) -> str:
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode("latin-1"))
        return str(tmp_path)

    return write


# ------------------------------------------------------------------------------------------------------------- names

PI = "processor\t: 0\nBogoMIPS\t: 108.00\nCPU implementer\t: 0x41\nCPU part\t: 0xd08\n\n"


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [
        (f"{PI}Serial\t\t: 10000000abcdef01\nModel\t\t: Raspberry Pi 4 Model B Rev 1.4\n", "Raspberry Pi 4 Model B"),
        ("processor\t: 0\nCPU part\t: 0xd05\n\nHardware\t: Qualcomm SM8250\n", "Qualcomm SM8250"),
        (
            "processor\t: 0\nmodel\t\t: 85\nmodel name\t: Intel(R) Xeon(R) CPU E5-2680 v4\n",
            "Intel(R) Xeon(R) CPU E5-2680 v4",
        ),
        ("processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n", "0x41/0xd0c"),
        *(
            (
                f"processor\t: 0\nmodel name\t: ARMv8 Processor rev 1 (v8l)\nCPU implementer\t: 0x41\nCPU part\t: {part}\n",
                f"0x41/{part}",
            )
            for part in ("0xd07", "0xd42")
        ),
    ],
    ids=["Pi in a container", "phone", "server", "Arm server", "Jetson Nano in a container", "Orin in a container"],
)
def test_without_a_device_tree_the_kernel_still_names_the_board(cpuinfo: str, name: str, tree: Tree) -> None:
    assert facts.cpu_name(tree({"cpuinfo": cpuinfo})) == name


def test_a_container_has_the_identity_of_its_board(tree: Tree) -> None:
    """Docker hides the device tree."""
    proc = tree({"cpuinfo": PI + "Serial\t\t: 10000000abcdef01\nModel\t\t: Raspberry Pi 5 Model B Rev 1.0\n"})
    inside = facts.cpu_name(proc)
    tree({"device-tree/model": "Raspberry Pi 5 Model B Rev 1.1\0", "device-tree/compatible": "raspberrypi,5-model-b\0"})
    assert inside == facts.cpu_name(proc) == "Raspberry Pi 5 Model B"
    assert facts.processor(proc)["Serial"] == "10000000abcdef01"


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["StarFive VisionFive 2 v1.2A", "StarFive VisionFive 2 v1.3B"], "StarFive VisionFive 2"),
        (["Pine64 RockPro64 v2.0", "Pine64 RockPro64 v2.1", "Pine64 RockPro64 V2.1"], "Pine64 RockPro64"),
        (
            ["BeagleBoard.org BeagleV Ahead rev A0", "BeagleBoard.org BeagleV Ahead Rev. B"],
            "BeagleBoard.org BeagleV Ahead",
        ),
        (["Raspberry Pi Model B Rev 2", "Raspberry Pi Model B Rev 1"], "Raspberry Pi Model B"),
        (["Raspberry Pi Zero 2 W Rev 1.0"], "Raspberry Pi Zero 2 W"),
        (
            [f"NVIDIA Jetson Nano Developer Kit (nvidia,p3449-0000-{one}+p3448-0000-{one})" for one in ("a02", "b00")],
            "NVIDIA Jetson Nano Developer Kit (nvidia,p3449-0000+p3448-0000)",
        ),
        (["Intel(R) Xeon(R) CPU E5-2680 v4"], "Intel(R) Xeon(R) CPU E5-2680 v4"),
        (["Radxa ROCK 5B"], "Radxa ROCK 5B"),
        (["Libre Computer AML-S905X-CC V2"], "Libre Computer AML-S905X-CC V2"),
    ],
)
def test_a_revision_of_a_board_is_not_its_kind(names: list[str], kind: str) -> None:
    assert {facts.kind_of(name) for name in names} == {kind}


@pytest.mark.parametrize(
    ("library", "found"), [(("glibc", "2.36"), "2.36"), (("musl", "1.2"), "unknown"), (("", ""), "unknown")]
)
def test_another_library_of_c_is_no_glibc(
    library: tuple[str, str], found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alpine has musl, and Android bionic: no wheel of a runtime fits."""
    monkeypatch.setattr(platform, "libc_ver", lambda: library)
    assert facts._glibc() == found


# ------------------------------------------------------------------------------------------------------- temperature


@pytest.mark.parametrize(
    ("zones", "expected"),
    [
        ({"wkup-thermal": "41000", "mpu-thermal": "52000", "gpu-thermal": "47000"}, 52_000),  # BeagleBone AI-64
        ({"soc-thermal": "43461", "bigcore0-thermal": "44384", "npu-thermal": "60000"}, 44_384),  # Rock 5
        ({"cpu-thermal0": "51000", "pmic-thermal0": "99000", "drc-thermal0": "58000"}, 51_000),  # i.MX8
        ({"cpu-1-0-usr": "47100", "soc": "100", "battery": "31000", "pm8150b-vbat-lvl0": "4200000"}, 47_100),  # phone
        ({"cpu-thermal": "N/A", "cpu1-thermal": "--4", "cpu2-thermal": "1e5", "gpu-thermal": "41000"}, 41_000),
        ({"thermal_zone": "45"}, None),  # degrees, as in the kernel of an old Orange Pi
        ({"tj-thermal": "49500", "cv0-thermal": "-256000"}, 49_500),  # Orin NX
        (
            {"cpu0-thermal": "127000", "cpu1-thermal": "-274000", "gpu-thermal": "0", "ddr-thermal": "44000"},
            44_000,
        ),  # off
    ],
)
def test_the_zone_of_the_processor_is_found(zones: dict[str, str], expected: int | None, tree: Tree) -> None:
    files = {f"thermal/zone{i}/type": kind + "\n" for i, kind in enumerate(zones)}
    files |= {f"thermal/zone{i}/temp": value + "\n" for i, value in enumerate(zones.values())}
    root = tree(files)
    assert machine.temperature_mc(f"{root}/thermal", f"{root}/none") == expected


def test_a_processor_without_a_zone_has_a_monitor(tree: Tree) -> None:
    """An AMD mini-PC: its only zone is that of the firmware."""
    root = tree(
        {
            "thermal/thermal_zone0/type": "acpitz\n",
            "thermal/thermal_zone0/temp": "16800\n",
            "hwmon/hwmon0/name": "nvme\n",
            "hwmon/hwmon0/temp1_input": "61850\n",
            "hwmon/hwmon3/name": "k10temp\n",
            "hwmon/hwmon3/temp1_input": "54375\n",
        }
    )
    assert machine.temperature_mc(f"{root}/thermal", f"{root}/hwmon") == 54_375


@pytest.mark.parametrize("kind", ["idle-cpu0", "thermal-idle-0", "cpufreq-cpu4", "thermal-cpufreq-1"])
def test_a_cap_has_another_name_in_every_kernel(kind: str, tree: Tree) -> None:
    root = tree({"a/type": kind + "\n", "a/cur_state": "3\n"})
    assert machine.heat_caps(root) is True


def test_idle_time_that_heat_forces_is_a_cap(tree: Tree) -> None:
    root = tree({"a/type": "intel_powerclamp\n", "a/cur_state": "-1\n", "b/type": "Processor\n", "b/cur_state": "0\n"})
    assert machine.heat_caps(root) is False
    tree({"a/cur_state": "20\n"})
    assert machine.heat_caps(root) is True


@pytest.mark.parametrize(("reason", "has"), [(errno.EPERM, False), (errno.EROFS, True), (errno.ENOSPC, True)])
def test_a_home_that_is_read_only_or_full_is_not_taken_for_exfat(
    reason: int, has: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(os, "symlink", refused)
    assert machine.has_symlinks() is has


# ----------------------------------------------------------------------------------------------------- Raspberry Pis


@pytest.mark.parametrize("folder", ["soc/soc:firmware", "soc@107c000000/soc@107c000000:firmware"])
def test_the_kernel_of_every_raspberry_pi_reports_the_flags(
    folder: str, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts, "vcgencmd", lambda question: None)
    root = tree({f"{folder}/get_throttled": "50005\n"})
    assert facts.throttled(f"{root}/soc*/soc*:firmware/get_throttled") == 0x50005


def test_an_old_system_has_vcgencmd_outside_of_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: name if name.startswith("/opt/vc") else None)
    assert facts._tool() == "/opt/vc/bin/vcgencmd"


# ------------------------------------------------------------------------------------------------------------ phones


def test_a_load_that_nobody_may_read_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Android hides /proc/loadavg."""

    def hidden() -> tuple[float, float, float]:
        raise OSError("Load averages are unobtainable")

    monkeypatch.setattr(os, "getloadavg", hidden)
    found = facts.conditions(RUNTIME)
    assert "load" not in found and "boot_id" in found
    target = Target(Path("t.toml"), "t", "ssh", "null", host=Host("board"))
    assert [finding.what for finding in doctor._state(target, {"governor": "performance"}, 4)] == [
        "frequency governor performance"
    ]


# ----------------------------------------------------------------------------------------------- /proc and cgroups


def test_a_quota_is_found_where_the_controllers_are_in_another_order(tree: Tree) -> None:
    """CentOS 7: the group is of "cpuacct,cpu", and its folder is cpu,cpuacct, with a link cpu."""
    root = tree({"proc/self/cgroup": "4:cpuacct,cpu:/job\n1:name=systemd:/job\n", "cgroup/cpu,cpuacct/x": ""})
    os.symlink("cpu,cpuacct", f"{root}/cgroup/cpu")
    tree(
        {"cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "150000\n", "cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000\n"}
    )
    assert contention.quota_cores(f"{root}/proc", f"{root}/cgroup") == 1.5


def ticks(proc: str, pid: int, name: str) -> dict[str, str]:
    return {f"{proc}/{pid}/stat": f"{pid} ({name}) R 1 1 1 0 -1 0 1 0 0 0 900 0 0 0 20 0 1 0 100 1000 10\n"}


def test_what_other_users_do_is_not_known_where_their_processes_are_hidden(tree: Tree) -> None:
    root = tree(ticks("hidden", 77, "own") | ticks("seen", 77, "own") | ticks("seen", 1, "init"))
    hidden, seen = (contention.snapshot(f"{root}/{name}", "none") for name in ("hidden", "seen"))
    assert "others" not in contention.between(hidden, hidden, own=77)
    assert contention.between(seen, seen, own=77) == {"others": 0.0}


def test_a_process_may_have_a_name_in_any_encoding(tree: Tree) -> None:
    root = tree(ticks("proc", 8, "caf\xe9"))
    assert contention.snapshot(f"{root}/proc", "none").ticks[8] == ("caf\\xe9", 900)


# ------------------------------------------------------------------------------------------------------------- cores


def cores_of(cpuinfo: str, count: int, tree: Tree, monkeypatch: pytest.MonkeyPatch) -> tuple[Cluster, ...]:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(count)))
    return cores.clusters("none", tree({"cpuinfo": cpuinfo}), ())


def test_an_old_kernel_writes_the_part_once_for_all_cores(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """An Orange Pi with a kernel of 3.4: it would look as if its last core was of another kind."""
    listed = "".join(f"processor\t: {core}\nBogoMIPS\t: 4800.00\n\n" for core in range(4))
    text = (
        f"Processor\t: ARMv7 Processor rev 5 (v7l)\n{listed}Features\t: neon\nCPU part\t: 0xc07\n\nHardware\t: sun8i\n"
    )
    assert cores_of(text, 4, tree, monkeypatch) == (Cluster("0-3", "Cortex-A7"),)


def test_equal_cores_of_arm_with_another_clock_are_of_another_kind(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """A RK3368: eight Cortex-A53, four of them slower. The best cores of a PC may go a little higher, and are of one kind."""
    clocks = {f"cpu{i}/cpufreq/cpuinfo_max_freq": f"{1512 if i < 4 else 1200}000\n" for i in range(8)}
    root = tree({"cpuinfo": "".join(f"processor\t: {i}\nCPU part\t: 0xd03\n\n" for i in range(8)), **clocks})
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert cores.clusters(root, root, ()) == (
        Cluster("0-3", "Cortex-A53", 1_512_000),
        Cluster("4-7", "Cortex-A53", 1_200_000),
    )
    assert cores.clusters(root, "none", ()) == (Cluster("0-7", "", 1_512_000),)


def test_the_cores_of_a_phone_and_of_an_odroid_are_told_apart(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    def text(*parts: str) -> str:
        return "".join(f"processor\t: {i}\nCPU part\t: {part}\n\n" for i, part in enumerate(parts))

    odroid = cores_of(text(*["0xc07"] * 4, *["0xc0f"] * 4), 8, tree, monkeypatch)
    assert odroid == (Cluster("0-3", "Cortex-A7"), Cluster("4-7", "Cortex-A15"))
    phone = cores_of(text("0x805", "0x805", "0x804", "0x804"), 4, tree, monkeypatch)
    assert [one.cores for one in phone] == ["0-1", "2-3"] and len({one.kind for one in phone}) == 2


# ----------------------------------------------------------------------------------------------------------- Jetsons


@pytest.mark.parametrize(
    ("kind", "hot"),
    [
        ("devfreq-17000000.ga10b", True),  # Orin with JetPack 5
        ("devfreq-17000000.gv11b", True),  # Xavier
        ("devfreq-17000000.gpu", True),
        ("devfreq-gpu-gpc-0", True),  # Thor
        ("devfreq-gpu-nvd-0", False),  # its decoder
        ("CPU-balanced", True),
        ("skin-balanced", True),
        ("pwm-fan", False),
        ("devfreq-bwmgr", False),
    ],
)
def test_heat_that_lowers_a_clock_of_a_jetson_is_found(kind: str, hot: bool, tree: Tree) -> None:
    root = tree(
        {
            "cooling_device0/type": "cpufreq-cpu0\n",
            "cooling_device0/cur_state": "0\n",
            "cooling_device1/type": kind + "\n",
            "cooling_device1/cur_state": "2\n",
        }
    )
    assert jetson.limits(root, "none") == {"throttled": jetson.THROTTLED if hot else 0}


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (
            "11-02-2026 10:11:12 RAM 9021/125772MB (lfb 12x256kB) CPU [0%@972,off] GR3D_FREQ @[1575,1575,1575] cpu@41C"
            " VDD_GPU 3163mW/3163mW VDD_CPU_SOC_MSS 5537mW/5537mW VIN_SYS_5V0 6068mW/6068mW VIN 31500mW/31000mW",
            {"gpu_mhz": 1575, "power_mw": 31_500},
        ),
        (
            "RAM 3201/15523MB (lfb 4x4MB) CPU [2%@729] EMC_FREQ 0%@3199 GR3D_FREQ 0%@[305] VDD_IN 4812mW/4812mW"
            " VDD_CPU_GPU_CV 761mW/761mW VDD_SOC 1444mW/1444mW",
            {"emc_mhz": 3199, "gpu_mhz": 305, "power_mw": 4812},
        ),
        ("RAM 1/2MB CPU [2%@729] VDD_GPU_SOC 3150mW/2971mW VIN_SYS_5V0 4968mW/5048mW", {}),
    ],
    ids=["Thor", "Orin NX", "AGX Orin has no rail for all"],
)
def test_a_line_of_tegrastats_is_read(line: str, found: dict[str, Any]) -> None:
    assert jetson.tegrastats_of(line) == found
