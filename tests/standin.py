"""A stand-in for NVIDIA's trtexec, which only their devices have."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from edgeprune.devices.virtual import trtexec


def put_stand_in(version: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a stand-in for a version of trtexec first in PATH, and engines into `home`."""
    folder = home / "trtexec"
    folder.mkdir(exist_ok=True)
    _, _, text = Path(trtexec.__file__).read_text().partition("\n")
    (folder / "trtexec").write_text(f"#!{sys.executable}\n{text}")
    (folder / "trtexec").chmod(0o755)
    (folder / "standin-version").write_text(version)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(home))
