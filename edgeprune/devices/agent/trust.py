"""What a device checks of a signed bundle: the signature, every file, and that the bundle belongs here."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
from typing import Any, Dict, Sequence

from ...runtimes import machine
from ...runtimes.device import Failed, find
from . import facts, keys
from .keys import NAMESPACE

MANIFEST, SIGNATURE = "manifest.json", "manifest.json.sig"
MANIFEST_BYTES = 1 << 20
OUTPUT_CHARS = 600
SIGNATURE_S = 30
WITHDRAWN = 10_000  # releases of a service
Manifest = Dict[str, Any]


def candidate(part: str, signer: str) -> str:
    """A file of accepted keys for a first bundle, whose key is not accepted yet."""
    path = os.path.join(part, ".signers")
    if not os.path.exists(path):
        machine.write(path, f"{keys.line(keys.valid(signer))}\n".encode())
    return path


def plain(name: str) -> str:
    """A name without a folder. Raises `Failed` for any other name."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", name):
        raise Failed("refused", f"the bundle holds a file of the name {name!r}; a name has no folder in it")
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
    return parsed(content)


def parsed(content: bytes) -> Manifest:
    """A manifest. Raises `Failed` where its parts are of other types."""
    try:
        manifest: Manifest = json.loads(content)
        entries = manifest["files"].items()
        right = all(isinstance(size, int) and isinstance(sha, str) for _, (size, sha) in entries)
        right = right and isinstance(manifest.get("sequence", 0), int) and isinstance(manifest["created_s"], int)
        right = right and isinstance(manifest["device"], dict)
        right = right and isinstance(manifest["threads"], int) and isinstance(manifest.get("keep", 5), int)
        right = right and all(isinstance(word, str) for word in manifest.get("reload", []))
        right = right and all(isinstance(manifest[key], str) for key in ("service", "runtime", "model"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        right = False
    if not right:
        raise Failed("refused", f"{MANIFEST} is not a manifest")
    return manifest


def signed(folder: str, digest: str, allowed: Sequence[str]) -> Manifest:
    """The manifest of a bundle or release, once its signature is by a key of one of these files."""
    manifest = loaded(folder, digest)
    if not os.path.isfile(os.path.join(folder, SIGNATURE)):
        raise Failed("refused", "the bundle is not signed")
    if keys.signer(os.path.join(folder, SIGNATURE)) in keys.held(keys.revoked()):
        raise Failed("refused", "the signature is by a key that was revoked here")
    outputs = [_verified(folder, path) for path in allowed if os.path.exists(path)]
    if "" not in outputs:
        said = outputs[0] if outputs else "there is no such file"
        raise Failed("refused", f"the signature is not by a key of {allowed[0]} ({said}); add it: edgeprune keys add")
    return manifest


def checked(folder: str, digest: str) -> Manifest:
    """The manifest of a release, once its signature is by an accepted or a retired key and every file is as it was signed."""
    manifest = signed(folder, digest, (keys.allowed(), keys.retired()))
    require_whole(folder, manifest)
    for name in find(manifest["runtime"]).made:
        if not os.path.isfile(os.path.join(folder, name)):
            raise Failed("refused", f"{name} is missing")
    return manifest


def require_whole(folder: str, manifest: Manifest) -> None:
    """Refuse a bundle or release whose files are not as they were signed."""
    for name, (size, sha) in manifest["files"].items():
        path = os.path.join(folder, plain(name))
        if os.path.islink(path) or not os.path.isfile(path):
            raise Failed("refused", f"{name} is missing")
        if os.path.getsize(path) != size or machine.sha256(path) != sha:
            raise Failed("refused", f"{name} was altered")


def _verified(folder: str, allowed: str) -> str:
    """OpenSSH's own check of the signature: empty if it is good, else what ssh-keygen prints."""
    argv = ["ssh-keygen", "-Y", "verify", "-f", allowed, "-I", NAMESPACE, "-n", NAMESPACE]
    argv += ["-s", os.path.join(folder, SIGNATURE)]
    try:
        with open(os.path.join(folder, MANIFEST), "rb") as file:
            done = subprocess.run(
                argv, stdin=file, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=SIGNATURE_S
            )
    except FileNotFoundError as error:
        raise Failed("no-ssh-keygen", "there is no ssh-keygen to check signatures with") from error
    except subprocess.TimeoutExpired as error:
        raise Failed("refused", f"ssh-keygen took over {SIGNATURE_S} s to check the signature") from error
    if not done.returncode:
        return ""
    output = " ".join(done.stdout.decode("utf-8", "backslashreplace").split())[:OUTPUT_CHARS]
    if "usage:" in output:
        raise Failed("no-ssh-keygen", "the ssh-keygen is older than 8.1 and cannot check signatures")
    return output or f"ssh-keygen ended with {done.returncode}"


def require_own(manifest: Manifest, service: str) -> None:
    """Refuse a bundle of another service, or of another kind of device than it was verified on."""
    if manifest["service"] != service:
        raise Failed("refused", f"the bundle is of the service {manifest['service']!r}")
    own = {"machine": platform.machine(), "cpu": facts.cpu_name(), "cores": len(os.sched_getaffinity(0))}
    for fact, value in own.items():
        other = manifest["device"].get(fact)
        if isinstance(other, str):
            other = facts.kind_of(other)
        if other != value:
            raise Failed(
                "refused", f"the bundle was verified on another device: its {fact} is {other!r}, this one's {value!r}"
            )


def require_newer(manifest: Manifest, service: str) -> None:
    """Refuse a bundle that is not after every release here, though it is signed. A rollback is the way back.

    Args:
        service: the folder of the service.
    """
    for digest in machine.listed(os.path.join(service, "releases")):
        if order(os.path.join(service, "releases", digest), digest) >= order_of(manifest):
            raise Failed(
                "refused",
                f"the bundle is older than one that is here: its number is {manifest.get('sequence', 0)}, and release"
                f" {digest[:12]} comes after it. Deploy again, so that it gets a new number; or take that release back:"
                f" edgeprune withdraw {digest[:12]}",
            )


def order_of(manifest: Manifest) -> tuple[int, int]:
    """The order of releases: by their number; those from before there were numbers come first, by their time."""
    number = manifest.get("sequence", 0)
    return number, 0 if number else manifest["created_s"]


def order(folder: str, digest: str) -> tuple[int, int]:
    """The order of a release. A damaged one counts as the first."""
    try:
        return order_of(loaded(folder, digest))
    except Failed:
        return 0, 0


def withdrawn(service: str) -> list[str]:
    """The digests of the releases that were withdrawn from a service. They are refused."""
    return machine.lines(os.path.join(service, "withdrawn"), WITHDRAWN)
