"""The deploy verb: a verified artifact into service on its devices, and out of it again.

A bundle is the artifact, an input with the output it gave when it was verified, a runner, and a manifest that is signed with
an SSH key (OpenSSH's SSHSIG). All that happens on a device is `agent/releasing.py`'s; see docs/deploy.md.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune import runtimes
from edgeprune.devices import transports
from edgeprune.devices.agent import RELEASING, RUNNER, SNIPPETS
from edgeprune.devices.bench import identified, parts
from edgeprune.devices.transports.base import Transport, printable
from edgeprune.errors import (
    BusyError,
    DeviceError,
    EdgepruneError,
    InconclusiveError,
    SecurityError,
    UsageError,
    VerdictError,
)
from edgeprune.limits import LIMITS
from edgeprune.records import Artifact, Device, Manifest, Outcome, Release, Target, Verdict
from edgeprune.storage import codec
from edgeprune.storage.store import file_sha256

SCHEMA = 1
NAMESPACE = "edgeprune"  # of signatures, as the device checks them
KINDS = ("ssh-ed25519", "sk-ssh-ed25519@openssh.com")  # of keys; the latter on a stick, which may ask to be touched
RELATIVE_ERROR = 1e-3  # of the kept output's largest value: the same file on the same kind of device
# What the device may answer that is no fault of the link or the agent.
REFUSALS: Mapping[str, type[EdgepruneError]] = {
    "refused": SecurityError,
    "unhealthy": VerdictError,
    "busy": BusyError,
    "no-ssh-keygen": UsageError,
}


@dataclass(frozen=True)
class Bundle:
    """A signed bundle in a folder of this machine; `signer` is the public key that its signature is of."""

    files: tuple[Path, ...]
    manifest: Manifest
    digest: str
    signer: str


def require(verdict: Verdict, target: Target) -> None:
    """Raises `VerdictError` or `InconclusiveError` unless the verdict passed: nothing else gets into service."""
    if verdict.outcome is Outcome.PASS:
        return
    failed = ", ".join(check.name for check in verdict.checks if check.outcome is verdict.outcome)
    text = f"{target.name}: nothing was deployed: the verdict is {verdict.outcome} ({failed})"
    if verdict.outcome is Outcome.FAIL:
        raise VerdictError(f"{text}; see edgeprune verify")
    raise InconclusiveError(f"{text}; run it again when the device is quiet")


def bundle(
    service: str,
    target: Target,
    device: Device,
    artifact: Artifact,
    verdict: Verdict,
    inputs: Sequence[np.ndarray],
    expected: np.ndarray,
    folder: Path,
) -> Bundle:
    """Put a signed bundle into an empty `folder`.

    `expected` is the first output that the artifact gave for `inputs` on `device`, which the verdict is of. Raises
    `UsageError` where there is no key to sign with, or the service's name could be no folder's.
    """
    _require_name(service)
    files = [Path(shutil.copy(path, folder / path.name)) for path in artifact.files]
    for path in runtimes.RUNTIMES[target.runtime].beside:
        shutil.copy(path, folder / path.name)
    for i, array in enumerate(inputs):
        np.save(folder / f"input_{i}.npy", array, allow_pickle=False)
    np.save(folder / "expected.npy", expected, allow_pickle=False)
    shutil.copy(RUNNER, folder / "runner.py")
    snippet = SNIPPETS / f"{target.runtime}.cpp"
    if snippet.exists():
        shutil.copy(snippet, folder / "load.cpp")
    manifest = Manifest(
        schema=SCHEMA,
        service=service,
        target=target.name,
        created_s=int(time.time()),
        edgeprune=version("edgeprune"),
        runtime=target.runtime,
        model=files[0].name,
        precision=artifact.precision,
        threads=target.threads,
        dla=target.dla,
        artifact=artifact.sha256,
        relative_error=RELATIVE_ERROR,
        device=device,
        verdict=verdict,
        files={path.name: (path.stat().st_size, file_sha256(path)) for path in sorted(folder.iterdir())},
    )
    path = folder / "manifest.json"
    path.write_text(codec.dumps(manifest), encoding="utf-8")
    signer = _sign(path, _key(target))
    others = sorted(file for file in folder.iterdir() if file != path)
    return Bundle((path, *others), manifest, file_sha256(path), signer)


def _require_name(service: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", service):
        raise UsageError(
            f"{service!r} names folders on devices: use letters, digits, '_', '-' and '.'; rename the project's folder"
        )


def require_ready(service: str, target: Target) -> None:
    """Raises `UsageError` for what would stop a deploy in the end: the service's name, or a key to sign with."""
    _require_name(service)
    key = _key(target)
    if not key.is_file():
        raise UsageError(f"{target.path}: [deploy] key: no file {key}; make a key: ssh-keygen -t ed25519")
    _require_kind(key)


