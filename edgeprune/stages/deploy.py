"""The deploy stage: a verified artifact becomes a signed bundle, and goes to the target's hosts. See docs/deploy.md."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from edgeprune.devices import transports
from edgeprune.errors import InconclusiveError, UsageError, VerdictError
from edgeprune.frontends import functions
from edgeprune.limits import LIMITS
from edgeprune.pipeline.request import Request
from edgeprune.pipeline.run import Run
from edgeprune.records import BundleFile, BundleFiles, Fleet, Outcome, Target, Verdict
from edgeprune.stages import bounds, verify
from edgeprune.stages import compile as compiling
from edgeprune.stages.releases import bundles, oci, rollout, signing
from edgeprune.stages.releases.bundles import Bundle, Verified
from edgeprune.storage import sequences

BUNDLE = "bundle"  # names the folder of the run folder that keeps it


def deployed(run: Run, plan: rollout.Plan, again: bool = False, sequence: int | None = None) -> Fleet:
    """Deploy the artifact of a run on every host of its target, if verification passed.

    Of a common run, each target's artifact goes to the hosts of that target, one target after the other. Nothing is deployed
    unless verification passed on all of them.

    Args:
        run: the run.
        plan: how the hosts follow each other.
        again: go on with the bundle of the last deployment; only hosts that lack it get it.
        sequence: the number of the release; by default one more than the last one here and on the hosts.

    Returns:
        What came of every host, also if some failed.

    Raises:
        UsageError: there is no key to sign with, no bundle to go on with, or two targets have the same host.
        VerdictError: verification failed.
        InconclusiveError: verification was inconclusive.
    """
    _require_apart(run)
    made = [
        (name, member, kept(member) if again else bundled(member, plan.wait_s, sequence))
        for name, member in bounds.targets(run)
    ]
    run.release_device()  # each host is leased by itself
    found: dict[str, Fleet] = {}
    for name, member, bundle in made:
        found[name] = _rolled_out(member.request, bundle, plan, list(found.values()))
    return rollout.joined(found) if run.members else found[""]


def _rolled_out(request: Request, bundle: Bundle, plan: rollout.Plan, before: Sequence[Fleet]) -> Fleet:
    """Roll out to the hosts of one target, unless too many of the targets `before` failed."""
    target, failed = request.target, sum(len(one.failed) for one in before)
    most = plan.pace.max_failures
    canary_failed = any(host.error for one in before for host in one.hosts[: plan.canary])
    if canary_failed or any(one.interrupted for one in before) or (most is not None and failed > most):
        return rollout.left_out(target, "hosts failed, so no other target was begun")
    pace = replace(plan.pace, max_failures=None if most is None else most - failed)
    restored_s = LIMITS.heal_s if target.prepare else 0.0  # the agent that ends restores the device first
    paced = replace(plan, pace=pace, wait_s=max(plan.wait_s, restored_s))
    return rollout.deploy(target, bundle, partial(request.watch.done, "deploy"), paced)


def _require_apart(run: Run) -> None:
    """Raises `UsageError` if targets of a common run cannot be deployed to. A host has one release of a service."""
    owners: dict[tuple[str, int | None], str] = {}
    for name, member in run.members.items():
        target = member.request.target
        require_ready(run.request.project.name, target)
        for host, one in target.each_host:
            first = owners.setdefault((host, one.host.port if one.host else None), name)
            if first != name:
                raise UsageError(
                    f"{first} and {name} have the host {host}, and a host has one release of a service; deploy one of them"
                )


def bundled(run: Run, wait_s: float = 0.0, sequence: int | None = None, ask: bool = True) -> Bundle:
    """Make the signed bundle of a run's artifact, and keep it in the run folder. Args and Raises as in `deployed`.

    Args:
        ask: ask the hosts for the number of their last release. Otherwise only the numbers of this project count.
    """
    request = run.request
    require_ready(request.project.name, request.target)
    require(run.record(verify.STAGE), request.target)
    request.watch.start("deploy")
    verified = _verified(run)
    run.release_device()
    highest = _highest(run, wait_s) if ask and not sequence else 0
    number = sequence or sequences.following(request.profiles, request.project.name, highest)
    folder = run.draft(BUNDLE, run.key(verify.STAGE), lambda place: _filled(run, verified, number, place))
    sequences.remember(request.profiles, request.project.name, number)
    return bundles.read(folder)


def written(run: Run, output: str, sequence: int | None = None) -> BundleFiles:
    """Write the signed bundle of a run's artifact. No host is contacted.

    Args:
        run: the run. Each target of a common run has a bundle, and its name is added to `output`.
        output: a new folder, a .tar file, or a place in an OCI registry: `oci://REGISTRY/NAME:TAG`.
        sequence: as in `deployed`.

    Raises:
        UsageError: `output` exists or cannot be written, or the registry refuses the login. Others as in `deployed`.
        DeviceError: the registry does not answer.
    """
    if output.startswith(oci.SCHEME):
        oci.Reference.parse(output)
        oci.require()
    members = bounds.targets(run)
    return BundleFiles(tuple(_written(member, _named(output, name), sequence) for name, member in members))


def _written(run: Run, output: str, sequence: int | None) -> BundleFile:
    made = bundled(run, sequence=sequence, ask=False)
    number, digest = made.manifest.sequence, ""
    if output.startswith(oci.SCHEME):
        place = oci.Reference.parse(output)
        place = replace(place, tag=place.tag or str(number))
        digest, output = oci.push(bundles.archive(made), made.manifest, made.digest, place), f"{oci.SCHEME}{place}"
    else:
        bundles.write(made, Path(output))
    text = f"release {made.digest[:12]}, number {number}: {output}"
    run.request.watch.done("bundle", f"{text}@{digest}" if digest else text)
    return BundleFile(run.request.target.name, output, made.digest, number, digest)


def _named(output: str, target: str) -> str:
    """The output with the name of one of several targets: out-TARGET, out-TARGET.tar, oci://…/NAME:TAG-TARGET."""
    if not target:
        return output
    if output.startswith(oci.SCHEME):
        return f"{output}{'-' if oci.Reference.parse(output).tag else ':'}{target}"
    stem = output.removesuffix(".tar")
    return f"{stem}-{target}{output[len(stem) :]}"


