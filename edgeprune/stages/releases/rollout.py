"""Roll out a bundle to the hosts of a target: canaries first, then the others, several at the same time.

Every function looks at all hosts that it may, and returns a `Fleet`: also if hosts failed, and after Ctrl-C. `require` turns
failures into an error.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from edgeprune import errors
from edgeprune.devices import fleet
from edgeprune.devices.bench import Bench
from edgeprune.devices.fleet import Hosts, Overdue, Pace, Reporter, Turn, Worked
from edgeprune.devices.patience import Patience
from edgeprune.devices.releasing import ReleaseHost, open_host
from edgeprune.devices.validate import printable
from edgeprune.errors import DeviceError, EdgepruneError, InconclusiveError, SecurityError, UsageError, VerdictError
from edgeprune.limits import LIMITS
from edgeprune.records import Budget, Device, Fleet, HostState, HostStep, Manifest, Outcome, Release, Target
from edgeprune.stages.releases.bundles import Bundle, require_name
from edgeprune.stages.verdicts import verdict

DIGEST_CHARS = 12  # of a digest in messages
SHOWN = 3  # failed hosts in a message
IDENTITY = ("machine", "cpu", "cores", "system", "runtime_version", "emulated", "simulated")  # facts of a device
WITHOUT_BUDGET = 1.25  # of the verified p50: the limit of a canary's p50 where the project has no budget
CANARY_PROCESSES = 6
PACE = Pace()


@dataclass(frozen=True)
class Plan:
    """How a fleet is rolled out to.

    Attributes:
        pace: hosts at the same time, and how many may fail.
        canary: hosts that come first; the others wait until these have proved the release.
        soak_s: how long the release must run on the canaries.
        wait_s: how long to wait for a host that another process holds.
    """

    pace: Pace = PACE
    canary: int = 0
    soak_s: float = 0.0
    wait_s: float = 0.0

    def __post_init__(self) -> None:
        if self.canary < 0:
            raise UsageError(f"--canary must be 0 or more, not {self.canary}")
        if self.soak_s and not self.canary:
            raise UsageError("--soak needs canaries; add --canary 1")
        if self.soak_s > LIMITS.soak_most_s:
            raise UsageError(f"--soak is at most {LIMITS.soak_most_s / 3600:g}h")


AT_ONCE = Plan()


def deploy(target: Target, bundle: Bundle, report: Reporter, plan: Plan = Plan()) -> Fleet:
    """Deploy a bundle on the target's hosts. A host that runs the same artifact already is only checked.

    Args:
        target: names the hosts.
        bundle: the bundle.
        report: is called with a line for each step.
        plan: the order of the hosts, and how many may fail.
    """
    hosts = target.each_host
    canaries, others = hosts[: plan.canary], hosts[plan.canary :]
    seen: Seen = {}
    work = _opened(plan.wait_s, partial(_deploy_on, bundle=bundle), seen)
    first = fleet.each(canaries, work, replace(plan.pace, max_failures=0), report)
    if canaries and not first.errors and not first.interrupted:
        first = _soaked(canaries, first, bundle, report, plan)
    if first.errors or first.interrupted:
        why = "" if first.interrupted else "a canary failed, so no other host was begun"
        return _fleet(hosts, first, why, seen)
    rest = fleet.each(others, work, plan.pace, report)
    both = Worked({**first.values, **rest.values}, rest.errors, rest.interrupted)
    return _fleet(hosts, both, _too_many(plan), seen)


def rollback(target: Target, service: str, report: Reporter, plan: Plan = Plan()) -> Fleet:
    """Deploy the previous release of a service again, on the hosts of the target."""
    require_name(service)
    return _changed(target, partial(_roll_back_on, service=service), report, plan)


def withdraw(target: Target, service: str, digest: str, report: Reporter, plan: Plan = Plan()) -> Fleet:
    """Take a bad release off the hosts: return to the one before where it is deployed, and refuse it from now on.

    Args:
        digest: its digest, or the first characters of it.
    """
    require_name(service)
    return _changed(target, partial(_withdraw_on, service=service, digest=digest), report, plan)


def releases(target: Target, wait_s: float = 0.0, host_s: float = LIMITS.host_s) -> Fleet:
    """Every release of every service on every host of the target."""
    hosts = target.each_host
    work = _opened(wait_s, lambda host, report: (tuple(host.releases()), "done"), {})
    return _fleet(hosts, fleet.each(hosts, work, replace(fleet.ALL, host_s=host_s)), "", {})


def checked(target: Target, service: str, report: Reporter, plan: Plan = Plan()) -> Fleet:
    """Run what is deployed on every host of the target, and compare its output with the kept one."""
    require_name(service)
    every = replace(plan, pace=replace(plan.pace, max_failures=None))
    return _changed(target, partial(_check_on, service=service), report, every)


def joined(found: Mapping[str, Fleet]) -> Fleet:
    """The hosts of several targets, by the target's name, as one fleet. Each host has its target's name in front."""
    hosts = tuple(replace(host, host=f"{name}: {host.host}") for name, one in found.items() for host in one.hosts)
    interrupted = any(one.interrupted for one in found.values())
    stopped = next((one.stopped for one in found.values() if one.stopped), "")
    return Fleet(hosts, "" if interrupted else stopped, interrupted)


def left_out(target: Target, why: str) -> Fleet:
    """The fleet of a target whose hosts were not begun."""
    return Fleet(tuple(HostState(name, "not begun") for name, _ in target.each_host), why)


def require(found: Fleet) -> Fleet:
    """The fleet, if no host failed.

    Raises:
        EdgepruneError: the error of the first host that failed. The message says what the other hosts run.
        KeyboardInterrupt: the work was interrupted.
    """
    if found.exit_code:
        raise errors.of_code(found.exit_code, summary(found))
    return found


def summary(found: Fleet) -> str:
    """What failed, and what the other hosts run, in one line."""
    alone = len(found.hosts) == 1
    parts = [host.error if alone else f"{host.host}: {host.error}" for host in found.failed[:SHOWN]]
    if len(found.failed) > SHOWN:
        parts.append(f"{len(found.failed) - SHOWN} more hosts failed")
    by_release: dict[str, list[str]] = {}
    for host in found.hosts:
        if host.step in ("done", "unchanged") and not host.error:
            for release in host.releases:
                by_release.setdefault(short(release.digest), []).append(host.host)
    parts += [f"{_names(names)} run{'s' * (len(names) == 1)} {digest}" for digest, names in by_release.items()]
    untouched = [host.host for host in found.hosts if host.step == "not begun"]
    if untouched:
        parts.append(f"{_names(untouched)} {'was' if len(untouched) == 1 else 'were'} not touched")
    if found.interrupted:
        parts.insert(0, "interrupted")
    return "; ".join(parts)


def require_same(device: Device, verified: Device) -> None:
    """Raises `SecurityError` if a verdict is of another kind of device."""
    if device.identity == verified.identity:
        return
    differing = [
        f"{fact} is {printable(str(getattr(device, fact)))} there, {getattr(verified, fact)} in the verdict"
        for fact in IDENTITY
        if getattr(device, fact) != getattr(verified, fact)
    ]
    raise SecurityError(f"the verdict is of another device: {'; '.join(differing)}. Run edgeprune for this one.")


def short(digest: str) -> str:
    """A digest in messages."""
    return digest[:DIGEST_CHARS]


# -------------------------------------------------------------------------------------------------------- the fleet

Done = tuple[tuple[Release, ...], HostStep]
OnHost = Callable[[ReleaseHost, Reporter], Done]
Seen = dict[str, tuple[Release, ...]]  # by host: what it runs


def _changed(target: Target, work: OnHost, report: Reporter, plan: Plan) -> Fleet:
    hosts = target.each_host
    seen: Seen = {}
    worked = fleet.each(hosts, _opened(plan.wait_s, work, seen), plan.pace, report)
    return _fleet(hosts, worked, _too_many(plan), seen)


def _too_many(plan: Plan) -> str:
    return f"more than {plan.pace.max_failures} hosts failed (--max-failures), so no other host was begun"


def _opened(wait_s: float, work: OnHost, seen: Seen) -> fleet.Work[Done]:
    """The work on an open host. Where it fails and the host still answers, `seen` gets what the host runs."""

    def on_host(turn: Turn) -> Done:
        with _host(turn, wait_s) as host:
            try:
                return work(host, turn.report)
            except DeviceError:
                raise
            except EdgepruneError:
                with suppress(EdgepruneError):
                    seen[turn.name] = tuple(one for one in host.releases() if one.state == "current")
                raise

    return on_host


def _host(turn: Turn, wait_s: float) -> AbstractContextManager[ReleaseHost]:
    return open_host(turn.name, turn.target, min(wait_s, turn.left_s()), turn.left_s)


def _fleet(hosts: Hosts, worked: Worked[Done], stopped: str, seen: Seen) -> Fleet:
    """The table of all hosts, in the target's order."""
    found = []
    for name, _ in hosts:
        done, error = worked.values.get(name), worked.errors.get(name)
        if error is not None:
            step: HostStep = "unknown" if isinstance(error, Overdue) else "failed"
            found.append(HostState(name, step, seen.get(name, ()), str(error), error.exit_code))
        elif done is not None:
            found.append(HostState(name, done[1], done[0]))
        else:
            found.append(HostState(name, "not begun"))
    left_out = any(host.step == "not begun" for host in found)
    return Fleet(tuple(found), stopped if left_out and not worked.interrupted else "", worked.interrupted)


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - 2 * SHOWN} more" if len(names) > 2 * SHOWN else ""
    return ", ".join(names[: 2 * SHOWN]) + more


