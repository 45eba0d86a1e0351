"""What a device checks of a signed bundle: the signature, every file, and that the bundle belongs here."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
import time
from typing import Any, Dict

from ...runtimes import machine
from ...runtimes.device import Failed, find
from . import facts

MANIFEST, SIGNATURE = "manifest.json", "manifest.json.sig"
NAMESPACE = "edgeprune"  # of signatures: a signature of a mail or a commit is not valid here
MANIFEST_BYTES = 1 << 20
OUTPUT_CHARS = 600
SIGNATURE_S = 30
Manifest = Dict[str, Any]


def signers() -> str:
    """The file of the keys whose bundles are accepted: the key of the first bundle, and keys that somebody adds."""
    return os.path.join(machine.root(), "allowed_signers")


def candidate(part: str, signer: str) -> str:
    """Such a file for a first bundle, which is not accepted yet."""
    path = os.path.join(part, ".signers")
    if not os.path.exists(path):
        machine.write(path, f'{NAMESPACE} namespaces="{NAMESPACE}" {signer}\n'.encode())
    return path


def plain(name: str) -> str:
    """A name without a folder. Raises `Failed` for any other name."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", name):
        raise Failed("refused", f"the bundle holds a file of the name {name!r}")
    return name


def loaded(folder: str, digest: str) -> Manifest:
    """The manifest of a bundle or release, once its digest is right."""
    try:
        with open(os.path.join(folder, MANIFEST), "rb") as file:
            content = file.read(MANIFEST_BYTES)
    except OSError as error:
        raise Failed("refused", f"{MANIFEST}: {error.strerror}") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise Failed("refused", f"{MANIFEST} was altered: it is not the one that was signed")
    try:
        manifest: Manifest = json.loads(content)
        entries = manifest["files"].items()
        right = all(isinstance(size, int) and isinstance(sha, str) for _, (size, sha) in entries)
        right = right and isinstance(manifest["created_s"], int) and isinstance(manifest["device"], dict)
        right = right and all(isinstance(manifest[key], str) for key in ("service", "runtime", "model"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        right = False
    if not right:
        raise Failed("refused", f"{MANIFEST} is not a manifest")
    return manifest


def checked(folder: str, digest: str, allowed: str | None = None) -> Manifest:
    """The manifest, once its signature is by an allowed key and every file is as it was signed.

    Args:
        folder: of a release; or of a bundle, where `allowed` names the file of allowed keys.
    """
    manifest = loaded(folder, digest)
    _verify_signature(folder, allowed or signers())
    for name, (size, sha) in manifest["files"].items():
        path = os.path.join(folder, plain(name))
        if os.path.islink(path) or not os.path.isfile(path):
            raise Failed("refused", f"{name} is missing")
        if os.path.getsize(path) != size or machine.sha256(path) != sha:
            raise Failed("refused", f"{name} was altered")
    if allowed is None:
        for name in find(manifest["runtime"]).made:
            if not os.path.isfile(os.path.join(folder, name)):
                raise Failed("refused", f"{name} is missing")
    return manifest


def _verify_signature(folder: str, allowed: str) -> None:
    """OpenSSH's own check of the signature."""
    argv = ["ssh-keygen", "-Y", "verify", "-f", allowed, "-I", NAMESPACE, "-n", NAMESPACE]
    argv += ["-s", os.path.join(folder, SIGNATURE)]
    if not os.path.isfile(os.path.join(folder, SIGNATURE)):
        raise Failed("refused", "the bundle is not signed")
    try:
        with open(os.path.join(folder, MANIFEST), "rb") as file:
            done = subprocess.run(
                argv, stdin=file, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=SIGNATURE_S
            )
    except FileNotFoundError as error:
        raise Failed("no-ssh-keygen", "there is no ssh-keygen to check signatures with") from error
    except subprocess.TimeoutExpired as error:
        raise Failed("refused", f"ssh-keygen took over {SIGNATURE_S} s to check the signature") from error
    if done.returncode:
        output = " ".join(done.stdout.decode("utf-8", "backslashreplace").split())[:OUTPUT_CHARS]
        if "usage:" in output:
            raise Failed("no-ssh-keygen", "the ssh-keygen is older than 8.1 and cannot check signatures")
        raise Failed("refused", f"the signature is not by a key of {signers()} ({output}); add its line there")


def require_own(manifest: Manifest, service: str) -> None:
    """Refuse a bundle of another service, or of another kind of device than it was verified on."""
    if manifest["service"] != service:
        raise Failed("refused", f"the bundle is of the service {manifest['service']!r}")
    own = {"machine": platform.machine(), "cpu": facts.cpu_name(), "cores": len(os.sched_getaffinity(0))}
    for fact, value in own.items():
        other = manifest["device"].get(fact)
        if other != value:
            raise Failed(
                "refused", f"the bundle was verified on another device: its {fact} is {other!r}, this one's {value!r}"
            )


def require_newer(manifest: Manifest, service: str) -> None:
    """Refuse a bundle that is older than a release here, though it is signed. A rollback is the way back.

    Args:
        service: the folder of the service.
    """
    for digest in machine.listed(os.path.join(service, "releases")):
        known = created_s(os.path.join(service, "releases", digest), digest)
        if known >= manifest["created_s"]:
            when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(known))
            fix = "set the clock of the machine that deploys, or roll back"
            raise Failed("refused", f"the bundle is older than one that is here, which is of {when}; {fix}")


def created_s(folder: str, digest: str) -> int:
    """When a release was made, in seconds since 1970. A damaged release counts as the oldest."""
    try:
        return int(loaded(folder, digest)["created_s"])
    except Failed:
        return 0
