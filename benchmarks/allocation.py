"""Compares the exact plan with the usual methods of choosing widths, on the same measured profile and scores.

    python benchmarks/allocation.py --net resnet50 --runtime openvino [--budgets 80% 65% 50% 35%] [--seeds 0 1 2]

- exact: edgeprune's planner, a mixed-integer program over pairs of widths, here without the removal of blocks;
- HALP-style (Shen et al., NeurIPS 2022): a knapsack over groups with fixed input widths, in 30 steps;
- NetAdapt-style (Yang et al., ECCV 2018): greedy steps of 2 % of the original latency, each in the group that loses least;
- uniform: the same share of every group.

One latency model holds all methods to the same latency. HALP's own estimate is corrected until its plan meets the budget.
Then all networks are measured interleaved.

Scores are synthetic: exponential for each unit, times a log-normal factor for each group. Importance in trained networks
differs by orders of magnitude between layers. "Kept" is the remaining importance.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from nets import NETS, RUNTIMES, Subject
from scipy.optimize import Bounds, LinearConstraint, milp

from edgeprune.graph.groups import candidate_widths
from edgeprune.latency import stats
from edgeprune.latency.fit import fit
from edgeprune.latency.model import LatencyModel
from edgeprune.latency.observations import FIT_QUANTILE, reference_ns
from edgeprune.latency.surface import LayerCost
from edgeprune.records import Groups, Plan, Profile, Scores
from edgeprune.stages import experiments
from edgeprune.stages.planning import allocation
from edgeprune.storage import codec

HALP_STEPS = 30
GREEDY_STEP = 0.02  # of the original latency
PROCESSES = 4


def synthetic(groups: Groups, seed: int) -> Scores:
    """Synthetic scores: see the module's docstring."""
    random = np.random.default_rng(seed)
    units = {}
    for group in groups.free:
        units[group.name] = tuple((random.lognormal(0, 1) * random.exponential(size=group.width)).tolist())
    return Scores("synthetic", units)


def uniform(groups: Groups, model: LatencyModel, scores: Scores, budget: float) -> dict[str, int] | None:
    """The widest network with the same share of every group."""
    for share in np.linspace(1, 0.02, 197):
        widths = groups.full()
        for group in groups.free:
            widths[group.name] = min(candidate_widths(group), key=lambda w: abs(w - share * group.width))
        if model.ns(widths) <= budget:
            return widths
    return None


def greedy(groups: Groups, model: LatencyModel, scores: Scores, budget: float) -> dict[str, int] | None:
    """In every step, narrows the group that loses least for the step's latency."""
    loss, widths = allocation.loss_of(groups, scores), groups.full()
    now = model.ns(widths)
    step = GREEDY_STEP * now
    while now > budget:
        target, best = max(budget, now - step), None
        for group in groups.free:
            for width in reversed([w for w in candidate_widths(group) if w < widths[group.name]]):
                trial = {**widths, group.name: width}
                if model.ns(trial) <= target:
                    cost = loss(trial)
                    best = min(best, (cost, group.name, width)) if best else (cost, group.name, width)
                    break
        if best is None:  # no single group saves a whole step: narrow the best group by one candidate
            trials = []
            for group in groups.free:
                smaller = [w for w in candidate_widths(group) if w < widths[group.name]]
                if smaller:
                    trial = {**widths, group.name: smaller[-1]}
                    gain = now - model.ns(trial)
                    trials.append((-(gain / (loss(trial) - loss(widths) + 1e-12)), group.name, smaller[-1]))
            if not trials or min(trials)[0] >= 0:
                return None
            best = min(trials)
        widths = {**widths, best[1]: best[2]}
        now = model.ns(widths)
    return widths


def halp(groups: Groups, model: LatencyModel, scores: Scores, budget: float) -> dict[str, int] | None:
    """The knapsack with fixed input widths. Its own budget is lowered until the plan meets the budget."""
    low, high, found = 0.05 * budget, budget, None
    for _ in range(8):
        asked = high if found is None and high == budget else (low + high) / 2
        widths = _halp(groups, model, scores, asked)
        if widths is not None and model.ns(widths) <= budget:
            found = (
                widths
                if found is None
                or allocation.loss_of(groups, scores)(widths) < allocation.loss_of(groups, scores)(found)
                else found
            )
            if asked == budget:
                break
            low = asked
        else:
            high = asked if asked < high else high * 0.999
    return found


def _halp(groups: Groups, model: LatencyModel, scores: Scores, budget: float) -> dict[str, int] | None:
    widths = groups.full()
    start = model.ns(widths)
    tables = {group.name: allocation.losses(group, scores) for group in groups.free}
    for step in range(1, HALP_STEPS + 1):
        limit = model.sum_ns(start + (budget - start) * step / HALP_STEPS)
        loss, cost, group_of, choice = [], [], [], []
        constant = model.overhead_ns
        owned: dict[str, list[LayerCost]] = {group.name: [] for group in groups.free}
        for c in model.layers:
            if c.layer.outputs.terms:
                owned[c.layer.outputs.terms[0][0][0]].append(c)
            else:
                constant += float(c.ns([c.layer.inputs.size(widths)], [c.layer.outputs.size(widths)])[0])
        for number, group in enumerate(groups.free):
            for width in (w for w in candidate_widths(group) if w <= widths[group.name]):
                trial = {**widths, group.name: width}
                own = owned[group.name]
                frozen = sum(float(c.ns([c.layer.inputs.size(widths)], [c.layer.outputs.size(trial)])[0]) for c in own)
                loss.append(tables[group.name][width])
                cost.append(frozen)
                group_of.append(number)
                choice.append((group.name, width))
        one = np.equal.outer(np.arange(len(groups.free)), group_of).astype(float)
        found = milp(
            np.array(loss) / max(max(loss), 1e-12),
            constraints=[
                LinearConstraint(one, 1, 1),
                LinearConstraint(np.array(cost)[None] / limit, -np.inf, 1 - constant / limit),
            ],
            integrality=np.ones(len(loss)),
            bounds=Bounds(0, 1),
            options={"mip_rel_gap": 1e-4, "time_limit": 20},
        )
        if found.x is None:
            return None
        widths = {**widths, **dict(c for c, x in zip(choice, found.x, strict=True) if x > 0.5)}
    return widths


