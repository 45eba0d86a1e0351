"""Pictures of a run: they show the figures of their records, and no text of a user or a device can harm a page."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from test_latency import profile

from edgeprune.latency.fit import draft
from edgeprune.network.outputs import Structure
from edgeprune.records import (
    Block,
    Confirmed,
    Discarded,
    Epoch,
    Evidence,
    Group,
    Groups,
    History,
    Interval,
    Layer,
    MeasuredPlan,
    Outcome,
    Plan,
    Record,
    Run,
    Samples,
    Slot,
    Span,
    Tuned,
)
from edgeprune.reports import pictures
from edgeprune.reports.pictures import Marked, Picture
from edgeprune.stages.verdicts import evidence
from edgeprune.stages.verdicts.verdict import Timed

HOSTILE = '$x^2$ \\frac{ </text></svg><script>alert(1)</script> & "><img onerror=x> \x00\x1b[31m ﷽ 漢字 😀 \ud800'
REASON = "the operator 'aten.foo' has no rule"


def groups(count: int, name: str = "layer") -> Groups:
    """A chain of layers. The last one is locked."""
    own, layers = [], []
    for i in range(count):
        last = i == count - 1
        slots = (Slot(f"{i}.weight", 0, tuple((j,) for j in range(8 + i))),)
        own.append(Group(f"{name}{i}", 8 + i, slots, locked=REASON if last else None))
        inputs = Span(0, (((own[i - 1].name,), 1),)) if i else Span(3)
        outputs = Span(8 + i) if last else Span(0, (((own[i].name,), 1),))
        layers.append(Layer(f"{name}{i}", "conv", f"{i}.weight", inputs, outputs, 100, 9, within=None))
    return Groups("n", tuple(own), tuple(layers), operators=count)


def samples(median_ns: int, processes: int, times: int = 50) -> Samples:
    return Samples(tuple(Run((median_ns + i,) * times, 10**6) for i in range(processes)))


def proof(processes: int = 8, lost: tuple[Discarded, ...] = ()) -> Evidence:
    differences = evidence.differences(
        [np.ones((4, 3))], [np.ones((4, 3)) + 1e-6], "fp32", Structure(("",), 0, None, (0,))
    )
    return evidence.evidence(Timed(samples(36_000, processes), samples(82_000, processes)), lost, differences)


def confirmed() -> Confirmed:
    plan = Plan({"a": (0, 1)}, Interval(90.0, 95.0, 99.0), Interval(199.0, 200.0, 201.0), 100.0, 0.1, 0.1, 0.0, "p")
    tried = MeasuredPlan(0, {"a": 3}, 90e3, Interval(109e3, 110e3, 111e3), 100e3)
    return Confirmed(plan, (tried, MeasuredPlan(1, {"a": 2}, 95e3, Interval(96e3, 97e3, 98e3), 100e3)))


def history(note: str = "") -> History:
    outcomes = (Outcome.PASS, Outcome.FAIL, Outcome.INCONCLUSIVE)
    some = Interval(1.0, 2.0, 3.0)
    records = tuple(Record(86_400 * i, note, "a", "d", outcomes[i % 3], some, some, 1, 1, 0.9, note) for i in range(9))
    return History("p", "t", "p50_ns", records, tuple([36e3] * 5 + [40e3] * 4), (5,))


@dataclass(frozen=True)
class At:
    latency_ns: float
    loss: float


POINTS = [At(50e3, 0.1), At(20e3, 0.5), At(30e3, 0.2)]
TUNED = Tuned(Path("t"), (Epoch(0, None, 0.8), Epoch(1, 1.5, 0.7, 0.1), Epoch(2, 0.5, 0.9, 0.01)))
LOST = (Discarded("other processes used the processor", "load 2.5", 60_000),) * 2


def _network(text: str) -> Picture:
    found = groups(4, text)
    found = replace(found, groups=tuple(replace(g, locked=g.locked and text) for g in found.groups))
    return pictures.network(found, None, {f"{text}0": 2})


def _comparison(text: str) -> Picture:
    marked = Marked(text, Interval(1e6, 2e6, 3e6), 0.9)
    return pictures.comparison({text: [marked]}, [marked], text)


KINDS: dict[str, Callable[[str], Picture]] = {  # with this text wherever a user or a device could have it
    "network": _network,
    "confirmed": lambda text: pictures.confirmed(confirmed()),
    "front": lambda text: pictures.front(POINTS, 40e3, POINTS[2], POINTS[0]),
    "comparison": _comparison,
    "processes": lambda text: pictures.processes(proof(lost=(Discarded(text, text, 60_000),)), 41e3),
    "drift": lambda text: pictures.drift(None, proof()),
    "training": lambda text: pictures.training(TUNED, text),
    "differences": lambda text: pictures.differences(replace(proof().differences[0], output=text)),
    "history": lambda text: pictures.history(history(text)),
}


@cache
def drawn(kind: str, text: str = "x") -> Picture:
    return KINDS[kind](text)


def texts(picture: Picture) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(picture.svg).iter("text")]


@pytest.mark.parametrize("name", KINDS)
def test_hostile_text_is_shown_and_does_nothing(name: str) -> None:
    picture = drawn(name, HOSTILE)
    for document in (picture.svg, picture.file):
        root = ElementTree.fromstring(document)  # it is well-formed
        allowed = {"svg", "style", "title", "path", "text", "use", "defs", "clipPath", "rect", "g"}
        assert {element.tag.rpartition("}")[2] for element in root.iter()} <= allowed
        attributes = [name for element in root.iter() for name in element.attrib]
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
        assert all(c.isprintable() or c == "\n" for c in document)
        document.encode()
    links = re.findall(r'href="([^"]*)"', picture.svg) + re.findall(r"url\(([^)]*)\)", picture.svg)
    assert all(link.startswith("#") for link in links)


def test_a_dollar_sign_in_a_name_is_a_dollar_sign() -> None:
    found = pictures.comparison({"$a$ $\\alpha": [Marked("b", Interval(1.0, 2.0, 3.0), 0.9)]}, [], "$m$")
    assert "$a$ $\\alpha" in texts(found) and "$m$" in texts(found)


@pytest.mark.parametrize("name", KINDS)
def test_a_picture_has_an_alternative_text_a_table_and_the_colours_of_the_page(name: str) -> None:
    picture = drawn(name)
    root = ElementTree.fromstring(picture.svg)
    assert root.attrib["role"] == "img" and root.attrib["aria-label"] == picture.alt == root.findtext("title")
    assert len(picture.alt) > 20 and picture.rows and len({tuple(row) for row in picture.rows}) == 1
    colours = {e.attrib[k] for e in root.iter() for k in ("fill", "stroke") if k in e.attrib}
    assert colours <= {"none", *(f"var({v})" for v in re.findall(r"--picture-\w+", pictures.STYLE))}
    assert picture.file.startswith('<svg xmlns="http://www.w3.org/2000/svg"') and pictures.STYLE in picture.file
    sizes = [float(e.attrib["font-size"]) for e in root.iter("text")]
    assert min(sizes) >= 8.5 and root.attrib["viewBox"].split()[2] == "360"  # readable at 390 pixels


@pytest.mark.parametrize("name", KINDS)
def test_the_same_records_give_the_same_picture(name: str) -> None:
    assert KINDS[name]("x") == drawn(name)


def test_ids_of_two_pictures_in_a_page_differ() -> None:
    found = [drawn(kind) for kind in KINDS]
    ids = [id_ for picture in found for id_ in re.findall(r' id="([^"]+)"', picture.svg)]
    assert len(set(ids)) == len(ids) > 0


@pytest.mark.parametrize("count", [1, 5, 150])
def test_a_network_of_any_size_is_shown_by_layer(count: int) -> None:
    found = groups(count)
    picture = pictures.network(found, None, {"layer0": 3} if count > 1 else {})
    assert [row["layer"] for row in picture.rows] == [f"layer{i}" for i in range(count)]
    last = picture.rows[-1]
    assert last["note"] == f"locked: {REASON}" and last["channels before"] == last["channels after"]
    assert f"a: {REASON}" in texts(picture)
    if count > 1:
        assert (picture.rows[0]["channels before"], picture.rows[0]["channels after"]) == (8, 3)
        assert any("8 → 3" in text for text in texts(picture)) or count == 150
    height = float(ElementTree.fromstring(picture.svg).attrib["viewBox"].split()[3])
    assert height < 900 and len(picture.svg) < 150_000
    assert sum(float(str(row["MACs before, %"])) for row in picture.rows) == pytest.approx(100, abs=1)


def test_a_removed_block_is_named() -> None:
    found = groups(4)
    layers = [replace(layer, within="layer1") if layer.name == "layer1" else layer for layer in found.layers]
    found = replace(found, layers=tuple(layers), blocks=(Block("block", ("layer1",), ()),))
    picture = pictures.network(found, None, {"layer1": 0})
    assert (
        picture.rows[1]["note"] == "removed"
        and "9 removed" in texts(picture)
        and "Removed blocks: block." in picture.alt
    )


def test_confirmed_plans_have_their_prediction_and_the_chosen_one_is_marked() -> None:
    picture = pictures.confirmed(confirmed())
    assert [row["note"] for row in picture.rows] == ["", "the plan"] and picture.rows[1]["of the budget, %"] == 97.0
    assert "predicted within 2.1%" in picture.alt and {"round 1", "round 2"} <= set(texts(picture))


def test_a_front_is_sorted_and_its_plan_and_knee_are_marked() -> None:
    picture = pictures.front(POINTS, 40e3, POINTS[2], POINTS[0])
    assert [row["latency, ms"] for row in picture.rows] == [0.02, 0.03, 0.05]
    assert [row["note"] for row in picture.rows] == ["", "the plan", "knee"]
    assert {"budget", "the plan", "knee"} <= set(texts(picture))


def test_times_of_many_processes_are_thinned_and_discarded_ones_have_their_reason() -> None:
    picture = pictures.processes(proof(80, LOST), 41e3)
    assert len(picture.svg) < 90_000 and len(picture.rows) == 162
    assert picture.rows[0]["median, µs"] == 36.0 and picture.rows[80]["median, µs"] == 82.0
    assert "2 discarded: other processes used the processor" in texts(picture)
    assert picture.rows[-1]["note"] == "discarded: other processes used the processor (load 2.5)"


def test_drift_is_relative_to_the_median() -> None:
    picture = pictures.drift(None, proof(3))
    assert [row["drift, %"] for row in picture.rows] == [0.0, 0.0, 0.0] and picture.rows[2]["process"] == 3


def test_training_shows_the_epoch_that_was_kept() -> None:
    picture = pictures.training(TUNED, "accuracy")
    assert [row["note"] for row in picture.rows] == ["", "", "kept"] and picture.rows[0]["loss"] == ""
    assert "0.9 in epoch 2" in picture.alt and "validation: accuracy" in texts(picture)


def test_differences_name_the_worst_sample_and_mark_values_over_the_limit() -> None:
    expected = np.ones((4, 3))
    got = expected.copy()
    got[2, 1] += 0.5
    (found,) = evidence.differences([expected], [got], "fp32", Structure(("",), 0, None, (0,)))
    picture = pictures.differences(found)
    assert (
        "in sample 2" in picture.alt and picture.rows[0]["values"] == 11 and picture.rows[1]["note"] == "over the limit"
    )
    (same,) = evidence.differences([expected], [expected], "fp32", Structure(("",), 0, None, (0,)))
    assert texts(pictures.differences(same)) == ["All 12 values of the output are the same as torch's."]


def test_history_shows_changes_of_level() -> None:
    picture = pictures.history(history())
    assert picture.alt == "p50, µs over 9 checks from 1970-01-01 to 1970-01-09, with 1 change of level."
    assert [i for i, row in enumerate(picture.rows) if row["note"] == "the level changes"] == [5]
    assert {"pass", "fail", "inconclusive", "level", "change"} <= set(texts(picture))


def test_a_picture_is_saved_as_a_file(tmp_path: Path) -> None:
    picture = pictures.training(TUNED)
    assert picture.save(tmp_path / "p.svg").read_text() == picture.file
    assert picture.svg in picture._repr_html_()


def test_the_users_style_of_matplotlib_changes_nothing() -> None:
    import matplotlib

    before = pictures.training(TUNED)
    with matplotlib.rc_context({"text.usetex": True, "font.size": 40, "svg.fonttype": "path", "axes.facecolor": "red"}):
        assert pictures.training(TUNED) == before


def test_a_front_over_orders_of_magnitude_shows_no_loss_below_the_rest() -> None:
    picture = pictures.front([At(1e4, 10.0), At(2e4, 1e-3), At(3e4, 0.0)])
    assert {"10", "1", "0.1", "0.001", "0"} <= set(texts(picture))
    assert [row["expected loss"] for row in picture.rows] == [10.0, 1e-3, 0.0]


def test_plan_and_knee_may_be_one_point() -> None:
    assert pictures.front(POINTS, None, POINTS[2], POINTS[2]).rows[1]["note"] == "the plan, knee"


def test_the_layers_with_the_largest_share_are_shown_with_their_measured_points() -> None:
    found = groups(9)
    measured = profile(found, 20, 1, noise=0.0)
    picture = pictures.latency_by_width(found, measured, draft(found, measured), {"layer1": 4})
    shares = {layer.name: layer.macs(found.full()) for layer in found.layers}
    assert len(picture.rows) == 6 and {str(row["layer"]) for row in picture.rows} <= set(shares) - {"layer0"}
    assert all(int(str(row["measured points"])) >= 20 for row in picture.rows)
    changed = {str(row["layer"]) for row in picture.rows if row["channels"] != row["planned"]}
    assert changed == {"layer1", "layer2"} & {str(row["layer"]) for row in picture.rows}
    assert {"measured", "fitted", "the plan"} <= set(texts(picture))


def test_a_few_very_slow_times_do_not_hide_the_others() -> None:
    slow = Samples(tuple(Run((36_000,) * 40 + (20_000_000,) * 5, 1) for _ in range(8)))
    picture = pictures.processes(evidence.evidence(Timed(slow, samples(82_000, 8)), (), ()))
    assert "40 slow times are to the right of the picture" in texts(picture)
    ticks = [float(text) for text in texts(picture) if text.isdigit()]
    assert max(ticks) < 400