# -------------------------------------------------------------------------------------------------------- canaries


def _soaked(canaries: Hosts, worked: Worked[Done], bundle: Bundle, report: Reporter, plan: Plan) -> Worked[Done]:
    """Check the canaries until the soak is over, and measure them at its end. One that fails goes back to its old release."""
    until = time.monotonic() + plan.soak_s
    names = _names([name for name, _ in canaries])
    report(f"{names} must run {short(bundle.digest)} for {plan.soak_s:g} s before the other hosts")
    try:
        while True:
            left = until - time.monotonic()
            time.sleep(max(0.0, min(left, LIMITS.soak_check_s)))
            last = time.monotonic() >= until
            work = partial(_prove, bundle=bundle, timed=last, wait_s=plan.wait_s)
            proved = fleet.each(canaries, work, replace(plan.pace, max_failures=None), report)
            if last or proved.errors or proved.interrupted:
                return Worked({**worked.values, **proved.values}, proved.errors, proved.interrupted)
    except KeyboardInterrupt:
        return replace(worked, interrupted=True)


def _prove(turn: Turn, bundle: Bundle, timed: bool, wait_s: float) -> Done:
    """Run the release on a canary, and measure it. If it fails, the canary returns to the release before."""
    with _host(turn, wait_s) as host:
        current = host.current(bundle.manifest.service)
        try:
            host.activate(current.service, current.digest)  # it is there already, so this only runs its check
            if timed:
                turn.report(f"{turn.name}: {_judge_latency(host, turn.target, bundle)}")
        except (VerdictError, InconclusiveError) as error:
            before = [one for one in host.releases() if one.service == current.service and one.state == "previous"]
            if not before or before[0].manifest is None:
                raise type(error)(
                    f"{error}; it has no release to go back to, so it still runs {short(current.digest)}"
                ) from error
            host.activate(current.service, before[0].digest)
            raise type(error)(f"{error}; back to {short(before[0].digest)}") from error
        return (current,), "done"


