"""Measures how a first run ends: whether its verdict settles, the used share of the budget, and the seconds.

    python benchmarks/first_run.py [--nets ...] [--runtimes ...] [--budgets 70% 50% 40%] [--again 10] [--idle] [--quick]
                                   [--out runs.jsonl [--most N]]

Each run is a process of the command line, as a user starts it. It begins with nothing: no profile, no scores. A neighbour
keeps the last core busy, except with --idle. The networks learn the digits of examples/digits: its residual network, an
inverted-residual network and a transformer. A passed verdict is measured again with `--again` times its processes. It is a
false pass if that measurement is above the budget.
With --quick, scores are magnitudes and nothing is trained. The seconds then say nothing; the verdicts are the same.
With --out, each finished run is a line of JSON in that file, and trained networks are kept beside it. The same command again
does the runs that are missing there, at most `--most` of them, and its table covers all. To repeat a run, delete its line.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from gates import last_core, neighbour
from nets import Encoder, digits, inverted_residuals, layer, local
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from edgeprune.devices.bench import open_bench
from edgeprune.devices.patience import Patience
from edgeprune.errors import InconclusiveError
from edgeprune.latency import stats
from edgeprune.records import Interval
from edgeprune.stages.verdicts.verdict import POLICY

EXAMPLE = Path(digits.__file__).parent
LEAST = 0.95  # of the budget, in the goal
MOST_S = 3600.0  # of a run
PROJECT = """
[model]
factory = "subject:build"
inputs = "digits:example_inputs"
weights = "subject.safetensors"
[data]
train = "digits:train_batches"
valid = "digits:valid_batches"
test = "digits:test_batches"
metric = "digits:accuracy"
[budget]
latency = "50%"
max_metric_drop = 2.0
[finetune]
epochs = {epochs}
[prune]
importance = "{importance}"
"""
FULL, QUICK = {"epochs": 2, "importance": "loss-curves"}, {"epochs": 0, "importance": "magnitude-l2"}
SUBJECT = "from first_run import NETS\n\nbuild = NETS[{net!r}]\n"


class Inverted(nn.Module):
    """Inverted residuals (Sandler et al. 2018) on 16×16 images."""

    def __init__(self) -> None:
        super().__init__()
        settings = ((4, 32, 2, 1), (4, 64, 3, 2), (4, 96, 2, 1))
        self.features = nn.Sequential(layer(1, 32, 3, 1, act=nn.ReLU6()), *inverted_residuals(32, settings))
        self.fc = nn.Linear(96, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).mean((2, 3)))


class Transformer(nn.Module):
    """A small vision transformer with patches of 4×4."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 128, 4, 4)
        self.positions = nn.Parameter(0.5 * torch.randn(1, 16, 128))  # at zero they take long to learn
        self.layers = nn.Sequential(*(Encoder(128, 4) for _ in range(4)))
        self.norm, self.fc = nn.LayerNorm(128), nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.fc(self.norm(self.layers(x)).mean(1))


NETS: dict[str, Callable[[], nn.Module]] = {
    "residual": digits.build,
    "inverted": Inverted,
    "transformer": Transformer,
}
EPOCHS = {"residual": 0, "inverted": 8, "transformer": 36}  # the first has its own weights


Cell = tuple[str, str, str]  # network, runtime, budget


@dataclass(frozen=True)
class Row:
    """One first run. `share` is the pruned network's p50 in the verdict over the budget; `again` in the new measurement.

    `how` holds the options that it was made with. A figure that was not measured is NaN, and is left out of files.
    """

    net: str
    runtime: str
    budget: str
    how: str
    status: str
    seconds: float
    share: float = math.nan
    again: float = math.nan
    again_high: float = math.nan
    why: str = ""

    @property
    def cell(self) -> Cell:
        return self.net, self.runtime, self.budget

    @property
    def settled(self) -> bool:
        return self.status in ("pass", "fail")

    def __str__(self) -> str:
        """A line of the table."""
        shown = ("" if math.isnan(value) else f"{value:.1%}" for value in (self.share, self.again))
        why = f" <!-- {self.why} -->" if self.why else ""
        return f"| {' | '.join((*self.cell, self.status, *shown))} | {self.seconds:.0f} |{why}"


def read(path: Path) -> list[Row]:
    """The finished runs that a file holds; none if there is no file."""
    lines = path.read_text().splitlines() if path.is_file() else []
    return [Row(**json.loads(line)) for line in lines]


def write(path: Path, rows: list[Row]) -> None:
    """Write finished runs to a file, in one step, so that an interrupt leaves whole lines."""
    kept = [{name: value for name, value in asdict(row).items() if value == value} for row in rows]
    draft = path.with_name(path.name + ".new")
    draft.write_text("".join(json.dumps(row) + "\n" for row in kept))
    draft.replace(path)


def trained(net: str, epochs: int, kept: Path | None) -> nn.Module:
    """The network after a short training. It is read from the file `kept` if that is there, and written to it if not."""
    torch.manual_seed(0)
    model = NETS[net]()
    known = EXAMPLE / "digits.safetensors" if net == "residual" else kept
    if known is None or not known.is_file():
        _train(model, epochs)
        if kept is not None:
            save_file(model.state_dict(), kept)
    else:
        model.load_state_dict(load_file(known))
    return model.eval()


def _train(model: nn.Module, epochs: int) -> None:
    data, optimiser = digits.train_batches(), torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-3, epochs * sum(1 for _ in data))
    for epoch in range(epochs):
        data.set_epoch(epoch)
        for images, labels in data:
            optimiser.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimiser.step()
            schedule.step()


