"""Progress on a terminal, in a pipe and in a notebook; colours; units."""

from __future__ import annotations

import io
import logging
import sys
from pathlib import Path

import pytest
import torch
from nets import Plain, image
from releases import FIGURES
from rich.console import Console

from edgeprune.cli import logs
from edgeprune.network.observe import observe
from edgeprune.network.survey import survey
from edgeprune.records import Check, Figures, Outcome, Plan, Result, Verdict
from edgeprune.records.budget import date_text, time_text
from edgeprune.reports import console, progress
from edgeprune.stages import prune

NOTE = "loss curves of all groups were measured on the training data, in batches of samples"


def terminal(width: int = 60, **more: object) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, **more)  # type: ignore[arg-type]


def text(screen: Console) -> str:
    return screen.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_a_bar_shows_percent_and_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    screen, now = terminal(120), [0.0]
    with progress.Watcher(screen) as watch:
        monkeypatch.setattr(watch._progress, "get_time", lambda: now[0])
        watch.start("scores")
        for done in range(1, 4):
            now[0] += 10.0
            watch.step(done, 10, "layer one")
        watch._progress.refresh()
    assert "30%" in text(screen) and "1:10 left" in text(screen) and "layer one" in text(screen)


def test_a_stage_without_a_total_shows_its_elapsed_time(monkeypatch: pytest.MonkeyPatch) -> None:
    screen, now = terminal(120), [0.0]
    with progress.Watcher(screen) as watch:
        monkeypatch.setattr(watch._progress, "get_time", lambda: now[0])
        watch.start("scores")
        watch.step(9, 10, "")
        watch.start("survey")
        now[0] += 75.0
        watch._progress.refresh()
    last = text(screen).rpartition("survey")[2]
    assert "1:15" in last and "%" not in last and "left" not in last


def test_notes_wrap_at_words_on_a_terminal_and_stay_one_line_in_a_pipe() -> None:
    screen, pipe = terminal(40), Console(file=io.StringIO(), width=40)
    for one in (screen, pipe):
        with progress.Watcher(one) as watch:
            watch.start("scores")
            watch.done("scores", NOTE)
    lines = [line.strip() for line in text(screen).splitlines() if any(word in line for word in NOTE.split())]
    assert len(lines) > 2 and " ".join(lines).split()[1:] == NOTE.split()
    assert text(pipe).splitlines() == [f"scores     {NOTE} (0.0 s)"]


def test_a_warning_is_a_line_of_its_own_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    shared = Terminal()
    monkeypatch.setattr(sys, "stderr", shared)
    monkeypatch.setattr(logging.root, "handlers", [])
    screen = Console(file=shared, force_terminal=True, width=80)
    with progress.Watcher(screen) as watch:
        logs.listen()
        watch.start("profile")
        watch._progress.refresh()
        logging.getLogger("edgeprune").warning("the device is busy")
    before, _, after = shared.getvalue().partition("WARNING: the device is busy")
    assert after.startswith("\n") and before.endswith(("\x1b[2K", "\r"))  # the bar's line was erased first


def test_a_notebook_shows_bars_only_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    for found, live in ((object(), True), (None, False)):
        monkeypatch.setattr(progress, "find_spec", lambda name, found=found: found)
        assert progress.Watcher(Console(file=io.StringIO(), force_jupyter=True))._live is live


CHECKS = tuple(Check(f"check_{outcome}", outcome, 1.0, 2.0) for outcome in Outcome)