def _judge_latency(host: ReleaseHost, target: Target, bundle: Bundle) -> str:
    """Measure the artifact on a canary as a verification does, and compare it with the budget."""
    known = bundle.manifest
    files = {path.name: path for path in bundle.files}
    inputs = [files[name] for name in sorted(files) if name.startswith("input_")]
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as scratch:
        patience = Patience(LIMITS.bench_patience_s, accepting=True)  # a device in service is never quiet
        bench = Bench(target, host.transport, Path(scratch), patience)
        (samples,) = bench.time([files[known.model]], inputs, CANARY_PROCESSES)
    ms = known.verdict.budget_ms or WITHOUT_BUDGET * known.verdict.pruned.p50_ms
    found = verdict.budget(Budget(max(1, round(1e6 * ms))), verdict.Timed(samples))
    text = f"p50 {found.value:.4g} ms, limit {found.limit:.4g} ms ({found.note})"
    if found.outcome is Outcome.PASS:
        return text
    kind = VerdictError if found.outcome is Outcome.FAIL else InconclusiveError
    raise kind(f"the canary is {'slower than its limit' if kind is VerdictError else 'not decided'}: {text}")


# --------------------------------------------------------------------------------------------------------- one host


def _deploy_on(host: ReleaseHost, report: Reporter, bundle: Bundle) -> Done:
    require_same(host.device(), bundle.manifest.device)
    current = next((release for release in host.releases() if _same(release, bundle.manifest)), None)
    if current is not None and _still_runs(host, current, report):
        return (current,), "unchanged"
    service, digest = bundle.manifest.service, bundle.digest
    if host.publish(service, bundle.files, digest, bundle.signer):
        report(f"{host.name} accepts bundles that this key signs from now on: {bundle.signer}")
    report(f"{host.name} has {short(digest)}, and it runs there")
    before = host.activate(service, digest)
    report(f"{host.name} runs {short(digest)}" + (f", and ran {short(before)} before" if before else ""))
    return (host.current(service),), "done"


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
        report(f"{host.name}: {short(current.digest)} is deployed and does not run: {error}")
        return False
    report(f"{host.name} runs {short(current.digest)} already, and it passes its check")
    return True


