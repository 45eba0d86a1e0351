"""The examples run anywhere: on their built-in samples where no data is given."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeprune import codec, network
from edgeprune import project as user

EXAMPLES = Path(__file__).parents[2] / "examples"
PROJECTS = sorted(path.relative_to(EXAMPLES).as_posix() for path in EXAMPLES.glob("*/*.toml"))


@pytest.mark.parametrize("name", PROJECTS)
def test_an_example_is_complete_without_its_data(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.delenv("EDGEPRUNE_DATA", raising=False)
    project = codec.read_project(EXAMPLES / name)
    model, inputs = user.build_model(project), user.example_inputs(project)
    user.check_data(model, project)
    survey = network.survey(model, inputs, project.lock)
    assert not survey.unknown_operators
    assert survey.macs(survey.least()) < 0.2 * survey.macs(survey.full())


@pytest.mark.parametrize("name", PROJECTS)
def test_data_that_is_not_where_it_was_said_to_be_is_named(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    project = codec.read_project(EXAMPLES / name)
    text = project.path.with_name(f"{project.train.partition(':')[0]}.py").read_text()
    if "sources.found" not in text:
        pytest.skip("its data comes with a library or with the example")
    monkeypatch.setenv("EDGEPRUNE_DATA", str(tmp_path))
    with pytest.raises(user.UsageError, match="EDGEPRUNE_DATA names a folder without it"):
        list(user.batches(codec.read_project(project.path), "train"))
