"""Releases on the device: check and run a signed bundle, put it into service, and take it out again.

    ~/.edgeprune/
      allowed_signers                   the keys whose bundles are accepted, in OpenSSH's format
      services/NAME/
        releases/DIGEST/                a bundle's files; DIGEST is that of manifest.json, manifest.json.sig its signature
        current -> releases/DIGEST      the release in service
        previous -> releases/DIGEST     the release that a rollback returns to
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
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from ...runtimes import machine
from ...runtimes.device import Failed, Options, find
from ..validate import WireError, read
from ..wire import Activate, Activated, Check, ListReleases, Publish, Published, ReleaseEntry, Releases
from . import trust
from .trust import MANIFEST, OUTPUT_CHARS, SIGNATURE, Manifest, plain

OUTPUT_BYTES = 1 << 14
LISTED = 200  # releases in a list, at most
Kind = Literal["current", "previous"]


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
    with locked(job.service) as service:
        final, enrolled = os.path.join(service, "releases", job.digest), False
        if not os.path.isdir(final):
            part = final + ".part"
            _make_folder(part)
            try:
                enrolled = _prepared(job, service, part)
                os.rename(part, final)
                machine.sync(os.path.dirname(final))
            except BaseException:
                shutil.rmtree(part, ignore_errors=True)
                raise
        return Published(enrolled)


def _prepared(job: Publish, service: str, part: str) -> bool:
    """Copy, check and run a bundle in the folder `part`: whether its key was enrolled as the device's first."""
    manifest = _copied(job.source, part, job.digest)
    first = not os.path.exists(trust.signers())
    trust.checked(part, job.digest, trust.candidate(part, job.signer) if first else trust.signers())
    trust.require_own(manifest, job.service)
    trust.require_newer(manifest, service)
    _make(part, manifest)
    run_check(part, manifest, job.check_s)
    if first:
        os.replace(trust.candidate(part, job.signer), trust.signers())
        machine.sync(machine.root())
    return first


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
        except Exception as error:  # whatever it is, the release in service must be one that runs
            back = _go_back(service)
            _forget(service, job.keep)
            raise Failed("unhealthy", f"{error}; {back}") from error
        _drop(os.path.join(service, "switching"))
        _forget(service, job.keep)
        return Activated(new, pointed(service, "previous"), found)


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


def _copied(source: str, part: str, digest: str) -> Manifest:
    """Copy the bundle's files into `part`, down to the disk: its manifest."""
    manifest = trust.loaded(source, digest)
    for name in (MANIFEST, SIGNATURE, *manifest["files"]):
        target = os.path.join(part, plain(name))
        try:
            with open(os.path.join(source, name), "rb") as reading, open(target, "wb") as writing:
                shutil.copyfileobj(reading, writing)
                writing.flush()
                os.fsync(writing.fileno())
        except FileNotFoundError as error:
            raise Failed("refused", f"the bundle lacks {name}") from error
    machine.sync(part)
    return manifest


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
    known = sorted((trust.created_s(os.path.join(releases, digest), digest), digest) for digest in digests)
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