def _key(target: Target) -> Path:
    """The key to sign with: the one that is named, or the first Ed25519 key of those that are there."""
    if target.deploy.key is not None:
        return target.deploy.key
    own = target.host.identity if target.host else None
    for key in filter(None, (own, Path("~/.ssh/id_ed25519").expanduser())):
        if key.is_file() and _public(key).split(" ")[0] in KINDS:
            return key
    raise UsageError(
        f"{target.path}: no Ed25519 key to sign with; name one: [deploy] key, or make one: ssh-keygen -t ed25519"
    )


def _require_kind(key: Path) -> str:
    """The public half of an Ed25519 key."""
    public = _public(key)
    if public.split(" ")[0] not in KINDS:
        raise UsageError(f"{key}: is no Ed25519 key; make one: ssh-keygen -t ed25519, and name it in [deploy] key")
    return public


def _public(key: Path) -> str:
    """The public half's line: its kind, itself."""
    beside = Path(f"{key}.pub")
    text = beside.read_text() if beside.is_file() else _ssh_keygen(["-y", "-P", "", "-f", str(key)], key)
    return " ".join([*text.split(), "", ""][:2])


def _sign(path: Path, key: Path) -> str:
    """Sign a file by OpenSSH, which also asks an agent for the key: path.sig beside it; the public key's line."""
    public = _require_kind(key)
    _ssh_keygen(["-q", "-Y", "sign", "-f", str(key), "-n", NAMESPACE, str(path)], key)
    return public


