"""Boards of one kind are the same device for releases and profiles. Boards that name the same processor may not be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from releases import this_device

from edgeprune.devices.agent import facts


def tree(folder: Path, model: str, *compatible: str) -> str:
    """A device tree as the kernel shows it: texts end in a null character."""
    folder.mkdir()
    (folder / "model").write_bytes(model.encode() + b"\0")
    (folder / "compatible").write_bytes(b"".join(text.encode() + b"\0" for text in compatible))
    return str(folder)


PI = "raspberrypi,4-model-b", "brcm,bcm2711"


def test_revisions_of_a_raspberry_pi_are_the_same_kind(tmp_path: Path) -> None:
    names = {
        facts.board_name(tree(tmp_path / revision, f"Raspberry Pi 4 Model B Rev {revision}", *PI))
        for revision in ("1.1", "1.4", "1.5")
    }
    assert names == {"Raspberry Pi 4 Model B"}
    other = facts.board_name(tree(tmp_path / "5", "Raspberry Pi 5 Model B Rev 1.0", "raspberrypi,5-model-b"))
    assert other == "Raspberry Pi 5 Model B"


def test_modules_of_one_family_are_different_kinds(tmp_path: Path) -> None:
    """All of them call the processor "ARMv8 Processor rev 1 (v8l)"."""
    boards = [
        ("NVIDIA Jetson AGX Orin Developer Kit", "nvidia,p3737-0000+p3701-0000"),
        ("NVIDIA Orin NX Developer Kit", "nvidia,p3768-0000+p3767-0000"),  # 16 GB
        ("NVIDIA Orin NX Developer Kit", "nvidia,p3768-0000+p3767-0001"),  # 8 GB, and a smaller GPU
    ]
    names = {facts.board_name(tree(tmp_path / module, name, module, "nvidia,tegra234")) for name, module in set(boards)}
    assert len(names) == 3


def test_a_machine_without_a_device_tree_is_named_by_its_processor(tmp_path: Path) -> None:
    assert facts.board_name(str(tmp_path)) == ""


@pytest.mark.parametrize(("other", "same"), [("Rev 1.5", True), ("Rev 1.4", True), ("", True), ("Plus Rev 1.4", False)])
def test_records_of_earlier_versions_are_of_the_same_kind(other: str, same: bool) -> None:
    known = this_device(cpu="Raspberry Pi 4 Model B Rev 1.4")
    assert (known.identity == replace(known, cpu=f"Raspberry Pi 4 Model B {other}".strip()).identity) is same
