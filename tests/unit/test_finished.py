"""A finished run is read back from its folder, without the project. A damaged one is one line that names the file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from runs import KEPT, Texts, put

from edgeprune.errors import UsageError
from edgeprune.stages.series import finished


@pytest.fixture
def verdict(tmp_path: Path) -> Path:
    return put(tmp_path)


def test_every_record_of_a_run_is_read(verdict: Path) -> None:
    run = finished.read(verdict.parent)
    assert run.folder == verdict and run.made.target == "pi" and run.made.device is not None
    for name in (
        "survey",
        "scores",
        "profile",
        "plan",
        "confirm",
        "prune",
        "finetune",
        "compile",
        "original",
        "verify",
    ):
        assert getattr(run, name) is not None, name
    assert run.precision is None and run.reference is None and run.history == ()
    assert run.compile.files[0].is_file() and run.finetune is not None and run.finetune.network.is_file()
    assert run.versions == {"torch": "2.13.0"}
    assert sorted(run.widths.values()) == [10, KEPT, KEPT]
    assert run.command == "edgeprune run --project edgeprune.toml --target pi --budget 50% --precision fp32"


def test_a_run_without_a_budget_has_no_plan(tmp_path: Path) -> None:
    run = finished.read(put(tmp_path, budget=None))
    assert run.confirm is None and run.scores is None and run.profile is None and run.finetune is None
    assert run.survey.layers and "--budget" not in run.command


def test_the_last_run_is_read_or_the_last_one_with_a_budget(tmp_path: Path) -> None:
    first, last = put(tmp_path, budget="50%"), put(tmp_path, budget="12 ms")
    os.utime(first / "entry.json", (1, 1))
    assert finished.read(first.parent).folder == last
    assert finished.read(first.parent, "50 %").folder == first
    assert finished.read(first).folder == first
    with pytest.raises(UsageError, match=r"has no run with the budget 40%; it has 12 ms, 50%"):
        finished.read(first.parent, "40%")


def test_a_folder_of_run_folders_has_the_last_run_of_each_target(tmp_path: Path) -> None:
    places = [put(tmp_path, target=name) for name in ("jetson", "pi")]
    assert finished.found([tmp_path / "runs"]) == places
    assert finished.found([places[1], tmp_path / "runs" / "pi"]) == places[1:]


def test_a_run_folder_may_be_copied_without_the_profile(verdict: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").rename(tmp_path / "copied")
    run = finished.read(tmp_path / "copied" / "pi")
    assert run.profile is not None  # it is beside the folder of run folders
    (tmp_path / "profiles").rename(tmp_path / "elsewhere")
    assert finished.read(tmp_path / "copied" / "pi").profile is None


def test_reading_imports_no_torch(verdict: Path) -> None:
    code = "import sys, pathlib\nfrom edgeprune.stages.series import finished\n"
    code += "finished.read(pathlib.Path(sys.argv[1]))\nsys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code, verdict], check=True, timeout=600)


@pytest.mark.parametrize(
    ("place", "change", "message"),
    [
        ("verify-*/entry.json", Path.unlink, r"entry.json: is missing, so this run is not complete; make it again: edgeprune"),
        ("verify-*/entry.json", lambda f: f.write_text(f.read_text()[:300]), r"entry.json: is not JSON; make it again"),
        ("verify-*/entry.json", lambda f: f.write_text("[" * 100_000), r"entry.json: is not JSON"),
        ("verify-*/entry.json", lambda f: f.write_text("[]"), r"entry.json: was changed after the run: it does not say"),
        ("verify-*/verify.json", lambda f: f.write_text(f.read_text()[:-9]), r"verify-\w+: was changed .*verify.json has"),
        ("verify-*/evidence.json", Path.unlink, r"verify-\w+: was changed after the run: evidence.json is missing"),
        ("confirm-*/confirm.json", lambda f: f.write_bytes(b"\xff"), r"confirm-\w+: was changed .*: confirm.json"),
        ("compile-*/model/model.onnx", lambda f: f.write_bytes(b"other"), r"compile-\w+: was changed .*model.onnx has"),
        ("../shared/survey-*/entry.json", Path.unlink, r"shared/survey-\w+/entry.json: is missing"),
    ],
)  # fmt: skip
def test_a_damaged_run_is_one_line_with_the_file(verdict: Path, place: str, change: object, message: str) -> None:
    (file,) = verdict.parent.glob(place)
    change(file)  # type: ignore[operator]
    with pytest.raises(UsageError, match=message) as raised:
        finished.read(verdict)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 500


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "schema",
            2,
            r"entry.json: has schema 2, this edgeprune reads \d+; make it again: edgeprune run, or use the other",
        ),
        ("schema", "\x1b[31m" * 50, r"entry.json: has schema '"),
        ("reads", {}, r"entry.json: was changed after the run: its key is another one"),
        ("key", "../../x", r"entry.json: was changed after the run: its key is another one"),
        ("made", {"project": "p"}, r"entry.json: \w+: Field required"),
        ("made", None, r"entry.json: Input should be"),
    ],
)
def test_an_altered_manifest_is_one_line(verdict: Path, key: str, value: object, message: str) -> None:
    file = verdict / "entry.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(UsageError, match=message) as raised:
        finished.read(verdict)
    assert str(raised.value).isprintable()


def test_a_project_name_cannot_lead_to_other_folders(verdict: Path) -> None:
    file = verdict / "entry.json"
    content = json.loads(file.read_text())
    content["made"]["project"] = "../../secret"
    file.write_text(json.dumps(content))
    with pytest.raises(UsageError, match="is not the name of a project"):
        finished.read(verdict)


@pytest.mark.parametrize(("name", "message"), [("none", "is not a folder"), ("", "holds no finished run; make one")])
def test_a_folder_without_a_run_is_one_line(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        finished.read(tmp_path / name)
    with pytest.raises(UsageError, match=message):
        finished.found([tmp_path / name])


def test_texts_of_a_device_are_kept_as_they_are(tmp_path: Path) -> None:
    run = finished.read(put(tmp_path, Texts(device="<b>\x1b[0m")))
    assert run.made.device is not None and run.made.device.cpu == "<b>\x1b[0m"
