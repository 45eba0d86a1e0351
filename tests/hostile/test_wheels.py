"""Wheels that `setup` pushes are unpacked inside their folder, or not at all."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from edgeprune.devices.agent import agent
from edgeprune.devices.install import platform_of, platform_options
from edgeprune.errors import DeviceError
from edgeprune.records import Target


def wheel(path: Path, **files: str) -> str:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return str(path)


def test_a_wheel_is_unpacked_with_its_data(tmp_path: Path) -> None:
    folder = tmp_path / "site"
    folder.mkdir()
    files = {"pkg/__init__.py": "A = 1", "pkg-1.data/platlib/deep.py": "B = 2", "pkg-1.data/scripts/run": "x"}
    agent.unpack(wheel(tmp_path / "pkg.whl", **files), str(folder))
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.py")) == ["deep.py", "pkg/__init__.py"]
    assert not list(folder.glob("*.data"))


@pytest.mark.parametrize("name", ["../out.py", "/tmp/edgeprune-out.py", "a/../../out.py"])
def test_a_wheel_that_reaches_out_is_refused(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "site"
    folder.mkdir()
    with pytest.raises(agent.Failed, match="outside"):
        agent.unpack(wheel(tmp_path / "bad.whl", **{name: "x"}), str(folder))
    assert not (tmp_path / "out.py").exists()


def test_a_link_in_a_wheel_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "site"
    folder.mkdir()
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "bad.whl", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(agent.Failed, match="outside"):
        agent.unpack(str(tmp_path / "bad.whl"), str(folder))


@pytest.mark.parametrize(
    "facts",
    [
        {"machine": "aarch64; rm -rf /", "python": "3.11", "glibc": "2.36"},
        {"machine": "aarch64", "python": "3.11 --index-url x", "glibc": "2.36"},
        {"machine": "aarch64", "python": "3.7", "glibc": "2.28"},
        {"machine": "aarch64", "python": "3.11", "glibc": "unknown"},
        {},
    ],
)
def test_a_device_that_cannot_be_served_is_told_so(facts: dict[str, str]) -> None:
    """What it says goes into an argv of pip, so only what looks like a platform does."""
    with pytest.raises(DeviceError) as caught:
        platform_of(Target(Path("targets/t.toml"), "t", "ssh", "tflite"), facts)
    assert str(caught.value).isprintable()


def test_every_glibc_up_to_the_device_s_is_named() -> None:
    options = platform_options("aarch64", (3, 11), (2, 36))
    assert {"manylinux_2_35_aarch64", "manylinux_2_28_aarch64", "manylinux2014_aarch64"} <= set(options)
    assert "manylinux_2_37_aarch64" not in options
