"""Signed bundles of the null runtime, and jobs for the device that takes them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune.devices import wire
from edgeprune.devices.agent import facts
from edgeprune.devices.fleet import Pace
from edgeprune.records import Artifact, Check, Device, Figures, Outcome, Release, Target, Verdict
from edgeprune.stages.releases import bundles, rollout, signing
from edgeprune.storage.store import file_sha256

FIGURES = Figures(1.0, 1.1, 0.9, 100, 1000, 50, 3)
DEADLINE_S = 30.0


def verdict(outcome: Outcome = Outcome.PASS) -> Verdict:
    return Verdict("a" * 64, 1.0, FIGURES, FIGURES, (Check("latency_p50_ms", outcome, 0.9, 1.0),))


def this_device(**changes: Any) -> Device:
    return replace(Device(**asdict(facts.identify(wire.Identify(DEADLINE_S, "null")))), **changes)


def bundle(
    folder: Path,
    key: Path,
    ns: int = 1000,
    expected: float = 1.0,
    service: str = "vision",
    sequence: int = 0,
    **device: Any,
) -> bundles.Bundle:
    """A bundle whose model returns its input of ones; `ns` distinguishes bundles. Without a `sequence`, its time orders it."""
    made, folder = folder / "made", folder / "bundle"
    made.mkdir(parents=True)
    folder.mkdir()
    (made / "model.json").write_text(json.dumps({"ns": ns}))
    artifact = Artifact((made / "model.json",), f"{ns:064x}", "null", "fp32", "s", 1)
    target = Target(folder / "t.toml", "t", "local", "null")
    target = replace(target, deploy=replace(target.deploy, key=key))
    inputs, output = [np.ones((1, 3), "float32")], np.full((1, 3), expected, "float32")
    verified = bundles.Verified(this_device(**device), artifact, verdict(), inputs, output)
    return bundles.bundle(service, target, verified, folder, sequence)


def publication(made: bundles.Bundle, check_s: float = DEADLINE_S) -> wire.Publish:
    """The job that publishes a bundle."""
    source = str(made.files[0].parent)
    return wire.Publish(DEADLINE_S, "null", made.manifest.service, made.digest, source, made.signer, check_s)


def activation(made: bundles.Bundle, **changes: Any) -> wire.Activate:
    """The job that activates it."""
    service, digest = made.manifest.service, made.digest
    return replace(wire.Activate(DEADLINE_S, "null", service, digest, DEADLINE_S, (), DEADLINE_S, 5), **changes)


def resigned(made: bundles.Bundle, key: Path, **changes: Any) -> bundles.Bundle:
    """The bundle with another manifest, signed again."""
    path = made.files[0]
    content: Mapping[str, Any] = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps(content))
    Path(f"{path}.sig").unlink()
    signing.sign(path, key)
    return replace(made, digest=file_sha256(path))


def deploy(target: Target, made: bundles.Bundle, report: Callable[[str], None] = print) -> list[Release]:
    """Deploy to one host after another, up to the first that fails, as long as there are no other options."""
    plan = rollout.Plan(Pace(parallel=1))
    return rollout.require(rollout.deploy(target, made, report, plan)).releases


def rollback(target: Target, service: str, report: Callable[[str], None] = print) -> list[Release]:
    """The same for a rollback."""
    return rollout.require(rollout.rollback(target, service, report, rollout.Plan(Pace(parallel=1)))).releases


def releases(target: Target) -> list[Release]:
    """All releases; an error if a host fails. Hosts of tests may share the lease of this machine, so they wait."""
    return rollout.require(rollout.releases(target, wait_s=30.0)).releases
