"""Finished runs, read back from their run folders: without the project, without torch, and without a lock."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeprune.errors import UsageError, quoted, usage_error
from edgeprune.limits import LIMITS
from edgeprune.pipeline.request import SHARED
from edgeprune.pipeline.run import SCHEMA, load
from edgeprune.pipeline.stage import Stage
from edgeprune.records import (
    Artifact,
    Budget,
    Choice,
    Confirmed,
    Evidence,
    Groups,
    Plan,
    Profile,
    Provenance,
    Pruned,
    Record,
    Reference,
    Scores,
    Tuned,
    Verdict,
    digest,
)
from edgeprune.stages import survey, verify
from edgeprune.stages.registry import RULES
from edgeprune.storage import baselines, codec, evidence, profiles
from edgeprune.storage.store import KEY, MANIFEST, Entry, damage, entries, folder_name, read_capped

BUDGET = "[budget] latency"  # the label of what a verdict reads
AGAIN = "make it again: edgeprune run"
PACKAGE = "package "  # begins the labels of versions
PROFILE = re.compile(r"-[0-9a-f]{8}\.json")  # ends the name of a profile's file, after the project's name
NEEDED = {"survey", "original", "compile", "verify"}
VERIFIED = re.compile(rf"{verify.STAGE.name}-[0-9a-f]+")


@dataclass(frozen=True)
class Finished:
    """A finished run: the record of each stage. A record is None if the run did not need that stage.

    Attributes:
        folder: the folder of the verdict, `runs/TARGET/verify-KEY`.
        made: how the verdict was made: the project, the target, the budget, the device.
        reads: what all stages read, {label: value}: settings, digests of files, versions of packages.
        survey: the groups of the original network. Without a budget they were not proved.
        original: the artifact of the original network.
        compile: the artifact that was verified.
        verify: the verdict.
        evidence: what the verdict rests on: times by process, differences of outputs.
        history: later checks of the project on this target, the oldest first.
        precision: the choice, if the target leaves one.
        reference: the original network's latency, if it was compared with the budget first.
        scores: None as all records below if nothing was pruned, or if the original network meets the budget.
        profile: also None if the profile's file is not beside the run folder.
        plan: the first plan.
        confirm: the plan that was confirmed, and all that were measured.
        prune: the network that was cut.
        finetune: the network that was trained.
    """

    folder: Path
    made: Provenance
    reads: Mapping[str, Any]
    survey: Groups
    original: Artifact
    compile: Artifact
    verify: Verdict
    evidence: Evidence
    history: tuple[Record, ...] = ()
    precision: Choice | None = None
    reference: Reference | None = None
    scores: Scores | None = None
    profile: Profile | None = None
    plan: Plan | None = None
    confirm: Confirmed | None = None
    prune: Pruned | None = None
    finetune: Tuned | None = None

    @property
    def versions(self) -> dict[str, str]:
        """{package: version} of the host."""
        found = {label.removeprefix(PACKAGE): str(v) for label, v in self.reads.items() if label.startswith(PACKAGE)}
        return dict(sorted(found.items()))

    @property
    def widths(self) -> dict[str, int]:
        """{group: units that the verified network has}, of all groups."""
        return self.survey.full() | ({} if self.confirm is None else self.confirm.plan.widths)

    @property
    def command(self) -> str:
        """The command that makes this run again, in the project's folder; empty for a project of objects."""
        made = self.made
        if not made.file:
            return ""
        together = self.confirm.plan.targets if self.confirm else ()
        words = ["edgeprune", "run", "--project", made.file]
        words += [word for name in together or (made.target,) for word in ("--target", name)]
        if made.budget is not None:
            words += ["--budget", made.budget]
        words += ["--precision", made.precision]  # a sweep, or an option, may have replaced the target file's
        if "--weights" in self.reads:
            words += ["--weights", "FILE"]
        return shlex.join(words)


def read(path: Path, budget: str | None = None) -> Finished:
    """A finished run.

    Args:
        path: a run folder `runs/TARGET`, whose last verdict is read, or the folder of one verdict in it.
        budget: only the last verdict with this latency budget counts, such as "50%".

    Raises:
        UsageError: there is none, or a file is missing, damaged or of another schema. The message names the file.
    """
    return _finished(_chosen(path, budget))


def found(paths: Sequence[Path], budget: str | None = None) -> list[Path]:
    """The folders of the verdicts at `paths`. Each is as `read` takes it, or a folder of run folders: then all of them.

    Raises `UsageError` as `read` does.
    """
    places: dict[Path, None] = {}
    for path in paths:
        inside = [] if _is_run(path) or not path.is_dir() else sorted(one for one in path.iterdir() if _is_run(one))
        places |= {_chosen(one, budget).resolve(): None for one in inside or [path]}
    return list(places)


def _is_run(path: Path) -> bool:
    """Whether a path is a run folder with a verdict, or a verdict's folder."""
    return bool(VERIFIED.fullmatch(path.name)) or bool(entries(path, verify.STAGE.name))


