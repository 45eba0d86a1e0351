"""Digests of the samples of a project's splits, for the keys of stages. Data that changes is noticed without `--fresh`.

Reading data takes time. So a file in the run folder remembers the digests, and which files the data was made from. While none
of them changes, the data is not read again, and no user code runs. Data of Python objects is read in every run.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprune.errors import UsageError
from edgeprune.frontends import sources, tracing
from edgeprune.limits import LIMITS
from edgeprune.records import Project, SplitName
from edgeprune.storage import codec
from edgeprune.storage.store import Store, read_capped, write_atomic

if TYPE_CHECKING:
    from torch import Tensor

    from edgeprune.frontends.data import Split

FILE = "samples.json"
AGAIN = 2  # first batches that are read twice, to see whether they repeat

log = logging.getLogger("edgeprune")


@dataclass(frozen=True)
class Known:
    """What is remembered of a split.

    Attributes:
        digest: of its samples.
        batches: how many were read.
        ended: whether these are all.
        sources: of its code; see `records.Function.sources`.
        files: that the code opened.
        folders: that the code listed.
        variables: of the environment that the code may read.
        cwd: the working directory that paths were relative to; empty if none was.
        state: of the files, folders and variables; empty if other things matter, too. See `tracing.state`.
    """

    digest: str
    batches: int
    ended: bool
    sources: dict[str, str]
    files: tuple[str, ...]
    folders: tuple[str, ...]
    variables: tuple[str, ...]
    cwd: str
    state: str

    def holds(self, code: Mapping[str, str]) -> bool:
        """Whether the code and all that it read are unchanged."""
        if self.sources != code or not self.state or self.cwd not in ("", os.getcwd()):
            return False
        files = {path: tracing.of_file(path) for path in self.files}
        folders = {path: tracing.of_folder(path) for path in self.folders}
        return self.state == tracing.state(files, folders, self.variables)


class Samples:
    """The digests of a project's splits.

    Args:
        project: names the splits.
        folder: the run folder that all targets share.
        fresh: whether all data is read again.
    """

    def __init__(self, project: Project, folder: Path, fresh: bool = False) -> None:
        self._project, self._folder = project, folder
        self._must_read = fresh or project.objects
        self._found: dict[SplitName, str] = {}

    def digest(self, name: SplitName) -> str:
        """The digest of a split's first samples: see `LIMITS.samples_s`.

        Raises:
            UsageError: the data is wrong, as `Split` does.
        """
        if name not in self._found:
            self._found[name] = self._digest(name)
        return self._found[name]

    def _digest(self, name: SplitName) -> str:
        functions = [one for one in (self._project.data.split(name), self._project.data.clean) if one is not None]
        code = {label: str(value) for one in functions for label, value in one.sources().items()}
        known = self._remembered().get(name)
        if known is not None and not self._must_read and known.holds(code):
            return known.digest
        found = self._read(name, code, known if known and known.sources == code else None)
        self._remember(name, found)
        changed = known is not None and known.state not in ("", found.state)
        if known is not None and changed and not found.ended and known.digest == found.digest:
            log.warning(
                "files of %s changed and its first %d batches did not, so nothing is redone; pass --fresh if others changed",
                self._project.where("data", self._project.data.key(name)),
                found.batches,
            )
        return found.digest

    def _read(self, name: SplitName, code: dict[str, str], known: Known | None) -> Known:
        from edgeprune.frontends import data

        if not self._project.objects:
            data.forget(self._project, name)  # this process may have read other files before
        split = data.Split(self._project, name).for_digest()
        digest, batches, ended = _digested(split, known)
        trace, runs = tracing.trace_of(self._project.code), f"{self._project.folder / 'runs'}{os.sep}"
        trace.settle()
        files = {path: found for path, found in trace.files.items() if not path.startswith(runs)}  # not edgeprune's own
        variables = tuple(sorted(sources.variables(self._project.code, code)))
        state = tracing.state(files, trace.folders, variables) if trace.complete else ""
        return Known(digest, batches, ended, code, tuple(files), tuple(trace.folders), variables, trace.cwd, state)

    def _remembered(self) -> dict[str, Known]:
        path = self._folder / FILE
        if not path.is_file():
            return {}
        try:
            return codec.loads(dict[str, Known], read_capped(path, LIMITS.json_bytes).decode(), str(path))
        except (UsageError, UnicodeDecodeError):  # damaged, or of another version: the data is read again
            return {}

    def _remember(self, name: SplitName, found: Known) -> None:
        with Store(self._folder, LIMITS.lease_wait_s):
            content = {one: asdict(known) for one, known in {**self._remembered(), name: found}.items()}
            write_atomic(self._folder / FILE, json.dumps(content, indent=1).encode())


def _digested(split: Split, known: Known | None) -> tuple[str, int, bool]:
    """The digest of a split's samples, how many batches were read for it, and whether these are all.

    If the split was read before, as many batches are read now. Otherwise `LIMITS` bound the time and the bytes.
    """
    least = known.batches if known else 1
    most = known.batches if known and not known.ended else None
    until, ended, count, size = time.monotonic() + LIMITS.samples_s, False, 0, 0
    whole, first = hashlib.sha256(), []
    with split.in_one_process(), split.repeatable(0):
        batches = iter(split)
        while count != most and (count < least or (time.monotonic() < until and size < LIMITS.samples_bytes)):
            batch = next(batches, None)
            if batch is None:
                ended = True
                break
            one = _of_batch(batch)
            whole.update(one)
            first += [one] * (count < AGAIN)
            count, size = count + 1, size + sum(tensor.nbytes for tensor in (*batch[0], batch[1]))
    with split.in_one_process(), split.repeatable(0):
        again = [(batch, _of_batch(batch)) for batch in islice(split, len(first))]
    if [one for _, one in again] != first:
        log.warning(
            "%s gives other samples whenever it is read, so a change of its data cannot be noticed; seed its random numbers",
            split.where,
        )
        whole = hashlib.sha256(_form(tensor for batch, _ in again[:1] for tensor in (*batch[0], batch[1])))
    else:
        whole.update(repr((count, ended)).encode())
    whole.update(repr(split.length).encode())
    return whole.hexdigest(), count, ended


def _of_batch(batch: tuple[tuple[Tensor, ...], Tensor]) -> bytes:
    """The digest of a batch: types, shapes and numbers."""
    sha = hashlib.sha256()
    for tensor in (*batch[0], batch[1]):
        sha.update(repr((str(tensor.dtype), tuple(tensor.shape))).encode())
        sha.update(_bytes(tensor))
    return sha.digest()


def _bytes(tensor: Tensor) -> Any:
    import torch

    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy()


def _form(tensors: Iterable[Tensor]) -> bytes:
    """Types and shapes without the number of samples."""
    return repr([(str(tensor.dtype), tuple(tensor.shape[1:])) for tensor in tensors]).encode()
