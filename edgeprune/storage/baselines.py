"""Baselines and histories in `profiles/TARGET/`.

PROJECT.baseline.json     the baseline, declared by `edgeprune check --update`
PROJECT.baseline/         its artifact's files
PROJECT.history.jsonl     one line for each check
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from edgeprune.errors import UsageError
from edgeprune.limits import LIMITS
from edgeprune.records import Artifact, Baseline, Record
from edgeprune.storage import codec
from edgeprune.storage.store import digest_of, read_capped, write_atomic


@dataclass(frozen=True)
class Kept:
    """A stored baseline, and its artifact.

    `model` is the artifact's file to load. It is None if a file is missing or has changed; `missing` is then the reason.
    """

    baseline: Baseline
    model: Path | None
    missing: str = ""


def default_path(folder: Path, project: str) -> Path:
    """The file of a project's baseline in `profiles/TARGET`."""
    return folder / f"{project}.baseline.json"


def history_path(folder: Path, project: str) -> Path:
    """The file of a project's history in `profiles/TARGET`."""
    return folder / f"{project}.history.jsonl"


def valid_path(path: Path) -> Path:
    """The path, if a baseline can be stored there: the artifact's folder gets the same name. Raises `UsageError` if not."""
    if path.suffix != ".json" or path.is_dir():
        raise UsageError(f"{path}: a baseline is a file whose name ends in .json, such as NAME.baseline.json")
    return path


def read(path: Path) -> Baseline:
    """The baseline at `path`. Raises `UsageError` if there is none, or if it cannot be read."""
    if not path.is_file():
        raise UsageError(f"{path}: no such baseline; make one: edgeprune check --update --reason …")
    return codec.loads_kept(Baseline, _text(path, LIMITS.json_bytes), str(path))


def kept(path: Path) -> Kept:
    """The baseline at `path`, and its artifact. Raises as `read` does."""
    return with_artifact(path, read(path))


def with_artifact(path: Path, baseline: Baseline) -> Kept:
    """The baseline of the file `path`, with its artifact if all files are beside it and unchanged."""
    folder = path.with_suffix("")
    files = [folder / name for name in baseline.measured.files]
    for file in files:
        if file.is_symlink() or not file.is_file():
            return Kept(baseline, None, f"{file} is missing")
    if digest_of(files) != baseline.measured.artifact:
        return Kept(baseline, None, f"{folder} has changed; if Git LFS keeps its files: git lfs pull")
    return Kept(baseline, files[0])


def declare(path: Path, made: Baseline, artifact: Artifact) -> None:
    """Store a baseline and its artifact, and remove the ones before.

    The artifact is written first. After a kill in between, its digest does not match the older baseline.
    """
    before: tuple[str, ...] = ()
    if path.is_file():
        with suppress(UsageError):  # a broken baseline is replaced, too
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
    """The last checks of a history, the oldest first. Raises `UsageError` if there are none.

    They are sorted by time, since a merge of branches may leave lines in any order.
    """
    if not path.exists():
        raise UsageError(f"{path}: nothing was checked yet; run: edgeprune check")
    lines = _text(path, LIMITS.history_bytes).splitlines()
    records = [codec.loads(Record, line, f"{path}:{i}") for i, line in enumerate(lines, start=1)]
    return sorted(records, key=lambda record: record.created_s)[-LIMITS.history_records :]


def _text(path: Path, cap: int) -> str:
    return read_capped(path, cap).decode(errors="replace")  # the codec then reports the file as broken
