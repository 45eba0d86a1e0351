"""What a release's runner.py does for its device without a host: install a bundle, go back, list, show the audit log.

It does what a deployment over SSH does: the same checks, the same switch, the same way back. It runs on the device as the user
that the service belongs to. Standard library only; Python 3.8 and up.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from typing import Any, Callable

from ...runtimes import machine
from ...runtimes.device import Failed
from ..validate import printable
from ..wire import Activate, Identify, ListReleases, ReadAudit, Withdraw
from . import archive, audit, facts, keys, releases, trust

USAGE = """usage: python3 runner.py --install FILE.tar [--signer KEY.pub]    check a bundle, run it, and put it into service
       python3 runner.py --rollback SERVICE                      return to the release before
       python3 runner.py --withdraw SERVICE DIGEST               return to it, and refuse this release from now on
       python3 runner.py --releases                              list the releases of this device
       python3 runner.py --audit                                 print who put which release here, and when"""
CHECK_S, RELOAD_S, WHOLE_S = 60.0, 30.0, 900.0
SAME = ("system", "runtime_version", "emulated", "simulated")  # facts beside those that `trust.require_own` compares
EXITS = {"unhealthy": 1, "no-ssh-keygen": 2, "refused": 6, "busy": 7}  # as in errors.py; others are 5
AUDIT_BYTES = 1 << 20


def main(folder: str, arguments: list[str]) -> int:
    """Do a command; returns the exit status. It prints one line of JSON, or one line of an error."""
    commands: dict[str, tuple[int, Callable[..., Any]]] = {
        "--install": (1, install),
        "--rollback": (1, rollback),
        "--withdraw": (2, withdraw),
        "--releases": (0, listed),
        "--audit": (0, log),
    }
    signer = ""
    if "--signer" in arguments[:-1]:
        at = arguments.index("--signer")
        signer = machine.first_line(arguments[at + 1])
        if not signer:
            print(f"error: --signer {printable(arguments[at + 1])}: no such file, or it is empty", file=sys.stderr)
            return 2
        del arguments[at : at + 2]
    count, command = commands[arguments[0]]
    if len(arguments) != count + 1:
        print(USAGE)
        return 2
    try:
        given = [*arguments[1:], *([signer] if command is install else [])]
        print(json.dumps(command(*given)))
        return 0
    except Failed as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return EXITS.get(error.kind, 5)
    except OSError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 5


def install(path: str, signer: str) -> dict[str, Any]:
    """Take a bundle and put it into service.

    Args:
        path: a .tar file, or a folder.
        signer: the public key that is trusted if this device trusts none yet; empty for none.
    """
    source = archive.source(path)
    with contextlib.closing(source.open(trust.MANIFEST)) as file:
        content = file.read(trust.MANIFEST_BYTES)
    digest = hashlib.sha256(content).hexdigest()
    manifest = trust.parsed(content)
    service = trust.plain(manifest["service"])
    _require_same(manifest)
    offer = releases.Offer(service, digest, source.open, signer and keys.valid(signer), machine.whoami())
    enrolled = releases.take(offer, CHECK_S)
    own = os.path.join(machine.root(), "services", service)
    before = releases.pointed(own, "current")
    found = releases.activate(_activation(manifest, digest))
    return {
        "service": service,
        "release": digest,
        "before": before,
        "changed": before != digest,
        "enrolled": enrolled,
        "median_ms": found.check.median_ms,
    }


def rollback(service: str) -> dict[str, Any]:
    """Return to the release before."""
    folder = os.path.join(machine.root(), "services", trust.plain(service))
    current, before = releases.pointed(folder, "current"), releases.pointed(folder, "previous")
    if not before:
        raise Failed("refused", f"there is no release of {service} before the deployed one")
    order = [trust.order(os.path.join(folder, "releases", digest), digest) for digest in (before, current or before)]
    if order[0] > order[1]:
        return {"service": service, "release": current, "changed": False}
    releases.activate(_activation(_manifest(folder, before), before))
    return {"service": service, "release": before, "before": current, "changed": True}


def withdraw(service: str, digest: str) -> dict[str, Any]:
    """Refuse a release from now on. `digest` may be its first characters."""
    folder = os.path.join(machine.root(), "services", trust.plain(service))
    meant = [one for one in machine.listed(os.path.join(folder, "releases")) if one.startswith(digest)]
    if len(meant) != 1:
        raise Failed("refused", f"{len(meant)} releases of {service} begin with {digest}; see --releases")
    job = _activation(_manifest(folder, meant[0]), meant[0])
    found = releases.withdraw(Withdraw(**vars(job)))
    return {"service": service, "withdrawn": meant[0], "release": found.current}


def listed() -> list[dict[str, Any]]:
    """Every release of every service."""
    found = releases.listed(ListReleases(WHOLE_S, "")).releases
    return [
        {
            "service": one.service,
            "release": one.digest,
            "state": one.state,
            "since_s": one.since_s,
            "damage": one.damage,
        }
        for one in found
    ]


def log() -> list[Any]:
    """The entries of the audit log."""
    return [json.loads(line) for line in audit.read(ReadAudit(WHOLE_S, AUDIT_BYTES)).lines]


def _require_same(manifest: trust.Manifest) -> None:
    """Refuse a bundle that was verified with another system or runtime."""
    site = os.path.join(machine.root(), "site", manifest["runtime"])
    if os.path.isdir(site):
        sys.path.insert(0, site)
    own = vars(facts.identify(Identify(WHOLE_S, manifest["runtime"])))
    for fact in SAME:
        wanted = manifest["device"].get(fact, False)
        if own[fact] != wanted:
            text = f"the bundle was verified on another device: its {fact} is {wanted!r}, this one's {own[fact]!r}"
            raise Failed("refused", text)


def _manifest(folder: str, digest: str) -> trust.Manifest:
    return trust.loaded(os.path.join(folder, "releases", digest), digest)


def _activation(manifest: trust.Manifest, digest: str) -> Activate:
    reload, keep = tuple(manifest.get("reload", ())), manifest.get("keep", 5)
    runtime, service = manifest["runtime"], manifest["service"]
    return Activate(WHOLE_S, runtime, service, digest, CHECK_S, reload, RELOAD_S, keep, machine.whoami())
