"""Releases are counted: no clock orders them. Old releases without a number come first."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
from releases import activation, bundle, publication, resigned
from sshd import keygen

from edgeprune.devices import wire
from edgeprune.devices.agent import audit, keys
from edgeprune.devices.agent import releases as device
from edgeprune.errors import UsageError
from edgeprune.runtimes import machine
from edgeprune.runtimes.device import Failed
from edgeprune.stages.releases import bundles, rollout, signers
from edgeprune.storage import sequences

RAN = wire.Check(ok=True, relative_error=0.0, limit=1.0, median_ms=1.0)
YEARS_S = 10 * 365 * 86400


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return keygen(tmp_path / "key")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This process is the agent of a device. Releases are not run here."""
    folder = tmp_path / ".edgeprune"
    folder.mkdir()
    monkeypatch.setattr(machine, "home", lambda: str(folder))
    monkeypatch.setattr(device, "run_check", lambda folder, manifest, check_s: RAN)
    return folder


def publish(made: bundles.Bundle) -> None:
    device.publish(publication(made))


def test_a_clock_that_is_years_ahead_blocks_no_later_release(key: Path, tmp_path: Path) -> None:
    ahead = bundle(tmp_path / "1", key, 1000, sequence=1)
    publish(resigned(ahead, key, created_s=int(time.time()) + YEARS_S))
    publish(bundle(tmp_path / "2", key, 2000, sequence=2))
    with pytest.raises(Failed, match="its number is 2"):
        publish(bundle(tmp_path / "3", key, 3000, sequence=2))


def test_a_device_with_releases_of_an_earlier_version_takes_numbered_ones_and_then_no_old_one(
    key: Path, tmp_path: Path
) -> None:
    def without_a_number(made: bundles.Bundle, created_s: int) -> bundles.Bundle:
        content = json.loads(made.files[0].read_text())
        for name in ("sequence", "reload", "keep"):  # keys that it did not have
            del content[name]
        made.files[0].write_text(json.dumps(content))
        path = Path(f"{made.files[0]}")
        plain = resigned(made, key, created_s=created_s)
        assert "sequence" not in json.loads(path.read_text())
        return plain

    old = without_a_number(bundle(tmp_path / "1", key, 1000), int(time.time()) + YEARS_S)
    publish(old)
    publish(bundle(tmp_path / "2", key, 2000, sequence=1))
    with pytest.raises(Failed, match="older than one that is here"):
        publish(without_a_number(bundle(tmp_path / "3", key, 3000), int(time.time()) + 2 * YEARS_S))
    assert device.activate(activation(old)).current == old.digest, "it can still be rolled back to"


def test_a_revoked_key_is_refused_and_a_retired_one_for_new_bundles_only(key: Path, tmp_path: Path) -> None:
    public = key.with_suffix(".pub").read_text()
    other = keygen(tmp_path / "other")
    made = bundle(tmp_path / "1", key, 1000, sequence=1)
    publish(made)
    keys.change(wire.ChangeKeys(30.0, "me", add=(other.with_suffix(".pub").read_text(),), retire=(public,)))
    with pytest.raises(Failed, match="not by a key of"):
        publish(bundle(tmp_path / "2", key, 2000, sequence=2))
    assert device.activate(activation(made)).current == made.digest
    publish(bundle(tmp_path / "3", other, 3000, sequence=2))
    found = keys.change(wire.ChangeKeys(30.0, "me", revoke=(public,)))
    assert [entry.state for entry in found.keys] == ["accepted", "revoked"]
    with pytest.raises(Failed, match="revoked here"):
        publish(bundle(tmp_path / "4", key, 4000, sequence=3))
    with pytest.raises(Failed, match="revoked here"):
        device.activate(activation(made))
    with pytest.raises(Failed, match="was revoked here; make a new one"):
        keys.change(wire.ChangeKeys(30.0, "me", add=(public,)))
    with pytest.raises(Failed, match="not a public Ed25519 key"):
        keys.change(wire.ChangeKeys(30.0, "me", add=("ssh-rsa AAAA",)))


def test_an_incomplete_line_of_the_audit_log_stays_and_the_chain_goes_on(home: Path) -> None:
    def add(who: str) -> None:
        audit.append(audit.Entry(1, who, "publish", "vision", "a" * 64))

    add("one")
    with open(home / "audit.jsonl", "a") as file:
        file.write('{"at_s": 2, "wh')  # the power failed
    add("two")
    lines = audit.read(wire.ReadAudit(30.0, 1 << 20)).lines
    entries = [signers._entry(line) for line in lines]
    assert [entry.get("who", entry["did"]) for entry in entries] == ["one", "incomplete line", "two"]
    assert entries[2]["before"] == entries[1]["sha"]


def test_a_full_disk_at_the_log_leaves_the_old_release_in_service(
    key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A switch that cannot be logged is undone."""
    first, second = (bundle(tmp_path / str(i), key, 1000 * i, sequence=i) for i in (1, 2))
    for made in (first, second):
        publish(made)
    device.activate(activation(first))

    def full(entry: audit.Entry) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(audit, "append", full)
    with pytest.raises(Failed, match=f"No space left.*back to {first.digest[:12]}"):
        device.activate(activation(second))


def test_the_number_of_the_last_release_is_kept_beside_the_profiles(tmp_path: Path) -> None:
    assert sequences.last(tmp_path / "profiles", "vision") == 0
    for number in (3, 2):
        sequences.remember(tmp_path / "profiles", "vision", number)
    assert sequences.last(tmp_path / "profiles", "vision") == 3
    (tmp_path / "profiles" / "vision.sequence").write_text("many")
    with pytest.raises(UsageError, match=r"vision\.sequence must hold the number"):
        sequences.last(tmp_path / "profiles", "vision")


@pytest.mark.parametrize("there", [sequences.MOST, 10**40])
def test_a_number_that_none_can_follow_is_refused_with_the_way_out(there: int, tmp_path: Path) -> None:
    """A host may claim any number. It must not get into the file, which would then be refused for ever."""
    assert sequences.following(tmp_path, "vision", 41) == 42
    with pytest.raises(UsageError, match=r"no number comes after it.*edgeprune withdraw DIGEST.*vision\.sequence"):
        sequences.following(tmp_path, "vision", there)


def test_a_bundle_is_the_same_archive_every_time(key: Path, tmp_path: Path) -> None:
    made = bundle(tmp_path / "1", key, sequence=1)
    for name in ("a.tar", "b.tar"):
        bundles.write(made, tmp_path / name)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    bundles.write(made, tmp_path / "folder")
    assert bundles.read(tmp_path / "folder").digest == made.digest
    with pytest.raises(UsageError, match="exists; name a new folder"):
        bundles.write(made, tmp_path / "folder")


@pytest.mark.parametrize("wrong", [{"canary": -1}, {"soak_s": 60.0}, {"canary": 1, "soak_s": 1e9}])
def test_wrong_options_of_a_rollout_are_usage_errors(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="--"):
        replace(rollout.AT_ONCE, **wrong)  # type: ignore[arg-type]
