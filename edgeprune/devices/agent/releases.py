"""Releases on the device: check and run a signed bundle, put it into service, and take it out again.

    ~/.edgeprune/
      allowed_signers, …                the keys whose bundles are accepted; see `keys`
      audit.jsonl                       who put which release here; see `audit`
      services/NAME/
        releases/DIGEST/                a bundle's files; DIGEST is that of manifest.json, manifest.json.sig its signature
        current -> releases/DIGEST      the release in service
        previous -> releases/DIGEST     the release that a rollback returns to
        withdrawn                       digests of releases that are refused from now on
        switching                       exists during a switch: the state to return to
        lock

Files are on the disk before they get a name here, and a name changes by one rename. So a power cut at any moment leaves the
old release in service, or the new one. The next process here finds `switching` and returns to the old one.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from ...runtimes import machine, metrics
from ...runtimes.device import Failed, Options, find
from ..validate import WireError, read
from ..wire import (
    Activate,
    Activated,
    Check,
    ListReleases,
    Metrics,
    Publish,
    Published,
    ReadMetrics,
    ReleaseEntry,
    Releases,
    Withdraw,
    Withdrawn,
)
from . import archive, audit, keys, trust
from .archive import Readable
from .trust import MANIFEST, MANIFEST_BYTES, OUTPUT_CHARS, SIGNATURE, Manifest, plain

OUTPUT_BYTES = 1 << 14
METRICS_CHARS = 1 << 17
LISTED = 200  # releases in a list, at most
Kind = Literal["current", "previous"]
NO_KEY = (
    "this device accepts no key yet; deploy to it once over SSH, or name the file of a public key: --signer KEY.pub"
)


@dataclass(frozen=True)
class Offer:
    """A bundle that somebody brings: how to open its files by name. `signer` is trusted if the device trusts no key yet."""

    service: str
    digest: str
    open: Callable[[str], Readable]
    signer: str
    who: str


@dataclass(frozen=True)
class Switch:
    """A switch that is under way: the releases before it, and the command that notifies the server."""

    old: str | None
    previous: str | None
    reload: Sequence[str]
    reload_s: float


# ------------------------------------------------------------------------------------------------------- the jobs


def publish(job: Publish) -> Published:
    """Take a bundle: check it and run it before it gets its name. Nothing is switched."""
    source = archive.Folder(job.source)
    return Published(take(Offer(job.service, job.digest, source.open, job.signer, job.who), job.check_s))


def take(offer: Offer, check_s: float) -> bool:
    """Check a bundle, run it and keep it as a release. Returns whether its key was enrolled as the device's first."""
    with locked(offer.service) as service:
        final = os.path.join(service, "releases", offer.digest)
        if os.path.isdir(final):
            return False
        part = final + ".part"
        _make_folder(part)
        try:
            enrolled = _prepared(offer, service, part, check_s)
            os.rename(part, final)
            machine.sync(os.path.dirname(final))
            return enrolled
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise


def _prepared(offer: Offer, service: str, part: str, check_s: float) -> bool:
    """Copy, check and run a bundle in the folder `part`: whether its key was enrolled as the device's first.

    The signature is checked before a large file is copied, and no file may be larger than it was signed.
    """
    _copy(offer, part, MANIFEST, MANIFEST_BYTES)
    _copy(offer, part, SIGNATURE, keys.SIGNATURE_BYTES)
    first = not os.path.exists(keys.allowed())
    if first and not offer.signer:
        raise Failed("refused", NO_KEY)
    manifest = trust.signed(part, offer.digest, (trust.candidate(part, offer.signer) if first else keys.allowed(),))
    trust.require_own(manifest, offer.service)
    if offer.digest in trust.withdrawn(service):
        raise Failed("refused", f"the release {offer.digest[:12]} was withdrawn here")
    trust.require_newer(manifest, service)
    for name, (size, _) in manifest["files"].items():
        _copy(offer, part, name, size)
    machine.sync(part)
    trust.require_whole(part, manifest)
    _make(part, manifest)
    run_check(part, manifest, check_s)
    _log(offer.who, "publish", part, manifest["service"], offer.digest)
    if first:
        os.replace(trust.candidate(part, offer.signer), keys.allowed())
        machine.sync(machine.root())
    return first


def _copy(offer: Offer, part: str, name: str, most: int) -> None:
    """Copy one file of the bundle, down to the disk."""
    with contextlib.closing(offer.open(plain(name))) as reading, open(os.path.join(part, plain(name)), "wb") as writing:
        left = most + 1
        while left and (data := reading.read(min(left, 1 << 20))):
            writing.write(data)
            left -= len(data)
        if not left:
            raise Failed("refused", f"{name} was altered: it is larger than it was signed")
        writing.flush()
        os.fsync(writing.fileno())