def kept(run: Run) -> Bundle:
    """The bundle of the last deployment of this artifact. Raises `UsageError` if there is none."""
    require(run.record(verify.STAGE), run.request.target)
    folder = run.drafted(BUNDLE, run.key(verify.STAGE))
    if folder is None:
        raise UsageError("there is no deployment of this artifact to continue; run edgeprune deploy without --continue")
    return bundles.read(folder)


def _filled(run: Run, verified: Verified, number: int, folder: Path) -> None:
    bundles.bundle(run.request.project.name, run.request.target, verified, folder, number)


def _highest(run: Run, wait_s: float) -> int:
    """The highest number of a release on the hosts. A host that does not answer is asked again when it is deployed to."""
    known = rollout.releases(run.request.target, wait_s).releases
    numbers = [one.manifest.sequence for one in known if one.manifest and one.service == run.request.project.name]
    return max(numbers, default=0)


def _verified(run: Run) -> Verified:
    """The verified artifact of a run, and its output for the first validation sample."""
    artifact, bench = run.record(compiling.STAGE), run.value("device")
    with functions.of_user(run.request.project, "deploy"):
        from edgeprune.frontends import data

        calls, _ = data.stacked(run.value("valid"), run.value("network").inputs, 1)
    (outputs,) = bench.outputs(artifact.files[0], [column[:1] for column in calls])
    return Verified(bench.device, artifact, run.record(verify.STAGE), [column[0] for column in calls], outputs[0])


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
    bundles.require_name(service)
    signing.require_key(target)


def forecast(target: Target) -> list[str]:
    """The steps of `deploy` on each host, for `--dry-run`. It connects to none."""
    lines = []
    for name, one in target.each_host:
        lines += [
            f"deploy to {name}:",
            *transports.commands(one),
            "  agent: identify, releases",
            "  files: the bundle with artifact, runner.py, load.cpp, an input and its output, manifest.json and its signature",
            "  agent: publish: ssh-keygen -Y verify, digests, runner.py --check, mv into services/NAME/releases/DIGEST",
            "  agent: activate: previous and current by rename, current/runner.py --check",
        ]
        if one.deploy.reload:
            lines.append(f"  {shlex.join(one.deploy.reload)}")
    return lines
