"""The runner: keys are digests of what stages read, records are reused, and a redone stage reports why."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import pytest
from small import SMALLEST

from edgeprune.errors import BusyError, UsageError
from edgeprune.frontends import toml
from edgeprune.pipeline.request import Request, request
from edgeprune.pipeline.run import open_run
from edgeprune.pipeline.stage import Input, Output, Rules, Stage
from edgeprune.records import Artifact, Shift
from edgeprune.stages.inputs import INPUTS
from edgeprune.stages.registry import RULES
from edgeprune.stages.sharing import shared


@dataclass
class Watch:
    """Remembers what was reported."""

    notes: list[tuple[str, str]] = field(default_factory=list)

    def start(self, stage: str) -> None: ...

    def step(self, done: int, total: int, note: str) -> None: ...

    def note(self, text: str) -> None: ...

    def done(self, stage: str, note: str) -> None:
        self.notes.append((stage, note))


@pytest.fixture
def asked(tmp_path: Path) -> Request:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "edgeprune.toml").write_text(SMALLEST)
    return request(tmp_path / "p")


@dataclass(frozen=True)
class FirstReads:
    finetune_seed: int


@dataclass(frozen=True)
class SecondReads:
    first: Shift
    target: str


Work = Callable[[Any, Output], Shift]


def rules(first: Work | None = None, second: Work | None = None) -> Rules:
    """Two stages: the first reads a setting, the second reads the first and the target."""

    def counted(reads: Any, output: Output) -> Shift:
        output.path("file.txt").write_text("x")
        return Shift(str(reads), 1, 2)

    def describe(record: Shift, reads: Any) -> str:
        return f"made {record.operator}"

    stages = (
        Stage("first", FirstReads, first or counted, Shift, describe),
        Stage("second", SecondReads, second or counted, Shift, describe),
    )
    inputs: Mapping[str, Input] = {
        "finetune_seed": INPUTS["finetune_seed"],
        "target": Input(
            lambda run: run.request.target.name, lambda run: {"target": run.request.target.name}, of_target=True
        ),
    }
    return Rules({stage.name: stage for stage in stages}, inputs)


def made(asked: Request, known: Rules) -> list[tuple[str, str]]:
    """What a run of both stages reports."""
    watch = Watch()
    with open_run(replace(asked, watch=watch), known) as run:
        run.value("second")
    return watch.notes


def seeded(asked: Request, seed: int) -> Request:
    return replace(asked, project=replace(asked.project, finetune=replace(asked.project.finetune, seed=seed)))


def test_the_same_request_again_reuses_every_record(asked: Request) -> None:
    known = rules()
    assert made(asked, known) == [
        ("first", "made FirstReads(finetune_seed=0)"),
        (
            "second",
            "made SecondReads(first=Shift(operator='FirstReads(finetune_seed=0)', before_ns=1, after_ns=2), target='local')",
        ),
    ]
    assert made(asked, known) == [("second", "reused")]


def test_a_redone_stage_reports_what_changed(asked: Request) -> None:
    known = rules()
    made(asked, known)
    (first, second) = made(seeded(asked, 1), known)
    assert first[1].startswith("redone, [finetune] seed changed: made ")
    assert second[1].startswith("redone, first changed: made ")


def test_fresh_redoes_what_is_kept(asked: Request) -> None:
    known = rules()
    made(asked, known)
    assert all(note.startswith("made ") for _, note in made(replace(asked, fresh=True), known))


def test_several_fresh_runs_redo_what_they_share_once(asked: Request) -> None:
    made(asked, rules())
    known, fresh = shared(rules()), replace(asked, fresh=True)
    other = replace(fresh, target=replace(asked.target, name="other"))
    assert [name for name, note in made(fresh, known) if note != "reused"] == ["first", "second"]
    assert made(fresh, known) == [("second", "reused")]
    assert [(name, note == "reused") for name, note in made(other, known)] == [("first", True), ("second", False)]


def test_another_run_of_the_target_goes_on_while_a_stage_that_releases_the_device_is_made(asked: Request) -> None:
    inner: list[tuple[str, str]] = []

    def trains(reads: SecondReads, output: Output) -> Shift:
        if reads.first.operator == "FirstReads(finetune_seed=0)":
            inner.extend(made(seeded(asked, 1), known))
        return Shift(str(reads), 1, 2)

    plain = rules(second=trains)
    known = replace(plain, stages={**plain.stages, "second": replace(plain.stages["second"], releases_device=True)})
    outer = made(asked, known)
    assert [name for name, _ in inner] == ["first", "second"] == [name for name, _ in outer]
    with open_run(asked, known), pytest.raises(BusyError), open_run(asked, known):
        pass


@dataclass(frozen=True)
class CompileReads:
    finetune_seed: int
    target: str


def test_latest_leads_to_the_files_that_were_made_or_reused_last(asked: Request) -> None:
    def compiled(reads: CompileReads, output: Output) -> Artifact:
        files = output.path("model/model.xml"), output.path("model/model.bin")
        for file in files:
            file.write_text(str(reads.finetune_seed))
        return Artifact(files, "a" * 64, "openvino", "fp32", "s", 1)

    stage = Stage(
        "compile", CompileReads, compiled, Artifact, lambda *_: "made", published=lambda made: made.files[0].parent
    )
    known = Rules({"compile": stage}, rules().inputs)
    latest = asked.runs / "local" / "latest"
    for seed in (0, 1, 0):
        with open_run(seeded(asked, seed), known) as run:
            artifact = run.record(stage)
        assert {file.name for file in latest.iterdir()} == {"model.xml", "model.bin"}
        assert (latest / "model.bin").read_text() == str(seed) and (latest / "model.xml").samefile(artifact.files[0])
    assert not latest.readlink().is_absolute()  # so that the run folder can be moved


def test_stages_that_read_nothing_of_the_target_are_shared_by_all_targets(asked: Request) -> None:
    known = rules()
    made(asked, known)
    other = replace(asked, target=replace(asked.target, name="other"))
    assert [note == "reused" for _, note in made(other, known)] == [True, False]
    folders = {path.parent.name: path.name.partition("-")[0] for path in asked.runs.glob("*/*-*")}
    assert folders == {"shared": "first", "local": "second", "other": "second"}


def test_no_target_may_be_named_as_the_shared_folder(tmp_path: Path, asked: Request) -> None:
    file = tmp_path / "shared.toml"
    file.write_text('[connect]\ntransport = "local"\n[runtime]\nname = "null"\n')
    with pytest.raises(UsageError, match="rename the target file"):
        request(asked.project.path, str(file))


def test_a_stage_that_fails_leaves_nothing_and_is_made_by_the_next_run(asked: Request) -> None:
    def fails(reads: Any, output: Output) -> Shift:
        output.path("half.txt").write_text("half")
        raise UsageError("no")

    with pytest.raises(UsageError, match="no"):
        made(asked, rules(second=fails))
    assert not list(asked.runs.glob("local/second-*"))
    assert [note == "reused" for _, note in made(asked, rules())] == [True, False]


def test_a_stage_that_reads_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="stage second reads first"):
        Rules({"second": rules().stages["second"]}, {"target": INPUTS["finetune_seed"]})


def test_an_error_of_the_user_s_code_in_a_stage_is_one_line_with_file_and_line(asked: Request) -> None:
    module = asked.project.folder / "m.py"
    module.write_text("def broken():\n    raise KeyError('the reason')\n")

    def calls(reads: Any, output: Output) -> Shift:
        names: dict[str, Any] = {}
        exec(compile(module.read_text(), str(module), "exec"), names)
        names["broken"]()
        raise AssertionError

    with pytest.raises(UsageError, match=r"first: the project's code raises KeyError: 'the reason' \(m\.py, line 2\)"):
        made(asked, rules(first=calls))


def test_an_error_of_edgeprune_itself_is_not_blamed_on_the_user(asked: Request) -> None:
    def ours(reads: Any, output: Output) -> Shift:
        return Shift(1 / 0, 1, 2)  # type: ignore[arg-type]

    with pytest.raises(ZeroDivisionError):
        made(asked, rules(first=ours))


# ------------------------------------------------------------------------------------------------- the real stages


@pytest.mark.parametrize("stage", RULES.stages.values(), ids=lambda stage: stage.name)
def test_every_stage_reads_records_by_the_names_of_their_stages(stage: Stage[Any, Any]) -> None:
    """The annotation of a field that names an earlier stage is the class of that stage's record."""
    order = list(RULES.stages)
    for one in fields(stage.reads):
        if one.name in RULES.stages:
            assert order.index(one.name) < order.index(stage.name)
            assert str(one.type) == RULES.stages[one.name].record.__name__


