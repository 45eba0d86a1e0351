"""The keys whose signatures a device accepts. All files are in the agent's folder:

allowed_signers     bundles and releases by these keys are accepted; OpenSSH's format, and people may edit it
retired_signers     releases that are here already stay valid; new bundles are refused
revoked_signers     refused, bundles and releases; one public key a line
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import struct
import time
from typing import Sequence

from ...runtimes import machine
from ...runtimes.device import Failed
from ..wire import ChangeKeys, KeyEntry, Keys
from . import audit

NAMESPACE = "edgeprune"  # of signatures: a signature of a mail or a commit is not valid here
KEY = re.compile(r"(ssh-ed25519|sk-ssh-ed25519@openssh\.com) ([A-Za-z0-9+/]{40,1000}={0,2})")
LINES = 1000  # of a file of keys
SIGNATURE_BYTES = 1 << 14


def allowed() -> str:
    """The file of accepted keys."""
    return os.path.join(machine.root(), "allowed_signers")


def retired() -> str:
    """The file of keys that sign no new bundle."""
    return os.path.join(machine.root(), "retired_signers")


def revoked() -> str:
    """The file of refused keys."""
    return os.path.join(machine.root(), "revoked_signers")


def line(key: str) -> str:
    """A key as a line of `allowed_signers`."""
    return f'{NAMESPACE} namespaces="{NAMESPACE}" {key}'


def valid(text: str) -> str:
    """A public key: its kind and itself. Raises `Failed` for another text."""
    found = KEY.fullmatch(" ".join(text.split()[:2]))
    if found is None:
        raise Failed("refused", "this is not a public Ed25519 key: give the line of the file that ends in .pub")
    return found[0]


def held(path: str) -> list[str]:
    """The keys in a file."""
    return [found[0] for found in map(KEY.search, machine.lines(path, LINES)) if found]


def fingerprint(key: str) -> str:
    """The fingerprint of a public key, as ssh-keygen -l prints it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(base64.b64decode(key.split()[1])).digest()).decode().rstrip("=")


def signer(path: str) -> str:
    """The public key inside a signature in OpenSSH's format (PROTOCOL.sshsig). Raises `Failed` if the file holds none."""
    try:
        with open(path, "rb") as file:
            text = file.read(SIGNATURE_BYTES).decode("ascii")
        blob = base64.b64decode("".join(row for row in text.split("\n") if not row.startswith("-----")))
        (size,) = struct.unpack(">I", blob[10:14])
        key = blob[14 : 14 + size]
        (length,) = struct.unpack(">I", key[:4])
        found = f"{key[4 : 4 + length].decode('ascii')} {base64.b64encode(key).decode()}"
    except (OSError, UnicodeDecodeError, binascii.Error, struct.error) as error:
        raise Failed("refused", f"{os.path.basename(path)} is not a signature") from error
    if blob[:6] != b"SSHSIG":
        raise Failed("refused", f"{os.path.basename(path)} is not a signature")
    return valid(found)


def change(job: ChangeKeys) -> Keys:
    """Add, retire and revoke keys; all may be empty. Returns all keys."""
    for text in job.add:
        key = valid(text)
        if key in held(revoked()):
            raise Failed(
                "refused", f"the key {fingerprint(key)} was revoked here; make a new one: ssh-keygen -t ed25519"
            )
        _change(key, "key-add", job.who, to=allowed(), out_of=(retired(),))
    for text in job.retire:
        _change(valid(text), "key-retire", job.who, to=retired(), out_of=(allowed(),))
    for text in job.revoke:
        _change(valid(text), "key-revoke", job.who, to=revoked(), out_of=(allowed(), retired()))
    return Keys(
        (
            *(KeyEntry(key, "accepted") for key in held(allowed())),
            *(KeyEntry(key, "retired") for key in held(retired())),
            *(KeyEntry(key, "revoked") for key in held(revoked())),
        )
    )


def _change(key: str, did: audit.Deed, who: str, to: str, out_of: Sequence[str]) -> None:
    """Put a key into one file and take it out of others. It is in the new one first, whenever the power fails."""
    if key in held(to) and not any(key in held(path) for path in out_of):
        return
    os.makedirs(machine.root(), mode=0o700, exist_ok=True)
    audit.append(audit.Entry(int(time.time()), who, did, "", "", fingerprint(key)))
    if key not in held(to):
        _write(to, [*machine.lines(to, LINES), key if to == revoked() else line(key)])
    for path in out_of:
        kept = [row for row in machine.lines(path, LINES) if key not in row]
        if os.path.exists(path):
            _write(path, kept)


def _write(path: str, rows: Sequence[str]) -> None:
    machine.write(path, "".join(row + "\n" for row in rows if row).encode())
