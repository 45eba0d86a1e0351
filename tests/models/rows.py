"""What edgeprune does with one architecture. It runs in a process of its own: see `answers`."""

from __future__ import annotations

import multiprocessing
import re
import resource
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peer import torch_pruning
from torch import Tensor, nn
from zoo import ZOO

from edgeprune import runtimes
from edgeprune.devices.bench import Bench, open_bench
from edgeprune.errors import EdgepruneError, RuntimeMissing, first_line
from edgeprune.frontends import toml
from edgeprune.graph.groups import make_recipe
from edgeprune.latency import stats
from edgeprune.network.attention import opened
from edgeprune.network.cut import cut, formed, sliced
from edgeprune.network.importance import CRITERIA
from edgeprune.network.observe import observe
from edgeprune.network.outputs import tensors
from edgeprune.network.refit import refit_separately, refit_sequentially
from edgeprune.network.survey import randomised, survey
from edgeprune.records import Groups
from edgeprune.stages.compile import Compiler
from edgeprune.stages.planning import allocation

ROOT = Path(__file__).parents[2]
TARGETS = {
    "ORT": "local",
    "OpenVINO": "local-openvino",
    "TFLite": "local-tflite",
    "ncnn": "local-ncnn",
    "ExecuTorch": "local-executorch",
}
MEMORY_BYTES = 12 << 30  # of a process
PROCESSES = 2  # that measure the original and the smallest network, interleaved

Answer = tuple[str, Any]  # a column of the page, and its cell
Inputs = tuple[Tensor, ...]


def answers(work: Callable[[str], Iterator[Answer]], title: str, seconds: float) -> dict[str, Any]:
    """What `work` yields about an architecture within this time, in a fresh process."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, work, title))
    process.start()
    sender.close()
    found: dict[str, Any] = {}
    deadline = time.monotonic() + seconds
    try:
        while receiver.poll(max(0.0, deadline - time.monotonic())):
            column, cell = receiver.recv()
            found[column] = cell
        found["late"] = f"not done within {seconds:.0f} s"
    except EOFError:
        process.join(5)
        if process.exitcode:
            found["late"] = f"the process ended with code {process.exitcode}"
    finally:
        process.kill()
        process.join()
    return found


def _send(sender: Connection, work: Callable[[str], Iterator[Answer]], title: str) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    warnings.simplefilter("ignore")  # of transformers and of the exporters
    torch.set_num_threads(1)
    for answer in work(title):
        sender.send(answer)


def row(title: str) -> Iterator[Answer]:
    """The cells of an architecture's row, and the groups that are locked."""
    torch.manual_seed(0)
    model, inputs = ZOO[title]()
    began = time.process_time()
    try:
        given = randomised(opened(model))
        groups = survey(given, inputs)
    except EdgepruneError as error:
        yield "groups cut", f"no: {_brief(error)}"
        return
    yield "survey", f"{time.process_time() - began:.1f} s"
    yield "groups cut", str(len(groups.free))
    yield "of", str(len(groups.groups))
    yield "blocks", str(len(groups.blocks))
    yield "locked", _locked(groups)
    full = groups.macs(groups.full())
    yield "removable MACs", f"{100 * (1 - groups.macs(groups.least()) / full):.0f}%" if full else "no layer counted"
    with tempfile.TemporaryDirectory() as folder:
        yield from _on_runtimes(formed(given, groups, inputs), groups, inputs, Path(folder))
    yield "Torch-Pruning", torch_pruning(model, inputs, groups)  # the last one: for some networks it does not end


def _on_runtimes(model: nn.Module, groups: Groups, inputs: Inputs, folder: Path) -> Iterator[Answer]:
    """Whether each runtime computes the half network as torch does, and how fast the smallest one is."""
    keep = {group.name: range(0, group.width, 2) for group in groups.free}
    try:
        small = cut(model, make_recipe(groups, keep), inputs)
    except EdgepruneError as error:
        yield from ((name, f"no: {_brief(error)}") for name in TARGETS)
        return
    for name, target in TARGETS.items():
        scratch = folder / name
        scratch.mkdir()
        try:
            with open_bench(toml.read_target(ROOT / "targets" / f"{target}.toml"), scratch) as bench:
                yield name, _same(bench, small, inputs, groups, scratch)
                if name == "ORT":
                    yield "removable latency", _latency(bench, model, inputs, groups, scratch)
        except RuntimeMissing:
            yield name, "–"
        except EdgepruneError as error:
            yield name, f"no: {_brief(error)}"