@pytest.mark.parametrize(("outcome", "code"), [("pass", "32"), ("fail", "31"), ("inconclusive", "33")])
def test_outcomes_have_colours_on_a_terminal_only(outcome: str, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    answer = Verdict("a", 1.0, FIGURES, FIGURES, tuple(c for c in CHECKS if c.outcome == outcome))
    coloured, pipe = terminal(color_system="standard"), Console(file=io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    plain = terminal(color_system="standard")
    for screen in (coloured, plain, pipe):
        console.show(answer, None, screen)  # type: ignore[arg-type]
    assert text(coloured).count(f";{code}m{outcome}\x1b[0m") == 2
    assert f"{code}m" not in text(plain) and "\x1b" not in text(pipe)
    assert f"verdict   {outcome}" in text(pipe)
    assert ("run the same command again" in text(pipe)) is (outcome == "inconclusive")


def test_a_network_of_microseconds_is_shown_in_microseconds() -> None:
    def figures(ms: float) -> Figures:
        return Figures(ms, 1.1 * ms, 0.9, 1, 1, 1, 1)

    def shown(ms: float) -> str:
        check = Check("latency_p50_ms", Outcome.PASS, ms / 2, 0.6 * ms)
        result = Result(
            *(1, Outcome.PASS, "local", "onnxruntime", "fp32", False, False, 0.6 * ms, ms / 2, ms / 2, 1, "metric"),
            *(figures(ms), figures(ms / 2), {}, (check,), Path("model.onnx"), Path("latest/model.onnx"), Path("runs")),
        )
        screen = Console(file=io.StringIO(), width=120)
        console.show(result, None, screen)  # type: ignore[arg-type]
        return text(screen)

    fast, slow = shown(0.0423), shown(1.449)
    assert "42.30 µs" in fast and "21.15 µs, limit 25.38 µs" in fast and " ms" not in fast
    assert "1.449 ms" in slow and "0.725 ms, limit 0.869 ms" in slow and "µs" not in slow
    assert time_text(99_000, 120_000) == "0.099 ms" and time_text(99_000) == "99.00 µs"


def test_a_moment_that_no_calendar_has_is_an_unknown_day() -> None:
    assert date_text(0) == "1970-01-01 00:00 UTC" and date_text(86_400, "%d") == "02"
    assert {date_text(seconds) for seconds in (10**18, -(10**18), 10**40)} == {"an unknown day"}


@pytest.mark.parametrize(
    ("checks", "confirmed_ms", "words"),
    [
        ({"latency_p50_ms": "fail"}, 0.9, "disturbed the plan's measurements: run again with --fresh"),
        ({"latency_p50_ms": "fail"}, 1.1, None),
        ({"metric_drop": "fail", "latency_p50_ms": "fail"}, 0.9, "train longer"),
        ({"metric_drop": "inconclusive"}, 0.9, "run the same command again"),
        ({"size_bytes": "fail", "latency_p50_ms": "inconclusive"}, 0.9, None),
        ({"latency_p50_ms": "pass"}, 0.9, None),
    ],
)
def test_a_verdict_that_is_no_pass_says_what_to_do(
    checks: dict[str, str], confirmed_ms: float, words: str | None
) -> None:
    found = tuple(Check(name, Outcome(outcome), 1.05, 1.0) for name, outcome in checks.items())
    result = Result(
        *(1, Outcome.FAIL, "local", "onnxruntime", "fp32", False, False, 1.0, 0.9, confirmed_ms, 1, "metric"),
        *(FIGURES, FIGURES, {}, found, Path("model.onnx"), Path("latest/model.onnx"), Path("runs")),
    )
    screen = Console(file=io.StringIO(), width=120)
    console.show(result, None, screen)  # type: ignore[arg-type]
    assert (words is None) == ("next  " not in text(screen)) and (words or "") in text(screen)


def test_the_survey_and_the_prune_stage_report_their_progress() -> None:
    """Every stage that may take over two seconds has a bar. Time is left as soon as two steps are done."""
    model, inputs = Plain().eval(), image()
    steps: list[tuple[int, int, str]] = []
    groups = survey(model, inputs, (), lambda *step: steps.append(step))
    done, totals, notes = zip(*steps, strict=True)
    assert list(done) == sorted(done) and done[-1] < totals[0]
    assert set(totals) == {2 * len(groups.free)} and set(notes) == {""}
    steps.clear()
    keep = {group.name: tuple(range(group.width // 2)) for group in groups.free}
    plan = Plan(keep, *[None] * 7)  # type: ignore[arg-type] # only the units count
    batches = [(image(), torch.zeros(1))] * 4
    prune.prune(model, groups, plan, inputs, lambda one: observe(one, batches), lambda *step: steps.append(step))
    assert steps == [(1, 3, ""), (2, 3, "")]
