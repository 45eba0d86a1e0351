"""A device that answers from a script: for contract and fault tests, shipped so that plug-ins can use it too."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeprune.devices.transports.base import Transport, copy_back

Answer = Callable[[Mapping[str, Any]], Mapping[str, Any]]


class Fake(Transport):
    """Answers every job with `answer(job)`; remembers the jobs and the files put."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.jobs: list[Mapping[str, Any]] = []
        self.files: list[Path] = []

    def put(self, files: Sequence[Path]) -> str:
        """Remember the files."""
        self.files.extend(files)
        return str(files[0])

    def get(self, remote: str, path: Path) -> None:
        """Copy a file."""
        copy_back(remote, path)

    def call(self, jobs: Sequence[Mapping[str, Any]], deadline_s: float) -> Iterator[Mapping[str, Any]]:
        """Answer from the script."""
        for job in jobs:
            self.jobs.append(job)
            yield {**self._answer(job), "id": job["id"]}

    def close(self) -> None:
        """Nothing to close."""
