"""Runs stages in order: keys, memo, lease and resume.

The key of a stage is the digest of what it reads. A stage runs once for each key. The run folder keeps its record, so the same
command reuses it, and a killed run resumes. Only the stages that need torch import it: a run that reuses everything does not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from edgeprune.errors import DeviceError
from edgeprune.frontends import functions
from edgeprune.limits import LIMITS
from edgeprune.pipeline.request import SHARED, Request
from edgeprune.pipeline.stage import Output, Rules, Stage
from edgeprune.records import Device, Provenance, digest
from edgeprune.storage import codec
from edgeprune.storage.store import Entry, Store, read_capped

SCHEMA = 3  # of the run folder
EVENTS = "tensorboard"  # the folder for events, beside the folders of stages
LATEST = "latest"  # the link to the files of the artifact that was compiled or reused last
CHANGES_SHOWN = 3  # labels in the reason why a stage is made again

Record = TypeVar("Record")
Value = TypeVar("Value")


@contextmanager
def open_run(request: Request, rules: Rules) -> Iterator[Run]:
    """A run of a request. It holds its run folder, and the device once a stage needs it, until the context ends.

    Raises `BusyError` if another run holds the folder or the device.
    """
    with ExitStack() as stack:
        store = stack.enter_context(Store(request.runs / request.target.name, request.wait_s))
        yield Run(request, rules, store, stack)


@contextmanager
def open_common(requests: Sequence[Request], rules: Rules) -> Iterator[Run]:
    """A run of several targets with one plan. The targets share its stages, up to the trained network.

    `members` are the runs of the targets. They take these stages from it, and make all others.
    """
    with ExitStack() as stack:
        in_order = sorted(requests, key=lambda one: one.target.name)  # so that two such runs do not wait for each other
        members = {one.target.name: stack.enter_context(open_run(one, rules)) for one in in_order}
        name = "+".join(sorted(members))
        common = replace(requests[0], target=replace(requests[0].target, name=name))
        run = stack.enter_context(open_run(common, rules))
        run.members = members
        for member in members.values():
            member.common = run
        yield run


class Run:
    """A run of one request. A call of `record` also runs the earlier stages that are missing.

    `members` are the runs of several targets with one plan, if it is their common run, and `common` is that of a member.
    """

    def __init__(self, request: Request, rules: Rules, store: Store, stack: ExitStack) -> None:
        self.request, self.stack, self.folder = request, stack, store.folder
        self.device: Device | None = None  # once it has been identified
        self.members: Mapping[str, Run] = {}
        self.common: Run | None = None
        self._rules, self._stages, self._inputs, self._store = rules, rules.stages, rules.inputs, store
        self._values: dict[str, Any] = {}
        self._keys: dict[str, str] = {}
        self._entries: dict[str, Entry] = {}
        self._lease = stack.enter_context(ExitStack())

    def record(self, stage: Stage[Any, Record]) -> Record:
        """The record of a stage: made in this run, kept by an earlier one, or made now."""
        if stage.joint and self.common is not None:
            return self.common.record(stage)
        if stage.name not in self._values:
            self._values[stage.name] = self._recorded(stage)
            if stage.published is not None:
                self._store.link(LATEST, stage.published(self._values[stage.name]))
        found: Record = self._values[stage.name]
        return found

    def keeps(self, stage: Stage[Any, Any]) -> bool:
        """Whether the run folder keeps a record of the stage, so that `record` need not make it."""
        if stage.joint and self.common is not None:
            return self.common.keeps(stage)
        return stage.name in self._values or self._found(stage) is not None

    def value(self, name: str) -> Any:
        """The value of an input, or the record of a stage."""
        if name in self._stages:
            return self.record(self._stages[name])
        if name not in self._values:
            self._values[name] = self._inputs[name].value(self)
        return self._values[name]

    def entry(self, stage: Stage[Any, Any]) -> Path:
        """The folder that keeps the record of a stage: made in this run, kept by an earlier one, or made now."""
        if stage.joint and self.common is not None:
            return self.common.entry(stage)
        self.record(stage)
        return self._entries[stage.name].folder

    def draft(self, name: str, key: str, fill: Callable[[Path], None]) -> Path:
        """Keep files of a verb in the run folder. `fill` writes them; they appear in one step, and replace earlier ones."""
        with self._store.create(name, key) as draft:
            fill(draft.folder)
        return draft.entry.folder

    def drafted(self, name: str, key: str) -> Path | None:
        """The folder that `draft` filled under this key, if there is one and it is undamaged."""
        entry = self._store.find(name, key)
        return None if entry is None else entry.folder

    # ------------------------------------------------------------------------------------------------------- keys

    def key(self, stage: Stage[Any, Any]) -> str:
        """The digest of what a stage reads."""
        if stage.joint and self.common is not None:
            return self.common.key(stage)
        if stage.name not in self._keys:
            self._keys[stage.name] = digest([SCHEMA, stage.name, self.reads(stage)])
        return self._keys[stage.name]

    def reads(self, stage: Stage[Any, Any]) -> dict[str, object]:
        """The content of a stage's key, {label: value}: settings, facts of machines, and the keys of earlier stages."""
        found: dict[str, object] = {}
        for name in stage.names:
            if name in self._stages:
                found[name] = self.key(self._stages[name])
            else:
                found |= {**self._inputs[name].settings(self), **self._inputs[name].machine(self)}
        return found

    def settings(self, stage: Stage[Any, Any]) -> str:
        """The digest of the user's settings that a stage depends on, without the device and the installed packages.

        A stage after a joint one depends on those of all targets. So its record is not mistaken for that of one target alone.
        """
        if self.common is not None and stage.joint:
            return self.common.settings(stage)
        if self.common is None or not self._rules.after_joint(stage):
            return self._own_settings(stage)
        others = {name: member._own_settings(stage) for name, member in self.common.members.items()}
        return digest([self._own_settings(stage), others])

    def _own_settings(self, stage: Stage[Any, Any]) -> str:
        found: dict[str, object] = {}
        for name in self._rules.inputs_of(stage):
            found |= self._inputs[name].settings(self)
        return digest(found)

    # --------------------------------------------------------------------------------------------- finding and making

    def last(self, stage: Stage[Any, Record]) -> tuple[Record, Path]:
        """The latest record made from the current settings, and its folder. It may have been made on another device.

        If there is none, the stage runs.
        """
        settings = self.settings(stage)
        entry = self._store.newest(stage.name, lambda manifest: manifest.get("settings") == settings)
        if entry is None:
            return self.record(stage), self._entries[stage.name].folder
        return load(stage, entry), entry.folder

    def _recorded(self, stage: Stage[Any, Record]) -> Record:
        if not stage.kept:
            reads = self._reads_of(stage)
            made = self._made(stage, reads, self.scratch)
            self.request.watch.done(stage.name, stage.describe(made, reads))
            return made
        if (found := self._found(stage)) is not None:
            return found
        reads = self._reads_of(stage)
        if not stage.releases_device:
            return self._found(stage, reads)  # type: ignore[return-value]
        self.release_device()
        with self._store.apart(stage.name, self.key(stage)):
            return self._found(stage, reads)  # type: ignore[return-value]

    def _found(self, stage: Stage[Any, Record], reads: Any = None) -> Record | None:
        """The record that a store keeps under the stage's key. If there is none, it is made from `reads`, if given."""
        key = self.key(stage)
        with self._store_of(stage) as store:
            entry = None if self._is_redone(stage) else store.find(stage.name, key)
            if entry is not None and stage.settled(found := load(stage, entry)):
                note = "reused"
            elif reads is None:
                return None
            else:
                why = self._why(stage, store)
                with store.create(stage.name, key, self._facts(stage)) as draft:
                    made = self._made(stage, reads, draft.folder)
                    draft.settled = stage.settled(made)
                    draft.write_text(f"{stage.name}.json", codec.dumps(codec.with_paths(made, draft.relative)))
                entry, found = draft.entry, load(stage, draft.entry)
                note = why + stage.describe(found, reads)
        self.request.watch.done(stage.name, note)  # after the store keeps it: a run that is killed now reuses it
        self._entries[stage.name] = entry
        return found

    def _facts(self, stage: Stage[Any, Any]) -> dict[str, object]:
        """What the manifest of a record holds: what it was made from, and how."""
        project, target = self.request.project, self.request.target
        made = Provenance(
            created_s=int(time.time()),
            project=project.name,
            file="" if project.objects else project.path.name,
            target=target.name,
            runtime=target.runtime,
            precision=target.precision,
            budget=None if project.budget.latency is None else str(project.budget.latency),
            device=self.device,
        )
        reads, settings = self.reads(stage), self.settings(stage)
        return {"schema": SCHEMA, "reads": reads, "settings": settings, "made": asdict(made)}

    def _reads_of(self, stage: Stage[Any, Any]) -> Any:
        """What a stage reads. Earlier stages run here, before this one begins and before it holds a store."""
        return stage.reads(**{name: self.value(name) for name in stage.names})

    def _made(self, stage: Stage[Any, Record], reads: Any, folder: Path) -> Record:
        """Run a stage. An error of the user's code in it becomes a `UsageError`."""
        watch, partial = self.request.watch, self._store.scratch
        output = Output(
            folder=folder,
            scratch=self.scratch,
            partial=lambda: partial(stage.name, self.key(stage)),
            save=self._store.save,
            events=self.folder / EVENTS,
            watch=watch,
            fresh=self._is_redone(stage),
        )
        watch.start(stage.name)
        with functions.of_user(self.request.project, stage.name):
            made = stage.run(reads, output)
        if self._rules.redone is not None:
            self._rules.redone.add(self.key(stage))
        return made

    def _is_redone(self, stage: Stage[Any, Any]) -> bool:
        """Whether a stage ignores what earlier commands kept."""
        return self.request.fresh and self.key(stage) not in (self._rules.redone or ())

    def _why(self, stage: Stage[Any, Any], store: Store) -> str:
        """Why a stage is made again, as the begin of a progress line: the labels that changed since it last finished."""
        before, now = store.last_read(stage.name), self.reads(stage)
        if before is None or self.request.fresh:
            return ""
        changed = [label for label in sorted({*before, *now}) if before.get(label) != now.get(label)]
        shown = ", ".join(changed[:CHANGES_SHOWN]) + (", …" if len(changed) > CHANGES_SHOWN else "")
        return f"redone, {shown} changed: " if changed else "redone: "

    def _store_of(self, stage: Stage[Any, Any]) -> AbstractContextManager[Store]:
        """The target's store, or the store that all targets share. The shared one is held only while it is used."""
        if self._rules.of_target(stage):
            return nullcontext(self._store)
        return Store(self.request.runs / SHARED, LIMITS.lease_wait_s)

    def lease(self, open_device: Callable[[ExitStack], tuple[Value, Device]]) -> Value:
        """Open the device, until `release_device` or the end of the run. Raises `DeviceError` if it is not the first one."""
        opened, device = open_device(self._lease)
        if self.device is not None and self.device.identity != device.identity:
            raise DeviceError(f"{self.request.target.name}: another device answers than when this run began; run again")
        self.device = device
        return opened

    def release_device(self) -> None:
        """End the lease of the device, so that others can use it while this machine trains."""
        self._values = {n: v for n, v in self._values.items() if n not in self._inputs or not self._inputs[n].leased}
        self._lease.close()

    @cached_property
    def scratch(self) -> Path:
        """A folder that is removed at the end of the run."""
        return Path(self.stack.enter_context(TemporaryDirectory(prefix="edgeprune-")))


def load(stage: Stage[Any, Record], entry: Entry) -> Record:
    """The record that an entry keeps. Raises `UsageError` if its JSON is not one."""
    path = entry.path(f"{stage.name}.json")
    found = codec.loads(stage.record, read_capped(path, LIMITS.json_bytes).decode(), str(path))
    return codec.with_paths(found, entry.path)
