"""Signed bundles of no runtime at all, and the device's half of deploying as a module."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune.devices.agent import RELEASING, agent
from edgeprune.records import Artifact, Check, Device, Figures, Outcome, Target, Verdict
from edgeprune.stages import deploy as deploying

FIGURES = Figures(1.0, 1.1, 0.9, 100, 1000, 50, 3)
DEADLINE_S = 30.0


def verdict(outcome: Outcome = Outcome.PASS) -> Verdict:
    return Verdict("a" * 64, 1.0, FIGURES, FIGURES, (Check("latency_p50_ms", outcome, 0.9, 1.0),))


def this_device(**changes: Any) -> Device:
    facts = agent.identify({"runtime": "null"})
    return replace(Device(**facts), **changes)


def bundle(
    folder: Path, key: Path, ns: int = 1000, expected: float = 1.0, service: str = "vision", **device: Any
) -> deploying.Bundle:
    """A bundle whose model gives back its input, 1; `ns` tells one from another."""
    made, folder = folder / "made", folder / "bundle"
    made.mkdir(parents=True)
    folder.mkdir()
    (made / "model.json").write_text(json.dumps({"ns": ns}))
    artifact = Artifact((made / "model.json",), f"{ns:064x}", "null", "fp32", "s", 1)
    target = Target(folder / "t.toml", "t", "local", "null")
    target = replace(target, deploy=replace(target.deploy, key=key))
    inputs, output = [np.ones((1, 3), "float32")], np.full((1, 3), expected, "float32")
    return deploying.bundle(service, target, this_device(**device), artifact, verdict(), inputs, output, folder)


def releasing() -> Any:
    """The device's half, as the agent loads it."""
    return agent.loaded_module(str(RELEASING), agent=agent)


def job(made: deploying.Bundle, **changes: Any) -> dict[str, Any]:
    """What publishes a bundle, and activates it."""
    return {
        "service": made.manifest.service,
        "source": str(made.files[0].parent),
        "digest": made.digest,
        "signer": made.signer,
        "check_s": DEADLINE_S,
        "tell": [],
        "tell_s": DEADLINE_S,
        "keep": 5,
        **changes,
    }


def resigned(made: deploying.Bundle, key: Path, **changes: Any) -> deploying.Bundle:
    """The bundle with another manifest, signed again."""
    path = made.files[0]
    content: Mapping[str, Any] = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps(content))
    Path(f"{path}.sig").unlink()
    deploying._sign(path, key)
    return replace(made, digest=deploying.file_sha256(path))
