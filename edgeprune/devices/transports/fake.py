"""A device that answers from a script: for contract and fault tests. It ships, so that plug-ins can use it too."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from edgeprune.devices.transports.base import Document, Transport, copy_back

Answer = Callable[[Document], Document]


class Fake(Transport):
    """Answers every job with `answer(job)`; it keeps the jobs and the files that it got."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.jobs: list[Document] = []
        self.files: list[Path] = []

    def put(self, files: Sequence[Path]) -> str:
        """Keep the paths."""
        self.files.extend(files)
        return str(files[0])

    def get(self, remote: str, path: Path) -> None:
        """Copy a file."""
        copy_back(remote, path)

    def call(self, jobs: Sequence[Document], deadline_s: float) -> Iterator[Document]:
        """Answer from the script."""
        for job in jobs:
            self.jobs.append(job)
            yield {**self._answer(job), "id": job["id"]}

    def close(self) -> None:
        """Nothing to close."""
