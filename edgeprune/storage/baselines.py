"""What checks keep in `profiles/TARGET/`: a baseline, its artifact in a folder beside it, and the history of all checks.

PROJECT.baseline.json     the baseline, as `edgeprune check --update` declared it
PROJECT.baseline/         its artifact's files
PROJECT.history.jsonl     a line a check
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from edgeprune.errors import UsageError
from edgeprune.limits import LIMITS
from edgeprune.records import Artifact, Baseline, Record
from edgeprune.storage import codec
from edgeprune.storage.store import digest_of, read_capped, write_atomic


def place_of(path: Path) -> Path:
    """A path for a baseline, which its artifact's folder is named after. Raises `UsageError` where there can be none."""
    if path.suffix != ".json" or path.is_dir():
        raise UsageError(f"{path}: a baseline is a file whose name ends in .json, such as NAME.baseline.json")
    return path


def read(path: Path) -> Baseline:
    """The baseline at `path`. Raises `UsageError` where there is none, or none that can be read."""
    if not path.is_file():
        raise UsageError(f"{path}: no such baseline; make one: edgeprune check --update --reason …")
    return codec.loads_kept(Baseline, _text(path, LIMITS.json_bytes), str(path))


def _text(path: Path, cap: int) -> str:
    return read_capped(path, cap).decode(errors="replace")  # what is no text is then no JSON, and named as such


def artifact(path: Path, baseline: Baseline) -> tuple[Path | None, str]:
    """The baseline's artifact: the file to load, where all of its files lie beside it as they were; else None, and why."""
    folder = path.with_suffix("")
    files = [folder / name for name in baseline.measured.files]
    for file in files:
        if file.is_symlink() or not file.is_file():
            return None, f"{file} is missing"
    if digest_of(files) != baseline.measured.artifact:
        return None, f"{folder} is not as it was; a pointer of Git LFS is no artifact: git lfs pull"
    return files[0], ""


def declare(path: Path, made: Baseline, artifact: Artifact) -> None:
    """Keep a baseline and its artifact, in the place of those before: after a kill between them, the artifact is not taken
    for the baseline's."""
    before: tuple[str, ...] = ()
    if path.is_file():
        with suppress(UsageError):  # a broken or older one, which this one mends
            before = read(path).measured.files
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
    """The last checks of a history, the oldest first. Raises `UsageError` where there were none.

    Sorted, since lines of two branches that were merged stand in any order.
    """
    if not path.exists():
        raise UsageError(f"{path}: nothing was checked yet; see edgeprune check")
    lines = _text(path, LIMITS.history_bytes).splitlines()
    records = [codec.loads(Record, line, f"{path}:{i}") for i, line in enumerate(lines, start=1)]
    return sorted(records, key=lambda record: record.created_s)[-LIMITS.history_records :]
