"""Records are read back as they were written, and people can read a profile."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune.errors import UsageError
from edgeprune.records import (
    Artifact,
    Check,
    Confirmed,
    Device,
    Experiment,
    Figures,
    Group,
    Groups,
    Interval,
    Layer,
    MeasuredPlan,
    Outcome,
    Plan,
    Precision,
    Profile,
    Role,
    Run,
    Samples,
    Scores,
    Slot,
    Span,
    Verdict,
    digest,
)
from edgeprune.storage import codec

names = st.text(min_size=1, max_size=8)
times = st.lists(st.integers(1, 2**40), min_size=1, max_size=5).map(tuple)
runs = st.builds(Run, times, st.integers(1, 2**40))
experiments = st.builds(
    Experiment,
    st.sampled_from(get_args(Role)),
    st.integers(0, 2),
    st.dictionaries(names, st.integers(1, 99), max_size=3),
    st.lists(runs, min_size=1, max_size=3).map(lambda r: Samples(tuple(r))),
    st.dictionaries(names, st.integers(0, 10**9), max_size=3),
    st.integers(0, 10**9),
)


def anchored(experiments: list[Experiment]) -> tuple[Experiment, ...]:
    """With an anchor for every batch."""
    return (*(replace(e, role="anchor") for e in experiments), *experiments)


devices = st.builds(Device, names, names, st.integers(1, 64), names, names, names, names)
profiles = st.builds(
    Profile,
    names,
    names,
    names,
    devices,
    st.integers(1, 8),
    st.sampled_from(get_args(Precision)),
    st.lists(experiments, max_size=3).map(anchored),
)
PLAN = Plan({"a": (0, 2)}, Interval(1.0, 2.0, 3.0), Interval(2.0, 3.0, 4.0), 5.0, 0.1, 0.1, 0.0, "digest")
LAYER = Layer("a", "conv", "a.weight", Span(3), Span(0, ((("a",), 2),)), 4, 9)
GROUPS = Groups("d", (Group("a", 1, (Slot("a.weight", 0, ((0, 1),)),), None),), (LAYER,), operators=1)
FIGURES = Figures(1.0, 1.1, 0.9, 10, 100, 1000, 3)


@settings(deadline=None, derandomize=True, max_examples=20)
@given(profiles)
def test_a_profile_is_read_back_as_it_was_written(profile: Profile) -> None:
    text = codec.dumps_kept(profile)
    assert codec.loads_kept(Profile, text, "file") == profile
    assert codec.dumps_kept(codec.loads_kept(Profile, text, "file")) == text


def test_the_times_of_a_process_are_on_one_line() -> None:
    experiment = Experiment("anchor", 0, {"a": 3}, Samples((Run(tuple(range(1, 201)), 5),)))
    text = codec.dumps_kept(Profile("t", "m", "n", Device(*"abc"[:2], 1, *"defg"), 1, "fp32", (experiment,)))
    assert any("1, 2, 3" in line and "199, 200" in line for line in text.splitlines())


@pytest.mark.parametrize(
    "record",
    [
        PLAN,
        Confirmed(PLAN, (MeasuredPlan(0, {"a": 2}, 1.0, Interval(1.0, 2.0, 2.5), 3.0),)),
        Scores("taylor", {"a": (0.0, 1.5)}),
        GROUPS,
        Artifact((Path("model.xml"), Path("model.bin")), "ab", "openvino", "fp32", "src", 3),
        Verdict("ab", 1.0, FIGURES, FIGURES, (Check("size", Outcome.PASS, 1.0, 2.0, "note"),)),
    ],
    ids=lambda record: type(record).__name__,
)
def test_every_record_is_read_back_as_it_was_written(record: object) -> None:
    again = codec.loads(type(record), codec.dumps(record), "file")
    assert again == record and digest(again) == digest(record)


def test_nan_is_never_written() -> None:
    with pytest.raises(ValueError):
        codec.dumps(Check("x", Outcome.PASS, float("nan"), 1.0))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda d: d.pop("gap"), "gap"),
        (lambda d: d.update(extra=1), "extra"),
        (lambda d: d.update(gap="0"), "gap"),
        (lambda d: d["predicted"].update(low=9.0), "interval"),
        (lambda d: d.update(loss=None), "loss"),
    ],
)
def test_the_error_of_a_broken_file_names_the_file_and_the_key(change: object, named: str) -> None:
    document = json.loads(codec.dumps(PLAN))
    change(document)  # type: ignore[operator]
    with pytest.raises(UsageError, match=r"some/plan\.json.*" + named):
        codec.loads(Plan, json.dumps(document), "some/plan.json")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 99}', "null", '{"schema": 1}'])
def test_the_error_of_a_broken_profile_names_the_file(text: str) -> None:
    with pytest.raises(UsageError, match=r"p\.json"):
        codec.loads_kept(Profile, text, "p.json")


@pytest.mark.parametrize(("key", "value"), [("role", "warmup"), ("precision", "fp8")])
def test_a_profile_with_an_unknown_role_or_precision_is_refused(key: str, value: str) -> None:
    experiment = Experiment("anchor", 0, {"a": 3}, Samples((Run((1,), 5),)))
    document = json.loads(
        codec.dumps_kept(Profile("t", "m", "n", Device(*"abc"[:2], 1, *"defg"), 1, "fp32", (experiment,)))
    )
    (document if key in document else document["experiments"][0])[key] = value
    with pytest.raises(UsageError, match=rf"p\.json: .*{key}"):
        codec.loads_kept(Profile, json.dumps(document), "p.json")
