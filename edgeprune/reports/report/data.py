"""All records of finished runs as JSON, inside the report."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from edgeprune.records.answer import plain
from edgeprune.stages.series.finished import Finished
from edgeprune.storage.codec import with_paths

SCHEMA = 1  # of this document; changes when a key changes its meaning
# Inside an element <script>, these characters could end it or begin another one.
ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def embedded(runs: Sequence[Finished], most: int) -> str:
    """The JSON document, for an element <script type="application/json">.

    If it has more than `most` bytes, the longest lists are shortened, in the order of `SHORTER`. The document says which.
    """
    content: dict[str, Any] = {"schema": SCHEMA, "shortened": [], "runs": list(map(_run, runs))}
    found = _text(content)
    for name, shorten in SHORTER.items():
        if len(found) <= most:
            break
        for run in content["runs"]:
            shorten(run)
        content["shortened"].append(name)
        found = _text(content)
    return found


def _text(content: Any) -> str:
    return json.dumps(content, separators=(",", ":"), allow_nan=False).translate(ESCAPES)


def _run(run: Finished) -> dict[str, Any]:
    """The records of a run. Paths are relative to the project's folder, since a report is passed around."""
    home = run.folder.parents[2]

    def relative(path: Path) -> Path:
        return path.relative_to(home) if path.is_relative_to(home) else Path(path.name)

    records = {name: with_paths(value, relative) for name, value in vars(run).items() if name != "folder"}
    return {"folder": relative(run.folder).as_posix(), **{name: plain(value) for name, value in records.items()}}


def _without_times(run: dict[str, Any]) -> None:
    for experiment in (run["profile"] or {}).get("experiments", ()):
        for one in experiment["samples"]["runs"]:
            one["times_ns"] = [int(median(one["times_ns"]))]


def _without_indices(run: dict[str, Any]) -> None:
    for group in run["survey"]["groups"]:
        group["slots"] = [{**slot, "indices": []} for slot in group["slots"]]


def _without_scores(run: dict[str, Any]) -> None:
    run["scores"] = None


def _without_profile(run: dict[str, Any]) -> None:
    run["profile"] = None


def _without_evidence(run: dict[str, Any]) -> None:
    for kind in ("original", "pruned"):
        for one in run["evidence"][kind]:
            one["times_ns"] = []


SHORTER: dict[str, Callable[[dict[str, Any]], None]] = {
    "profile: each process has only its median": _without_times,
    "survey: the indices of parameters": _without_indices,
    "scores": _without_scores,
    "evidence: raw times": _without_evidence,
    "profile": _without_profile,
}
