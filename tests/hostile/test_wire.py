"""The wire between host and agent: a message that does not fit its table is refused, and the error names the field."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune.devices import wire
from edgeprune.devices.agent import main
from edgeprune.devices.agent.link import Link
from edgeprune.devices.bench import Bench
from edgeprune.devices.transports.base import Refusal, ask
from edgeprune.devices.transports.fake import Fake
from edgeprune.devices.validate import WireError, read
from edgeprune.errors import DeviceError
from edgeprune.records import Target

MESSAGES: list[Any] = [part for row in wire.TABLE.values() for part in row] + [wire.Hello, wire.Welcome, wire.Failure]
SCALARS: dict[Any, Any] = {int: 5, float: 0.5, bool: True, str: "text"}
Leaf = tuple[Any, tuple[Any, ...], Any]  # a message, the path of a value in it, and the value's kind
TARGET = Target(Path("targets/pi.toml"), "pi", "local", "null")
IDENTITY = {
    **{"machine": "x86_64", "cpu": "c", "cores": 4, "system": "s", "runtime": "null", "runtime_version": "0"},
    **{"boot_id": "b", "serial": "s", "emulated": False, "simulated": False},
}


def hints(kind: Any) -> dict[str, Any]:
    found = get_type_hints(kind)
    return {entry.name: found[entry.name] for entry in fields(kind)}


def sample(kind: Any) -> Any:
    """A value of this kind, as JSON has it."""
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        return {name: sample(hint) for name, hint in hints(kind).items()}
    if origin is tuple:
        return [sample(arguments[0])]
    if origin is dict:
        return {"key": sample(arguments[1])}
    if origin is Union:
        return sample(arguments[0])
    if origin is Literal:
        return arguments[0]
    return {} if kind is Any else SCALARS[kind]


def leaves(kind: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every scalar in a message of this kind."""
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        for name, hint in hints(kind).items():
            yield from leaves(hint, (*path, name))
    elif origin is tuple:
        yield from leaves(arguments[0], (*path, 0))
    elif origin is dict and arguments[1] is not Any:
        yield from leaves(arguments[1], (*path, "key"))
    elif kind in SCALARS:
        yield path, kind


LEAVES: list[Leaf] = [(message, *leaf) for message in MESSAGES for leaf in leaves(message)]
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["four", "\x1b[2J", 2**64, -1]),
    lambda part: st.lists(part, max_size=2) | st.dictionaries(st.text(max_size=3), part, max_size=2),
    max_leaves=3,
)


def fits(kind: Any, value: Any) -> bool:
    """What the table promises of a scalar."""
    if kind is int:
        return type(value) is int and 0 <= value <= 2**63
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value) and abs(value) <= 2**63
    return type(value) is kind


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
def test_every_message_is_read_back_as_it_was_sent(kind: Any) -> None:
    content = sample(kind)
    assert json.loads(json.dumps(wire.document(read(kind, content)))) == content


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
def test_a_missing_or_unknown_field_is_refused(kind: Any) -> None:
    content = sample(kind)
    with pytest.raises(WireError, match="extra is no known field"):
        read(kind, {**content, "extra": 1})
    for entry in fields(kind):
        if entry.default is MISSING and entry.default_factory is MISSING:
            with pytest.raises(WireError, match=f"{entry.name} is missing"):
                read(kind, {name: value for name, value in content.items() if name != entry.name})


@settings(derandomize=True, deadline=None, max_examples=600)
@given(st.sampled_from(LEAVES), JSON)
def test_a_value_of_another_type_is_refused_by_its_field(leaf: Leaf, value: Any) -> None:
    message, path, kind = leaf
    content = copy.deepcopy(sample(message))
    place = content
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    if kind is not str and fits(kind, value):
        read(message, content)
    elif kind is not str or not isinstance(value, str):  # text has rules of its own
        with pytest.raises(WireError, match=re.escape(str(path[0]))) as caught:
            read(message, content)
        assert str(caught.value).isprintable() and len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("cores", "four"),
        ("cores", True),
        ("cores", 4.0),
        ("cores", -1),
        ("cores", None),
        ("cpu", "\x1b[31mred"),
        ("cpu", "x" * 300),
        ("cpu", 5),
        ("emulated", 0),
        ("emulated", "no"),
    ],
)
def test_an_identity_of_a_wrong_type_is_refused_in_one_line(field: str, value: Any, tmp_path: Path) -> None:
    """It would poison every profile of this device."""
    with pytest.raises(
        DeviceError, match=f"^pi: the device's reply to identify cannot be used: {field} must be"
    ) as caught:
        Bench(TARGET, Fake(lambda job: {**IDENTITY, field: value}), tmp_path)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 200


JOBS = [read(job, sample(job)) for job, _ in wire.TABLE.values()]


@pytest.mark.parametrize("job", JOBS, ids=lambda job: type(job).__name__)
@pytest.mark.parametrize("reply", [{"extra": 1}, {"error": "strange", "message": "m"}, {"error": "run"}, {"error": 5}])
def test_every_job_refuses_a_reply_that_does_not_fit(job: wire.Job[Any], reply: dict[str, Any]) -> None:
    with pytest.raises(DeviceError, match=r"^pi: the device's reply to \w+.* cannot be used: ") as caught:
        ask(Fake(lambda job: reply), "pi", job)
    assert not isinstance(caught.value, Refusal)


@pytest.mark.parametrize("job", JOBS, ids=lambda job: type(job).__name__)
def test_every_job_may_be_refused_by_the_device(job: wire.Job[Any]) -> None:
    with pytest.raises(Refusal) as caught:
        ask(Fake(lambda job: {"error": "disk-full", "message": "no\n\x1b[2Jspace" * 1000}), "pi", job)
    assert caught.value.kind == "disk-full" and str(caught.value).isprintable() and len(str(caught.value)) < 2200


def test_replies_out_of_order_are_refused() -> None:
    class Swapped(Fake):
        def call(self, jobs: Any, deadline_s: float) -> Iterator[Any]:
            return iter([{**IDENTITY, "id": 7}])

    with pytest.raises(DeviceError, match="out of order"):
        ask(Swapped(lambda job: {}), "pi", wire.Identify(1.0, "null"))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ({"id": 1, "mode": "fly"}, "known mode, and has 1 and 'fly'"),
        ({"id": 1, "mode": "identify", "runtime": "null"}, "deadline_s is missing"),
        ({"id": 1, "mode": "identify", "runtime": "null", "deadline_s": "soon"}, "deadline_s must be a finite number"),
        ({"id": 1, "mode": "examine", "deadline_s": 1.0, "shell": "rm"}, "shell is no known field"),
    ],
)
def test_the_agent_refuses_a_job_that_does_not_fit(content: dict[str, Any], why: str, tmp_path: Path) -> None:
    reply = main.answered(content, str(tmp_path), Link())
    assert reply["error"] == "malformed" and why in reply["message"]
