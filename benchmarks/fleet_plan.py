"""Compares one plan for several runtimes with plans for one of them, on the same profiles and scores.

    python benchmarks/fleet_plan.py --nets resnet20 mobilenet [--budget 50%] [--runtimes onnxruntime openvino tflite]
        [--out results.jsonl]

With `--out`, every result is a line of that file. The same command again goes on after the last line.

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from allocation import synthetic
from cifar import NETS
from nets import RUNTIMES, Subject, local

from edgeprune.devices.bench import Bench, open_bench
from edgeprune.devices.patience import Patience
from edgeprune.latency import stats
from edgeprune.latency.observations import reference_ns
from edgeprune.records import Budget, MeasuredPlan, Plan, Profile, Scores, Widths
from edgeprune.stages import confirm, experiments, measuring
from edgeprune.stages.planning import allocation
from edgeprune.storage import codec

PROCESSES = 24


class Rows:
    """Results by name. They are kept in a file, if there is one, with a line of JSON for each."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        text = path.read_text() if path and path.exists() else ""
        whole = text[: text.rfind("\n") + 1]  # a killed run may leave half a line
        if path and whole != text:
            path.write_text(whole)
        self._known: dict[tuple[str, ...], Any] = dict(
            (tuple(name), value) for name, value in map(json.loads, whole.splitlines())
        )

    def row(self, name: tuple[str, ...], make: Callable[[], Any]) -> Any:
        """The result of this name, which is made unless the file has it."""
        if name not in self._known:
            self._known[name] = make()
            if self._path:
                with self._path.open("a") as file:
                    file.write(json.dumps([name, self._known[name]]) + "\n")
        return self._known[name]


class Fleet:
    """One network on several runtimes of this machine. It has one lease, so they are used in turn."""

    def __init__(self, net: str, names: Sequence[str], folder: Path, patience_s: float, rows: Rows) -> None:
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
            kept = rows.row((net, "profile", name), lambda name=name: codec.dumps_kept(self._profiled(name)))
            self.profiles[name] = codec.loads_kept(Profile, kept, "--out")
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

    def _profiled(self, name: str) -> Profile:
        with self.at(name) as subject:
            return subject.profiled(lambda *_: None)

    def confirmed(self, names: Sequence[str], scores: Scores, budget: Budget) -> Widths:
        """The widths of the plan that is confirmed on these runtimes."""
        profiles = {name: self.profiles[name] for name in names}

        def measure(number: int, plans: Sequence[Plan]) -> tuple[dict[str, Profile], list[dict[str, MeasuredPlan]]]:
            found: list[dict[str, MeasuredPlan]] = [{} for _ in plans]
            for name in names:
                with self.at(name) as subject:
                    own = experiments.Subject(subject.bench, subject, subject.groups, subject.inputs)  # type: ignore[arg-type]
                    asked = measuring.Round(number, budget, plans)
                    profiles[name], (taken,) = measuring.measure(own, profiles[name], [asked], name)
                for each, one in zip(found, taken, strict=True):
                    each[name] = one
            return profiles, found

        groups = self.subjects[names[0]].groups
        made = confirm.Loop(groups, scores, budget).confirm(profiles, measure)
        return groups.full() | made.plan.widths

    def shares(self, networks: Mapping[str, Widths], budget: Budget, runtime: str) -> dict[str, float]:
        """{network: measured share of the budget} on a runtime. All networks are interleaved."""
        with self.at(runtime) as subject:
            models = [subject.file(subject.groups.full()), *(subject.file(one) for one in networks.values())]
            original, *taken = subject.bench.compare(models, subject.inputs, PROCESSES)
        ratios = [stats.ratio(samples, original, budget.quantile).mid for samples in taken]
        return dict(zip(networks, [ratio / (budget.fraction or 1.0) for ratio in ratios], strict=True))


def compared(fleet: Fleet, seed: int, budget: Budget, rows: Rows) -> None:
    """Make the plans of one seed, measure them, and print a line for each."""
    groups, runtimes = next(iter(fleet.subjects.values())).groups, list(fleet.subjects)
    slowest = max(fleet.profiles, key=lambda name: reference_ns(fleet.profiles[name]))
    scores, at = synthetic(groups, seed), (fleet.net, str(budget), str(seed))
    total, loss = sum(map(sum, scores.units.values())), allocation.loss_of(groups, scores)
    plans = {"joint": runtimes}
    plans |= {f"{name} alone" + (" (slowest)" if name == slowest else ""): [name] for name in runtimes}
    networks: dict[str, Widths] = {}
    for label, names in plans.items():
        networks[label] = rows.row((*at, "plan", *names), lambda names=names: fleet.confirmed(names, scores, budget))
    shares = {
        name: rows.row((*at, "shares", name), lambda name=name: fleet.shares(networks, budget, name))
        for name in runtimes
    }
    for label, widths in networks.items():
        told = ", ".join(f"{name} {100 * shares[name][label]:.1f}%" for name in runtimes)
        print(f"{fleet.net} {seed} {label:<24} kept {1 - loss(widths) / total:.2%}; of the budget: {told}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", default=["resnet20", "mobilenet"], choices=sorted(NETS))
    parser.add_argument("--runtimes", nargs="+", default=["onnxruntime", "openvino", "tflite"], choices=RUNTIMES)
    parser.add_argument("--budget", default="50%")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument(
        "--patience", type=float, default=600.0, help="seconds; disturbed processes are accepted after it"
    )
    parser.add_argument("--out", type=Path, help="the file of results, a line of JSON each; an earlier run goes on")
    options = parser.parse_args()
    budget, rows = Budget.parse(options.budget), Rows(options.out)
    if budget.fraction is None:
        parser.error("--budget is a share, such as 50%")
    for net in options.nets:
        with tempfile.TemporaryDirectory() as folder:
            fleet = Fleet(net, options.runtimes, Path(folder), options.patience, rows)
            for seed in options.seeds:
                compared(fleet, seed, budget, rows)


if __name__ == "__main__":
    main()
