"""A report answers its questions with the figures of the run, and shows hostile text as text."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from runs import Texts, checked, put
from small import InProcess

from edgeprune.api.networks import Compressed
from edgeprune.cli import report as cli
from edgeprune.errors import RuntimeMissing
from edgeprune.records import Amount, Check, Epoch, Interval, Outcome, TimedProcess, Tuned
from edgeprune.stages.series import finished

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")
from edgeprune.reports import report
from edgeprune.reports.pictures.svg import Canvas
from edgeprune.reports.report import data
from edgeprune.reports.report.sections import View

HOSTILE = (
    "</style></title></script><script>document.title='ran'</script><svg onload=document.title='ran'>",
    '"><img src=x onerror="document.title=\'ran\'"><!--<script>{{ 7*7 }}{% raw %}',
    "a\x00b\x1b[31mc\u2028d\u202ee",
)
WHOLE = 1 << 20  # bytes of records
ALLOWED_SCRIPTS = [{"type": "application/json", "id": "edgeprune-data"}]


class Page(HTMLParser):
    """The elements of a page, the text of each section, and the JSON inside."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.size = len(html.encode())
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.sections: dict[str, str] = {}
        self.data, self._open = "", [""]
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "section":
            self._open.append(dict(attrs)["id"] or "")

    def handle_endtag(self, tag: str) -> None:
        if tag == "section":
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][1].get("id") == "edgeprune-data":
            self.data += data
        self.sections[self._open[-1]] = self.sections.get(self._open[-1], "") + data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page(*verdicts: Path) -> Page:
    return Page(report.html([finished.read(verdict) for verdict in verdicts]))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are empty, for tests of the text: to draw them takes most of the time."""
    monkeypatch.setattr(Canvas, "svg", lambda canvas, alt: "<svg></svg>")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Page:
    home = tmp_path_factory.mktemp("home")
    verdict = put(home)
    checked(home)
    return page(verdict)


@pytest.mark.parametrize(
    ("section", "figures"),
    [
        ("passed", ["Yes: 3 checks pass.", "0.990 ms, within the budget of 1.050 ms", "0.9100, -0.0100", "Cortex-A72"]),
        ("passed", ["2.002 ms (2.000 to 2.003)", "5.0 MB", "onnxruntime 1.20", "torch", "2.13.0", "governor"]),
        ("passed", ["edgeprune run --project edgeprune.toml --target pi --budget 50% --precision fp32", "2025-06-15"]),
        (
            "cut",
            ["24 of 64 channels remain in 2 groups", "1 group is locked", "output of the model net", "net.a", "12"],
        ),
        (
            "plan",
            [
                "it raises the loss least: 0.02",
                "predicted to take 1.000 ms",
                "confirmed at 0.990 ms (0.980 to 1.000)",
            ],
        ),
        (
            "plan",
            ["94.3% of the budget, 1.050 ms at that time", "Latency against width", "The front", "18 experiments"],
        ),
        ("sure", ["Every check is decided", "4 processes of each", "1 disturbed process was discarded", "metric_drop"]),
        ("sure", ["other processes used the processor", "48 to 50% of the original network, limit 50%", "Raw times"]),
        (
            "trained",
            ["2 epochs", "epoch 1 was kept", "0.7000 before, and is 0.9100", "at most 9e-08 (limit 0.01)", "sample 4"],
        ),
        ("later", ["2 checks of this project", "this artifact, and passes", "History"]),
    ],
)
def test_every_section_answers_with_its_figures(small: Page, section: str, figures: list[str]) -> None:
    shown = " ".join(small.sections[section].split())
    assert [figure for figure in figures if figure not in shown] == []


def test_the_questions_are_in_their_order_and_each_begins_with_its_answer(small: Page) -> None:
    assert [one["id"] for one in small.all("section")] == ["passed", "cut", "plan", "sure", "trained", "later"]
    assert len([one for one in small.all("p") if one.get("class") == "answer"]) == 6
    assert [one["href"] for one in small.all("a")][1:] == ["#passed", "#cut", "#plan", "#sure", "#trained", "#later"]


def test_a_page_can_be_read_without_eyes_and_without_a_network(small: Page) -> None:
    assert small.all("html") == [{"lang": "en"}] and len(small.all("h1")) == 1 and small.all("title")
    levels = [int(tag[1]) for tag, _ in small.elements if re.fullmatch(r"h[1-6]", tag)]
    assert all(after - before <= 1 for before, after in pairwise(levels))
    pictures = small.all("svg")
    assert len(pictures) >= 8 and all(one["role"] == "img" and one["aria-label"] for one in pictures)
    assert len(small.all("figure")) == len(pictures) == len([one for one in small.all("details")]) - 3
    assert all(small.all("th")[i].get("scope") for i in range(len(small.all("th"))))
    assert small.all("a")[0] == {"class": "skip", "href": "#content"}
    assert small.all("script") == ALLOWED_SCRIPTS
    (policy,) = (one["content"] for one in small.all("meta") if one.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none';") and "script-src" not in policy
    for _, attributes in small.elements:
        links = [value for name, value in attributes.items() if name in ("href", "src", "xlink:href", "action")]
        assert all(value is not None and value.startswith(("#", "data:,")) for value in links)


def test_all_records_are_inside_as_json(small: Page, tmp_path: Path) -> None:
    content = json.loads(small.data)
    (run,) = content["runs"]
    assert (content["schema"], content["shortened"]) == (1, [])
    assert run["made"]["device"]["cpu"] == "Cortex-A72" and run["verify"]["pruned"]["p50_ms"] == 0.99
    assert len(run["profile"]["experiments"]) == 18 and len(run["evidence"]["pruned"]) == 4
    assert run["folder"].startswith("runs/pi/verify-") and run["compile"]["files"][0].startswith("runs/pi/compile-")


def test_a_report_names_no_folder_of_the_machine(tmp_path: Path) -> None:
    assert str(tmp_path) not in data.embedded([finished.read(put(tmp_path))], WHOLE)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_shown_as_text(small: Page, tmp_path: Path, text: str) -> None:
    hostile = page(put(tmp_path, Texts.all(text)))
    assert hostile.all("script") == ALLOWED_SCRIPTS
    assert len(hostile.all("svg")) == len(small.all("svg")) - 1  # it has no history
    assert hostile.all("img") == [] and not [
        1 for _, given in hostile.elements if any(n.startswith("on") for n in given)
    ]
    assert json.loads(hostile.data)["runs"][0]["made"]["device"]["cpu"] == text
    visible = "".join(part for name, part in hostile.sections.items() if name)
    assert all(c.isprintable() or c == "\n" for c in visible)
    if text.isprintable():
        assert text in hostile.sections["passed"] and text in hostile.sections["sure"]


def test_the_json_cannot_end_its_element(tmp_path: Path) -> None:
    found = data.embedded([finished.read(put(tmp_path, Texts.all("</script>&\u2028<!--")))], WHOLE)
    assert not set("<>&\u2028\u2029") & set(found)
    assert json.loads(found)["runs"][0]["made"]["device"]["cpu"] == "</script>&\u2028<!--"


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("outcome", "answer"),
    [
        (Outcome.FAIL, "No: 1 of 1 check does not pass. latency_p50_ms fails: 1.100 ms, limit 1.050 ms."),
        (Outcome.INCONCLUSIVE, "Not decided: 1 of 1 check does not pass. latency_p50_ms is inconclusive: 1.100 ms"),
    ],
)
def test_a_verdict_that_does_not_pass_says_why_first(tmp_path: Path, outcome: Outcome, answer: str) -> None:
    found = page(put(tmp_path, checks=(Check("latency_p50_ms", outcome, 1.1, 1.05, "note"),)))
    assert answer in found.sections["passed"]


@pytest.mark.usefixtures("undrawn")
def test_a_training_that_made_nothing_better_says_so(tmp_path: Path) -> None:
    run = finished.read(put(tmp_path))
    tuned = Tuned(Path("tuned.safetensors"), (Epoch(0, None, 0.9), Epoch(1, 0.4, 0.7, 0.01)))
    answer = View(replace(run, finetune=tuned)).trained().answer
    assert answer.startswith("Fine-tuning took 1 epoch. None was better than the network before training")
    assert "the validation metric is 0.9000." in answer


@pytest.mark.usefixtures("undrawn")
def test_scores_that_are_no_losses_are_named(tmp_path: Path) -> None:
    run = finished.read(put(tmp_path))
    answer = View(replace(run, reads={**run.reads, "[prune] importance": "taylor"})).plan().answer
    assert "it removes the least importance (taylor): 0.02" in answer and "raises the loss" not in answer


@pytest.mark.usefixtures("undrawn")
def test_figures_of_an_emulated_device_are_marked(tmp_path: Path) -> None:
    found = page(put(tmp_path, emulated=True, simulated=True))
    assert "emulated and simulated: they are not those of a physical device" in found.sections["passed"]
    assert [one["class"] for one in found.all("span")] == ["badge pass", "badge mark", "badge mark"]


@pytest.mark.usefixtures("undrawn")
def test_a_run_without_a_budget_says_that_nothing_was_pruned(tmp_path: Path) -> None:
    found = page(put(tmp_path, budget=None))
    assert "has no budget" in found.sections["cut"] and "has no budget" in found.sections["plan"]
    assert "Nothing was trained" in found.sections["trained"] and "within the budget" not in found.sections["passed"]


def test_a_report_of_one_of_several_targets_has_its_own_times_and_names_the_one_that_binds(tmp_path: Path) -> None:
    run = finished.read(put(tmp_path))
    assert run.confirm is not None
    (own,) = run.confirm.measured
    slower = replace(own, target="jetson", predicted_ns=7.7e6, measured=Interval(7.8e6, 7.9e6, 8e6), budget_ns=8.1e6)
    limits = tuple(
        Amount("latency", one.measured.mid, one.budget_ns, 2e6, name) for name, one in (("pi", own), ("jetson", slower))
    )
    plan = replace(run.confirm.plan, limits=limits)
    joint = replace(run, confirm=replace(run.confirm, plan=plan, measured=(replace(own, target="pi"), slower)))
    found = Page(report.html([joint])).sections["plan"]
    assert "The plan is the same for 2 targets. jetson binds" in found
    assert "confirmed at 0.990 ms" in found and "latency on jetson" in found
    assert "--target pi --target jetson --budget 50%" in joint.command


@pytest.mark.usefixtures("undrawn")
def test_a_missing_profile_is_said_at_its_place(tmp_path: Path) -> None:
    verdict = put(tmp_path)
    (tmp_path / "profiles").rename(tmp_path / "gone")
    assert "profiles/pi/" in page(verdict).sections["cut"]


@pytest.mark.usefixtures("undrawn")
def test_several_runs_begin_with_a_table_of_all(tmp_path: Path) -> None:
    found = page(put(tmp_path), put(tmp_path, target="jetson"))
    assert next(iter(found.all("section")))["id"] == "all" and len(found.all("article")) == 2
    shown = found.sections["all"]
    assert (
        "2 of 2 runs pass" in shown and "pi 50% fp32" in shown and "jetson 50% fp32" in shown and "another" not in shown
    )
    assert (
        "The metric against the measured latency" in shown and "original, jetson" in shown and " at 0.992 ms" in shown
    )
    assert len(found.all("h1")) == 1 and {one["href"] for one in found.all("a")} == {"#content", "#run-1", "#run-2"}
    ids = [
        given["id"]
        for tag, given in found.elements
        if tag in ("section", "article", "main", "h2", "h3") and "id" in given
    ]
    assert len(ids) == len(set(ids))


@pytest.mark.usefixtures("undrawn")
def test_runs_that_cannot_be_compared_say_so(tmp_path: Path) -> None:
    found = page(put(tmp_path / "a"), put(tmp_path / "b", Texts(device="another", metric="recall")))
    shown = found.sections["all"]
    assert "no ratio of latencies: it ran on another device: cpu another, not Cortex-A72" in shown
    assert "no difference of metrics: its metric is another one: recall" in shown
    assert "against the measured latency" not in shown  # one run alone can be drawn


def test_a_report_stays_small(small: Page, tmp_path: Path) -> None:
    assert small.size < 2_000_000
    run = finished.read(put(tmp_path))
    content = json.loads(data.embedded([run], 9_000))
    assert content["shortened"][0].startswith("profile: each process")
    assert len(json.dumps(content)) < len(data.embedded([run], WHOLE))


def test_of_many_runs_the_first_one_of_a_target_shows_the_latency_model(tmp_path: Path) -> None:
    run = finished.read(put(tmp_path))
    runs = [replace(run, made=replace(run.made, target=target)) for target in "abaab"]
    lines = [str(view.plan().parts[0]) for view in report._views(runs)[2:]]
    assert [f"those of p on {target}, 50%: see there" in line for target, line in zip("aab", lines, strict=True)] == [
        True
    ] * 3
    assert [view._like for view in report._views(runs[:4])] == [None] * 4


@pytest.mark.slow
def test_many_runs_share_pictures_and_the_page_stays_under_two_megabytes(tmp_path: Path) -> None:
    """Runs of the sizes that a sweep of the digits has: 6,400 raw times, and profiles of half a megabyte."""
    run = finished.read(put(tmp_path))
    assert run.profile is not None

    def longer(processes: tuple[TimedProcess, ...]) -> tuple[TimedProcess, ...]:
        return tuple(replace(one, times_ns=tuple(int(one.median_ns) + i for i in range(400))) for one in processes)

    evidence = replace(run.evidence, pruned=longer(run.evidence.pruned), original=longer(run.evidence.original))
    experiments = [
        replace(
            one,
            samples=replace(one.samples, runs=tuple(replace(r, times_ns=r.times_ns * 40) for r in one.samples.runs)),
        )
        for one in run.profile.experiments
    ]
    run = replace(run, evidence=evidence, profile=replace(run.profile, experiments=tuple(experiments)))
    runs = [
        replace(run, made=replace(run.made, target=target, budget=budget))
        for target in ("a", "b", "c")
        for budget in ("80%", "65%", "50%", "35%")
    ]
    text = report.html(runs)
    assert len(text.encode()) < 2_000_000
    found = Page(text)
    assert len(found.all("article")) == 12
    assert text.count("The latency model and the front are those of") == 9
    assert "are those of p on c, 80%: see there" in text
    assert len(json.loads(found.data)["runs"]) == 12


# ------------------------------------------------------------------------------------------------ the command line


@pytest.mark.usefixtures("undrawn")
def test_the_command_writes_the_report_beside_the_run(edgeprune: InProcess, tmp_path: Path) -> None:
    verdict = put(tmp_path)
    path = verdict.parent / "report.html"
    assert edgeprune("report") == (0, f"report    {path}\n", "")
    assert path.read_text().startswith("<!doctype html>")
    put(tmp_path, target="jetson")
    assert edgeprune("report", "--json") == (0, f'{{"path": "{tmp_path / "runs" / "report.html"}"}}\n', "")


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "runs: is not a folder; give a run folder"),
        (("nope",), "nope: is not a folder"),
        (("home/runs", "--budget", "40%"), "has no run with the budget 40%; it has 50%"),
        (("home/runs", "--budget", "5 apples"), "cannot read the budget '5 apples'"),
        (("home/runs", "-o", "home"), "home: "),
    ],
)
def test_bad_input_is_one_line(edgeprune: InProcess, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    put(tmp_path / "home")
    code, out, err = edgeprune("report", *arguments)
    assert (code, out) == (2, "") and err.startswith("error: ") and message in err and err.count("\n") == 1


@pytest.mark.usefixtures("undrawn")
def test_a_run_folder_that_cannot_be_written_has_its_report_elsewhere(edgeprune: InProcess, tmp_path: Path) -> None:
    (put(tmp_path).parent / "report.html").mkdir()
    code, _, err = edgeprune("report")
    assert code == 2 and err.rstrip().endswith("; or name another file: -o report.html") and err.count("\n") == 1
    assert edgeprune("report", "-o", "report.html")[0] == 0


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    run: Any = finished.read(put(tmp_path))
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(RuntimeMissing, match=r"pip install 'edgeprune\[report\]'"):
        report.html([run])


@pytest.mark.usefixtures("undrawn")
def test_a_result_writes_its_own_report(tmp_path: Path) -> None:
    verdict, other = put(tmp_path, budget="40%"), put(tmp_path, budget="50%")
    result: Any = SimpleNamespace(verdict=verdict, run=verdict.parent)
    assert Compressed.report(result) == verdict.parent / "report.html"
    assert Compressed.report(result, str(tmp_path / "a" / "r.html")) == tmp_path / "a" / "r.html"
    assert "--budget 40%" in (tmp_path / "a" / "r.html").read_text() and other.exists()


@pytest.mark.usefixtures("undrawn")
def test_a_run_names_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verdict = put(tmp_path / "a b")
    assert cli.offer(verdict) == f"report    edgeprune report '{verdict.parent}'"
    assert (
        cli.of_run(verdict) == f"report    {verdict.parent / 'report.html'}"
        and (verdict.parent / "report.html").is_file()
    )
    monkeypatch.setattr(cli, "NEEDED", ("jinja2", "no_such_package"))
    assert cli.of_run(verdict) == f"{cli.offer(verdict)}, after: pip install 'edgeprune[report]'"
