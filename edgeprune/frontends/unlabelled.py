"""Samples without labels: `[data] samples` stands for the splits, the loss and the metric that a user would write.

The targets are the original network's outputs. So a loss and a metric say how far a network's outputs are from them. This
module does not import torch: a run that reuses everything does not need the samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgeprune.errors import UsageError
from edgeprune.frontends import checkpoint, samplefiles, tracing
from edgeprune.frontends.functions import guarded
from edgeprune.records import DataSection, ModelSection, Preprocess
from edgeprune.storage.store import file_sha256

if TYPE_CHECKING:
    from edgeprune.frontends.agreement import Comparison

Made = Literal["train", "valid", "test", "loss", "metric"]
MADE: tuple[Made, ...] = ("train", "valid", "test", "loss", "metric")


@dataclass(frozen=True, eq=False)
class Objects:
    """Samples that a program gives: see `samplefiles.Held`."""

    given: Any


@dataclass(frozen=True)
class Unlabelled:
    """Samples without labels, and the network whose outputs are their targets.

    Attributes:
        where: the key and its value, in messages.
        path: the project file; the folder of a project that is made of objects.
        folder: what the pattern is relative to.
        objects: whether the project is made of objects.
        given: a pattern of files, or samples in memory.
        model: makes the network.
        preprocess: part of the network.
        seed: of a network without weights.
    """

    where: str
    path: Path
    folder: Path
    objects: bool
    given: str | Objects
    model: ModelSection
    preprocess: Preprocess | None
    seed: int

    def section(self, **others: Any) -> DataSection:
        """`[data]` with the functions that these samples stand for. `others` are keys that the user gave instead."""
        made: dict[str, Any] = {name: Part(self, name) for name in MADE}
        shown = self.given if isinstance(self.given, str) else "objects"
        return DataSection(**made | others, samples=shown, is_agreement="metric" not in others)

    @cached_property
    def sources(self) -> Mapping[str, str]:
        """Digests of what the targets follow from. A stage's key has another digest of the samples."""
        found = {**self.model.factory.sources(), **self.model.inputs.sources()}
        for file in self._weights:
            found[f"weights {file.name}"] = file_sha256(file) if file.is_file() else "missing"
        return {**found, "[preprocess]": repr(self.preprocess), "[finetune] seed": str(self.seed)}

    @property
    def _weights(self) -> tuple[Path, ...]:
        return tuple(checkpoint.files(self.model.weights)) if self.model.weights else ()

    def files(self) -> list[Path]:
        """The files of the pattern. Raises `UsageError` if there are none."""
        assert isinstance(self.given, str)
        try:
            return samplefiles.found(self.given, self.folder)
        except UsageError as error:
            raise UsageError(f"{self.where}: {error}") from error

    def state(self) -> str:
        """A digest of the sizes and times of all files that the splits and their targets are made from."""
        files = [*self._weights, *(self.files() if isinstance(self.given, str) else ())]
        return tracing.state({str(file): tracing.of_file(str(file)) for file in files}, {}, ())

    def guarded(self, where: str = "") -> AbstractContextManager[None]:
        """A context in which samples are read; see `records.Function.guarded`."""
        if self.objects:
            return self.model.factory.guarded(where or self.where)
        return guarded(self.path.parent, where or self.where)  # what is read there counts as read by the project's code


@dataclass(frozen=True)
class Part:
    """One of the functions that samples without labels stand for; see `records.Function`."""

    samples: Unlabelled
    made: Made

    @property
    def where(self) -> str:
        """See `records.Function.where`."""
        return self.samples.where

    @property
    def name(self) -> str:
        """See `records.Function.name`."""
        return f"samples:{self.made}"

    def load(self) -> Callable[..., Any]:
        """See `records.Function.load`. It is the same callable until a file changes."""
        key = tuple(sorted(self.samples.sources.items()))
        return _comparison(self.samples, key, self.samples.state()).functions[self.made]

    def sources(self) -> Mapping[str, str]:
        """See `records.Function.sources`."""
        return self.samples.sources

    def guarded(self, where: str = "") -> AbstractContextManager[None]:
        """See `records.Function.guarded`."""
        return self.samples.guarded(where)


@lru_cache(1)  # the last project's: samples and targets take memory
def _comparison(samples: Unlabelled, sources: tuple[tuple[str, str], ...], state: str) -> Comparison:
    from edgeprune.frontends.agreement import Comparison

    return Comparison(samples)
