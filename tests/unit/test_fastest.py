"""`[budget] goal = "fastest"`: the least latency at which a trained network loses at most `max_metric_drop`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from small import SMALLEST

from edgeprune.api import verbs
from edgeprune.errors import InfeasibleError, UsageError
from edgeprune.frontends import toml
from edgeprune.pipeline.request import request
from edgeprune.stages.series.fastest import TRAININGS, fastest


@pytest.mark.parametrize("least", [0.07, 0.2, 0.33, 0.5, 0.62, 0.8, 0.9])
def test_a_share_is_found_that_loses_little_and_is_near_the_least_one(least: float) -> None:
    tried: list[float] = []

    def loses_little(share: float) -> bool:
        tried.append(share)
        return share >= least

    found = fastest(loses_little)
    assert found in tried and found >= least and len(tried) <= TRAININGS
    assert found <= 2 * least


def test_a_search_in_which_every_network_loses_too_much_says_what_to_do() -> None:
    tried: list[float] = []
    with pytest.raises(InfeasibleError, match=r"no network within 9[0-9.]*% .* 4 trainings; train longer, or raise"):
        fastest(lambda share: bool(tried.append(share)))
    assert len(tried) == TRAININGS and tried == sorted(tried)


def project(folder: Path, budget: str) -> Path:
    file = folder / "edgeprune.toml"
    file.write_text(SMALLEST.replace('latency = "50%"', budget))
    return file


def test_the_verdict_of_each_budget_decides_and_an_infeasible_one_is_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    @contextmanager
    def opened(project: Path, target: str, **options: object) -> Iterator[object]:
        asked.append(str(options["budget"]))
        share = float(asked[-1].rstrip("%")) / 100
        if share < 0.3:
            raise InfeasibleError("no plan meets it")
        drop = 0.01 if share >= 0.4 else 0.5
        figures = SimpleNamespace(baseline=SimpleNamespace(metric=0.9), pruned=SimpleNamespace(metric=0.9 - drop))
        yield SimpleNamespace(members={}, record=lambda stage: figures)

    monkeypatch.setattr(verbs, "opened", opened)
    found = verbs.fastest_budget(project(tmp_path, 'goal = "fastest"\nmax_metric_drop = 0.01'))
    assert asked == ["50%", "25%", "35.36%", "42.04%"] and found == "42.04%"


def test_a_goal_and_a_latency_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\[budget\] latency and goal exclude each other"):
        toml.read_project(project(tmp_path, 'latency = "50%"\ngoal = "fastest"'))
    with pytest.raises(UsageError, match=r"\[budget\] goal = .*must be.*\"fastest\"|goal.*fastest"):
        toml.read_project(project(tmp_path, 'goal = "quickest"'))


def test_another_command_than_run_needs_a_budget_and_takes_one(tmp_path: Path) -> None:
    file = project(tmp_path, 'goal = "fastest"')
    with pytest.raises(UsageError, match=r"\[budget\] goal is for edgeprune run.*give a --budget"):
        request(file)
    assert str(request(file, budget="40%").project.budget.latency) == "40%"
