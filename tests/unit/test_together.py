"""One network on several targets: the least loss within the latency of each, confirmed on each, and one training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
from small import SMALLEST
from test_confirming import Simulated, surveyed
from test_pipeline import Watch

from edgeprune.cli import answers
from edgeprune.devices.fleet import Pace
from edgeprune.errors import InconclusiveError, InfeasibleError, UsageError, VerdictError
from edgeprune.latency.fit import draft
from edgeprune.pipeline.request import Request, requests
from edgeprune.pipeline.run import Run, open_common, open_run
from edgeprune.pipeline.stage import Input, Output, Rules, Stage
from edgeprune.records import (
    Budget,
    Check,
    Fleet,
    HostState,
    Interval,
    Limit,
    MeasuredPlan,
    Outcome,
    Plan,
    Profile,
    Report,
    Reports,
    Shift,
    Target,
    Widths,
)
from edgeprune.reports import ci
from edgeprune.stages import bounds, check, confirm, deploy, measuring
from edgeprune.stages.inputs import INPUTS
from edgeprune.stages.planning import allocation
from edgeprune.stages.planning.figures import Counted
from edgeprune.stages.releases import oci, rollout, signing
from edgeprune.stages.verdicts import ondevice


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
    assert set(shares) == {"fast", "slow"} and max(shares.values()) <= measuring.MOST
    own = found.measurement
    assert own is not None and own.target == "slow"
    for wider in allocation.wider(two.loop.groups, own.widths) if own.share < measuring.LEAST else ():
        over = (
            two.devices[one.target].true_ns(wider) > 0.98 * measuring.MOST * one.budget_ns for one in found.measurements
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


def test_a_limit_that_devices_measure_is_a_row_for_each_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups, scores = surveyed(Simulated.net)
    macs, released = Counted("macs", (groups.layers,)), []
    overhead = {"one": 0.5, "two": 2.0}  # of the original network's work, in each sample

    def member(name: str) -> SimpleNamespace:
        variants = SimpleNamespace(file=lambda widths, reference: (name, widths))
        values = {"variants": variants, "device": name}
        return SimpleNamespace(value=values.__getitem__, release_device=lambda: released.append(name))

    def measured(limit: Limit, subject: ondevice.Subject, file: tuple[str, Widths], processes: int) -> list[float]:
        name, widths = file
        assert subject.device == name, "a target's file is measured on its own device"
        return [macs.of(widths) / macs.of(groups.full()) + overhead[name]] * processes

    monkeypatch.setattr(ondevice, "values", measured)
    shared = {
        "network": SimpleNamespace(module=None, inputs=(), files=lambda place: ()),
        "valid": SimpleNamespace(size=lambda inputs: 1),
    }
    run = SimpleNamespace(
        request=SimpleNamespace(
            project=SimpleNamespace(budget=SimpleNamespace(limits=(Limit.parse("throughput", "120%"),)))
        ),
        record=lambda stage: groups,
        value=shared.__getitem__,
        members={"one": member("one"), "two": member("two")},
        scratch=tmp_path,
    )
    limits = bounds.of_run(run)  # type: ignore[arg-type]
    (plan,) = allocation.planned(groups, scores, [limits], "p")
    assert [one.name for one in plan.limits] == ["throughput on one", "throughput on two"]
    assert all(one.value <= one.limit for one in plan.limits)
    assert plan.binding.target == "two", "more of its time is not in the network's work"
    assert set(released) == {"one", "two"}, "several targets may be one device"


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


# --------------------------------------------------------------------------------- checks and deployments of all targets


def own(run: Run) -> Stage[OwnReads, Shift]:
    found: Stage[OwnReads, Shift] = run._stages["own"]
    return found


def test_an_artifact_of_one_target_alone_is_not_mistaken_for_that_of_a_common_run(tmp_path: Path) -> None:
    place, trained = folder(tmp_path), []  # type: ignore[var-annotated]
    with open_common(requests(place, ["one", "two"]), rules(trained)) as run:
        together = {name: member.last(own(member))[1] for name, member in run.members.items()}
    with open_run(requests(place, ["one"])[0], rules(trained)) as alone:
        found = alone.last(own(alone))[1]
    assert trained == ["one+two", ""] and found != together["one"]
    with open_common(requests(place, ["one", "two"]), rules(trained)) as run:
        assert {name: member.last(own(member))[1] for name, member in run.members.items()} == together
    assert len(trained) == 2


def report(target: str, outcome: Outcome) -> Report:
    return Report("p", target, "a" * 64, (Check("latency_p50_ms", outcome, 1.0, 2.0),), "")


@pytest.mark.parametrize("worst", [Outcome.PASS, Outcome.FAIL, Outcome.INCONCLUSIVE])
def test_a_check_of_several_targets_is_as_bad_as_the_worst_of_them(
    worst: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = {"one": worst, "two": Outcome.PASS}

    def checked(run: Run, options: check.Options) -> Report:
        name = run.request.target.name
        return report(name, outcomes[name])

    monkeypatch.setattr(check, "check", checked)
    with open_common(requests(folder(tmp_path), ["two", "one"]), rules([])) as run:
        found = check.checked(run, check.Options())
        with pytest.raises(UsageError, match="--baseline is the file of one target"):
            check.checked(run, check.Options(baseline=Path("b.json")))
    assert isinstance(found, Reports) and found.outcome is worst
    document = json.loads(answers._document(found))
    assert document["status"] == worst
    assert [(one["target"], one["status"]) for one in document["results"]] == [("one", worst), ("two", "pass")]
    suites = ElementTree.fromstring(ci.junit(found.reports).partition("\n")[2])
    assert [suite.get("name") for suite in suites] == ["edgeprune one", "edgeprune two"]


class Fleets:
    """Targets with hosts of their own. `broken` hosts fail, and `refused` targets have no passed verdict."""

    def __init__(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.broken: set[str] = set()
        self.refused: set[str] = set()
        self.done: list[tuple[str, str]] = []  # (host, bundle)
        self.allowed: list[int | None] = []
        self.interrupted = False
        for name in ("one", "two"):
            file = place / "targets" / f"{name}.toml"
            hosts = [f"{name}-{i}" for i in range(2)]
            file.write_text(
                file.read_text().replace('transport = "local"', f'transport = "ssh"\nhost = "{name}-0"')
                + f"[deploy]\nhosts = {json.dumps(hosts)}\n"
            )
        monkeypatch.setattr(signing, "require_key", lambda target: Path("key"))
        monkeypatch.setattr(deploy, "bundled", self._bundled)
        monkeypatch.setattr(rollout, "deploy", self._deploy)

    def _bundled(self, run: Run, wait_s: float, sequence: int | None) -> str:
        name = run.request.target.name
        if name in self.refused:
            raise VerdictError(f"{name}: nothing was deployed")
        return f"bundle of {name}"

    def _deploy(self, target: Target, bundle: str, report: object, plan: rollout.Plan) -> Fleet:
        self.allowed.append(plan.pace.max_failures)
        hosts = []
        for name, _ in target.each_host:
            self.done.append((name, bundle))
            hosts.append(
                HostState(name, "failed", (), "it broke", 5) if name in self.broken else HostState(name, "done")
            )
        return Fleet(tuple(hosts), interrupted=self.interrupted)


@pytest.fixture
def fleets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fleets:
    return Fleets(folder(tmp_path), monkeypatch)


def deployed(tmp_path: Path, **options: int) -> Fleet:
    plan = rollout.Plan(Pace(max_failures=options.pop("max_failures", 0)), **options)
    with open_common(requests(tmp_path / "p", ["two", "one"]), rules([])) as run:
        return deploy.deployed(run, plan)


def test_each_target_gets_its_own_artifact_on_its_hosts(fleets: Fleets, tmp_path: Path) -> None:
    found = deployed(tmp_path)
    assert fleets.done == [(f"{name}-{i}", f"bundle of {name}") for name in ("one", "two") for i in range(2)]
    assert [host.host for host in found.hosts] == ["one: one-0", "one: one-1", "two: two-0", "two: two-1"]
    assert found.exit_code == 0 and not found.stopped


def test_nothing_is_deployed_unless_all_targets_passed(fleets: Fleets, tmp_path: Path) -> None:
    fleets.refused.add("two")
    with pytest.raises(VerdictError, match="two: nothing was deployed"):
        deployed(tmp_path)
    assert not fleets.done


@pytest.mark.parametrize(
    ("options", "begun", "allowed"),
    [({}, 2, [0]), ({"max_failures": 2}, 4, [2, 1]), ({"max_failures": 2, "canary": 1}, 2, [2])],
)
def test_no_other_target_begins_after_too_many_failures_or_a_failed_canary(
    options: dict[str, int], begun: int, allowed: list[int], fleets: Fleets, tmp_path: Path
) -> None:
    fleets.broken.add("one-0")
    found = deployed(tmp_path, **options)
    assert (len(fleets.done), fleets.allowed, found.exit_code) == (begun, allowed, 5)
    steps = {host.host: host.step for host in found.hosts}
    assert steps["two: two-0"] == ("done" if begun == 4 else "not begun")
    assert ("no other target was begun" in found.stopped) == (begun == 2)


def test_no_other_target_begins_after_ctrl_c_and_all_are_in_the_table(fleets: Fleets, tmp_path: Path) -> None:
    fleets.interrupted = True
    found = deployed(tmp_path, max_failures=9)
    assert [host.step for host in found.hosts] == ["done", "done", "not begun", "not begun"]
    assert (found.exit_code, found.stopped) == (130, "")


def test_two_targets_cannot_be_deployed_to_the_same_host(fleets: Fleets, tmp_path: Path) -> None:
    file = tmp_path / "p" / "targets" / "two.toml"
    file.write_text(file.read_text().replace("two-1", "one-1"))
    with pytest.raises(UsageError, match="one and two have the host one-1"):
        deployed(tmp_path)
    assert not fleets.done


@pytest.mark.parametrize(
    ("output", "named"),
    [
        ("out", "out-pi"),
        ("a.b/v-7.tar", "a.b/v-7-pi.tar"),
        ("oci://r.example/v:7", "oci://r.example/v:7-pi"),
        ("oci://r.example/v", "oci://r.example/v:pi"),
    ],
)
def test_the_bundle_of_one_of_several_targets_is_named_after_it(output: str, named: str) -> None:
    assert deploy._named(output, "pi") == named
    assert deploy._named(output, "") == output


# --------------------------------------------------------------------------------------------- places in registries


@pytest.mark.parametrize(
    "text",
    ["oci://vision:7", "oci://r.example/Vision", "oci://r.example/v:", "oci://r.example/v@sha256:a", "oci://a@b.c/v", "oci://r.example/v:-"],
)  # fmt: skip
def test_a_place_in_a_registry_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="must be oci://REGISTRY/NAME:TAG"):
        oci.Reference.parse(text)


@pytest.mark.parametrize(
    ("registry", "plain"),
    [("localhost:5000", True), ("127.0.0.1:5000", True), ("localhost.example.com", False), ("127.0.0.1.example.com", False),
     ("10.0.0.1:5000", False)],
)  # fmt: skip
def test_only_a_registry_on_loopback_is_without_tls(registry: str, plain: bool) -> None:
    assert (oci.LOOPBACK.fullmatch(oci.Reference.parse(f"oci://{registry}/a/b:1").registry) is not None) == plain
