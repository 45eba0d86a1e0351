"""Sign bundles with an SSH key, by OpenSSH's ssh-keygen in its SSHSIG format. An SSH agent may hold the key."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from edgeprune.devices.agent.keys import NAMESPACE
from edgeprune.devices.validate import printable
from edgeprune.errors import UsageError
from edgeprune.limits import LIMITS
from edgeprune.records import Target

ED25519 = (
    "ssh-ed25519",
    "sk-ssh-ed25519@openssh.com",
)  # the second kind is on a hardware token, which the user may have to touch
MAKE = "make a key: ssh-keygen -t ed25519"


def require_key(target: Target) -> Path:
    """The private key that signs bundles for a target.

    It is the one that `[deploy] key` names, or the first Ed25519 key of `[connect] identity` and `~/.ssh/id_ed25519`.

    Raises:
        UsageError: there is no such key, or it is not an Ed25519 key.
    """
    named = target.deploy.key
    if named is None:
        return _default_key(target)
    if not named.is_file():
        raise UsageError(f"{target.path}: [deploy] key: no file {named}. Name another one, or {MAKE}")
    _require_ed25519(named)
    return named


def sign(path: Path, key: Path) -> str:
    """Sign a file. The signature goes into `path`.sig.

    Returns:
        The public key: its kind and itself.

    Raises:
        UsageError: the key is not an Ed25519 key, or cannot be used, for instance since it needs a passphrase.
    """
    public = _require_ed25519(key)
    _ssh_keygen(["-q", "-Y", "sign", "-f", str(key), "-n", NAMESPACE, str(path)], key)
    return public


def _default_key(target: Target) -> Path:
    identity = target.host.identity if target.host else None
    for key in filter(None, (identity, Path("~/.ssh/id_ed25519").expanduser())):
        if key.is_file() and _kind(_public(key)) in ED25519:
            return key
    raise UsageError(f"{target.path}: there is no Ed25519 key to sign with. Name one in [deploy] key, or {MAKE}")


def _require_ed25519(key: Path) -> str:
    """The public half of a key."""
    public = _public(key)
    if _kind(public) not in ED25519:
        raise UsageError(f"{key} is not an Ed25519 key. Name another one in [deploy] key, or {MAKE}")
    return public


def public(key: Path) -> str:
    """The public half of a private Ed25519 key. Raises `UsageError` for another file."""
    if not key.is_file():
        raise UsageError(f"no file {key}. Name another one, or {MAKE}")
    return _require_ed25519(key)


def _kind(public: str) -> str:
    return public.split(" ")[0]


def _public(key: Path) -> str:
    """The public half of a key: its kind and itself."""
    beside = Path(f"{key}.pub")
    text = beside.read_text() if beside.is_file() else _ssh_keygen(["-y", "-P", "", "-f", str(key)], key)
    return " ".join([*text.split(), "", ""][:2])


def _ssh_keygen(arguments: Sequence[str], key: Path) -> str:
    """What ssh-keygen prints. It cannot ask for a passphrase here."""
    environment = {**os.environ, "SSH_ASKPASS_REQUIRE": "never"}
    environment.pop("DISPLAY", None)
    try:
        done = subprocess.run(
            ["ssh-keygen", *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMITS.sign_s,
            env=environment, start_new_session=True, check=False,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise UsageError("ssh-keygen is not installed; it signs bundles. Run: apt install openssh-client") from error
    except subprocess.TimeoutExpired as error:
        raise UsageError(
            f"{key}: ssh-keygen took over {LIMITS.sign_s:g} s. Add the key to the SSH agent: ssh-add {key}"
        ) from error
    if done.returncode:
        reason = printable((done.stderr or done.stdout).strip(), 200)
        raise UsageError(f"{key} cannot sign: {reason}. If it has a passphrase, add it to the SSH agent: ssh-add {key}")
    return done.stdout
