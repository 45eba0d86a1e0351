"""What verbs return: a short line at a prompt, tables in a notebook, plain values for programs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeprune.api.networks import Compressed, PrunedNetwork
from edgeprune.frontends.toml import read_project
from edgeprune.records import (
    Artifact,
    Check,
    Device,
    Experiment,
    Figures,
    History,
    Interval,
    Outcome,
    Plan,
    Profile,
    Release,
    Report,
    Result,
    Run,
    Samples,
    Survey,
    Verdict,
)
from edgeprune.records.answer import ROWS, Answer
from edgeprune.storage import codec

LINE = 320  # characters
FIGURES = Figures(1.5, 1.75, 0.9, 100, 200, 300, 4)
CHECKS = (Check("metric_drop", Outcome.PASS, 0.0, 0.01, "<b>on 96 samples</b>"),)
VERDICT = Verdict("a" * 64, 1.0, FIGURES, FIGURES, CHECKS)
DEVICE = Device("aarch64", "Cortex-A76", 4, "Linux", "onnxruntime", "1.20", "boot")


def profile(experiments: int) -> Profile:
    samples = Samples((Run(tuple(range(1_000_000, 1_000_500)), 1 << 20),))
    each = tuple(Experiment("anchor", i, {"conv": i, "fc": 1}, samples) for i in range(experiments))
    return Profile("local", "net", "d" * 64, DEVICE, 1, "fp32", each)


def result(tmp_path: Path) -> Result:
    return Result(
        schema=1,
        status=Outcome.PASS,
        target="local",
        runtime="onnxruntime",
        precision="fp32",
        emulated=False,
        simulated=False,
        budget_ms=1.0,
        predicted_ms=0.9,
        confirmed_ms=0.9,
        rounds=1,
        metric_name="metric",
        baseline=FIGURES,
        pruned=FIGURES,
        plan={"gap": 0.0, "widths": {"conv": [8, 16]}},
        checks=CHECKS,
        artifact=tmp_path / "model.onnx",
        latest=tmp_path / "latest.onnx",
        run=tmp_path,
    )


@pytest.mark.parametrize(
    "kind", [Artifact, History, Plan, PrunedNetwork, Profile, Release, Report, Result, Survey, Verdict]
)
def test_every_answer_of_a_verb_is_one(kind: type) -> None:
    assert issubclass(kind, Answer) and kind.__repr__ is not object.__repr__
    assert "__repr__" not in vars(kind)


def test_a_profile_is_a_line_and_a_table_and_not_all_of_its_times() -> None:
    many = profile(ROWS + 5)
    assert repr(many) == (
        "Profile(target='local', model='net', network='dddddddddddd…', device='Cortex-A76, 1.20', threads=1,"
        f" precision='fp32', experiments=<{ROWS + 5}>)"
    )
    html = many._repr_html_()
    assert html.count("<tr>") < ROWS + 20 and "and 5 more" in html and "<td>1.00025</td>" in html
    assert len(html) < 10_000


def test_a_plan_is_a_line_and_a_row_for_each_group() -> None:
    plan = Plan(
        {"conv1": (0, 2, 3), "fc": (1,)}, Interval(1.0, 2.0, 3.0), Interval(4.0, 5.0, 6.0), 3.0, 0.5, 0.5, 0.0, "a" * 64
    )
    assert repr(plan).startswith("Plan(keep=<2>, predicted=2, baseline=5, budget_ns=3, loss=0.5, ")
    html = plan._repr_html_()
    assert "<td>conv1</td><td>3</td>" in html and "<td>fc</td><td>1</td>" in html


def test_a_verdict_shows_its_outcome_and_its_checks_with_escaped_text() -> None:
    assert repr(VERDICT).startswith("Verdict(outcome='pass', artifact='aaaaaaaaaaaa…', budget_ms=1, ")
    html = VERDICT._repr_html_()
    assert "metric_drop" in html and "&lt;b&gt;on 96 samples" in html and "<b>on 96" not in html


def test_a_result_is_a_line_the_table_of_the_terminal_and_its_json(tmp_path: Path) -> None:
    file = tmp_path / "edgeprune.toml"
    file.write_text('[model]\nfactory = "m:f"\ninputs = "m:i"\n[data]\ntrain = "m:t"\nvalid = "m:v"\n')
    known = result(tmp_path)
    found = Compressed(
        **vars(known), network=tmp_path / "tuned.safetensors", project=read_project(file), verdict=tmp_path
    )
    assert repr(found).startswith("Compressed(status='pass', target='local'") and len(repr(found)) < LINE
    assert found.to_dict() == known.to_dict() == json.loads(codec.dumps(known))
    html = found._repr_html_()
    assert html.startswith("<pre") and "latency p50" in html and "metric_drop" in html and "verdict   pass" in html


def test_answers_are_short(tmp_path: Path) -> None:
    for answer in (profile(100), VERDICT, result(tmp_path), Report("p", "local", "a" * 64, CHECKS, "")):
        assert len(repr(answer)) < 2 * LINE and "\n" not in repr(answer)
        assert json.loads(json.dumps(answer.to_dict())) == json.loads(codec.dumps(answer))
