"""A device may answer anything about its releases: the user gets a list, or one line of `DeviceError`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import releases as deploying
from releases import bundle, this_device
from rich.console import Console
from sshd import keygen

from edgeprune.devices import transports
from edgeprune.devices.transports.fake import Fake
from edgeprune.errors import DeviceError, EdgepruneError
from edgeprune.records import Target
from edgeprune.reports import fleet
from edgeprune.stages.releases import rollout

IDENTITY = {name: getattr(this_device(), name) for name in type(this_device()).__dataclass_fields__}
ENTRY = {"service": "vision", "digest": "a" * 64, "state": "current", "since_s": 1_700_000_000}


def answering(monkeypatch: pytest.MonkeyPatch, replies: Mapping[str, Any]) -> None:
    def answer(job: Mapping[str, Any]) -> Mapping[str, Any]:
        return IDENTITY if job["mode"] == "identify" else replies[job["mode"]]

    monkeypatch.setattr(transports, "connect", lambda target, wait_s: Fake(answer))


def target(tmp_path: Path) -> Target:
    return Target(tmp_path / "t.toml", "t", "local", "null")


@pytest.mark.parametrize(
    "reply",
    [
        {},
        {"releases": 7},
        {"releases": [7]},
        {"releases": [{}]},
        {"releases": [{**ENTRY, "since_s": 10**18, "damage": "x"}]},
        {"releases": [{**ENTRY, "since_s": "soon", "damage": "x"}]},
        {"releases": [{**ENTRY, "since_s": -1, "damage": "x"}]},
        {"error": "strange", "message": "\x1b[31mred"},
    ],
    ids=str,
)
def test_an_odd_list_is_a_device_error(
    reply: Mapping[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(monkeypatch, {"releases": reply})
    with pytest.raises(DeviceError) as caught:
        deploying.releases(target(tmp_path))
    assert str(caught.value).isprintable()


def test_a_release_of_another_version_is_listed_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, {"releases": {"releases": [{**ENTRY, "manifest": {"schema": 99}}]}})
    (release,) = deploying.releases(target(tmp_path))
    assert release.manifest is None and "another version" in release.damage


def test_a_name_with_an_escape_sequence_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, {"releases": {"releases": [{**ENTRY, "service": "\x1b[2Jevil\n" * 50}]}})
    with pytest.raises(DeviceError, match=r"^t: .*releases\[0\]\.service must be printable") as caught:
        deploying.releases(target(tmp_path))
    assert str(caught.value).isprintable() and len(str(caught.value)) < 300


def test_text_from_a_device_is_shown_escaped_and_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = {**ENTRY, "damage": "[bold]no[/bold]\x1b[2J\x07" * 500}
    answering(monkeypatch, {"releases": {"releases": [entry]}})
    out = StringIO()
    fleet.show(rollout.releases(target(tmp_path)), Console(file=out, width=200))
    assert "\x1b" not in out.getvalue() and "\x07" not in out.getvalue() and len(out.getvalue()) < 20_000


@pytest.mark.parametrize(
    "reply", [{}, {"previous": 7}, {"error": "unhealthy"}, {"error": "refused", "message": 3}], ids=str
)
def test_an_odd_answer_to_a_switch_is_a_clean_error(
    reply: Mapping[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = bundle(tmp_path / "1", keygen(tmp_path / "key"))
    manifest = json.loads(made.files[0].read_text())
    listed = {"releases": [{**ENTRY, "digest": made.digest, "manifest": manifest, "state": "previous"}]}
    answering(monkeypatch, {"releases": listed, "publish": {}, "activate": reply})
    with pytest.raises(EdgepruneError):
        deploying.deploy(target(tmp_path), made, lambda text: None)
    with pytest.raises(EdgepruneError):
        deploying.rollback(target(tmp_path), "vision", lambda text: None)
