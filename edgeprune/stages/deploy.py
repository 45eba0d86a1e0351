"""The deploy stage: signed bundles of verified artifacts, and the releases on the target's hosts.

A bundle holds the artifact, a sample input with the output that it gave at verification, a runner, and a manifest. An SSH key
signs the manifest. A host keeps accepted bundles as releases, and one of them is deployed. See docs/deploy.md.
"""

from __future__ import annotations

import re
import shlex
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np

from edgeprune import runtimes
from edgeprune.devices import bundle as bundling
from edgeprune.devices import transports
from edgeprune.devices.releasing import ReleaseHost, open_host
from edgeprune.devices.validate import printable
from edgeprune.errors import EdgepruneError, InconclusiveError, SecurityError, UsageError, VerdictError
from edgeprune.frontends import functions
from edgeprune.limits import LIMITS
from edgeprune.pipeline.run import Run
from edgeprune.records import Artifact, Device, Manifest, Outcome, Release, Target, Verdict
from edgeprune.stages import compile as compiling
from edgeprune.stages import signing, verify
from edgeprune.storage import codec
from edgeprune.storage.store import file_sha256

SCHEMA = 1  # of the manifest
MANIFEST = "manifest.json"
RELATIVE_ERROR = 1e-3  # of the kept output's largest value: the file and the kind of device are the same
DIGEST_CHARS = 12  # of a digest in messages
IDENTITY = ("machine", "cpu", "cores", "system", "runtime_version", "emulated", "simulated")  # facts of a device

Reporter = Callable[[str], None]


@dataclass(frozen=True)
class Verified:
    """An artifact with its verdict, and a sample call that hosts check releases by.

    Attributes:
        device: the device of the verification.
        artifact: the artifact.
        verdict: the outcome of the verification.
        inputs: the inputs of one call, (batch, ...) each.
        expected: the artifact's first output for them, (batch, ...).
    """

    device: Device
    artifact: Artifact
    verdict: Verdict
    inputs: Sequence[np.ndarray]
    expected: np.ndarray


@dataclass(frozen=True)
class Bundle:
    """A signed bundle in a folder on this machine.

    Attributes:
        files: its files, the manifest first.
        manifest: the manifest's content.
        digest: SHA-256 of the manifest's file, in hex.
        signer: the public key of the signature.
    """

    files: tuple[Path, ...]
    manifest: Manifest
    digest: str
    signer: str


def deployed(run: Run) -> list[Release]:
    """Deploy the artifact of a run on every host of its target, if verification passed.

    Returns:
        What is deployed on each host now.

    Raises:
        UsageError: there is no key to sign with.
        VerdictError: verification failed, or the release does not run on a host, which then returns to the one before.
        InconclusiveError: verification was inconclusive.
        SecurityError: a host refuses the release, or is another device than the verified one.
    """
    request = run.request
    require_ready(request.project.name, request.target)
    require(run.record(verify.STAGE), request.target)
    request.watch.start("deploy")
    folder = run.scratch / "bundle"
    folder.mkdir()
    made = bundle(request.project.name, request.target, _verified(run), folder)
    run.release_device()  # each host is leased by itself
    restored_s = LIMITS.heal_s if request.target.prepare else 0.0  # the agent that ends restores the device first
    report = partial(request.watch.done, "deploy")
    return deploy(request.target, made, report, max(request.wait_s, restored_s))


def _verified(run: Run) -> Verified:
    """The verified artifact of a run, and its output for the first validation sample."""
    artifact, bench = run.record(compiling.STAGE), run.value("device")
    with functions.of_user(run.request.project, "deploy"):
        from edgeprune.frontends import data

        calls, _ = data.stacked(run.value("valid"), run.value("network").inputs, 1)
    (outputs,) = bench.outputs(artifact.files[0], [column[:1] for column in calls])
    return Verified(bench.device, artifact, run.record(verify.STAGE), [column[0] for column in calls], outputs[0])


# ------------------------------------------------------------------------------------------------------- requirements


