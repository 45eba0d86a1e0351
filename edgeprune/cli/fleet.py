"""Commands for the hosts of a target: deploy, rollback, withdraw, releases, keys, audit, bundle."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from edgeprune import errors
from edgeprune.cli.answers import one_line, opened, put
from edgeprune.cli.commands import command
from edgeprune.cli.options import (
    JsonOption,
    OfCheck,
    OfReleases,
    OfTarget,
    OfTrained,
    Options,
    TargetOption,
    TargetsOption,
    WaitOption,
)
from edgeprune.limits import LIMITS

if TYPE_CHECKING:
    from edgeprune.records import Fleet, FleetFacts, Target
    from edgeprune.stages.releases import rollout

SHOWN = 3  # failed hosts in the last line; the table has all

ParallelOption = Annotated[int, typer.Option("--parallel", help="Hosts at the same time.")]
FailuresOption = Annotated[
    int, typer.Option("--max-failures", help="Hosts that may fail; after one more, no other host begins.")
]
HostTimeOption = Annotated[
    str | None, typer.Option("--host-time", help="The deadline of one host: 90s, 15m; default 30m.")
]
SequenceOption = Annotated[
    int | None,
    typer.Option("--sequence", min=1, max=2**53, help="The number of the release; by default one more than the last."),
]


class KeyAction(StrEnum):
    """Actions on the keys of a fleet."""

    show = "list"
    add = "add"
    revoke = "revoke"
    rotate = "rotate"


@dataclass(frozen=True)
class OfDeploy(OfTrained):
    """Options of `deploy`."""

    target: TargetsOption = None  # type: ignore[assignment] # several
    canary: Annotated[int, typer.Option("--canary", help="Hosts that come first; the others wait for them.")] = 0
    soak: Annotated[
        str | None, typer.Option("--soak", help="How long the release must run on the canaries: 90s, 10m, 2h.")
    ] = None
    parallel: ParallelOption = LIMITS.fleet_parallel
    max_failures: FailuresOption = 0
    host_time: HostTimeOption = None
    again: Annotated[
        bool, typer.Option("--continue", help="Go on with the last deployment, on the hosts that lack its release.")
    ] = False
    sequence: SequenceOption = None


@dataclass(frozen=True)
class OfHosts(OfTarget):
    """Options of commands that change the hosts of a target."""

    parallel: ParallelOption = LIMITS.fleet_parallel
    max_failures: FailuresOption = 0
    host_time: HostTimeOption = None
    wait: WaitOption = False


@dataclass(frozen=True, kw_only=True)
class OfWithdraw(OfHosts):
    """Options of `withdraw`."""

    release: Annotated[str, typer.Argument(help="The digest of the release, or the first characters of it.")]


@dataclass(frozen=True, kw_only=True)
class OfKeys(Options):
    """Options of `keys`."""

    action: Annotated[KeyAction, typer.Argument(help="List the keys, add or revoke one, or replace the signing key.")]
    key: Annotated[
        str | None, typer.Argument(help="The file of a public key (.pub); for rotate the new private key.")
    ] = None
    target: TargetOption = "local"
    as_json: JsonOption = False
    wait: WaitOption = False


@dataclass(frozen=True)
class OfBundle(OfTrained):
    """Options of `bundle`."""

    target: TargetsOption = None  # type: ignore[assignment] # several
    output: Annotated[
        str,
        typer.Option("--output", "-o", help="A new folder, a file that ends in .tar, or oci://REGISTRY/NAME:TAG."),
    ] = "bundle.tar"
    sequence: SequenceOption = None


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    command(app, "deploy", OfDeploy)(deploy)
    command(app, "bundle", OfBundle)(bundle)
    command(app, "rollback", OfHosts)(rollback)
    command(app, "withdraw", OfWithdraw)(withdraw)
    command(app, "releases", OfReleases)(releases)
    command(app, "keys", OfKeys)(keys)
    command(app, "audit", OfReleases)(audit)


def deploy(options: OfDeploy) -> None:
    """Deploy the verified artifact on the target's hosts."""
    from edgeprune.api import fleets
    from edgeprune.stages import deploy

    _not_in_parallel("deploy")
    if options.dry_run:
        from edgeprune.pipeline.request import request
        from edgeprune.stages import forecast

        for name in options.target or ["local"]:
            asked = request(options.project, name)
            print("\n".join(forecast.forecast(asked.project, asked.target, True) + deploy.forecast(asked.target)))
        return
    plan = fleets.plan(
        options.wait,
        parallel=options.parallel,
        canary=options.canary,
        soak=options.soak,
        max_failures=options.max_failures,
        host_time=options.host_time,
    )
    with opened(options, budget=options.budget, fresh=options.fresh, weights=options.weights) as (run, answer):
        found = deploy.deployed(run, plan, options.again, options.sequence)
        answer(found)
    _end(found)


def bundle(options: OfBundle) -> None:
    """Write the verified artifact as a signed bundle, for devices that SSH does not reach."""
    from edgeprune.stages import deploy

    _not_in_parallel("bundle")
    with opened(options, budget=options.budget, fresh=options.fresh, weights=options.weights) as (run, answer):
        answer(deploy.written(run, options.output, options.sequence))


