"""The keys that sign releases, and the audit logs, on all hosts of a target."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from edgeprune.devices import fleet
from edgeprune.devices.agent import keys
from edgeprune.devices.fleet import Hosts, Reporter, Turn, Worked
from edgeprune.devices.releasing import open_host
from edgeprune.devices.validate import printable
from edgeprune.errors import UsageError
from edgeprune.records import Facts, FleetFacts, HostFacts, Target
from edgeprune.runtimes.device import Failed
from edgeprune.stages.releases import signing
from edgeprune.storage.store import read_capped

KEY_BYTES = 1 << 14
Action = Literal["list", "add", "revoke", "rotate"]


@dataclass(frozen=True)
class Change:
    """What changes about the keys of hosts. `retire` follows once every host has what `add` names."""

    add: tuple[str, ...] = ()
    retire: tuple[str, ...] = ()
    revoke: tuple[str, ...] = ()


def change(action: Action, key: str | None, target: Target) -> Change:
    """What an action means.

    Args:
        action: "rotate" adds a new signing key everywhere, and then retires the target's signing key.
        key: the file of a public key, or the key itself; for "rotate" the new private key. None for "list".
        target: names the signing key.

    Raises:
        UsageError: a key is missing, or is no Ed25519 key.
    """
    if action == "list":
        if key is not None:
            raise UsageError("keys list takes no key")
        return Change()
    if key is None:
        raise UsageError(f"keys {action} needs a key: the path of a file that ends in .pub")
    if action == "rotate":
        new, old = signing.public(Path(key)), signing.public(signing.require_key(target))
        if new == old:
            raise UsageError(f"{key} signs already; make a new key: ssh-keygen -t ed25519 -f NEW")
        return Change(add=(new,), retire=(old,))
    given = _public(key)
    return Change(add=(given,)) if action == "add" else Change(revoke=(given,))


def changed(target: Target, asked: Change, report: Reporter, wait_s: float = 0.0) -> FleetFacts:
    """Change the keys of every host. Returns the keys of each."""
    hosts = target.each_host
    found = fleet.each(hosts, partial(_change_on, asked=replace(asked, retire=()), wait_s=wait_s), fleet.ALL, report)
    if asked.retire and (found.errors or found.interrupted):
        report("the old key stays, since not every host has the new one; run the same command again")
    elif asked.retire:
        found = fleet.each(hosts, partial(_change_on, asked=replace(asked, add=()), wait_s=wait_s), fleet.ALL, report)
        report(f"the old key signs no new release; name the new one in {target.path}: [deploy] key")
    return facts_of(hosts, found)


def audit(target: Target, wait_s: float = 0.0) -> FleetFacts:
    """The audit log of every host. A host whose chain is broken has an error of exit code 6."""
    hosts = target.each_host
    found = facts_of(hosts, fleet.each(hosts, partial(_read_log, wait_s=wait_s)))
    return replace(found, hosts=tuple(map(_judged, found.hosts)))


def _public(key: str) -> str:
    path = Path(key).expanduser()
    text = read_capped(path, KEY_BYTES).decode("utf-8", "replace") if path.is_file() else key
    try:
        return keys.valid(text)
    except Failed as error:
        raise UsageError(f"{printable(key, 80)}: {error}") from error


def _change_on(turn: Turn, asked: Change, wait_s: float) -> tuple[Facts, ...]:
    with open_host(turn.name, turn.target, wait_s, turn.left_s) as host:
        found = host.keys(asked.add, asked.retire, asked.revoke)
    if asked.revoke and not found["accepted"]:
        turn.report(f"{turn.name} accepts no key now; add one: edgeprune keys add")
    return tuple(
        {"state": state, "fingerprint": keys.fingerprint(key), "key": key} for state in found for key in found[state]
    )


def _read_log(turn: Turn, wait_s: float) -> tuple[Facts, ...]:
    with open_host(turn.name, turn.target, wait_s, turn.left_s) as host:
        return tuple(map(_entry, host.audit()))


def _entry(line: str) -> Facts:
    """A line of a log as a device sent it: any field may be missing or odd."""
    sha = hashlib.sha256(line.encode("utf-8", "replace")).hexdigest()
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        return {"did": "incomplete line", "sha": sha}
    known = {name: printable(str(content.get(name, "")), 200) for name in ("who", "did", "service", "digest", "signer")}
    at_s = content.get("at_s")
    valid = isinstance(at_s, int) and 0 <= at_s < 2**33
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at_s)) if valid else "unknown"
    return {"when": when, **known, "before": str(content.get("before", "")), "sha": sha}


def _judged(host: HostFacts) -> HostFacts:
    """The host, with an error where an entry does not follow the one before it."""
    for i, (before, entry) in enumerate(zip(host.facts, host.facts[1:], strict=False)):
        if "before" in entry and entry["before"] != before["sha"]:
            text = f"the audit log was altered: entry {i + 2} does not follow the one before it"
            return replace(host, error=text, exit_code=6)
    return host


def facts_of(hosts: Hosts, worked: Worked[tuple[Facts, ...]]) -> FleetFacts:
    """What every host reported, in the target's order."""
    found = []
    for name, _ in hosts:
        error = worked.errors.get(name)
        text, code = ("", 0) if error is None else (str(error), error.exit_code)
        found.append(HostFacts(name, worked.values.get(name, ()), text, code))
    return FleetFacts(tuple(found), worked.interrupted)
