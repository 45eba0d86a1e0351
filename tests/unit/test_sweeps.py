"""Sweeps: the order of cells, what ends a cell, the exit code, and the tables."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from runs import put
from small import SMALLEST, InProcess

import edgeprune as package
from edgeprune.api import sweeps, verbs
from edgeprune.cli.commands import repeat
from edgeprune.errors import BusyError, DeviceError, InconclusiveError, InfeasibleError, UsageError
from edgeprune.pipeline.request import request
from edgeprune.pipeline.stage import Input, Rules
from edgeprune.records import (
    Figures,
    Interval,
    Outcome,
    Result,
    Sweep,
    SweepCell,
    TimedProcess,
    Unpruned,
    UnprunedNetworks,
)
from edgeprune.reports import sweep as reports
from edgeprune.stages import unpruned
from edgeprune.stages.registry import RULES
from edgeprune.stages.series import ahead
from edgeprune.stages.series import sweep as stage
from edgeprune.stages.series.sweep import Cell
from edgeprune.stages.sharing import SHARED, shared

FIGURES = Figures(p50_ms=2.0, p90_ms=2.1, metric=0.9, parameters=100, macs=1000, size_bytes=4000, operators=9)


def result(share: float, metric: float, status: Outcome = Outcome.PASS, emulated: bool = False) -> Result:
    pruned = replace(FIGURES, p50_ms=2 * share, metric=metric, size_bytes=2000)
    there = Path("runs/t")
    return Result(
        schema=1, status=status, target="t", runtime="onnxruntime", precision="fp32", emulated=emulated, simulated=False,
        budget_ms=1.0, predicted_ms=1.0, confirmed_ms=1.0, rounds=1, metric_name="metric", baseline=FIGURES, pruned=pruned,
        plan=None, checks=(), artifact=there / "m.onnx", latest=there / "m.onnx", run=there,
    )  # fmt: skip


def cell(share: float, metric: float, status: Outcome = Outcome.PASS, target: str = "t") -> SweepCell:
    found = result(share, metric, status)
    return SweepCell(
        target, None, f"{100 * share:g}%", status.value, status.exit_code, "",
        Interval(share - 0.01, share, share + 0.01), found, Path("runs/t/verify-0"),
    )  # fmt: skip


def failed(error: type[Exception] = InfeasibleError) -> SweepCell:
    return stage.failed(Cell("t", None, "1%"), "t", error("no plan\nmeets 1%"))  # type: ignore[arg-type]


WHOLE = UnprunedNetworks(
    (
        Unpruned("fp32", Interval(2.1, 2.2, 2.3), Interval(1, 1, 1), 0.91, 4000),
        Unpruned("int8", Interval(0.8, 0.9, 1.0), Interval(0.4, 0.41, 0.42), 0.85, 1000),
    )
)


# ------------------------------------------------------------------------------------------------------------ cells


def test_the_runs_of_a_target_follow_each_other_from_the_largest_budget() -> None:
    found = stage.cells(["35%", "80%", "12 ms", "50%", "80%"], ["a", "b", "a"], ["fp32", "auto"])
    assert [one.name for one in found[:5]] == ["a fp32 80%", "a fp32 50%", "a fp32 35%", "a fp32 12 ms", "a auto 80%"]
    assert len(found) == 16 and [one.target for one in found] == ["a"] * 8 + ["b"] * 8


@pytest.mark.parametrize(
    ("budgets", "targets", "words"),
    [([], ["t"], "needs a budget"), (["5 apples"], ["t"], "5 apples"), (["1%"], [], "a target")],
)
def test_a_wrong_sweep_is_one_line(budgets: list[str], targets: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        stage.cells(budgets, targets)


def test_a_sweep_has_a_largest_size() -> None:
    with pytest.raises(UsageError, match="at most"):
        stage.cells([f"{i + 1} us" for i in range(400)], ["a", "b", "c"])


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("--budget 80% 65% -t a b -q", "--budget 80% --budget 65% -t a -t b -q"),
        ("--budget 80% --budget 65%", "--budget 80% --budget 65%"),
        ("--budget=80% 65%", "--budget=80% --budget 65%"),
        ("--project p q --json", "--project p q --json"),
    ],
)
def test_an_option_that_may_be_repeated_takes_several_values(given: str, meant: str) -> None:
    assert repeat(given.split(), {"--budget", "-b", "--target", "-t"}) == meant.split()


# --------------------------------------------------------------------------------------------------------- results


@pytest.mark.parametrize(
    ("cells", "code", "status"),
    [
        ([cell(0.5, 0.9)], 0, "pass"),
        ([cell(0.5, 0.9), failed()], 3, "error"),
        ([cell(0.5, 0.9, Outcome.INCONCLUSIVE), failed()], 4, "inconclusive"),
        ([failed(DeviceError), cell(0.5, 0.9, Outcome.FAIL)], 1, "fail"),
    ],
)
def test_a_sweep_ends_with_the_code_of_its_worst_run(cells: list[SweepCell], code: int, status: str) -> None:
    found = stage.summed("p", cells, {})
    assert (found.exit_code, found.status) == (code, status)


def test_the_points_of_a_front_are_on_one_scale_and_the_best_ones_are_marked() -> None:
    points = stage.front([cell(0.8, 0.92), cell(0.5, 0.84), failed()], WHOLE)
    assert [(one.label, one.best) for one in points] == [
        ("unpruned int8", True), ("50% fp32", False), ("80% fp32", True), ("unpruned fp32", False)
    ]  # fmt: skip
    scale = 2.0  # the median of 2.0, 2.0 and 2.2 ms
    assert [one.latency_ms.mid for one in points] == pytest.approx([scale * s for s in (0.41, 0.5, 0.8, 1.0)])
    assert points[1].latency_ms.low == pytest.approx(scale * 0.49)


def test_without_a_measurement_of_the_unpruned_network_a_verdict_gives_its_point() -> None:
    points = stage.front([cell(0.5, 0.84)], None)
    assert [(one.status, one.metric) for one in points] == [("pass", 0.84), ("unpruned", 0.9)]
    assert stage.front([failed()], None) == ()


def test_shares_are_of_neighbouring_processes() -> None:
    def processes(*medians: float) -> list[TimedProcess]:
        return [TimedProcess((1,), 1, median, 1) for median in medians]

    assert stage.shares(processes(1, 4), processes(2, 8)).tolist() == [0.5, 0.5]


def swept() -> Sweep:
    cells = [cell(0.8, 0.92), cell(0.5, 0.84, Outcome.FAIL), failed()]
    found = stage.summed("digits", cells, {"t": WHOLE}, ["t: a note"])
    return sweeps.MeasuredSweep(**vars(found))


def test_a_sweep_is_printed_in_80_columns_with_every_error(capsys: pytest.CaptureFixture[str]) -> None:
    reports.show_sweep(swept(), Console(width=80, no_color=True))
    lines = capsys.readouterr().out.splitlines()
    table = [line for line in lines if "%" in line or "unpruned" in line]
    assert "digits on t" in lines[0] and all(len(line) <= 80 for line in lines[:9]), lines
    assert any("error 3" in line for line in table) and any("80.0% [79.0, 81.0]" in line for line in table)
    assert "t 1%: no plan meets 1%" in lines and "t: a note" in lines and "the same command again" in lines[-1]


def test_a_sweep_is_exported(tmp_path: Path) -> None:
    found = swept()
    rows = list(csv.DictReader(io.StringIO(reports.exporter(tmp_path / "s.csv")(found))))
    assert [row["status"] for row in rows] == ["unpruned", "fail", "pass", "unpruned", "error"]
    assert float(rows[1]["share"]) == 0.5 and rows[-1]["error"] == "no plan meets 1%"
    document = json.loads(reports.exporter(tmp_path / "s.json")(found))
    assert document["exit_code"] == 1 and document["cells"][0]["result"]["pruned"]["metric"] == 0.92
    text = reports.exporter(tmp_path / "s.md")(found)
    assert "| 50% fp32 | 1.000 |" in text and "- t 1%: no plan meets 1%" in text
    with pytest.raises(UsageError, match=r"\*\.csv"):
        reports.exporter(tmp_path / "s.xlsx")


def test_a_hostile_error_stays_text() -> None:
    bad = stage.failed(Cell("t", None, "1%"), "=t", DeviceError("=cmd()\x1b[31m|x"))
    found = stage.summed("p", [bad], {})
    assert "\n'=t," in reports.sweep_csv(found) and ",'=cmd()" in reports.sweep_csv(found)
    assert "\x1b" not in reports.sweep_csv(found) + reports.sweep_markdown(found)


def test_a_sweep_draws_itself() -> None:
    pytest.importorskip("matplotlib")
    assert "metric against measured latency of t" in swept().plot().alt  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="nothing to draw"):
        reports.picture(stage.summed("p", [failed()], {}))


def test_a_sweep_writes_the_report_of_all_verdicts(tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    cells = [replace(cell(0.5, 0.9), verdict=put(tmp_path, budget=budget)) for budget in ("50%", "12 ms")]
    found = sweeps.MeasuredSweep(**vars(stage.summed("p", [*cells, failed()], {})))
    text = found.report(tmp_path / "sweep.html").read_text()
    assert "12 ms" in text and "50%" in text
    with pytest.raises(UsageError, match="nothing to report"):
        sweeps.MeasuredSweep(**vars(stage.summed("p", [failed()], {}))).report(tmp_path / "none.html")


def test_a_sweep_is_a_table_in_a_notebook() -> None:
    assert "no plan meets 1%" in swept()._repr_html_() and "status='fail'" in repr(swept())


# ----------------------------------------------------------------------------------------------------------- running


def test_runs_of_a_process_share_what_no_budget_matters_to() -> None:
    made: list[str] = []

    def input_of(key: str) -> Input:
        return Input(lambda run: made.append(key) or [key], lambda run: {"key": run.asked if key == "network" else 1})

    rules = shared(Rules({}, {name: input_of(name) for name in ("network", "budget_latency")}))
    first, again, other = (SimpleNamespace(asked=asked) for asked in (1, 1, 2))
    values = [rules.inputs["network"].value(run) for run in (first, again, other)]  # type: ignore[arg-type]
    assert values[0] is values[1] is not values[2] and made == ["network", "network"]
    one, two = (rules.inputs["budget_latency"].value(run) for run in (first, again))  # type: ignore[arg-type]
    assert one is not two


def test_what_runs_share_depends_on_no_target() -> None:
    inputs = RULES.inputs
    assert not [name for name in SHARED if inputs[name].of_target or inputs[name].leased]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "edgeprune.toml").write_text(SMALLEST)
    (tmp_path / "m.py").write_text("def build(): ...\ndef inputs(): ...\ndef train(): ...\ndef valid(): ...\n")
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets" / "null.toml").write_text('[connect]\ntransport = "local"\n[runtime]\nname = "null"\n')
    return tmp_path / "edgeprune.toml"


def test_a_request_may_replace_the_target_files_precision(project: Path) -> None:
    assert request(project, "local").target.precision == "fp32"
    assert request(project, "local", precision="auto").target.precision == "auto"


@pytest.mark.parametrize("words", [("run", "--precision", "int8"), ("verify", "--precision", "int8"), ("run",)])
def test_a_cell_is_repeated_with_its_precision(
    words: tuple[str, ...], project: Path, edgeprune: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def opened(*given: object, **options: object) -> None:
        asked.append(options["precision"])
        raise UsageError("stop")

    monkeypatch.setattr(verbs, "opened", opened)
    assert edgeprune(*words, "--project", str(project), "--budget", "50%")[0] == 2
    assert asked == ["int8" if len(words) > 1 else None]


class Opened:
    """Stands in for `verbs.opened`: remembers what was opened, and fails for some budgets."""

    def __init__(self, errors: dict[str, Exception]) -> None:
        self.errors, self.stages = errors, list[str]()

    @contextmanager
    def __call__(self, project: object, target: str, **options: str) -> Iterator[SimpleNamespace]:
        def record(one: SimpleNamespace) -> object:
            self.stages.append(f"{target} {one.name}")
            if one is unpruned.STAGE and target in self.errors:
                raise self.errors[target]
            return WHOLE

        yield SimpleNamespace(record=record, budget=options["budget"], target=target)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    opens = Opened({})

    def finished(one: Cell, run: SimpleNamespace) -> SweepCell:
        opens.stages.append(one.name)
        return cell(float(one.budget[:-1]) / 100, 0.9, target=one.target)

    def measure(run: SimpleNamespace, shared: Sequence[object]) -> None:
        opens.stages.append(f"{run.target} {len(shared)} together")

    monkeypatch.setattr(verbs, "opened", opens)
    monkeypatch.setattr(stage, "finished", finished)

    def planned(run: SimpleNamespace) -> SimpleNamespace:
        opens.stages.append(f"{run.target} plan")
        if run.budget in opens.errors:
            raise opens.errors[run.budget]
        return run

    monkeypatch.setattr(ahead, "planned", planned)
    monkeypatch.setattr(ahead, "confirm_plans", measure)
    monkeypatch.setattr(ahead, "compiled", lambda run: run)
    monkeypatch.setattr(ahead, "time_artifacts", measure)
    return opens


def test_what_targets_share_runs_once_and_a_failed_run_does_not_stop_the_rest(project: Path, opened: Opened) -> None:
    opened.errors = {"50%": InfeasibleError("no plan"), "local-openvino": BusyError("is in use")}
    found = package.sweep(project, ["50%", "80%", "65%"], ["local", "local-openvino"])
    assert opened.stages == [
        "local trial", "local survey",
        "local unpruned", *["local plan"] * 3, "local 2 together", *["local confirm"] * 2, "local 2 together",
        "local 80%", "local 65%",
        "local-openvino unpruned", *["local-openvino plan"] * 3, "local-openvino 2 together",
        *["local-openvino confirm"] * 2, "local-openvino 2 together", "local-openvino 80%", "local-openvino 65%",
    ]  # fmt: skip
    assert [one.status for one in found.cells] == ["pass", "pass", "error", "pass", "pass", "error"]
    assert found.exit_code == 3 and "is in use" in found.notes[0]
    assert found.fronts["local"][0].label == "unpruned int8"


def test_what_cannot_be_measured_together_is_measured_alone(
    project: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(*of: object) -> None:
        raise InconclusiveError("other programs take the processor")

    monkeypatch.setattr(ahead, "confirm_plans", measure)
    monkeypatch.setattr(ahead, "time_artifacts", measure)
    assert package.sweep(project, ["50%", "80%"], progress=True).status == "pass"
    assert "each is measured alone: other programs take the processor" in capsys.readouterr().out


def test_a_sweep_in_python_shows_its_progress_if_asked(
    project: Path, opened: Opened, capsys: pytest.CaptureFixture[str]
) -> None:
    package.sweep(project, "80%", "local", "fp32")
    assert capsys.readouterr().out == ""
    with pytest.raises(UsageError, match="no option 'progres'; did you mean progress"):
        package.sweep(project, ["80%"], progres=True)  # type: ignore[call-arg]
    package.sweep(project, ["80%"], progress=True)
    assert "local 80%" in capsys.readouterr().out


def test_all_runs_of_a_fresh_sweep_share_what_they_redo(
    project: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[str, object]] = []

    def remembering(*arguments: object, **options: object) -> object:
        given.append(options)
        return opened(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(verbs, "opened", remembering)
    package.sweep(project, ["80%", "50%"], fresh=True)
    assert all(options["fresh"] for options in given) and len({id(options["rules"]) for options in given}) == 1
    assert given[0]["rules"].redone == set()  # type: ignore[attr-defined]


def test_a_bug_ends_the_sweep(project: Path, opened: Opened) -> None:
    opened.errors = {"80%": ZeroDivisionError()}
    with pytest.raises(ZeroDivisionError):
        package.sweep(project, ["80%"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--budget", "80%", "-t", "nowhere"), "nowhere"),
        (("--budget", "80%", "-t", "local", "null", "--precision", "fp16"), "null has no fp16"),
        (("--budget", "80%,5 apples"), "5 apples"),
        (("--budget", "80%", "--export", "s.xlsx"), "*.csv"),
    ],
)
def test_a_wrong_name_is_found_before_anything_runs(
    arguments: tuple[str, ...], words: str, project: Path, opened: Opened, edgeprune: InProcess
) -> None:
    code, _, err = edgeprune("sweep", "--project", str(project), *arguments)
    assert code == 2 and words in err and err.count("\n") == 1 and not opened.stages


def test_the_command_prints_lines_in_a_pipe_and_exits_with_the_code(
    project: Path, opened: Opened, edgeprune: InProcess, tmp_path: Path
) -> None:
    opened.errors = {"50%": InfeasibleError("no plan")}
    arguments = "sweep", "--budget", "80%", "50%", "-p", str(project)
    code, out, _ = edgeprune(*arguments, "--export", str(tmp_path / "s.md"))
    refused, passed, *_ = out.splitlines()  # in the order in which the runs end
    assert code == 3 and passed.startswith("local 80%") and "pass: 1.600 ms, 80.0%" in passed
    assert refused.split() == "local 50% error 3: no plan".split() and (tmp_path / "s.md").exists()
    code, out, err = edgeprune(*arguments, "--json")
    assert json.loads(out)["status"] == "error" and "80.0%" in err


def test_the_live_table_shows_every_run(opened: Opened) -> None:
    console = Console(force_terminal=True, width=80, no_color=True)
    with console.capture() as shown, reports.SweepBoard(console) as board:
        board.begin([Cell("local", None, "80%"), Cell("local", None, "50%")])
        watch = board.enter("local 80%")
        watch.start("profile")
        watch.step(24, 60, "median error 4%")
        watch.note("waits")
        watch.done("profile", "done")
        board.end(Cell("local", None, "80%"), cell(0.8, 0.9))
    text = shown.get()
    assert "waits" in text and "local 50%" in text and "pass: 1.600 ms" in text