def labels(project: Path, name: str) -> dict[str, object]:
    """What a stage that reads no device reads, by label."""
    with open_run(request(project), RULES) as run:
        return run.reads(RULES.stages[name])


def test_a_model_without_weights_follows_from_the_seed(project: Path) -> None:
    text = project.read_text().replace('weights = "blobs.safetensors"\n', "")
    keys = {}
    for seed in (0, 1):
        project.write_text(text.replace("[finetune]", f"[finetune]\nseed = {seed}"))
        with open_run(request(project), RULES) as run:
            keys[seed] = {name: run.key(RULES.stages[name]) for name in ("survey", "original", "scores")}
    assert all(keys[0][name] != keys[1][name] for name in keys[0])


def test_what_a_stage_reads_is_the_same_after_it_was_kept_as_json(project: Path) -> None:
    """Otherwise a redone stage reports a change of something that did not change."""
    project.write_text(project.read_text() + "[preprocess]\nmean = [0.5]\nstd = [0.5]\n")
    for name in ("survey", "scores"):
        read = labels(project, name)
        assert json.loads(json.dumps(read)) == read and (name != "survey" or read["[preprocess]"])


def test_the_key_covers_the_modules_that_the_project_imports_and_no_others(project: Path) -> None:
    folder = project.parent
    (folder / "helper.py").write_text("ONE = 1\n")
    (folder / "notebook.py").write_text("TWO = 2\n")
    (folder / "blobs.py").write_text("from helper import ONE\n" + (folder / "blobs.py").read_text())
    before = labels(project, "survey")
    assert {"blobs.py", "helper.py"} <= set(before) and "notebook.py" not in before
    (folder / "notebook.py").write_text("TWO = 2  # a comment\n")
    assert labels(project, "survey") == before
    (folder / "helper.py").write_text("ONE = 1  # a comment\n")
    after = labels(project, "survey")
    assert [label for label in before if before[label] != after[label]] == ["helper.py"]


def test_scores_read_nothing_of_the_target() -> None:
    assert [name for name in RULES.stages if not RULES.of_target(RULES.stages[name])] == [
        "trial",
        "survey",
        "trace",
        "scores",
    ]


def test_every_setting_is_in_the_key_of_a_stage(project: Path) -> None:
    """Changing any setting of the file changes the key of a stage."""
    text = project.read_text()
    assert "[finetune]" in text

    def settings() -> str:
        with open_run(request(project), RULES) as run:
            return run.settings(RULES.stages["finetune"])

    before = settings()
    for old, new in (
        ("epochs = 2", "epochs = 3"),
        ("learning_rate = 0.02", "learning_rate = 0.03"),
        ('latency = "60%"', 'latency = "61%"'),
        ('train = "blobs:train"', 'train = "blobs:valid"'),
    ):
        assert old in text
        project.write_text(text.replace(old, new))
        assert settings() != before, new
    project.write_text(text)
    assert toml.read_project(project).finetune.epochs == 2


def test_a_run_folder_of_another_layout_is_not_read(asked: Request) -> None:
    known = rules()
    made(asked, known)
    for record in asked.runs.glob("local/second-*/second.json"):
        assert re.search(r'"before_ns": 1', record.read_text())