def _same(bench: Bench, model: nn.Module, inputs: Inputs, groups: Groups, folder: Path) -> str:
    """Whether the runtime computes the same as torch: "yes", or by how much it is off."""
    random = torch.Generator().manual_seed(0)
    inputs = tuple(torch.randn(x.shape, generator=random) if x.is_floating_point() else x for x in inputs)
    artifact = _compiled(bench, model, inputs, groups, folder / "half")
    with torch.no_grad():
        expected = [tensor.numpy() for tensor in tensors(model(*inputs))]
    got = bench.outputs(artifact, [x.numpy()[None] for x in inputs], len(expected))
    errors = [
        float(np.abs(a.reshape(b.shape) - b).max() / (np.abs(b).max() or 1))
        for a, b in zip(got, expected, strict=True)
        if b.dtype.kind == "f" and b.size
    ]
    return "yes" if max(errors) < 1e-3 else f"no: off by {max(errors):.1g} of the largest output"


def _latency(bench: Bench, model: nn.Module, inputs: Inputs, groups: Groups, folder: Path) -> str:
    """The share of the latency that is saved if one unit of each group remains and no block does."""
    emptied = {name for block in groups.blocks for name in block.groups}
    keep = {group.name: () if group.name in emptied else (0,) for group in groups.free}
    least = sliced(model, make_recipe(groups, keep))
    files = [_compiled(bench, net, inputs, groups, folder / name) for net, name in ((model, "all"), (least, "least"))]
    arrays = bench.save_inputs([tensor.numpy() for tensor in inputs], folder)
    original, smallest = bench.compare(files, arrays, PROCESSES)
    return f"{100 * (1 - float(np.median(stats.ratios(smallest, original)))):.0f}%"


def _compiled(bench: Bench, model: nn.Module, inputs: Inputs, groups: Groups, folder: Path) -> Path:
    folder.mkdir()
    compiler = Compiler(runtimes.host(bench._target.runtime), "fp32")
    return compiler.compile(model, inputs, groups.folds, folder, "").files[0]


def _locked(groups: Groups) -> str:
    """The groups that stay whole, by reason."""
    by_reason: dict[str, list[str]] = {}
    for group in groups.groups:
        if group.locked is not None and group.width > 1:
            by_reason.setdefault(_without_figures(group.locked), []).append(f"`{group.name}`")
    return "; ".join(f"{reason}: {_listed(names)}" for reason, names in by_reason.items()) or "nothing"


def _listed(names: list[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _without_figures(reason: str) -> str:
    """A reason without places in code, and without numbers that differ between machines."""
    reason = re.sub(r"(\b[\w.-]+\.py:\d+|\bmodule [\w.]+), ", "", reason)
    return re.sub(r"( differs from the masked original) by .*", r"\1", reason)[:160]


def _brief(error: Exception) -> str:
    return first_line(error)[:120].replace("|", "\\|")


def refit(title: str) -> Iterator[Answer]:
    """How far the network with half its units is from the original one on held-out inputs: as cut, and after each refit."""
    torch.manual_seed(0)
    model, inputs = ZOO[title]()
    try:
        model = randomised(opened(model))
        groups = survey(model, inputs)
    except EdgepruneError as error:
        yield "survey", _brief(error)
        return
    model = formed(model, groups, inputs)
    batches = [(tuple(map(_others, inputs)), torch.zeros(len(inputs[0]))) for _ in range(8)]
    found = CRITERIA["loss-curves"](model, groups, batches, lambda out, _: tensors(out)[0].square().mean())
    yield "finite", all(bool(np.isfinite(curve).all()) for curve in found.curves.values())
    keep = {group.name: allocation.best_units(group, found, max(1, group.width // 2)) for group in groups.free}
    recipe = make_recipe(groups, keep)
    small = cut(model, recipe, inputs)
    reference = observe(model, batches)
    fitted = [fit(model, small, recipe, reference) for fit in (refit_separately, refit_sequentially)]
    held_out, expected = reference.held_out
    with torch.no_grad():
        yield "distances", [float(tensors(net(*held_out))[0].dist(expected[0])) for net in (small, *fitted)]


def _others(tensor: Tensor) -> Tensor:
    """Different inputs of the same kind."""
    return torch.randn_like(tensor) if tensor.is_floating_point() else tensor.roll(int(torch.randint(16, ())), -1)
