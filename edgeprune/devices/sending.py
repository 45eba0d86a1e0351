"""Which files are sent to a device together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from edgeprune.limits import LIMITS


def with_siblings(model: Path) -> list[Path]:
    """A model's file and the other files of its folder, which belong to it."""
    return [model, *sorted(path for path in model.parent.iterdir() if path.is_file() and path != model)]


def portions(batches: Sequence[Sequence[Path]]) -> Iterator[list[Sequence[Path]]]:
    """The batches in groups of at most `LIMITS.call_bytes` of different models."""
    part: list[Sequence[Path]] = []
    for batch in batches:
        models = {model for b in [*part, batch] for model in b}
        if part and sum(file.stat().st_size for m in models for file in with_siblings(m)) > LIMITS.call_bytes:
            yield part
            part = []
        part.append(batch)
    if part:
        yield part
