"""One network on several targets: the least loss within the latency of each, confirmed on each, and one training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from small import SMALLEST
from test_confirming import Simulated
from test_pipeline import Watch

from edgeprune.errors import InconclusiveError, InfeasibleError, UsageError
from edgeprune.latency.fit import draft
from edgeprune.pipeline.request import Request, requests
from edgeprune.pipeline.run import open_common
from edgeprune.pipeline.stage import Input, Output, Rules, Stage
from edgeprune.records import Budget, Interval, MeasuredPlan, Plan, Profile, Shift
from edgeprune.stages import allocation, bounds, confirm
from edgeprune.stages.inputs import INPUTS


class Two:
    """Two devices. The second takes `bias` times what its profile promised, and has a budget of its own."""

    def __init__(self, share: float, biases: dict[str, float]) -> None:
        self.budget = Budget(fraction=share)
        self.devices = {name: Simulated(self.budget, bias, noise=0.002) for name, bias in biases.items()}
        first = next(iter(self.devices.values()))
        self.loop = confirm.Loop(first.groups, first.scores, self.budget)
        self.profiles = {name: device.profile for name, device in self.devices.items()}

    def measure(self, number: int, plans: Sequence[Plan]) -> tuple[dict[str, Profile], list[dict[str, MeasuredPlan]]]:
        found: list[dict[str, MeasuredPlan]] = [{} for _ in plans]
        for name, device in self.devices.items():
            for each, plan in zip(found, plans, strict=True):
                own, ns = plan.latency_on(name), device.true_ns({**device.groups.full(), **plan.widths})
                each[name] = MeasuredPlan(number, plan.widths, own.value, Interval(ns, ns, ns), own.limit, name)
        return self.profiles, found


def test_the_budget_is_met_on_each_target_and_used_on_the_binding_one() -> None:
    two = Two(0.6, {"fast": 0.95, "slow": 1.06})
    found = two.loop.confirm(two.profiles, two.measure)
    shares = {one.target: one.share for one in found.measurements}
    assert set(shares) == {"fast", "slow"} and max(shares.values()) <= confirm.MOST
    own = found.measurement
    assert own is not None and own.target == "slow"
    for wider in allocation.wider(two.loop.groups, own.widths) if own.share < confirm.LEAST else ():
        over = (
            two.devices[one.target].true_ns(wider) > 0.98 * confirm.MOST * one.budget_ns for one in found.measurements
        )
        assert any(over)


def test_a_plan_has_a_row_for_each_target_and_no_plan_for_one_of_them_has_a_larger_loss() -> None:
    two = Two(0.6, {"a": 1.0, "b": 1.0})
    slower = replace(two.profiles["b"], experiments=_steeper(two.profiles["b"]))
    (joint, *_) = two.loop.plans({"a": two.profiles["a"], "b": slower})
    assert [one.name for one in joint.limits] == ["latency on a", "latency on b"]
    for one in joint.limits:
        model = draft(two.loop.groups, {"a": two.profiles["a"], "b": slower}[one.target])
        assert one.value == pytest.approx(model.ns({**two.loop.groups.full(), **joint.widths}), rel=0.01)
        assert one.value <= one.limit
    alone = [two.loop.plans({name: profile})[0] for name, profile in (("a", two.profiles["a"]), ("b", slower))]
    assert all(one.loss <= joint.loss * (1 + 2 * allocation.GAP) for one in alone)
    assert joint.binding.share > 0.9


def _steeper(profile: Profile) -> tuple:  # type: ignore[type-arg]
    """The same experiments on a device whose first layer takes four times as long."""
    first = next(iter(profile.experiments[0].layer_ns))

    def steeper(experiment):  # type: ignore[no-untyped-def]
        more = 3 * experiment.layer_ns.get(first, 0)
        runs = tuple(replace(run, times_ns=tuple(t + more for t in run.times_ns)) for run in experiment.samples.runs)
        layers = {n: ns + more * (n == first) for n, ns in experiment.layer_ns.items()}
        return replace(experiment, samples=replace(experiment.samples, runs=runs), layer_ns=layers)

    return tuple(map(steeper, profile.experiments))


def test_a_target_whose_budget_no_plan_meets_is_named() -> None:
    two = Two(0.6, {"fast": 0.9, "slow": 1.0})
    true = two.devices["slow"].true_ns

    two.devices["slow"].true_ns = lambda widths: 1000 * true(widths)  # type: ignore[method-assign]
    with pytest.raises((InconclusiveError, InfeasibleError), match=r"no plan (was confirmed|meets .* on slow)"):
        two.loop.confirm(two.profiles, two.measure)


# ------------------------------------------------------------------------------------------------- the common run


def folder(tmp_path: Path, toml: str = SMALLEST) -> Path:
    place = tmp_path / "p"
    (place / "targets").mkdir(parents=True)
    (place / "edgeprune.toml").write_text(toml)
    for name in ("one", "two"):
        (place / "targets" / f"{name}.toml").write_text(
            '[connect]\ntransport = "local"\n[runtime]\nname = "onnxruntime"\nthreads = 1\nprecision = "fp32"\n'
        )
    return place


@dataclass(frozen=True)
class OnReads:
    finetune_seed: int
    names: str


@dataclass(frozen=True)
class TrainReads:
    on: Shift


@dataclass(frozen=True)
class OwnReads:
    train: Shift
    target: str


def rules(trained: list[str]) -> Rules:
    """A joint stage that reads all targets, one that trains, and one of each target."""

    def train(reads: TrainReads, output: Output) -> Shift:
        trained.append(reads.on.operator)
        return Shift("trained", 1, 2)

    stages = (
        Stage("on", OnReads, lambda reads, output: Shift(reads.names, 1, 2), Shift, lambda *_: "on", joint=True),
        Stage("train", TrainReads, train, Shift, lambda *_: "train", joint=True),
        Stage("own", OwnReads, lambda reads, output: Shift(reads.target, 1, 2), Shift, lambda *_: "own"),
    )
    inputs = {
        "finetune_seed": INPUTS["finetune_seed"],
        "names": Input(
            lambda run: "+".join(run.members),
            lambda run: bounds.of_targets(run, lambda one: {"target": one.request.target.name}),
            of_target=True,
        ),
        "target": Input(
            lambda run: run.request.target.name, lambda run: {"target": run.request.target.name}, of_target=True
        ),
    }
    return Rules({stage.name: stage for stage in stages}, inputs)


def test_targets_share_the_training_and_have_an_artifact_each(tmp_path: Path) -> None:
    asked, trained = requests(folder(tmp_path), ["two", "one"]), []  # type: ignore[var-annotated]
    for _ in range(2):  # the second run reuses everything, and so does another order of the targets
        watch = Watch()
        with open_common([replace(one, watch=watch) for one in asked], rules(trained)) as run:
            assert {name: member.value("own").operator for name, member in run.members.items()} == {
                "one": "one",
                "two": "two",
            }
            keys = {member.key(run.members["one"]._stages["train"]) for member in run.members.values()}
            assert len(keys) == 1
        asked = asked[::-1]
    assert trained == ["one+two"]
    assert watch.notes == [("own", "reused"), ("own", "reused")]
    places = sorted(place.parent.name for place in (tmp_path / "p" / "runs").glob("*/train-*"))
    assert places == ["one+two"]


def test_a_single_target_has_labels_without_a_name(tmp_path: Path) -> None:
    """So its keys are those that it had before there were several."""
    (one,) = requests(folder(tmp_path), ["one"])

    class Alone:
        request: Request = one
        members: dict[str, object] = {}  # noqa: RUF012

    assert bounds.of_targets(Alone(), lambda run: {"device": 1}) == {"device": 1}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("targets", "toml", "words"),
    [
        (["one", "one"], SMALLEST, "--target names one twice"),
        ([], SMALLEST, "no target is named"),
        (["one", "two"], SMALLEST.replace('latency = "50%"', 'size = "4 MB"'), r"\[budget\] latency is missing"),
        (["one", "nowhere"], SMALLEST, "nowhere"),
    ],
)
def test_wrong_targets_are_one_line(targets: list[str], toml: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words) as error:
        requests(folder(tmp_path, toml), targets)
    assert "\n" not in str(error.value)
