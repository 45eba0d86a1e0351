"""The file beside a verdict that holds what the verdict rests on."""

from __future__ import annotations

from pathlib import Path

from edgeprune.errors import usage_error
from edgeprune.limits import LIMITS
from edgeprune.records import Evidence
from edgeprune.storage import codec
from edgeprune.storage.store import read_capped

NAME = "evidence.json"


def write(folder: Path, evidence: Evidence) -> None:
    """Write the evidence into the folder of a verdict."""
    (folder / NAME).write_text(codec.dumps_line(evidence), encoding="utf-8")


def read(folder: Path) -> Evidence:
    """The evidence in the folder of a verdict.

    Raises:
        UsageError: there is none, or it cannot be read. An early version did not keep it.
    """
    path = folder / NAME
    if not path.is_file():
        raise usage_error(f"{path}: is missing: an earlier edgeprune verified this run; run again with --fresh")
    text = read_capped(path, LIMITS.json_bytes).decode(errors="replace")
    return codec.loads(Evidence, text, str(path))
