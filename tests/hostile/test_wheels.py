"""The agent unpacks wheels inside their folder, or refuses them. pip's arguments are only what looks like a platform."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from edgeprune.devices import wire
from edgeprune.devices.agent.install import unpack
from edgeprune.devices.install import WheelPlatform, platform_of, platform_options
from edgeprune.errors import DeviceError
from edgeprune.records import Target
from edgeprune.runtimes.device import Failed


def wheel(path: Path, **files: str) -> str:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return str(path)


def test_a_wheel_is_unpacked_with_its_data(tmp_path: Path) -> None:
    folder = tmp_path / "site"
    folder.mkdir()
    files = {"pkg/__init__.py": "A = 1", "pkg-1.data/platlib/deep.py": "B = 2", "pkg-1.data/scripts/run": "x"}
    unpack(wheel(tmp_path / "pkg.whl", **files), str(folder))
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.py")) == ["deep.py", "pkg/__init__.py"]
    assert not list(folder.glob("*.data"))


@pytest.mark.parametrize("name", ["../out.py", "/tmp/edgeprune-out.py", "a/../../out.py"])
def test_a_wheel_with_a_file_outside_its_folder_is_refused(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "site"
    folder.mkdir()
    with pytest.raises(Failed, match="outside"):
        unpack(wheel(tmp_path / "bad.whl", **{name: "x"}), str(folder))
    assert not (tmp_path / "out.py").exists()


def test_a_link_in_a_wheel_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "site"
    folder.mkdir()
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "bad.whl", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(Failed, match="outside"):
        unpack(str(tmp_path / "bad.whl"), str(folder))


def platform(machine: str, python: str, glibc: str) -> wire.Platform:
    return wire.Platform(python, machine, glibc, free_bytes=1 << 30, clock_s=0.0, cores=4, pip=False)


@pytest.mark.parametrize(
    "facts",
    [
        platform("aarch64; rm -rf /", "3.11", "2.36"),
        platform("aarch64", "3.11 --index-url x", "2.36"),
        platform("aarch64", "3.7", "2.28"),
        platform("aarch64", "3.11", "unknown"),
        platform("", "", ""),
    ],
)
def test_a_device_that_is_not_supported_is_a_printable_error(facts: wire.Platform) -> None:
    """The report of the device becomes arguments of pip, so it must look like a platform."""
    with pytest.raises(DeviceError) as caught:
        platform_of(Target(Path("targets/t.toml"), "t", "ssh", "tflite"), facts)
    assert str(caught.value).isprintable()


def test_wheels_for_every_glibc_up_to_that_of_the_device_are_requested() -> None:
    options = platform_options(WheelPlatform("aarch64", (3, 11), (2, 36)))
    assert {"manylinux_2_35_aarch64", "manylinux_2_28_aarch64", "manylinux2014_aarch64"} <= set(options)
    assert "manylinux_2_37_aarch64" not in options