METHODS: Mapping[str, Callable[..., dict[str, int] | None]] = {"HALP-style": halp, "greedy": greedy, "uniform": uniform}
PLANNER = """
import sys, time
from pathlib import Path
from edgeprune import codec, latency, planning
from edgeprune.types import Groups, Profile, Scores
folder = Path(sys.argv[1])
groups = codec.loads(Groups, (folder / "groups.json").read_text(), "groups")
scores = codec.loads(Scores, (folder / "scores.json").read_text(), "scores")
model = fit(groups, codec.loads_kept(Profile, (folder / "profile.json").read_text(), "profile"))
started = time.monotonic()
(plan,) = allocation.plans(groups, model, scores, float(sys.argv[2]), "p")
seconds = time.monotonic() - started
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
(folder / "plan.json").write_text(codec.dumps(plan))
print(seconds, peak / 1024)
"""


def exact(
    groups: Groups, profile: Profile, scores: Scores, budget: float
) -> tuple[dict[str, int], float, float, float]:
    """Widths, gap, seconds to plan and the peak memory in MB of a process that fits the model and plans."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "groups.json").write_text(codec.dumps(groups))
        (folder / "scores.json").write_text(codec.dumps(scores))
        (folder / "profile.json").write_text(codec.dumps_kept(profile))
        argv = [sys.executable, "-W", "ignore", "-c", PLANNER, name, str(budget)]
        said = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True).stdout
        seconds, peak = map(float, said.splitlines()[-1].split())  # HiGHS may have printed something before
        plan = codec.loads(Plan, (folder / "plan.json").read_text(), "plan")
    return {**groups.full(), **plan.widths}, plan.gap, seconds, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", choices=sorted(NETS), required=True)
    parser.add_argument("--runtime", choices=RUNTIMES, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--budgets", nargs="+", default=["80%", "65%", "50%", "35%"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, object]] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        Subject.open(options.net, options.runtime, options.threads, Path(folder)) as subject,
    ):
        groups = replace(subject.groups, blocks=())  # the other methods cannot remove blocks
        profile = subject.profiled(lambda done, most, note: print(f"  {done}/{most} {note}", flush=True))
        model, baseline = fit(groups, profile), reference_ns(profile)
        print(f"{options.net} on {options.runtime}: {len(groups.free)} groups, baseline {baseline / 1e6:.2f} ms, "
              f"{len(profile.experiments)} experiments; 'of budget' is measured")  # fmt: skip
        print(
            f"{'budget':>6} {'seed':>4} {'method':<10} {'kept':>7} {'predicted':>9} {'of budget':>9} {'plan, s':>8}    gap"
        )
        for budget in options.budgets:
            limit = float(budget.rstrip("%")) / 100 * baseline
            for seed in options.seeds:
                scores = synthetic(groups, seed)
                total, loss = sum(map(sum, scores.units.values())), allocation.loss_of(groups, scores)
                widths, gap, seconds, peak = exact(groups, profile, scores, limit)
                found = {"exact": (widths, seconds)}
                for name, method in METHODS.items():
                    started = time.monotonic()
                    other = method(groups, model, scores, limit)
                    if other is not None:
                        found[name] = other, time.monotonic() - started
                beside = experiments.anchor(groups), groups.full()
                models = [subject.file(w) for w in (*beside, *(w for w, _ in found.values()))]
                _, full, *taken = subject.bench.compare(models, subject.inputs, PROCESSES)
                for (name, (widths, seconds)), samples in zip(found.items(), taken, strict=True):
                    share = stats.ratio(samples, full, FIT_QUANTILE).mid * baseline / limit
                    row = {
                        "net": options.net,
                        "runtime": options.runtime,
                        "budget": budget,
                        "seed": seed,
                        "method": name,
                    }
                    row |= {"kept": 1 - loss(widths) / total, "predicted": model.ns(widths) / limit, "measured": share}
                    row |= {"seconds": seconds, **({"gap": gap, "peak_mb": peak} if name == "exact" else {})}
                    rows.append(row)
                    told = f"{gap:>7.0e}  ({peak:.0f} MB)" if name == "exact" else ""
                    print(f"{budget:>6} {seed:>4} {name:<10} {row['kept']:>7.2%} {row['predicted']:>9.2%} {share:>9.2%}"
                          f" {seconds:>8.2f} {told}", flush=True)  # fmt: skip
                if options.out:
                    options.out.write_text(json.dumps(rows, indent=1))
    for name in METHODS:
        best = {(row["budget"], row["seed"]): float(str(row["kept"])) for row in rows if row["method"] == "exact"}
        own = {(row["budget"], row["seed"]): float(str(row["kept"])) for row in rows if row["method"] == name}
        behind = [best[case] - kept for case, kept in own.items()]
        print(f"{name}: keeps {np.mean(behind):.2%} less importance than exact on average, {max(behind):.2%} at most,"
              f" more in {sum(b < -1e-4 for b in behind)} of {len(behind)}")  # fmt: skip


if __name__ == "__main__":
    main()
