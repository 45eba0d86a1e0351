"""Jobs of a sweep: on this machine, and of a stand-in for Slurm that runs what sbatch gets."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_sweeps import WHOLE, cell, failed

from edgeprune.api import sweeps
from edgeprune.errors import InfeasibleError, RuntimeMissing, UsageError
from edgeprune.pipeline.request import Quiet
from edgeprune.stages.series import cluster
from edgeprune.stages.series import sweep as stage
from edgeprune.stages.series.cluster import Ended, Jobs, Place
from edgeprune.stages.series.sweep import Cell
from edgeprune.storage import codec

pytest.importorskip("submitit")
ONE, TWO, THREE = (Cell("t", None, budget) for budget in ("80%", "50%", "12 ms"))
ANSWER = codec.dumps(stage.summed("p", [cell(0.5, 0.9)], {"t": WHOLE}, ["a note"]))

# Programs of Slurm. Jobs are processes, and their states are files.
SBATCH = """#!/usr/bin/env python3
import os, pathlib, subprocess, sys
home = pathlib.Path(os.environ["SLURM_STANDIN"])
if "partition=none" in open(sys.argv[1]).read():
    sys.exit("sbatch: error: invalid partition specified: none")
number = str(100 + len(list(home.iterdir())))
script = open(sys.argv[1]).read().replace("%j", number).replace("%t", "0")
code = f"{script}\\necho $? > {home}/{number}.end\\n"
job = subprocess.Popen(["bash", "-c", code], start_new_session=True, stdin=-3, stdout=-3, stderr=-3)
(home / number).write_text(str(job.pid))
print(f"Submitted batch job {number}")
"""
SRUN = """#!/usr/bin/env python3
import os, sys
words = sys.argv[1:]
for name, number in (("--output", 1), ("--error", 2)):
    place = words.index(name) + 1
    os.dup2(os.open(words[place], os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
words = words[words.index("--error") + 2 :]
os.execvp(words[0], words)
"""
SACCT = """#!/usr/bin/env python3
import os, pathlib, sys
home = pathlib.Path(os.environ["SLURM_STANDIN"])
print("JobID|State|NodeList")
for job in home.iterdir():
    if job.suffix:
        continue
    state, end = home / f"{job.name}.state", home / f"{job.name}.end"
    ended = end.exists() and ("COMPLETED" if end.read_text().strip() == "0" else "FAILED")
    print(f"{job.name}|{state.read_text() if state.exists() else ended or 'RUNNING'}|node1")
"""
SCANCEL = """#!/usr/bin/env python3
import os, pathlib, signal, sys
home = pathlib.Path(os.environ["SLURM_STANDIN"])
(home / f"{sys.argv[1]}.state").write_text("CANCELLED by 1000")
os.killpg(int((home / sys.argv[1]).read_text()), signal.SIGKILL)
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the stand-in: a file for each job, with its process."""
    programs, home = tmp_path / "bin", tmp_path / "slurm"
    programs.mkdir()
    home.mkdir()
    for name, text in {"sbatch": SBATCH, "srun": SRUN, "sacct": SACCT, "scancel": SCANCEL}.items():
        (programs / name).write_text(text.replace("/usr/bin/env python3", sys.executable))
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_STANDIN", str(home))
    monkeypatch.setattr(cluster, "POLL_S", {"local": 0.02, "slurm": 0.05})
    monkeypatch.setattr(cluster, "ANSWER_S", {"local": 0.0, "slurm": 0.2})
    return home


class Lines(Quiet):
    """Remembers what a job reports."""

    def __init__(self) -> None:
        self.texts = list[str]()

    def start(self, name: str) -> None:
        self.texts.append(name)

    def note(self, text: str) -> None:
        self.texts.append(text)


def script(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def printing(text: str, before: str = "") -> list[str]:
    return script(f"import sys, time, os\n{before}\nprint({text!r})")


def run(place: Place, folder: Path, commands: dict[Cell, list[str]], watch: Lines | None = None) -> dict[Cell, Ended]:
    jobs = Jobs(place, folder, lambda _: watch or Quiet())
    return dict(jobs.run(commands, {cell: "t" for cell in commands}))


@pytest.mark.parametrize("executor", ["local", "slurm"])
def test_each_cell_is_a_job_and_a_bad_one_is_a_row(executor: cluster.Executor, slurm: Path, tmp_path: Path) -> None:
    infeasible = json.dumps({"schema": 1, "status": "error", "exit_code": 3, "error": "no plan meets 50%"})
    watch = Lines()
    found = run(
        Place(executor, 3),
        tmp_path / "jobs",
        {
            ONE: printing(ANSWER, "print('profile 40 experiments', file=sys.stderr, flush=True); time.sleep(1)"),
            TWO: printing(infeasible),
            THREE: script("import sys; print('Killed: out of memory\\x1b[31m', file=sys.stderr); sys.exit(9)"),
        },
        watch,
    )
    good, refused, dead = (found[cell] for cell in (ONE, TWO, THREE))
    assert good.cell.result and good.cell.result.pruned.metric == 0.9
    assert good.unpruned == WHOLE and good.notes == ("a note",)
    assert (refused.cell.status, refused.cell.exit_code, refused.cell.error) == ("error", 3, "no plan meets 50%")
    assert dead.cell.exit_code == 5 and "ended without a result" in dead.cell.error
    assert "out of memory" in dead.cell.error and "\x1b" not in dead.cell.error and "_log.err" in dead.cell.error
    assert "profile 40 experiments" in watch.texts
    logs = sorted(path.parts[-3] for path in (tmp_path / "jobs").glob("*/1/*_log.err"))
    assert logs == ["t-12-ms", "t-50pct", "t-80pct"]
    assert not list(tmp_path.rglob("*.pkl")), "nothing is pickled"
    assert watch.texts.count("running") <= 3, "a state is told once for each job"
    assert "-c" in (tmp_path / "jobs" / "t-80pct" / "1" / "command.txt").read_text()
    again = run(Place(executor, 1), tmp_path / "jobs", {ONE: printing(ANSWER)})
    assert again[ONE].cell.status == "pass" and (tmp_path / "jobs" / "t-80pct" / "2").is_dir()


def test_jobs_are_limited_and_one_that_is_not_submitted_ends_the_sweep(slurm: Path, tmp_path: Path) -> None:
    commands = {one: printing(ANSWER) for one in (ONE, TWO, THREE)}
    assert len(run(Place("slurm", 2), tmp_path / "jobs", commands)) == 3
    with pytest.raises(UsageError, match="invalid partition specified: none; see --slurm"):
        run(Place("slurm", 2, {"partition": "none"}), tmp_path / "jobs", commands)


def test_a_cancelled_job_and_a_dead_node_are_rows(slurm: Path, tmp_path: Path) -> None:
    jobs = Jobs(Place("slurm", 2), tmp_path / "jobs", lambda _: Quiet())
    waits = script("import time; time.sleep(600)")
    found = jobs.run({ONE: waits, TWO: waits, THREE: printing(ANSWER)}, dict.fromkeys((ONE, TWO, THREE), "t"))

    def number(name: str) -> str:
        until = time.monotonic() + 60
        while not (jobs_of := sorted(slurm.glob("???"))) or len(jobs_of) < 2:
            assert time.monotonic() < until, name
            time.sleep(0.01)
        return jobs_of[("cancelled", "node").index(name)].name

    import threading

    def fail() -> None:
        cancelled, node = number("cancelled"), number("node")
        os.system(f"scancel {cancelled}")
        (slurm / f"{node}.state").write_text("NODE_FAIL")
        os.killpg(int((slurm / node).read_text()), signal.SIGKILL)

    threading.Timer(0.1, fail).start()
    rows = {cell: ended.cell for cell, ended in found}
    assert rows[THREE].status == "pass"
    assert "(cancelled by 1000)" in rows[ONE].error and "(node_fail)" in rows[TWO].error


@pytest.mark.parametrize("executor", ["local", "slurm"])
def test_an_interrupt_cancels_all_jobs(executor: cluster.Executor, slurm: Path, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    write = f"open({str(note)!r}, 'w').write(str(os.getpid()))"
    waits = script(f"import os, sys, time; {write}; print('up', file=sys.stderr, flush=True); time.sleep(600)")

    class Interrupting(Lines):
        def note(self, text: str) -> None:
            if text == "up":
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(Place(executor, 1), tmp_path / "jobs", {ONE: waits, TWO: waits}, Interrupting())
    until = time.monotonic() + 60
    while Path(f"/proc/{note.read_text()}").exists() and time.monotonic() < until:
        time.sleep(0.02)
    assert not Path(f"/proc/{note.read_text()}").exists()


def test_what_sbatch_gets(slurm: Path, tmp_path: Path) -> None:
    place = Place("slurm", 1, {"partition": "gpu", "time": "4:00:00", "gpus": "1", "account": "vision $(id)"})
    command = ["true", "-m", "edgeprune", "sweep", "--project", "my project/edgeprune.toml", "--budget", "50%"]
    run(place, tmp_path / "jobs", {Cell("pi", "int8", "50%"): command})
    (text,) = (path.read_text() for path in tmp_path.glob("jobs/*/1/*_submission.sh"))
    recorded = Path(__file__).parents[1] / "recorded" / "sweep.sbatch"
    assert text.replace(str(tmp_path), "FOLDER") == recorded.read_text()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"partition": "gpu\nrm -rf ~"}, "not one line"),
        ({"wrap me": "x"}, "no option of sbatch"),
        ({"output": "x"}, "no option of sbatch"),
        ({"Partition": "gpu"}, "no option of sbatch"),
        ({"partition": ""}, "not one line"),
    ],
)
def test_a_wrong_option_of_slurm_is_one_line(options: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        Place("slurm", 1, options)
    assert "\n" not in str(caught.value)


def test_without_slurm_or_submitit_it_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeMissing, match="sbatch, srun, sacct, scancel: no such program"):
        Jobs(Place("slurm", 1), tmp_path, lambda _: Quiet())
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(RuntimeMissing, match=r"edgeprune\[cluster\]"):
        Jobs(Place("local", 1), tmp_path, lambda _: Quiet())


@pytest.mark.parametrize("text", ['{"exit_code": "x", "error": ""}', '{"cells": []}', '{"a": 1}'])
def test_an_answer_of_another_kind_is_a_row(text: str) -> None:
    found = cluster.read(text, ONE, "t", "log.out").cell
    assert found.status == "error" and "log.out is not the answer of a job" in found.error


# ----------------------------------------------------------------------------------------------------- whole sweeps


@pytest.fixture
def project(tmp_path: Path) -> Path:
    from small import SMALLEST

    (tmp_path / "edgeprune.toml").write_text(SMALLEST)
    (tmp_path / "m.py").write_text("def build(): ...\ndef inputs(): ...\ndef train(): ...\ndef valid(): ...\n")
    return tmp_path / "edgeprune.toml"


def test_a_sweep_of_jobs_is_in_the_order_of_its_cells(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[Cell, list[str]] = {}

    def answers(jobs: Jobs, commands: dict[Cell, list[str]], names: dict[Cell, str]) -> Iterator[tuple[Cell, Ended]]:
        asked.update(commands)
        for one in reversed(commands):
            yield one, Ended(stage.failed(one, names[one], InfeasibleError("no")), WHOLE, ("a note",))

    monkeypatch.setattr(Jobs, "run", answers)
    found = sweeps.sweep(project, ["50%", "80%"], precisions=["int8"], executor="local", patience="1h")
    assert [one.budget for one in found.cells] == ["80%", "50%"] and found.exit_code == 3
    assert found.notes == ("a note",) and found.unpruned == {"local": WHOLE}
    command = asked[Cell("local", "int8", "80%")]
    words = f"sweep --json --wait --project {project} --budget 80% --target local --precision int8 --patience 1h"
    assert command[1:] == ["-m", "edgeprune", *words.split()]


def test_torchrun_trains_the_network_of_a_job_before_its_sweep(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[Cell, list[str]] = {}

    def answers(jobs: Jobs, commands: dict[Cell, list[str]], names: dict[Cell, str]) -> Iterator[tuple[Cell, Ended]]:
        asked.update(commands)
        return iter([(one, Ended(stage.failed(one, names[one], InfeasibleError("no")))) for one in commands])

    monkeypatch.setattr(Jobs, "run", answers)
    sweeps.sweep(project, ["50%"], executor="local", nproc_per_node=4)
    shell, flag, text = asked[Cell("local", None, "50%")]
    training, sweep = text.split("; exec ")
    assert (shell, flag) == ("sh", "-c") and training.endswith(" >&2"), "only the sweep answers on stdout"
    assert "--nproc-per-node 4 -m edgeprune finetune --wait" in training and "edgeprune sweep --json --wait" in sweep
    assert training.removesuffix(" >&2").split("--wait")[1] == sweep.split("--wait")[1], "both are of the same cell"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"jobs": 2}, "need --executor"),
        ({"slurm": {"partition": "gpu"}, "executor": "local"}, "--slurm is for --executor slurm"),
        ({"executor": "ray"}, "'ray' is unknown"),
        ({"executor": "local", "jobs": 0}, "--jobs 0"),
        ({"nproc_per_node": 2}, "need --executor"),
        ({"executor": "local", "nproc_per_node": 0}, "--nproc-per-node 0"),
        ({"executor": "local", "fresh": True}, "exclude each other"),
    ],
)
def test_options_that_do_not_fit_are_found_before_anything_runs(
    options: dict[str, object], words: str, project: Path
) -> None:
    with pytest.raises(UsageError, match=words):
        sweeps.sweep(project, ["50%"], **options)  # type: ignore[arg-type]


def test_a_failed_row_stays_one(tmp_path: Path) -> None:
    answer = codec.dumps(stage.summed("p", [failed()], {}))
    assert cluster.read(answer, ONE, "t", "log.out").cell.exit_code == 3