def _log(who: str, did: audit.Deed, folder: str, service: str, digest: str) -> None:
    signer = keys.fingerprint(keys.signer(os.path.join(folder, SIGNATURE)))
    audit.append(audit.Entry(int(time.time()), who, did, service, digest, signer))


def activate(job: Activate) -> Activated:
    """Put a release into service: switch, run it through `current`, notify the server. Undo it where any of it fails."""
    with locked(job.service) as service:
        old, before, new = pointed(service, "current"), pointed(service, "previous"), job.digest
        try:
            manifest = trust.checked(os.path.join(service, "releases", new), new)
        except Failed as error:
            text = f"release {new[:12]} is not put into service: {error}; deploy again"
            raise Failed(error.kind, text) from error
        current = os.path.join(service, "current")
        if new == old:  # the answer to an earlier job was lost, or the host asks for a check
            return Activated(new, before, run_check(current, manifest, job.check_s))
        switch = Switch(old, before, job.reload, job.reload_s)
        machine.write(os.path.join(service, "switching"), json.dumps(asdict(switch)).encode())
        try:
            if old:
                _point(service, "previous", old)
            _point(service, "current", new)
            found = run_check(current, manifest, job.check_s)
            _notify(service, switch)
            _log(job.who, "activate", current, job.service, new)
        except Exception as error:  # whatever it is, the release in service must be one that runs
            back = _go_back(service)
            with contextlib.suppress(OSError):  # the disk may be full: the old release is in service all the same
                audit.append(audit.Entry(int(time.time()), job.who, "go-back", job.service, new))
            _forget(service, job.keep)
            raise Failed("unhealthy", f"{error}; {back}") from error
        _drop(os.path.join(service, "switching"))
        _forget(service, job.keep)
        return Activated(new, pointed(service, "previous"), found)


def withdraw(job: Withdraw) -> Withdrawn:
    """Refuse a release from now on, and remove it. Where it is in service, the release before it comes back first."""
    with locked(job.service) as service:
        current, before = pointed(service, "current"), pointed(service, "previous")
    if current == job.digest and before:
        activate(
            Activate(
                job.deadline_s,
                job.runtime,
                job.service,
                before,
                job.check_s,
                job.reload,
                job.reload_s,
                job.keep,
                job.who,
            )
        )
    with locked(job.service) as service:
        audit.append(audit.Entry(int(time.time()), job.who, "withdraw", job.service, job.digest))
        known = trust.withdrawn(service)
        if job.digest not in known:
            machine.write(os.path.join(service, "withdrawn"), "\n".join([*known, job.digest, ""]).encode())
        kinds: tuple[Kind, ...] = ("current", "previous")
        for kind in kinds:
            if pointed(service, kind) == job.digest:
                _drop(os.path.join(service, kind))
        shutil.rmtree(os.path.join(service, "releases", job.digest), ignore_errors=True)
        return Withdrawn(pointed(service, "current"))


def metrics_of(job: ReadMetrics) -> Metrics:
    """The figures of a service that is running, in whole lines: a figure that is cut would be another one."""
    text = metrics.text(os.path.join(machine.root(), "services", plain(job.service)))
    return Metrics(text if len(text) <= METRICS_CHARS else text[:METRICS_CHARS].rpartition("\n")[0] + "\n")


def listed(job: ListReleases) -> Releases:
    """Every release of every service, and which of them are current and previous."""
    found: list[ReleaseEntry] = []
    services = os.path.join(machine.root(), "services")
    for name in machine.listed(services):
        with locked(name) as service:
            for digest in machine.listed(os.path.join(service, "releases")):
                if re.fullmatch("[0-9a-f]{64}", digest) and len(found) < LISTED:
                    found.append(_entry(service, name, digest))
    return Releases(tuple(found))


def _entry(service: str, name: str, digest: str) -> ReleaseEntry:
    manifest, damage = None, ""
    try:
        manifest = trust.checked(os.path.join(service, "releases", digest), digest)
    except Failed as error:
        damage = str(error)
    kinds: tuple[Kind, ...] = ("current", "previous")
    for kind in kinds:
        if pointed(service, kind) == digest:
            since_s = int(os.lstat(os.path.join(service, kind)).st_mtime)
            return ReleaseEntry(name, digest, kind, since_s, manifest, damage)
    return ReleaseEntry(name, digest, "kept", None, manifest, damage)


# ----------------------------------------------------------------------------------------------------- the steps


def _make(folder: str, manifest: Manifest) -> None:
    """Make the files that only this device can make, such as TensorRT's engine."""
    options = Options(manifest["threads"], manifest["dla"])
    model = os.path.join(folder, plain(manifest["model"]))
    for name, path in find(manifest["runtime"]).make(model, options).items():
        made = os.path.join(folder, name)
        shutil.copyfile(path, made)
        machine.sync(made)
        machine.sync(folder)