def require(verdict: Verdict, target: Target) -> None:
    """Only an artifact that passed is deployed.

    Raises:
        VerdictError: the verdict is a fail.
        InconclusiveError: the verdict is inconclusive.
    """
    if verdict.outcome is Outcome.PASS:
        return
    failed = ", ".join(check.name for check in verdict.checks if check.outcome is verdict.outcome)
    text = f"{target.name}: nothing was deployed: the verdict is {verdict.outcome} ({failed})"
    if verdict.outcome is Outcome.FAIL:
        raise VerdictError(f"{text}. See the checks: edgeprune verify")
    raise InconclusiveError(f"{text}. Run it again when the device is quiet.")


def require_ready(service: str, target: Target) -> None:
    """Check what would stop a deploy at its end.

    Raises:
        UsageError: the service's name cannot name a folder, or there is no key to sign with.
    """
    _require_name(service)
    signing.require_key(target)


def _require_name(service: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", service):
        raise UsageError(
            f"{service!r} cannot name a folder on devices. Rename the project's folder: letters, digits, '_', '-' and '.'"
            " are allowed."
        )


# ------------------------------------------------------------------------------------------------------------- bundle


def bundle(service: str, target: Target, verified: Verified, folder: Path) -> Bundle:
    """Make a signed bundle.

    Args:
        service: the name of the service; the hosts name a folder after it.
        target: the target of the verification.
        verified: what was verified on it.
        folder: an empty folder for the bundle.

    Raises:
        UsageError: there is no key to sign with, or the service's name cannot name a folder.
    """
    _require_name(service)
    key = signing.require_key(target)
    artifact = verified.artifact
    model, *_ = [Path(shutil.copy(path, folder / path.name)) for path in artifact.files]
    _write_sample(verified, folder)
    _write_runner(target.runtime, folder)
    manifest = Manifest(
        schema=SCHEMA,
        service=service,
        target=target.name,
        created_s=int(time.time()),
        edgeprune=version("edgeprune"),
        runtime=target.runtime,
        model=model.name,
        precision=artifact.precision,
        threads=target.threads,
        dla=target.dla,
        artifact=artifact.sha256,
        relative_error=RELATIVE_ERROR,
        device=verified.device,
        verdict=verified.verdict,
        files={path.name: (path.stat().st_size, file_sha256(path)) for path in sorted(folder.iterdir())},
    )
    path = folder / MANIFEST
    path.write_text(codec.dumps(manifest), encoding="utf-8")
    signer = signing.sign(path, key)
    others = sorted(file for file in folder.iterdir() if file != path)
    return Bundle((path, *others), manifest, file_sha256(path), signer)


def _write_sample(verified: Verified, folder: Path) -> None:
    for i, array in enumerate(verified.inputs):
        np.save(folder / f"input_{i}.npy", array, allow_pickle=False)
    np.save(folder / "expected.npy", verified.expected, allow_pickle=False)


def _write_runner(runtime: str, folder: Path) -> None:
    """The code that loads the model: runner.py for Python, and load.cpp for C++."""
    (folder / "runner.py").write_bytes(bundling.runner(runtime))
    snippet = runtimes.snippet(runtime)
    if snippet is not None:
        shutil.copy(snippet, folder / "load.cpp")


# -------------------------------------------------------------------------------------------------------------- hosts


def deploy(target: Target, bundle: Bundle, report: Reporter, wait_s: float = 0.0) -> list[Release]:
    """Deploy a bundle on one host of the target after another. A failure ends it.

    A host that runs the same artifact already is only checked.

    Args:
        target: names the hosts.
        bundle: the bundle.
        report: is called with a line for each step.
        wait_s: how long to wait for a host that another process holds.

    Returns:
        What is deployed on each host now.

    Raises:
        SecurityError: a host refuses the bundle, or is another device than the verified one.
        VerdictError: the release does not run on a host, which then returns to the one before.
        DeviceError: a host or its link fails. As for the others, the message lists what each host runs.
    """
    return _on_each(target, wait_s, lambda host: _deploy_on(host, bundle, report))


def rollback(target: Target, service: str, report: Reporter, wait_s: float = 0.0) -> list[Release]:
    """Deploy the previous release of a service again, on one host of the target after another. A failure ends it.

    Returns:
        What is deployed on each host now.

    Raises:
        UsageError: a host has no previous release.
        SecurityError: the previous release was altered since.
        VerdictError: it does not run on a host, which then returns to the newer one.
        DeviceError: a host or its link fails.
    """
    _require_name(service)
    return _on_each(target, wait_s, lambda host: _roll_back_on(host, service, report))


def releases(target: Target, wait_s: float = 0.0) -> list[Release]:
    """Every release of every service on every host of the target."""
    found = []
    hosts = target.each_host
    for name, one in hosts:
        try:
            with open_host(name, one, wait_s) as host:
                found += host.releases()
        except EdgepruneError as error:
            if len(hosts) > 1:
                error.args = (f"{name}: {error}",)
            raise
    return found


def forecast(target: Target) -> list[str]:
    """The steps of `deploy` on each host, for `--dry-run`. It connects to none."""
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


def _on_each(target: Target, wait_s: float, work: Callable[[ReleaseHost], Release]) -> list[Release]:
    """Change one host after another. An error ends it, and its message says what the other hosts run."""
    done: list[Release] = []
    hosts = target.each_host
    for i, (name, one) in enumerate(hosts):
        try:
            with open_host(name, one, wait_s) as host:
                done.append(work(host))
        except EdgepruneError as error:
            if len(hosts) > 1:
                rest = [f"{release.host} runs {_short(release.digest)}" for release in done]
                rest += [f"{other} was not touched" for other, _ in hosts[i + 1 :]]
                error.args = (f"{name}: {error}" + "".join(f"; {text}" for text in rest),)
            raise
    return done


def _deploy_on(host: ReleaseHost, bundle: Bundle, report: Reporter) -> Release:
    _require_same(host.device(), bundle.manifest.device)
    current = next((release for release in host.releases() if _same(release, bundle.manifest)), None)
    if current is not None and _still_runs(host, current, report):
        return current
    service, digest = bundle.manifest.service, bundle.digest
    if host.publish(service, bundle.files, digest, bundle.signer):
        report(f"{host.name} accepts bundles that this key signs from now on: {bundle.signer}")
    report(f"{host.name} has {_short(digest)}, and it runs there")
    before = host.activate(service, digest)
    report(f"{host.name} runs {_short(digest)}" + (f", and ran {_short(before)} before" if before else ""))
    return host.current(service)


def _require_same(device: Device, verified: Device) -> None:
    if device.identity == verified.identity:
        return
    differing = [
        f"{fact} is {printable(str(getattr(device, fact)))} there, {getattr(verified, fact)} in the verdict"
        for fact in IDENTITY
        if getattr(device, fact) != getattr(verified, fact)
    ]
    raise SecurityError(f"the verdict is of another device: {'; '.join(differing)}. Run edgeprune for this one.")


def _same(release: Release, wanted: Manifest) -> bool:
    """Whether a release is deployed and runs the same as the manifest's would."""

    def essence(known: Manifest) -> tuple[object, ...]:
        return known.service, known.artifact, known.threads, known.dla, known.files.get("runner.py")

    return release.state == "current" and release.manifest is not None and essence(release.manifest) == essence(wanted)


def _still_runs(host: ReleaseHost, current: Release, report: Reporter) -> bool:
    """Whether the deployed release runs. It may not: for instance, an engine that was built there may be damaged."""
    try:
        host.activate(current.service, current.digest)
    except VerdictError as error:
        report(f"{host.name}: {_short(current.digest)} is deployed and does not run: {error}")
        return False
    report(f"{host.name} runs {_short(current.digest)} already, and it passes its check")
    return True


def _roll_back_on(host: ReleaseHost, service: str, report: Reporter) -> Release:
    known = {release.state: release for release in host.releases() if release.service == service}
    if "previous" not in known:
        raise UsageError(f"there is no release of {service} before the deployed one, so there is nothing to go back to")
    if _younger(known["previous"], known.get("current")):  # a rollback that failed on a later host can be continued
        report(f"{host.name} was rolled back already. To deploy the newer release again: edgeprune deploy")
        return known["current"]
    digest = known["previous"].digest  # explicit, so that the request can be repeated after a lost reply
    host.activate(service, digest)
    report(f"{host.name} runs {_short(digest)} again")
    return host.current(service)


def _younger(one: Release, other: Release | None) -> bool:
    """Whether a release was made after another. Without both manifests, nothing is known."""
    if one.manifest is None or other is None or other.manifest is None:
        return False
    return one.manifest.created_s > other.manifest.created_s


def _short(digest: str) -> str:
    return digest[:DIGEST_CHARS]
