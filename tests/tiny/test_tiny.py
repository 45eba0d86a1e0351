"""The promise in one file: real groups, proved cuts, an exact plan within the budget, an artifact that agrees."""

from __future__ import annotations

import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from nets import Residual, image

import edgeprune
from edgeprune.graph.groups import make_recipe
from edgeprune.latency.fit import fit
from edgeprune.latency.observations import measured_ns
from edgeprune.network import weights
from edgeprune.network.cut import cut
from edgeprune.network.importance import CRITERIA
from edgeprune.network.survey import randomised, survey
from edgeprune.records import Device, Experiment, Profile, Run, Samples
from edgeprune.runtimes.formats.onnx import OnnxTemplate
from edgeprune.stages import experiments
from edgeprune.stages.planning import allocation


def test_the_promise(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, inputs = randomised(Residual()), image()

    # Groups come from the exported graph, each proved on a trial cut.
    groups = survey(model, inputs)
    assert {group.name for group in groups.free} == {"stem.0", "a1.0", "b1.0", "b2.0"}

    # A device that needs 3 ns a multiply-accumulate and 10 µs a call.
    def device(widths: dict[str, int], role: str = "fit") -> Experiment:
        layers = {layer.name: 3 * layer.macs(widths) for layer in groups.layers}
        samples = Samples((Run((sum(layers.values()) + 10_000,), 1),))
        return Experiment(role, 0, widths, samples, layers, other_ns=10_000)

    variants = islice(experiments.configurations(groups), 40)
    taken = (device(experiments.anchor(groups), "anchor"), *map(device, variants))
    board = Device("x", "x", 1, "x", "x", "0", "x")
    profile = Profile("board", "tiny", groups.network, board, 1, "fp32", taken)
    fitted = fit(groups, profile)
    assert fitted.median_error < 0.02

    # The plan is exact and proved, and its network meets the budget on the device.
    scores = CRITERIA["magnitude-l2"](model, groups, [], lambda outputs, targets: outputs)
    budget = 0.5 * measured_ns(profile, device(groups.full()))
    (plan,) = allocation.plans(groups, fitted, scores, budget, "tiny")
    assert plan.gap <= 1e-3
    assert measured_ns(profile, device({**groups.full(), **plan.widths})) <= 1.05 * budget

    # The cut equals the masked original, or this raises; it comes back from its file with one call.
    recipe = make_recipe(groups, plan.keep)
    small = cut(model, recipe, inputs)
    weights.save(tmp_path / "cut.safetensors", small, recipe)
    again = edgeprune.load(tmp_path / "cut.safetensors", Residual())

    # The exported artifact computes the same.
    session = onnxruntime.InferenceSession(
        OnnxTemplate.export(again, inputs, groups.folds), providers=["CPUExecutionProvider"]
    )
    (got,) = session.run(None, {"input_0": inputs[0].numpy()})
    np.testing.assert_allclose(got, again(*inputs).detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["torch", "openvino", "onnxruntime", "pydantic"])
def test_help_needs_nothing_heavy(name: str) -> None:
    code = f"import sys, edgeprune.cli; sys.exit({name!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=600, check=False).returncode == 0


def test_the_package_shows_its_verbs_and_nothing_else() -> None:
    assert set(dir(edgeprune)) >= {"run", "profile", "plan", "prune", "finetune", "compile", "verify", "load"}
    assert callable(edgeprune.profile)
    assert callable(edgeprune.compile)
    with pytest.raises(AttributeError, match="no attribute"):
        edgeprune.predict  # noqa: B018