def _ssh_keygen(arguments: Sequence[str], key: Path) -> str:
    environment = {**os.environ, "SSH_ASKPASS_REQUIRE": "never"}
    environment.pop("DISPLAY", None)
    try:
        done = subprocess.run(
            ["ssh-keygen", *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMITS.sign_s,
            env=environment, start_new_session=True, check=False,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise UsageError("there is no ssh-keygen to sign with; apt install openssh-client") from error
    except subprocess.TimeoutExpired as error:
        raise UsageError(
            f"{key}: ssh-keygen took over {LIMITS.sign_s:g} s; add the key to the agent: ssh-add {key}"
        ) from error
    if done.returncode:
        said = printable((done.stderr or done.stdout).strip(), 200)
        raise UsageError(
            f"{key}: cannot be signed with: {said}; one with a passphrase goes into the agent: ssh-add {key}"
        )
    return done.stdout


# ------------------------------------------------------------------------------------------------- on the devices


def deploy(target: Target, bundle: Bundle, say: Callable[[str], None], wait_s: float = 0.0) -> list[Release]:
    """Put a bundle into service on every host of the target, one after another: what runs there now.

    The first host where it fails ends it; the error says what runs where. A host that already runs the same artifact is only
    checked. Raises `SecurityError` for what a device refuses and `VerdictError` where the release does not run there, in which
    case what was in service before is so again.
    """
    return _on_each(target, wait_s, lambda transport, one, name: _into_service(transport, one, name, bundle, say))


def rollback(target: Target, service: str, say: Callable[[str], None], wait_s: float = 0.0) -> list[Release]:
    """Put the previous release back into service on every host of the target: what runs there now.

    Ends and raises as `deploy` does, and `UsageError` where there is nothing to go back to.
    """
    _require_name(service)

    def back(transport: Transport, one: Target, name: str) -> Release:
        order = _orders(transport, one)
        known = {release.state: release for release in _listed(order, name) if release.service == service}
        if "previous" not in known:
            raise UsageError(f"{service} had no release before the one in service: there is nothing to go back to")
        if _younger(known["previous"], known.get("current")):  # so that a rollback that failed half-way can go on
            say(f"{name} was rolled back already; to go forth again: edgeprune deploy")
            return known["current"]
        # By its digest, so that asking again, where the answer was lost, does no harm.
        digest = known["previous"].digest
        order({"mode": "activate", "service": service, "digest": digest, **_switching(one)})
        say(f"{name} runs {digest[:12]} again")
        return _current(order, name, service)

    return _on_each(target, wait_s, back)


def _younger(one: Release, other: Release | None) -> bool:
    """Whether a release was made after another, as far as both say."""
    if one.manifest is None or other is None or other.manifest is None:
        return False
    return one.manifest.created_s > other.manifest.created_s


def _on_each(target: Target, wait_s: float, work: Callable[[Transport, Target, str], Release]) -> list[Release]:
    """Do it on one host after another, up to the first where it fails."""
    done: list[Release] = []
    hosts = target.each_host
    for i, (name, one) in enumerate(hosts):
        try:
            with closing(transports.connect(one, wait_s)) as transport:
                done.append(work(transport, one, name))
        except EdgepruneError as error:
            rest = [f"{release.host} runs {release.digest[:12]}" for release in done]
            rest += [f"{other} was not touched" for other, _ in hosts[i + 1 :]]
            told = f"; {', '.join(rest)}" if rest else ""
            raise type(error)(f"{name}: {error}{told}" if len(hosts) > 1 else str(error)) from error
    return done


def _into_service(
    transport: Transport, target: Target, name: str, bundle: Bundle, say: Callable[[str], None]
) -> Release:
    device = identified(transport, target)
    if device.identity != bundle.manifest.device.identity:
        differing = [
            f"{fact} is {printable(str(getattr(device, fact)))} there, {getattr(bundle.manifest.device, fact)} in the verdict"
            for fact in ("machine", "cpu", "cores", "system", "runtime_version", "emulated", "simulated")
            if getattr(device, fact) != getattr(bundle.manifest.device, fact)
        ]
        raise SecurityError(f"the verdict is of another device: {'; '.join(differing)}; run edgeprune for this one")
    order = _orders(transport, target)
    current = next((release for release in _listed(order, name) if _runs(release, bundle.manifest)), None)
    if current is not None:
        try:
            order({"mode": "activate", "service": current.service, "digest": current.digest, **_switching(target)})
        except VerdictError as error:  # what was made there, such as an engine, is no more what it was
            say(f"{name} has {current.digest[:12]} in service, which does not run: {error}")
        else:
            say(f"{name} runs {current.digest[:12]} already, and well")
            return current
    source = os.path.dirname(transport.put(bundle.files))
    service = bundle.manifest.service
    reply = order(
        {"mode": "publish", "service": service, "source": source, "digest": bundle.digest, "signer": bundle.signer}
    )
    if reply.get("enrolled"):
        say(f"{name} takes bundles by this key from now on: {bundle.signer}")
    say(f"{name} has {bundle.digest[:12]}, and it runs there")
    found = order({"mode": "activate", "service": service, "digest": bundle.digest, **_switching(target)})
    before = f", {printable(str(found['previous'])[:12])} before" if found.get("previous") else ""
    say(f"{name} runs {bundle.digest[:12]}{before}")
    return _current(order, name, service)


def _runs(release: Release, wanted: Manifest) -> bool:
    """Whether a release is in service and the same in all that matters."""

    def essence(known: Manifest) -> tuple[object, ...]:
        code = known.files.get("runner.py"), known.files.get("engine.py")
        return known.service, known.artifact, known.threads, known.dla, code

    return release.state == "current" and release.manifest is not None and essence(release.manifest) == essence(wanted)


def releases(target: Target, wait_s: float = 0.0) -> list[Release]:
    """Every release of every service on every host of the target."""
    found = []
    for name, one in target.each_host:
        try:
            with closing(transports.connect(one, wait_s)) as transport:
                found += _listed(_orders(transport, one), name)
        except EdgepruneError as error:
            raise type(error)(f"{name}: {error}" if len(target.each_host) > 1 else str(error)) from error
    return found


Order = Callable[[Mapping[str, Any]], Mapping[str, Any]]


def _orders(transport: Transport, target: Target) -> Order:
    """Gives the device's part of this verb a job: its reply, or our error."""
    releasing = transport.put([RELEASING])
    own = parts(transport, target).get("parts", [])
    slowness = LIMITS.emulated_slowness if target.emulated else 1

    def order(job: Mapping[str, Any]) -> Mapping[str, Any]:
        common: dict[str, Any] = {"runtime": target.runtime, "parts": [*own, releasing]}
        common |= {"deadline_s": LIMITS.release_s, "check_s": LIMITS.check_s, "finishes": job["mode"] == "activate"}
        (reply,) = transport.call([{"id": 0, **common, **job}], (LIMITS.release_s + LIMITS.identify_s) * slowness)
        kind = str(reply.get("error", ""))
        if kind in REFUSALS:
            fix = "; apt install openssh-client there" if kind == "no-ssh-keygen" else ""
            raise REFUSALS[kind](f"{target.name}: {printable(str(reply.get('message')))}{fix}")
        if kind:
            raise DeviceError(
                f"{target.name}: {job['mode']}: {printable(kind)}: {printable(str(reply.get('message')))}"
            )
        return reply

    return order


def _switching(target: Target) -> dict[str, Any]:
    return {"tell": list(target.deploy.reload), "tell_s": LIMITS.reload_s, "keep": target.deploy.keep}


def forecast(target: Target) -> list[str]:
    """What `deploy` would do on each host, without touching any."""
    lines = []
    for name, one in target.each_host:
        lines += [
            f"deploy to {name}:",
            *transports.commands(one),
            "  agent: identify, releases",
            "  sftp put the bundle: artifact, runner.py, load.cpp, an input and its output, manifest.json and its signature",
            "  agent: publish: ssh-keygen -Y verify, digests, runner.py --check, mv into services/NAME/releases/DIGEST",
            "  agent: activate: previous and current by rename, current/runner.py --check",
        ]
        if one.deploy.reload:
            lines.append(f"  {shlex.join(one.deploy.reload)}")
    return lines


def _listed(order: Order, host: str) -> list[Release]:
    found = order({"mode": "releases"}).get("releases")
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise DeviceError(f"{host}: its releases cannot be read")
    return [_release(host, entry) for entry in found]


def _current(order: Order, host: str, service: str) -> Release:
    for release in _listed(order, host):
        if release.service == service and release.state == "current":
            return release
    raise DeviceError(f"{host}: nothing of {service} is in service")


def _release(host: str, entry: Mapping[str, Any]) -> Release:
    try:
        manifest, damage = None, printable(str(entry.get("damage", "")))
        if not damage:
            try:
                manifest = codec.loads(Manifest, codec.dumps(entry["manifest"]), f"{host}: manifest.json")
            except UsageError:
                damage = "made by another version of edgeprune"
        service, digest, state = (printable(str(entry[key]), 100) for key in ("service", "digest", "state"))
        since = int(entry["since_s"]) if "since_s" in entry else None
        if since is not None and not 0 <= since < 2**33:
            raise ValueError(f"in service since {since}")
        return Release(host, service, digest, state, since, manifest, damage)
    except (KeyError, TypeError, ValueError) as error:
        raise DeviceError(f"{host}: its releases cannot be read: {printable(str(error))}") from error
