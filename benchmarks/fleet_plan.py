"""Compares one plan for several runtimes with plans for one of them, on the same profiles and scores.

    python benchmarks/fleet_plan.py --nets resnet20 mobilenet [--budget 50%] [--runtimes onnxruntime openvino tflite]

- joint: the least loss within the budget on every runtime, as `edgeprune run` with several targets makes it;
- slowest alone: the plan for the runtime with the largest latency, "the others will be faster";
- each other runtime alone: planned for that one, and hoped for the others.

All plans are confirmed on what they were made for. Then all networks are measured interleaved, on each runtime. A share above
100 % is over the budget there. Scores are synthetic, as in `allocation.py`; "kept" is the remaining importance.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch
from allocation import synthetic
from cifar import NETS
from nets import RUNTIMES, Subject, local

from edgeprune.devices.bench import Bench, open_bench
from edgeprune.devices.patience import Patience
from edgeprune.latency import stats
from edgeprune.latency.observations import FIT_QUANTILE, reference_ns
from edgeprune.records import Budget, MeasuredPlan, Plan, Profile, Scores, Widths
from edgeprune.stages import allocation, confirm, experiments

PROCESSES = 8


class Fleet:
    """One network on several runtimes of this machine. It has one lease, so they are used in turn."""

    def __init__(self, net: str, names: Sequence[str], folder: Path, patience_s: float) -> None:
        self.net, self.folder, self._patience_s = net, folder, patience_s
        self.subjects: dict[str, Subject] = {}
        torch.manual_seed(0)
        model, example = NETS[net]().eval(), (torch.zeros(1, 3, 32, 32),)
        for name in names:
            place = folder / name
            place.mkdir()
            with self._opened(name) as bench:
                self.subjects[name] = Subject(net, model, example, local(name), bench, place)
        self.profiles: dict[str, Profile] = {}
        for name in names:
            with self.at(name) as subject:
                self.profiles[name] = subject.profiled(lambda *_: None)
            print(f"{net} on {name}: {len(self.profiles[name].experiments)} experiments, original "
                  f"{reference_ns(self.profiles[name]) / 1e6:.3f} ms", flush=True)  # fmt: skip

    def _opened(self, name: str) -> AbstractContextManager[Bench]:
        """The device. Disturbed processes are accepted after the patience, and then said to be."""
        patience = Patience(self._patience_s, print, accepting=True)
        return open_bench(local(name), self.folder / name, 0.0, patience)

    @contextmanager
    def at(self, name: str) -> Iterator[Subject]:
        """The subject of a runtime, with the device."""
        subject = self.subjects[name]
        with self._opened(name) as subject.bench:
            yield subject

    def confirmed(self, names: Sequence[str], scores: Scores, budget: Budget) -> tuple[Plan, int]:
        """The plan for these runtimes, and its confirm rounds."""
        profiles = {name: self.profiles[name] for name in names}

        def measure(number: int, plans: Sequence[Plan]) -> tuple[dict[str, Profile], list[dict[str, MeasuredPlan]]]:
            found: list[dict[str, MeasuredPlan]] = [{} for _ in plans]
            for name in names:
                with self.at(name) as subject:
                    own = experiments.Subject(subject.bench, subject, subject.groups, subject.inputs)  # type: ignore[arg-type]
                    profiles[name], taken = confirm.measure(own, profiles[name], budget, number, plans, name)
                for each, one in zip(found, taken, strict=True):
                    each[name] = one
            return profiles, found

        groups = self.subjects[names[0]].groups
        made = confirm.Loop(groups, scores, budget).confirm(profiles, measure)
        return made.plan, made.rounds

    def shares(self, networks: Mapping[str, Widths], fraction: float) -> dict[str, dict[str, float]]:
        """{network: {runtime: measured share of the budget}}, all networks of a runtime interleaved."""
        found: dict[str, dict[str, float]] = {name: {} for name in networks}
        for runtime in self.subjects:
            with self.at(runtime) as subject:
                models = [subject.file(subject.groups.full()), *(subject.file(one) for one in networks.values())]
                original, *taken = subject.bench.compare(models, subject.inputs, PROCESSES)
            for name, samples in zip(networks, taken, strict=True):
                found[name][runtime] = stats.ratio(samples, original, FIT_QUANTILE).mid / fraction
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", default=["resnet20", "mobilenet"], choices=sorted(NETS))
    parser.add_argument("--runtimes", nargs="+", default=list(RUNTIMES), choices=RUNTIMES)
    parser.add_argument("--budget", default="50%")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument(
        "--patience", type=float, default=600.0, help="seconds; disturbed processes are accepted after it"
    )
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    budget, rows = Budget.parse(options.budget), []
    if budget.fraction is None:
        parser.error("--budget is a share, such as 50%")
    for net in options.nets:
        with tempfile.TemporaryDirectory() as folder:
            fleet = Fleet(net, options.runtimes, Path(folder), options.patience)
            groups = next(iter(fleet.subjects.values())).groups
            slowest = max(fleet.profiles, key=lambda name: reference_ns(fleet.profiles[name]))
            for seed in options.seeds:
                scores = synthetic(groups, seed)
                total, loss = sum(map(sum, scores.units.values())), allocation.loss_of(groups, scores)
                plans = {"joint": fleet.confirmed(options.runtimes, scores, budget)[0]}
                for name in options.runtimes:
                    label = f"{name} alone" + (" (slowest)" if name == slowest else "")
                    plans[label] = fleet.confirmed([name], scores, budget)[0]
                networks = {label: {**groups.full(), **plan.widths} for label, plan in plans.items()}
                shares = fleet.shares(networks, budget.fraction)
                for label, widths in networks.items():
                    kept = 1 - loss(widths) / total
                    rows.append({"net": net, "seed": seed, "method": label, "kept": kept, "shares": shares[label]})
                    told = ", ".join(f"{name} {100 * share:.1f}%" for name, share in shares[label].items())
                    print(f"{net} {seed} {label:<24} kept {kept:.2%}; of the budget: {told}", flush=True)
                if options.out:
                    options.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