def folder_of(net: str, runtime: str, model: nn.Module, root: Path, quick: bool) -> Path:
    """A new project."""
    folder = Path(tempfile.mkdtemp(prefix=f"{net}-{runtime}-", dir=root))
    (folder / "edgeprune.toml").write_text(PROJECT.format(**(QUICK if quick else FULL)))
    (folder / "subject.py").write_text(SUBJECT.format(net=net))
    for name in ("digits.py", "digits.npz"):
        shutil.copy(EXAMPLE / name, folder)
    save_file(model.state_dict(), folder / "subject.safetensors")
    (folder / "targets").mkdir()
    (folder / "targets" / "bench.toml").write_text(f'[connect]\ntransport = "local"\n[runtime]\nname = "{runtime}"\n')
    return folder


def first(cell: Cell, how: str, folder: Path, again: int) -> Row:
    """Run once, from nothing to the verdict."""
    (_, runtime, budget), started = cell, time.monotonic()
    command = [sys.executable, "-m", "edgeprune", "run", "--json", "--target", "bench", "--budget", budget]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}  # for `SUBJECT`
    try:
        done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, timeout=MOST_S)
    except subprocess.TimeoutExpired:
        return Row(*cell, how, "no answer", MOST_S)
    spent = time.monotonic() - started
    if not done.stdout:
        return Row(*cell, how, f"error {done.returncode}", spent, why="no output")
    result = json.loads(done.stdout)
    if result["status"] == "error":
        return Row(*cell, how, f"error {result['exit_code']}", spent, why=result["error"])
    share = result["pruned"]["p50_ms"] / result["budget_ms"]
    why = "; ".join(f"{check['name']}: {check['note']}" for check in result["checks"] if check["outcome"] != "pass")
    row = Row(*cell, how, result["status"], spent, share, why=why)
    if not again or row.status != "pass":
        return row
    try:
        found = repeated(runtime, folder, Path(result["artifact"]), again)
    except InconclusiveError as error:
        return replace(row, why=f"not measured again: {error}")
    limit = float(budget.rstrip("%")) / 100
    return replace(row, again=found.mid / limit, again_high=found.high / limit)


def repeated(runtime: str, folder: Path, pruned: Path, again: int) -> Interval:
    """The ratio of the pruned to the original network's latency, from separate processes."""
    original = next((folder / "runs" / "bench").glob(f"original-*/model/{pruned.name}"))
    with tempfile.TemporaryDirectory() as name, open_bench(local(runtime), Path(name), 0.0, Patience(1800)) as bench:
        inputs = bench.save_inputs([tensor.numpy() for tensor in digits.example_inputs()], Path(name))
        samples = bench.time([original, pruned], inputs, again * POLICY.verify.processes)
    return stats.ratio(samples[1], samples[0])


def show(rows: list[Row]) -> None:
    """The totals."""
    settled = [row for row in rows if row.settled]
    met = [row for row in rows if row.status == "pass"]
    within = [row for row in met if LEAST <= row.share <= 1]
    measured = [row for row in met if not math.isnan(row.again)]
    print(f"\n{len(settled)} of {len(rows)} settled ({len(settled) / len(rows):.0%}), {len(met)} passed")
    print(f"{len(within)} of {len(met)} that passed use {LEAST:.0%} to 100% of the budget")
    print(f"{sum(row.again > 1 for row in measured)} false passes of {len(measured)} that were measured again")
    seconds = sorted(row.seconds for row in rows)
    print(f"seconds: median {seconds[len(seconds) // 2]:.0f}, most {seconds[-1]:.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", default=list(NETS), choices=list(NETS))
    parser.add_argument("--runtimes", nargs="+", default=["onnxruntime", "openvino", "tflite"])
    parser.add_argument("--budgets", nargs="+", default=["70%", "50%", "40%"])
    parser.add_argument("--again", type=int, default=10)
    parser.add_argument("--idle", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--most", type=int, default=sys.maxsize)
    options = parser.parse_args()
    how = f"again {options.again}{', quick' * options.quick}{', idle' * options.idle}"
    cells = list(itertools.product(options.nets, options.runtimes, options.budgets))
    random.Random(0).shuffle(cells)  # noqa: S311 - so that an interrupted benchmark has seen all kinds
    rows = read(options.out) if options.out else []
    if other := {row.how for row in rows} - {how}:
        parser.error(f"{options.out} has runs with other options ({', '.join(other)}); give another file")
    print("| network | runtime | budget | verdict | of budget | again | seconds |\n|---|---|---|---|---|---|---|")
    print(*rows, sep="\n", end="\n" * bool(rows), flush=True)
    missing = [cell for cell in cells if cell not in {row.cell for row in rows}][: options.most]
    models = {}
    for net in dict.fromkeys(net for net, _, _ in missing):  # before the neighbour begins
        kept = options.out and options.out.with_name(f"{options.out.stem}-{net}{'-quick' * options.quick}.safetensors")
        models[net] = trained(net, 1 if options.quick else EPOCHS[net], kept)
    busy = nullcontext() if options.idle else neighbour(last_core())
    with busy, tempfile.TemporaryDirectory() as name:
        for net, runtime, budget in missing:
            folder = folder_of(net, runtime, models[net], Path(name), options.quick)
            row = first((net, runtime, budget), how, folder, options.again)
            rows.append(row)
            print(row, flush=True)
            if options.out:
                write(options.out, rows)
            shutil.rmtree(folder)
    show(rows)


if __name__ == "__main__":
    main()
