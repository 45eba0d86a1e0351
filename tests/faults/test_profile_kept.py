"""A device that goes away in the middle of a profile: what it had answered is kept, and the next run goes on from there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from nets import NETS, image
from test_latency import truth

from edgeprune import network, profiling
from edgeprune.bench import Bench
from edgeprune.errors import LinkError
from edgeprune.transports.fake import Fake
from edgeprune.types import Profile, Target

FACTS = {
    **{"machine": "x86_64", "cpu": "c", "cores": 1, "system": "s", "runtime": "onnxruntime"},
    **{"runtime_version": "1", "boot_id": "b", "serial": "s", "emulated": False},
}


@pytest.mark.parametrize("answers", [0, 1, 3])
def test_what_was_measured_is_kept_and_not_measured_again(answers: int, tmp_path: Path) -> None:
    model = NETS["Residual"]()
    groups = network.survey(model, image())
    asked: list[dict[str, int]] = []
    left = [answers]

    def variant(widths: Mapping[str, int]) -> Path:
        path = tmp_path / "_".join(map(str, widths.values())) / "model.onnx"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
        return path

    def answer(job: Mapping[str, Any]) -> Mapping[str, Any]:
        if job["mode"] == "identify":
            return FACTS
        if left[0] == 0:
            raise LinkError("gone")
        left[0] -= 1
        models = []
        for model in job["models"]:
            widths = dict(zip(groups.full(), map(int, Path(model).parent.name.split("_")), strict=True))
            asked.append(widths)
            layers = {name: max(1, round(ns)) for name, ns in truth(groups, widths, 8).items()}
            nodes = [{"name": name, "ns": ns} for name, ns in layers.items()]
            total = sum(layers.values())
            models.append({"times_ns": [total] * 5, "waited_ns": 0, "waits": 1, "nodes": nodes})
        return {"models": models, "peak_memory_bytes": 1, "before": {}, "after": {}}

    bench = Bench(Target(tmp_path / "t.toml", "t", "local", "onnxruntime"), Fake(answer), tmp_path)
    owners = {layer.name: layer.name for layer in groups.layers}
    known = [Profile("t", "m", groups.network, bench.device, 1, "fp32", ())]

    def grow() -> None:
        silent = profiling.measure(bench, variant, owners, groups, known[-1], [], lambda done, most, note: None)
        known.extend(silent)

    with pytest.raises(LinkError):
        grow()
    profile = known[-1]
    fits = [e.widths for e in profile.experiments if e.role == "fit"]
    assert len(fits) == answers * profiling.TOGETHER  # an answer is of a process
    left[0] = 10_000
    asked.clear()
    grow()
    profile = known[-1]
    assert not [widths for widths in asked if widths in fits]
    measured = [tuple(e.widths.values()) for e in profile.experiments if e.role == "fit"]
    assert len(measured) == len(set(measured)) > profiling.STEP
    baselines = [e.batch for e in profile.experiments if e.role == "baseline"]
    assert baselines[0] == 0
