"""What the key of a stage covers of a function, a class or a model: what changes it, and what does not."""

from __future__ import annotations

import logging
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from edgeprune.frontends import callables

BASE = """
import functools
import helper
LIMIT = 3
NAMES = {"a": [1, 2]}
UNREAD = 1

class Base:
    factor = 2

class Scorer(Base):
    def score(self, value):
        return value * self.factor

def inner(value, weight=0.5):
    return Scorer().score(value) + weight

def metric(outputs, targets):
    # a comment
    return inner(outputs) + LIMIT + len(NAMES) + helper.used()
"""
HELPER = "def used():\n    return 1\ndef unused():\n    return 1\n"


@pytest.fixture(autouse=True)
def _no_helper() -> Iterator[None]:
    """The module is gone after each test, since others import one of this name."""
    yield
    sys.modules.pop("helper", None)


def made(text: str = BASE, helper: str = HELPER) -> Callable[..., Any]:
    """The function `metric` of a module with this text, as a notebook defines it."""
    module, beside = ModuleType("__main__"), ModuleType("helper")
    exec(compile(helper, "helper.py", "exec"), beside.__dict__)
    sys.modules["helper"] = beside
    exec(compile(text, "<cell>", "exec"), module.__dict__)
    function: Callable[..., Any] = module.__dict__["metric"]
    return function


def digest(value: object) -> str:
    return callables.of_value(value, "Project(metric=...)")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("LIMIT = 3", "LIMIT = 4"),
        ("[1, 2]", "[1, 3]"),
        ("factor = 2", "factor = 3"),
        ("weight=0.5", "weight=0.25"),
        ("value * self", "value + self"),
        ("+ len(NAMES)", "- len(NAMES)"),
    ],
)
def test_a_function_counts_with_all_that_it_refers_to(old: str, new: str) -> None:
    assert digest(made()) != digest(made(BASE.replace(old, new)))


@pytest.mark.parametrize(("old", "new"), [("# a comment", "# another\n"), ("UNREAD = 1", "UNREAD = 2\n\n")])
def test_comments_lines_and_unread_variables_do_not_count(old: str, new: str) -> None:
    assert digest(made()) == digest(made(BASE.replace(old, new)))


def test_only_the_attributes_of_a_module_that_are_read_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "helper.py").write_text("")
    found = []
    for helper in (
        HELPER,
        HELPER.replace("def unused():\n    return 1", "def unused():\n    return 2"),
        HELPER.replace("1", "2"),
    ):
        function = made(helper=helper)
        sys.modules["helper"].__file__ = str(tmp_path / "helper.py")
        found.append(digest(function))
    del sys.modules["helper"]
    assert found[0] == found[1] != found[2]


def test_closures_partials_methods_and_callable_objects_count() -> None:
    def closed(value: object) -> Callable[[], object]:
        return lambda: value

    class Called:
        def __init__(self, value: int) -> None:
            self.value = value

        def __call__(self) -> int:
            return self.value

    makers: list[Callable[[int], object]] = [
        closed,
        lambda value: closed(torch.tensor(value)),
        lambda value: closed({value}),
        lambda value: partial(pow, value),
        Called,
        lambda value: Called(value).__call__,
        lambda value: lru_cache(closed(value)),
        lambda value: closed(nn.Linear(value, 1)),
        lambda value: SimpleNamespace(value=value),
    ]
    for make in makers:
        torch.manual_seed(0)
        one = digest(make(1))
        torch.manual_seed(0)
        assert one == digest(make(1))
        assert one != digest(make(2))


def test_a_digest_is_the_same_in_every_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sets have another order in each."""
    (tmp_path / "helper.py").write_text(HELPER)
    more = "def both():\n    return metric, SETS, 'x' in {'a', 'b', 'c'}\n"
    script = f"{BASE}\nSETS = {{'a', 'b', 'c'}}, frozenset('xyz')\n{more}"
    script += "from edgeprune.frontends import callables\nprint(callables.of_value(both, ''))\n"
    (tmp_path / "script.py").write_text(script)
    environment = {"PYTHONHASHSEED": "1", "PATH": "", "PYTHONPATH": f"{Path(callables.__file__).parents[2]}"}
    command = [sys.executable, "script.py"]
    other = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    monkeypatch.syspath_prepend(tmp_path)
    runpy.run_path(str(tmp_path / "script.py"), run_name="__main__")
    assert capsys.readouterr().out == other.stdout


class Net(nn.Module):
    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.linear, self.scale, self.sizes = nn.Linear(2, 2), scale, [1, 2]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.linear(x) * self.scale
        return out


def test_a_model_counts_by_its_attributes_hooks_and_layers_but_not_by_its_mode() -> None:
    def structure(model: nn.Module) -> str:
        return callables.of_structure(model, "Project(model=...)")

    base = structure(Net())
    assert base == structure(Net().train()) == structure(Net().eval())
    changed = [Net(2.0), Net(), Net(), Net()]
    changed[1].sizes.append(3)
    changed[2].register_forward_hook(lambda module, inputs, outputs: outputs + 1)
    changed[3].linear = nn.Linear(2, 2, bias=False)
    assert len({base, *map(structure, changed)}) == 5


def test_weights_and_buffers_count_by_their_content() -> None:
    model = nn.BatchNorm1d(2)
    before = callables.of_tensors(callables.state(model))
    model.running_mean[0] = 1.0  # type: ignore[index]
    assert callables.of_tensors(callables.state(model)) != before


def test_the_content_of_installed_objects_counts_only_by_constants() -> None:
    data = [torch.utils.data.DataLoader([1, 2], batch_size=size) for size in (1, 1, 2)]  # type: ignore[arg-type, var-annotated]
    one, same, other = (digest(lambda loader=loader: loader) for loader in data)
    assert one == same != other


def test_beyond_the_cap_a_warning_says_what_is_not_covered(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(callables, "LIMITS", SimpleNamespace(covered_objects=3))
    with caplog.at_level(logging.WARNING):
        digest([[1], [2], [3], [4], [5]])
    assert "Project(metric=...) refers to over 3 objects" in caplog.text and "fresh=True" in caplog.text
    assert len(caplog.records) == 1


def test_long_chains_of_objects_and_circles_are_followed() -> None:
    def chain(length: int) -> list[object]:
        found: list[object] = []
        for _ in range(length):
            found = [found]
        return found

    assert digest(chain(5_000)) != digest(chain(5_001))
    circle: list[object] = [1]
    circle.append(circle)
    assert digest(circle) == digest(circle)


def test_the_places_of_values_in_a_list_count() -> None:
    assert digest([1, [2], 3]) != digest([1, 3, [2]])


def test_packages_of_another_python_are_installed_code(tmp_path: Path) -> None:
    from edgeprune.frontends.functions import is_users

    for folder in ("lib/python3/dist-packages", "other/site-packages"):
        assert not is_users(str(tmp_path / folder / "torch" / "nn.py"), tmp_path)
    assert is_users(str(tmp_path / "net.py"), tmp_path)
