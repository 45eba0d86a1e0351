"""A sweep reuses finished runs and goes on after a failed one. A front needs no training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small import Finished, command

import edgeprune


@pytest.mark.slow
def test_a_sweep_reuses_finished_runs_and_goes_on_after_a_failed_one(
    finished_run: tuple[Path, Finished], own_run: Path, tmp_path: Path
) -> None:
    arguments = "sweep", "--project", own_run, "--budget", "0.1%", "60%", "70%", "80%", "--json"
    swept = command(*arguments, "--export", tmp_path / "s.csv", timeout=600)
    *others, done, refused = swept.json["cells"]
    assert [one["budget"] for one in others] == ["80%", "70%"] and all(one["result"] for one in others), swept.err
    together = [line.split()[2] for line in swept.err.splitlines() if "local together" in line and "reused" not in line]
    assert together == ["confirm", "verify"], "the finished run of 60 % needs neither"
    assert (refused["status"], refused["exit_code"], refused["budget"]) == ("error", 3, "0.1%")
    assert (
        done["budget"] == "60%"
        and Path(done["result"]["artifact"]).parts[-3:] == Path(finished_run[1].json["artifact"]).parts[-3:]
    )
    assert swept.code == swept.json["exit_code"] != 0
    networks = {point["label"]: point for point in swept.json["fronts"]["local"]}
    assert networks["60% fp32"]["share"]["mid"] < 0.7 and networks["unpruned fp32"]["share"]["mid"] == 1
    assert {"unpruned fp16", "unpruned int8"} <= set(networks), swept.json["notes"]
    assert "60% fp32" in (tmp_path / "s.csv").read_text()
    again = command(*arguments, timeout=600)
    settled = [one for one in swept.json["cells"] if one["status"] in ("pass", "fail")]  # the others are tried again
    assert all(one in again.json["cells"] for one in settled)
    cell = [line for line in again.err.splitlines() if "unpruned" in line or "60%" in line]
    made = [line for line in cell if "reused" not in line]
    assert [line for line in made if "of the original network" not in line] == [], "only the cell's result is no stage"


@pytest.mark.nightly
def test_jobs_of_a_sweep_share_the_run_folder(finished_run: tuple[Path, Finished], own_run: Path) -> None:
    pytest.importorskip("submitit")
    arguments = "sweep", "--project", own_run, "--budget", "0.1%", "60%", "--executor", "local", "--jobs", "2", "--json"
    swept = command(*arguments, timeout=600)
    done, refused = swept.json["cells"]
    assert (refused["status"], refused["exit_code"]) == ("error", 3), swept.err
    assert done["result"] and Path(done["result"]["artifact"]).name == Path(finished_run[1].json["artifact"]).name
    assert {path.parent.parent.name for path in own_run.parent.glob("runs/jobs/*/1/*_log.err")} == {
        "local-60pct",
        "local-0.1pct",
    }
    assert not list(own_run.parent.rglob("*.pkl")) and "local 60%" in swept.err


@pytest.mark.slow
def test_a_front_of_a_profiled_project_trains_nothing(own_run: Path) -> None:
    project = own_run
    trained = sorted(project.parent.glob("runs/local/finetune-*"))
    front = edgeprune.front(project, points=8)
    assert sorted(project.parent.glob("runs/local/finetune-*")) == trained
    assert len(front.points) >= 5 and front.points[0].share < 0.3 and front.points[-1].loss == 0
    printed = command("front", "--project", project, "--points", "8", "--json")
    assert json.loads(printed.out)["points"][0]["widths"] == front.points[0].widths
