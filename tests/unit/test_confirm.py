"""The loop that closes on the budget, on a simulated device that is not what the profile says."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
from nets import Concat, image
from test_latency import DEVICE, truth

from edgeprune import codec, latency, network, planning, profiling
from edgeprune.errors import InconclusiveError
from edgeprune.importance import CRITERIA
from edgeprune.pipeline import Quiet, Road
from edgeprune.store import Store
from edgeprune.types import Experiment, Interval, Plan, Profile, Round, Run, Samples, Widths

OVERHEAD = 3000


class Wide(Concat):
    """Wide enough for many candidate widths."""

    def __init__(self) -> None:
        super().__init__()
        from nets import Head, conv

        self.a, self.b, self.c = conv(3, 64), conv(64, 48), conv(112, 64)
        self.d, self.head = conv(176, 96), Head(96)


class Simulated(Road):
    """A road whose device takes `bias` times what its profile promised, with an interval of ± `noise`."""

    def __init__(self, project: Path, budget: str, bias: float, noise: float) -> None:
        known = codec.read_project(project, budget)
        target = codec.read_target(codec.find_target("local", project.parent))
        super().__init__(known, target, Store(project.parent / "runs"), ExitStack(), Quiet())
        model = Wide()
        self.bias, self.noise, self.turns = bias, noise, 0
        self.groups = network.survey(model, image())
        self.scores = CRITERIA["magnitude"](model, self.groups, [], lambda outputs, targets: outputs)
        variants = [self.groups.full(), *profiling.design(self.groups, 40)]
        experiments = tuple(self._taken(widths, "fit" if i else "baseline", 1.0) for i, widths in enumerate(variants))
        self._profile = Profile("t", "m", "n", DEVICE, 1, "fp32", experiments)
        self.plan = self._planned(0.975)

    def _taken(self, widths: Widths, role: str, bias: float) -> Experiment:
        layers = {name: round(ns) for name, ns in truth(self.groups, widths, 8).items()}
        total = round((sum(layers.values()) + OVERHEAD) * bias)
        return Experiment(
            role, dict(widths), Samples((Run((total,), 1),)), layers if role != "confirm" else {}, OVERHEAD
        )

    def _keep(self, profile: Profile) -> None:
        self._profile = profile

    def _measured(self, plan: Plan) -> Round:
        self.turns += 1
        taken = self._taken({**self.groups.full(), **plan.widths}, "confirm", self.bias)
        ns = latency.measured_ns(taken)
        self._keep(self.profile.with_experiments([taken]))
        measured = Interval(ns * (1 - self.noise), ns, ns * (1 + self.noise))
        return Round(plan.widths, plan.predicted.mid, measured, plan.budget_ns)


@pytest.mark.parametrize("bias", [0.9, 0.97, 1.0, 1.04, 1.1])
@pytest.mark.parametrize("budget", ["70%", "45%"])
def test_the_budget_is_met_and_used_in_three_rounds(bias: float, budget: str, project: Path) -> None:
    road = Simulated(project, budget, bias, noise=0.005)
    confirmed = road._confirm()
    last = confirmed.rounds[-1]
    assert confirmed.plan.widths == last.widths
    assert last.safe
    wider = [
        latency.measured_ns(road._taken(widths, "confirm", bias)) for widths in planning.wider(road.groups, last.widths)
    ]
    assert last.share >= 0.95 or all(ns * 1.01 > last.budget_ns for ns in wider)
    assert len(confirmed.rounds) == road.turns <= 3


def test_a_good_prediction_takes_one_round(project: Path) -> None:
    assert len(Simulated(project, "60%", 1.0, noise=0.005)._confirm().rounds) == 1


def test_where_noise_hides_the_answer_the_fastest_plan_within_the_budget_is_taken(project: Path) -> None:
    confirmed = Simulated(project, "60%", 1.0, noise=0.2)._confirm()
    assert len(confirmed.rounds) == 3
    chosen = next(turn for turn in confirmed.rounds if turn.widths == confirmed.plan.widths)
    assert chosen.share == min(turn.share for turn in confirmed.rounds) <= 1


def test_a_device_that_never_meets_it_is_inconclusive(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    road = Simulated(project, "60%", 1.0, noise=0.0)
    monkeypatch.setattr(road, "_planned", lambda aim: road.plan)
    road.bias = 1.5
    with pytest.raises(InconclusiveError, match="3 rounds"):
        road._confirm()


def test_a_budget_above_the_baseline_measures_nothing(project: Path) -> None:
    road = Simulated(project, "1 s", 1.0, noise=0.0)
    assert road._confirm().rounds == () and road.turns == 0
