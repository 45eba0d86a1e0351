"""One command, from a PyTorch model to a verified artifact, on the real runtime."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from small import Finished, command, settled
from torch import nn

from edgeprune.records import Plan
from edgeprune.storage import evidence


def test_a_run_prints_the_documented_json(finished_run: tuple[Path, Finished]) -> None:
    _, run = finished_run
    settled(run)
    result = run.json
    assert list(result) == [
        *(
            "schema",
            "status",
            "target",
            "runtime",
            "precision",
            "emulated",
            "simulated",
            "budget_ms",
            "predicted_ms",
            "confirmed_ms",
        ),
        *("rounds", "metric_name", "baseline", "pruned", "plan", "checks", "artifact", "latest", "run"),
    ]
    figures = {"p50_ms", "p90_ms", "metric", "parameters", "macs", "size_bytes", "operators"}
    assert set(result["baseline"]) == set(result["pruned"]) == figures
    assert result["schema"] == 1 and result["target"] == "local" and result["runtime"] == "onnxruntime"
    assert 1 <= result["rounds"] <= 3
    assert result["plan"]["gap"] <= 1e-3
    for name in ("parameters", "macs", "size_bytes"):
        assert result["pruned"][name] < result["baseline"][name]
    assert result["pruned"]["metric"] >= result["baseline"]["metric"] - 0.02
    latest = Path(result["latest"])
    assert latest.samefile(result["artifact"]) and latest.parts[-2:] == ("latest", "model.onnx")
    session = onnxruntime.InferenceSession(result["artifact"], providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == [1, 1, 24, 24]


def test_a_verdict_keeps_what_it_rests_on(finished_run: tuple[Path, Finished]) -> None:
    _, run = finished_run
    (verdict,) = Path(run.json["run"]).glob("verify-*")
    found = evidence.read(verdict)
    assert len(found.original) == len(found.pruned) >= 3 and all(one.count >= 5 for one in found.pruned)
    assert np.median([one.median_ns for one in found.pruned]) / 1e6 == pytest.approx(run.json["pruned"]["p50_ms"])
    (differences,) = found.differences
    checks = {check["name"]: check["value"] for check in run.json["checks"]}
    assert differences.largest == pytest.approx(checks["output_max_abs_error"])
    assert differences.samples == 96 and (verdict / evidence.NAME).stat().st_size < 200_000


def test_a_run_prints_its_stages_and_nothing_of_libraries(finished_run: tuple[Path, Finished]) -> None:
    lines = finished_run[1].err.splitlines()
    assert lines and all(re.match(r"[a-z]+ +\S| {11}\S|WARNING: local: ", line) for line in lines), finished_run[1].err


def test_the_same_command_again_reuses_everything(finished_run: tuple[Path, Finished]) -> None:
    project, first = finished_run
    again = command("run", "--project", project, "--json")
    assert again.json == first.json
    assert "reused" in again.err and again.err.count("reused") == len(again.err.strip().splitlines())


def test_what_is_reused_needs_no_torch(finished_run: tuple[Path, Finished]) -> None:
    """Importing torch takes longer than the rest of a repeated run (figures: benchmarks/README.md)."""
    code = (
        "import sys\n"
        f"sys.argv = ['edgeprune', 'run', '--project', {str(finished_run[0])!r}, '--json']\n"
        "from edgeprune.cli import main\n"
        "try:\n    main()\nfinally:\n    assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    settled(Finished(done.returncode, done.stdout, done.stderr))


def test_another_budget_measures_no_profile_again(own_run: Path) -> None:
    plan = command("plan", "--project", own_run, "--budget", "80%", "--json")
    assert plan.code == 0, plan.err
    assert "0 measured" in plan.err
    assert plan.json["budget_ns"] == pytest.approx(0.8 * plan.json["baseline"]["mid"], rel=0.1)


@pytest.mark.slow
def test_an_original_network_that_meets_the_budget_is_only_verified(project: Path) -> None:
    """Nothing is profiled, scored, pruned or trained."""
    run = command("run", "--project", project, "--budget", "1 s", "--json")
    assert run.code == 0, run.err
    assert "nothing was cut" in run.err and "it meets 1000 ms" in run.err
    assert not list(project.parent.glob("profiles/*")) and not list(project.parent.glob("runs/*/scores-*"))
    assert run.json["rounds"] == 0 and run.json["pruned"]["parameters"] == run.json["baseline"]["parameters"]


def test_a_budget_that_nothing_meets_exits_with_3_and_shows_the_fastest_plan(own_run: Path) -> None:
    run = command("run", "--project", own_run, "--budget", "1 us", "--json")
    assert run.code == 3
    assert "no plan meets 1.00 µs" in run.err and "fastest" in run.err
    assert run.json == {"schema": 1, "status": "error", "exit_code": 3, "error": run.json["error"]}


def test_the_groups_of_a_model_are_shown_with_what_is_locked(finished_run: tuple[Path, Finished]) -> None:
    project, _ = finished_run
    shown = command("groups", "--project", project)
    assert shown.code == 0 and "2 of 3 groups can be cut" in shown.out and "output of the model" in shown.out
    found = command("groups", "--project", project, "--json").json
    groups = {group["name"]: group for group in found["groups"]}
    assert (groups["a"]["width"], groups["a"]["layers"], groups["a"]["locked"]) == (48, ["a", "b"], None)
    assert groups["a"]["macs"] == found["macs"] - 64 * 4 * 4 and 0 < found["least_macs"] < 0.01 * found["macs"]


@pytest.mark.slow
def test_a_model_whose_groups_are_all_locked_is_compiled_uncut(project: Path) -> None:
    text = project.read_text().replace("[finetune]", '[prune]\nlock = ["a", "b*"]\n\n[finetune]')
    project.write_text(text)
    here = "--project", project
    compiled = command("compile", *here, "--budget", "100%")
    assert compiled.code == 0 and "nothing to prune" in compiled.out + compiled.err, compiled.err
    missed = command("compile", *here, "--budget", "50%")
    assert missed.code == 3 and "nothing in the model can be cut" in missed.err
    project.write_text(text.replace("b*", "head.*"))
    wrong = command("compile", *here)
    assert wrong.code == 2 and "'head.*' matches no parameter" in wrong.err


def test_a_prediction_can_be_explained(finished_run: tuple[Path, Finished]) -> None:
    shown = command("profile", "--explain", "--project", finished_run[0])
    assert shown.code == 0, shown.err
    assert "steps in, out" in shown.out and "median error" in shown.out
    document = command("profile", "--explain", "--project", finished_run[0], "--json").json
    assert document["target"] == "local" and {layer["name"] for layer in document["layers"]} >= {"a", "b"}
    assert all(group["steps"]["local"][0] >= 1 for group in document["groups"])


def test_verbs_alone_and_as_functions(finished_run: tuple[Path, Finished]) -> None:
    import runpy

    import edgeprune

    project, run = finished_run
    profile = edgeprune.profile(project)
    assert {experiment.role for experiment in profile.experiments} >= {"baseline", "fit", "confirm"}
    pruned = edgeprune.prune(project)
    confirmed = pruned.confirmed
    assert confirmed.rounds == run.json["rounds"]
    build = runpy.run_path(str(project.parent / "blobs.py"))["build"]
    small, tuned = edgeprune.load(pruned.network, build()), edgeprune.load(edgeprune.finetune(project), build())
    widths = confirmed.plan.widths
    assert small.a.out_channels == tuned.a.out_channels == widths["a"]
    assert tuned(torch.zeros(2, 1, 24, 24)).shape == (2, 4)
    assert edgeprune.compile(project).files[0].exists()
    assert _distance(small, project, confirmed.plan) < 1
    assert {check.name for check in edgeprune.verify(project).checks} >= {
        "metric_drop",
        "latency_p50_ms",
        "output_cosine",
    }


def test_training_starts_at_the_separate_refit_and_epoch_0_is_the_sequential_one(
    own_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import edgeprune
    from edgeprune.frontends import toml
    from edgeprune.frontends.data import Metric, Split
    from edgeprune.frontends.model import build_model
    from edgeprune.stages import training

    folder = own_run.parent
    (trained,) = folder.glob("runs/local/finetune-*")
    history = json.loads((trained / "finetune.json").read_text())["history"]
    shutil.rmtree(trained)
    given: list[nn.Module] = []

    def train(course: object, networks: training.Networks, *rest: object) -> None:
        assert networks.untrained is not None
        given.extend([networks.start, networks.untrained])
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train", train)
    with pytest.raises(KeyboardInterrupt):
        edgeprune.finetune(folder)
    known = toml.read_project(folder / "edgeprune.toml")
    (pruned,) = folder.glob("runs/local/prune-*")
    files = [edgeprune.load(pruned / f"{name}.safetensors", build_model(known)) for name in ("start", "pruned")]
    assert any(not torch.equal(a, b) for a, b in zip(*(net.parameters() for net in files), strict=True))
    for model, kept in zip(given, files, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), kept.parameters(), strict=True))
    assert history[0]["metric"] == pytest.approx(training.evaluate(files[1], Metric(known), Split(known, "valid")))


def _distance(small: nn.Module, project: Path, plan: Plan) -> float:
    """The distance of a network's outputs from the original's, relative to that of a network without a refit."""
    from edgeprune.frontends import toml
    from edgeprune.frontends.data import Split
    from edgeprune.frontends.model import build_model, example_inputs
    from edgeprune.graph.groups import make_recipe
    from edgeprune.network.cut import sliced
    from edgeprune.network.survey import survey

    known = toml.read_project(project)
    original, inputs = build_model(known), example_inputs(known)
    cut = sliced(original, make_recipe(survey(original, inputs), plan.keep))
    images = next(iter(Split(known, "test")))[0]
    with torch.no_grad():
        expected, *found = (net.eval()(*images) for net in (original, small, cut))
    return float(found[0].dist(expected) / found[1].dist(expected))


@pytest.mark.parametrize(
    "verb",
    ["profile", "finetune", "verify", *(pytest.param(v, marks=pytest.mark.slow) for v in ("plan", "prune", "compile"))],
)
def test_every_verb_prints_only_json_with_json(verb: str, finished_run: tuple[Path, Finished]) -> None:
    answer = command(verb, "--project", finished_run[0], "--json")
    if verb == "verify":
        settled(answer)
    assert verb == "verify" or answer.code == 0, answer.err
    assert isinstance(answer.json, dict)


@pytest.mark.nightly
def test_openvino_runs_the_same_pipeline(project: Path) -> None:
    pytest.importorskip("openvino")
    run = command("run", "--project", project, "--target", "local-openvino", "--json")
    settled(run)
    assert run.json["runtime"] == "openvino" and run.json["artifact"].endswith("model.xml")
    assert Path(run.json["artifact"]).with_suffix(".bin").exists()


TARGET = """
[connect]
transport = "local"
[runtime]
name = "onnxruntime"
precision = "auto"
"""


@pytest.mark.nightly
def test_auto_chooses_the_fastest_precision_within_the_metric_drop_and_uses_its_profile(
    trained: Path, tmp_path: Path
) -> None:
    """The budget is a share of the original network's latency in fp32. It is half of the latency in int8."""
    folder = Path(shutil.copytree(trained, tmp_path / "blobs"))
    (folder / "targets").mkdir()
    (folder / "targets" / "small.toml").write_text(TARGET)
    run = command("run", "--project", folder / "edgeprune.toml", "--target", "small", "--budget", "30%", "--json")
    settled(run)
    assert run.json["precision"] == "int8", run.err
    (choice,) = folder.glob("runs/small/precision-*/precision.json")
    measured = {c["precision"]: c["latency"]["mid"] for c in json.loads(choice.read_text())["candidates"]}
    assert list(measured) == ["fp32", "fp16", "int8"] and measured["int8"] < measured["fp32"]
    (profile,) = folder.glob("profiles/small/*.json")
    roles = {e["role"] for e in json.loads(profile.read_text())["experiments"]}
    assert roles == {"anchor", "baseline", "reference", "fit", "confirm"}
    assert run.json["budget_ms"] == pytest.approx(0.3 * run.json["baseline"]["p50_ms"])
    kinds = {node.op_type for node in onnx.load(run.json["artifact"]).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
    again = command("run", "--project", folder / "edgeprune.toml", "--target", "small", "--budget", "30%", "--json")
    assert again.json == run.json and again.err.count("reused") == len(again.err.strip().splitlines())