def rollback(options: OfHosts) -> None:
    """Deploy the previous release again."""
    from edgeprune.stages.releases import rollout

    asked, service, plan = _asked(options)
    _show(rollout.rollback(asked, service, _reporter(options), plan), options.as_json)


def withdraw(options: OfWithdraw) -> None:
    """Take a bad release off the hosts. They return to the one before, and refuse it from now on."""
    from edgeprune.stages.releases import rollout

    asked, service, plan = _asked(options)
    _show(rollout.withdraw(asked, service, options.release, _reporter(options), plan), options.as_json)


def releases(options: OfReleases) -> None:
    """List the releases on the target's hosts. It shows which one is deployed, and which one a rollback returns to."""
    from edgeprune.api import fleets

    found = fleets.look(options.target, options.wait)
    if not found.releases and not found.failed and not options.as_json:
        print("nothing was deployed yet; run: edgeprune deploy")
        return
    _show(found, options.as_json)


def keys(options: OfKeys) -> None:
    """List, add, revoke or rotate the keys whose bundles the hosts accept."""
    from edgeprune.api import fleets
    from edgeprune.reports import fleet as reports
    from edgeprune.stages.releases import signers

    target, wait_s = fleets.target_of(options.target), LIMITS.lease_wait_s if options.wait else 0.0
    change = signers.change(options.action.value, options.key, target)
    found = signers.changed(target, change, _reporter(options), wait_s)
    put(found, options.as_json, lambda facts, screen: reports.show_facts(facts, ("state", "fingerprint"), screen))
    _end(found)


def audit(options: OfReleases) -> None:
    """Show the audit logs of the target's hosts: who put which release there, and when. Their chains are checked."""
    from edgeprune.api import fleets
    from edgeprune.reports import fleet as reports
    from edgeprune.stages.releases import signers

    found = signers.audit(fleets.target_of(options.target), LIMITS.lease_wait_s if options.wait else 0.0)
    columns = "when", "who", "did", "service", "digest", "signer"
    put(found, options.as_json, lambda facts, screen: reports.show_facts(facts, columns, screen))
    _end(found)


def check(options: OfCheck) -> None:
    """Check what is deployed, on every host: its own check, or the metrics of the running service."""
    from edgeprune.frontends import sections
    from edgeprune.pipeline.request import request
    from edgeprune.reports import fleet as reports
    from edgeprune.stages.releases import rollout, watched

    given = [name for name in ("baseline", "update", "junit", "weights") if getattr(options, name)]
    if given or (options.deployed and options.from_metrics):
        raise errors.UsageError("--deployed, --from-metrics and options of an artifact's check exclude each other")
    target, *more = options.target or ["local"]
    if more:
        raise errors.UsageError("--deployed and --from-metrics look at the hosts of one target; name one")
    asked = request(options.project, target, wait=options.wait)
    if options.deployed:
        plan = rollout.Plan(wait_s=asked.wait_s)
        _show(rollout.checked(asked.target, asked.project.name, _reporter(options), plan), options.as_json)
        return
    section, own = asked.project.check.budget, asked.project.budget.latency
    budgets = [sections.read_budget("--budget", text) for text in options.budget or []]
    found = watched.check(asked.target, asked.project.name, budgets or section or ((own,) if own else ()), asked.wait_s)
    columns = "process", "release", "check", "outcome", "value", "limit", "note"
    put(found, options.as_json, lambda facts, screen: reports.show_facts(facts, columns, screen))
    _end(found)


def _asked(options: OfHosts) -> tuple[Target, str, rollout.Plan]:
    """The target, the name of the service and the pace."""
    from edgeprune.api import fleets
    from edgeprune.pipeline.request import request

    asked = request(options.project, options.target)
    plan = fleets.plan(
        options.wait, parallel=options.parallel, max_failures=options.max_failures, host_time=options.host_time
    )
    return asked.target, asked.project.name, plan


def _reporter(options: Options) -> Callable[[str], None]:
    def report(text: str) -> None:
        if not options.quiet:
            print(one_line(text), file=sys.stderr)

    return report


def _show(found: Fleet, as_json: bool) -> None:
    from edgeprune.reports import fleet as reports

    put(found, as_json, reports.show)
    _end(found)


def _end(found: Fleet | FleetFacts) -> None:
    """Exit with the fleet's code, after a line that says what failed. The table was printed before."""
    if found.exit_code:
        failed = [f"{host.host}: {host.error}" for host in found.failed[:SHOWN]]
        more = [f"{len(found.failed) - SHOWN} more hosts failed"] if len(found.failed) > SHOWN else []
        print("error: " + one_line("; ".join(["interrupted"] * found.interrupted + failed + more)), file=sys.stderr)
        raise typer.Exit(found.exit_code)


def _not_in_parallel(name: str) -> None:
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise errors.UsageError(
            f"torchrun is for edgeprune finetune; run edgeprune {name} without torchrun: it uses the trained network"
        )