def _roll_back_on(host: ReleaseHost, report: Reporter, service: str) -> Done:
    known = {release.state: release for release in host.releases() if release.service == service}
    if "previous" not in known:
        raise UsageError(f"there is no release of {service} before the deployed one, so there is nothing to go back to")
    if _younger(known["previous"], known.get("current")):  # a rollback that failed on a later host can be continued
        report(f"{host.name} was rolled back already. To deploy the newer release again: edgeprune deploy")
        return (known["current"],), "unchanged"
    digest = known["previous"].digest  # explicit, so that the request can be repeated after a lost reply
    host.activate(service, digest)
    report(f"{host.name} runs {short(digest)} again")
    return (host.current(service),), "done"


def _younger(one: Release, other: Release | None) -> bool:
    """Whether a release was made after another. Without both manifests, nothing is known."""
    if one.manifest is None or other is None or other.manifest is None:
        return False
    return one.manifest.order > other.manifest.order


def _withdraw_on(host: ReleaseHost, report: Reporter, service: str, digest: str) -> Done:
    known = [release for release in host.releases() if release.service == service]
    meant = [release for release in known if release.digest.startswith(digest)]
    if len({release.digest for release in meant}) > 1:
        raise UsageError(f"{digest} begins the digest of several releases; give more of it")
    whole = meant[0].digest if meant else digest
    if len(whole) < 64:
        raise UsageError(f"there is no release {digest} of {service}; give its whole digest to refuse it from now on")
    host.withdraw(service, whole)
    report(f"{host.name} refuses {short(whole)} from now on")
    return tuple(one for one in host.releases() if one.service == service and one.state == "current"), "done"


def _check_on(host: ReleaseHost, report: Reporter, service: str) -> Done:
    current = host.current(service)
    host.activate(service, current.digest)
    report(f"{host.name} runs {short(current.digest)}, and it passes its check")
    return (current,), "done"
