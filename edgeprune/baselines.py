"""What checks keep in `profiles/TARGET/`: a baseline, its artifact in a folder beside it, and the history of all checks.

PROJECT.baseline.json     the baseline, as `edgeprune check --update` declared it
PROJECT.baseline/         its artifact's files
PROJECT.history.jsonl     a line a check
"""

from __future__ import annotations

from pathlib import Path

from edgeprune import codec
from edgeprune.errors import UsageError
from edgeprune.limits import LIMITS
from edgeprune.store import digest_of, read_capped, write_atomic
from edgeprune.types import Artifact, Baseline, Record


def read(path: Path) -> Baseline:
    """The baseline at `path`. Raises `UsageError` where there is none, or none that can be read."""
    if not path.is_file():
        raise UsageError(f"{path}: no such baseline; make one: edgeprune check --update --reason …")
    return codec.loads_kept(Baseline, read_capped(path, LIMITS.json_bytes).decode(), str(path))


def artifact(path: Path, baseline: Baseline) -> Path | None:
    """The baseline's artifact: the file to load, where all of its files lie beside it as they were."""
    files = [path.with_suffix("") / name for name in baseline.measured.files]
    whole = all(file.is_file() and not file.is_symlink() for file in files)
    return files[0] if whole and digest_of(files) == baseline.measured.artifact else None


def declare(path: Path, made: Baseline, artifact: Artifact) -> None:
    """Keep a baseline and its artifact, in the place of those before: after a kill between them, the artifact is not taken
    for the baseline's."""
    before = read(path).measured.files if path.is_file() else ()
    for file in artifact.files:
        write_atomic(path.with_suffix("") / file.name, file.read_bytes())
    write_atomic(path, codec.dumps_kept(made).encode())
    for name in set(before) - set(made.measured.files):
        (path.with_suffix("") / name).unlink(missing_ok=True)


def remember(path: Path, record: Record) -> None:
    """Add a check to a history."""
    before = read_capped(path, LIMITS.history_bytes) if path.exists() else b""
    write_atomic(path, before + codec.dumps_line(record).encode() + b"\n")


def history(path: Path) -> list[Record]:
    """The last checks of a history, the oldest first. Raises `UsageError` where there were none."""
    if not path.exists():
        raise UsageError(f"{path}: nothing was checked yet; see edgeprune check")
    lines = read_capped(path, LIMITS.history_bytes).decode().splitlines()
    first = max(0, len(lines) - LIMITS.history_records)
    return [codec.loads(Record, line, f"{path}:{first + i}") for i, line in enumerate(lines[first:], start=1)]