def run_check(folder: str, manifest: Manifest, check_s: float) -> Check:
    """Run the release as a server would: the answer of its runner."""
    site = os.path.join(machine.root(), "site", manifest["runtime"])
    argv = [sys.executable, "-I", os.path.join(folder, "runner.py"), "--check", "--site", site]
    code, output = _finished(argv, folder, check_s)
    if code is None:
        raise Failed("unhealthy", f"the release took over {check_s:g} s to run")
    if code:
        raise Failed("unhealthy", f"the release does not run: {output[-OUTPUT_CHARS:]}")
    try:
        return read(Check, json.loads(output.splitlines()[-1]))
    except (ValueError, IndexError, WireError) as error:
        raise Failed("unhealthy", f"the release gives no answer: {output[-OUTPUT_CHARS:]}") from error


def _notify(service: str, switch: Switch) -> None:
    """Have the server load `current` again."""
    if not switch.reload:
        return
    try:
        code, output = _finished(switch.reload, service, switch.reload_s)
    except OSError as error:
        raise Failed("unhealthy", f"[deploy] reload: {error}") from error
    if code is None:
        raise Failed("unhealthy", f"[deploy] reload took over {switch.reload_s:g} s")
    if code:
        raise Failed("unhealthy", f"[deploy] reload ended with {code}: {output[-OUTPUT_CHARS:]}")


def _finished(argv: Sequence[str], folder: str, seconds: float) -> tuple[int | None, str]:
    """A command's exit status and the end of its output.

    The status is None where the command took too long. Then it is killed with all that it started. A process that it leaves in
    the background stays, and may keep its output open.
    """
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=folder, start_new_session=True
        )
        code: int | None
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            code = None
        output.seek(max(0, output.seek(0, os.SEEK_END) - OUTPUT_BYTES))
        return code, output.read().decode("utf-8", "backslashreplace").strip()


# ------------------------------------------------------------------------------------------------------ the disk


@contextlib.contextmanager
def locked(name: str) -> Iterator[str]:
    """A service's folder, locked against other processes. What a power cut left there is cleared first."""
    service = os.path.join(machine.root(), "services", plain(name))
    releases = os.path.join(service, "releases")
    _make_folder(releases)
    with open(os.path.join(service, "lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            text = f"the releases of {name} are being changed by another process; try again"
            raise Failed("busy", text) from error
        for rest in machine.listed(releases):
            if rest.endswith(".part"):
                shutil.rmtree(os.path.join(releases, rest), ignore_errors=True)
        for rest in machine.listed(service):
            if rest.endswith(".new"):
                os.unlink(os.path.join(service, rest))
        if os.path.exists(os.path.join(service, "switching")):
            _go_back(service)
        yield service


def _go_back(service: str) -> str:
    """Undo a switch that did not complete. Returns a phrase that says what is in service now."""
    with open(os.path.join(service, "switching")) as file:
        switch = Switch(**json.load(file))
    before: tuple[tuple[Kind, str | None], ...] = (("current", switch.old), ("previous", switch.previous))
    for kind, digest in before:
        if digest:
            _point(service, kind, digest)
        else:
            _drop(os.path.join(service, kind))
    text = f"back to {switch.old[:12]}" if switch.old else "nothing is in service, as before"
    try:
        if switch.old:
            _notify(service, switch)
    except Failed as error:
        text += f", but {error}"
    _drop(os.path.join(service, "switching"))
    return text


def pointed(service: str, kind: Kind) -> str | None:
    """The digest that `current` or `previous` points to, or None."""
    try:
        return os.path.basename(os.readlink(os.path.join(service, kind)))
    except OSError:
        return None


def _point(service: str, kind: Kind, digest: str) -> None:
    """Have `current` or `previous` point to another release, in one step."""
    new = os.path.join(service, f".{kind}.new")
    machine.remove(new)
    os.symlink(os.path.join("releases", digest), new)
    os.replace(new, os.path.join(service, kind))
    machine.sync(service)


def _forget(service: str, keep: int) -> None:
    """Drop the oldest releases, except the current and the previous one."""
    releases = os.path.join(service, "releases")
    in_use = {pointed(service, "current"), pointed(service, "previous")}
    digests = machine.listed(releases)
    known = sorted((trust.order(os.path.join(releases, digest), digest), digest) for digest in digests)
    for _, digest in known[: max(0, len(known) - keep)]:
        if digest not in in_use:
            shutil.rmtree(os.path.join(releases, digest), ignore_errors=True)


def _drop(path: str) -> None:
    machine.remove(path)
    machine.sync(os.path.dirname(path))


def _make_folder(folder: str) -> None:
    """A folder and its parents, down to the disk."""
    if not os.path.isdir(folder):
        _make_folder(os.path.dirname(folder))
        os.mkdir(folder, 0o700)
        machine.sync(os.path.dirname(folder))