def _chosen(path: Path, budget: str | None) -> Path:
    """The folder of the verdict that a user names."""
    if not path.is_dir():
        raise usage_error(f"{path}: is not a folder; give a run folder, such as runs/local, or make one: edgeprune run")
    wanted = None if budget is None else str(Budget.parse(budget))
    places = [path] if VERIFIED.fullmatch(path.name) else entries(path, verify.STAGE.name)
    seen: set[str] = set()
    for place in places:
        had = str(_manifest(verify.STAGE, place)["reads"].get(BUDGET))
        if wanted in (None, had):
            return place
        seen.add(had)
    if seen:
        raise usage_error(f"{path}: has no run with the budget {wanted}; it has {', '.join(sorted(seen))}")
    raise usage_error(f"{path}: holds no finished run; make one: edgeprune run, or give another folder")


def _finished(place: Path) -> Finished:
    kept = dict(_followed(place))
    reads = {label: value for _, manifest in reversed(kept.values()) for label, value in manifest["reads"].items()}
    records = {
        "survey" if name == survey.TRACE.name else name: load(RULES.stages[name], Entry(folder))
        for name, (folder, _) in kept.items()
    }
    path = place / MANIFEST
    if missing := NEEDED - set(records):
        raise _altered(path, f"it read no {', '.join(sorted(missing))}")
    made = codec.loads(Provenance, json.dumps(kept[verify.STAGE.name][1].get("made")), str(path))
    if Path(made.project).name != made.project:
        raise _altered(path, f"{quoted(made.project)} is not the name of a project")
    run = Finished(place, made, reads, evidence=evidence.read(place), **records)
    beside = place.parents[2] / "profiles" / place.parent.name
    checks = baselines.history_path(beside, made.project)
    history = tuple(baselines.history(checks)) if checks.exists() else ()
    return replace(run, profile=_profile(run, beside), history=history)


def _profile(run: Finished, folder: Path) -> Profile | None:
    """The profile that the plan of a run was made from; None if its file is not in `folder`."""
    if run.scores is None or run.made.device is None:
        return None
    device, threads = run.made.device.identity, run.reads.get("[runtime] threads")
    for path in sorted(folder.glob("*.json")):
        if PROFILE.fullmatch(path.name.removeprefix(run.made.project)):
            profile = profiles.read(path)
            if (profile.network, profile.device.identity) == (run.survey.network, device) and (
                (profile.threads, profile.precision) == (threads, run.compile.precision)
            ):
                return profile
    return None


def _followed(place: Path) -> Iterator[tuple[str, tuple[Path, Mapping[str, Any]]]]:
    """A verdict and the entries that it was made from: the stage, its folder and its manifest."""
    waiting, seen = [(verify.STAGE.name, place)], {verify.STAGE.name}
    while waiting:
        name, folder = waiting.pop()
        manifest = _manifest(RULES.stages[name], folder)
        yield name, (folder, manifest)
        # A plan that was made from the reference alone has digests of settings in place of these keys.
        unused = {"scores", "profile"} if "reference" in manifest["reads"] else set()
        for earlier, key in manifest["reads"].items():
            stage = RULES.stages.get(earlier)
            if stage is not None and stage.kept and earlier not in seen | unused:
                seen.add(earlier)
                waiting.append((earlier, _place(stage, place.parent, folder_name(earlier, key))))


def _place(stage: Stage[Any, Any], run: Path, name: str) -> Path:
    """The folder of an entry: in the run folder, in the shared one, or in the common one of several targets."""
    if not RULES.of_target(stage):
        return run.parent / SHARED / name
    common = sorted(run.parent.glob(f"*/{name}")) if stage.joint else []
    return common[0] if common and not (run / name).is_dir() else run / name


def _manifest(stage: Stage[Any, Any], folder: Path) -> Mapping[str, Any]:
    """The manifest of an entry. Raises `UsageError` unless all files of the entry are as the stage left them."""
    path = folder / MANIFEST
    if not path.is_file():
        raise usage_error(f"{path}: is missing, so this run is not complete; {AGAIN}")
    try:
        manifest = json.loads(read_capped(path, LIMITS.json_bytes))
    except (ValueError, RecursionError):
        raise usage_error(f"{path}: is not JSON; {AGAIN}") from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("reads"), dict):
        raise _altered(path, "it does not say what was read")
    if manifest.get("schema") != SCHEMA:
        had = quoted(manifest.get("schema"))
        raise usage_error(f"{path}: has schema {had}, this edgeprune reads {SCHEMA}; {AGAIN}, or use the other version")
    key, reads = manifest.get("key"), manifest["reads"]
    if key != digest([SCHEMA, stage.name, reads]) or folder.name != folder_name(stage.name, key):
        raise _altered(path, "its key is another one")
    if wrong := [name for name, value in reads.items() if name in RULES.stages and not _is_key(value)]:
        raise _altered(path, f"{quoted(wrong[0])} is not a key")
    if reason := damage(folder, key):
        raise _altered(folder, reason)
    return manifest


def _is_key(value: object) -> bool:
    return isinstance(value, str) and KEY.fullmatch(value) is not None


def _altered(path: Path, reason: str) -> UsageError:
    return usage_error(f"{path}: was changed after the run: {reason}; {AGAIN}")
