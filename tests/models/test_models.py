"""Which channels of each architecture can be cut, and where it runs. Rewrites docs/models.md (make test-models)."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from zoo import ZOO

from edgeprune import runtimes
from edgeprune.devices.bench import Bench, open_bench
from edgeprune.errors import EdgepruneError
from edgeprune.frontends import toml
from edgeprune.graph.groups import make_recipe
from edgeprune.network import weights
from edgeprune.network.attention import opened
from edgeprune.network.cut import cut
from edgeprune.network.importance import CRITERIA
from edgeprune.network.observe import observe
from edgeprune.network.outputs import tensors
from edgeprune.network.refit import refit_separately, refit_sequentially
from edgeprune.network.survey import randomised, survey
from edgeprune.records import Groups
from edgeprune.stages import allocation
from edgeprune.stages.compile import Compiler

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "models.md"
TARGETS = {"ORT": "local", "OpenVINO": "local-openvino", "TFLite": "local-tflite"}
MARK = "<!-- below: written by tests/models -->\n"


@pytest.fixture(scope="module")
def benches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Bench]]:
    scratch = tmp_path_factory.mktemp("scratch")
    with ExitStack() as stack:
        benches = {}
        for name, target in TARGETS.items():
            own = scratch / name
            own.mkdir()
            bench = open_bench(toml.read_target(ROOT / "targets" / f"{target}.toml"), own)
            benches[name] = stack.enter_context(bench)
        yield benches


def test_the_page_is_up_to_date(benches: dict[str, Bench], tmp_path: Path) -> None:
    rows = [_row(title, benches, tmp_path / str(i)) for i, title in enumerate(ZOO)]
    head, _, before = PAGE.read_text().partition(MARK)
    after = "\n".join(["", *_table(rows), "", "## What is locked, and why", "", *_reasons(rows), ""])
    PAGE.write_text(head + MARK + after)
    assert before == after, f"{PAGE.name} was out of date and has been rewritten; check the difference"
    ours = sum(row["free"] > 0 for row in rows)
    assert ours > sum(row["torch_pruning"] == "yes" for row in rows)


@pytest.mark.parametrize("title", ZOO)
def test_every_pruned_architecture_can_be_refitted(title: str) -> None:
    torch.manual_seed(0)
    model, inputs = ZOO[title]()
    model = opened(randomised(model)).eval()
    groups = survey(model, inputs)
    batches = [(tuple(_others(tensor) for tensor in inputs), torch.zeros(len(inputs[0]))) for _ in range(8)]
    found = CRITERIA["loss-curves"](model, groups, batches, lambda out, _: tensors(out)[0].square().mean())
    assert all(np.isfinite(curve).all() for curve in found.curves.values())
    keep = {group.name: allocation.best_units(group, found, max(1, group.width // 2)) for group in groups.free}
    recipe = make_recipe(groups, keep)
    small = cut(model, recipe, inputs)
    reference = observe(model, batches)
    fits = refit_separately, refit_sequentially
    fitted = [fit(model, small, recipe, reference) for fit in fits]
    inputs, expected = reference.held_out
    with torch.no_grad():
        plain, *far = (float(tensors(net(*inputs))[0].dist(expected[0])) for net in (small, *fitted))
    assert max(far) <= plain


def _others(tensor: Tensor) -> Tensor:
    """Different inputs of the same kind."""
    return torch.randn_like(tensor) if tensor.is_floating_point() else tensor.roll(int(torch.randint(16, ())), -1)


def _row(title: str, benches: dict[str, Bench], folder: Path) -> dict[str, Any]:
    torch.manual_seed(0)
    model, inputs = ZOO[title]()
    given = randomised(model)
    model = opened(given)
    groups = survey(model, inputs)
    keep = {group.name: range(0, group.width, 2) for group in groups.free}
    small = cut(model, make_recipe(groups, keep), inputs)  # raises if it is not proved
    return {
        "title": title,
        "groups": groups,
        "free": len(groups.free),
        "share": 1 - groups.macs(groups.least()) / groups.macs(groups.full()),
        "runs": {name: _runs(bench, small, inputs, groups, folder / name) for name, bench in benches.items()},
        "torch_pruning": _torch_pruning(given, inputs, groups),
    }


def _runs(bench: Bench, model: nn.Module, inputs: tuple[Tensor, ...], groups: Groups, folder: Path) -> str:
    """Whether the runtime computes the same as torch: "yes", or its error."""
    random = torch.Generator().manual_seed(0)
    inputs = tuple(torch.randn(x.shape, generator=random) if x.is_floating_point() else x for x in inputs)
    folder.mkdir(parents=True)
    try:
        runtime = runtimes.host(bench._target.runtime)
        artifact = Compiler(runtime, "fp32").compile(model, inputs, groups.folds, folder, "")
        got = bench.outputs(artifact.files[0], [x.numpy()[None] for x in inputs])[0]
    except EdgepruneError as error:
        return f"no: {str(error)[:120]}"
    with torch.no_grad():
        expected = tensors(model(*inputs))[0].numpy()
    error = np.abs(got.reshape(expected.shape) - expected).max() / np.abs(expected).max()
    return "yes" if error < 1e-3 else f"no: off by {error:.1g} of the largest output"


# ------------------------------------------------------------------------------------------------- Torch-Pruning


def _torch_pruning(model: nn.Module, inputs: tuple[Tensor, ...], groups: Groups) -> str:
    """Cut half of everything by Torch-Pruning's own pruner, except output layers.

    Does the network run? Does it compute the same as the original with the same channels at zero?
    """
    tp = pytest.importorskip("torch_pruning")
    cut, masked = copy.deepcopy(model), copy.deepcopy(model)
    outputs = [g.name for g in groups.groups if g.locked == "output of the model"]
    ignored = [cut.get_submodule(name) for name in outputs if dict(cut.named_modules()).get(name)]
    names = {id(module): path for path, module in cut.named_modules()}
    removed = _Removed(masked, names)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importance = tp.importance.MagnitudeImportance(p=2)
            given = inputs if len(inputs) > 1 else inputs[0]
            pruner = tp.pruner.MagnitudePruner(cut, given, importance, pruning_ratio=0.5, ignored_layers=ignored)
            before = weights.count_parameters(cut)
            for group in pruner.step(interactive=True):
                for dependency, indices in group:
                    removed.note(dependency, indices, pruner.DG)
                group.prune()
    except Exception as error:  # noqa: BLE001 - its error is the answer
        return f"no: {type(error).__name__} while tracing or cutting"
    if weights.count_parameters(cut) == before:
        return "no: cuts nothing"
    try:
        with torch.no_grad():
            got, expected = tensors(cut(*inputs)), tensors(masked(*inputs))
    except Exception as error:  # noqa: BLE001
        return f"no: {type(error).__name__} in the pruned network's forward"
    if not removed.known:
        return "runs"
    same = all(
        a.shape == b.shape and torch.allclose(a, b, atol=1e-4 * float(b.abs().max()))
        for a, b in zip(got, expected, strict=True)
    )
    return "yes" if same else "runs, but differs"


class _Removed:
    """Sets to zero in the original what Torch-Pruning removes from the copy. Its indices count earlier removals."""

    def __init__(self, masked: nn.Module, names: dict[int, str]) -> None:
        self.masked, self.names, self.known = masked, names, True
        self._remaining: dict[tuple[str, int], list[int]] = {}

    def note(self, dependency: Any, indices: list[int], graph: Any) -> None:
        layer = dependency.target.module
        path = self.names.get(id(layer))
        out = graph.is_out_channel_pruning_fn(dependency.handler)
        transposed = isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)
        match layer:
            case nn.Conv1d() | nn.Conv2d() | nn.Conv3d() if layer.groups == 1 or layer.groups == layer.in_channels:
                dim = 0 if out or layer.groups > 1 else 1
            case nn.ConvTranspose2d() if layer.groups == 1:
                dim = 1 if out else 0
            case nn.Linear():
                dim = 0 if out else 1
            case nn.modules.batchnorm._BatchNorm() | nn.LayerNorm() | nn.GroupNorm():
                dim, out = 0, True
            case nn.Embedding():
                dim, out = 1, False
            case _ if type(layer).__module__.startswith("torch_pruning"):
                return  # its own nodes for reshapes, concatenations and element-wise operators
            case _:
                self.known = False
                return
        if path is None:
            self.known = False
            return
        self._zero(path, "weight", dim, indices)
        if (out or (dim == 0 and not transposed)) and getattr(layer, "bias", None) is not None:
            self._zero(path, "bias", 0, indices)

    def _zero(self, path: str, name: str, dim: int, indices: list[int]) -> None:
        parameter = getattr(self.masked.get_submodule(path), name)
        remaining = self._remaining.setdefault((f"{path}.{name}", dim), list(range(parameter.shape[dim])))
        original = [remaining[i] for i in indices]
        self._remaining[f"{path}.{name}", dim] = [i for i in remaining if i not in set(original)]
        with torch.no_grad():
            parameter.index_fill_(dim, torch.tensor(original, dtype=torch.long), 0)


# ---------------------------------------------------------------------------------------------------------- page


def _table(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield "| architecture | groups cut | of | removable MACs | blocks | ORT | OpenVINO | TFLite | Torch-Pruning |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for row in rows:
        groups = row["groups"]
        cells = (
            row["title"],
            row["free"],
            len(groups.groups),
            f"{100 * row['share']:.0f}%",
            len(groups.blocks),
            *row["runs"].values(),
            row["torch_pruning"],
        )
        yield f"| {' | '.join(map(str, cells))} |"
    ours, theirs = sum(row["free"] > 0 for row in rows), sum(row["torch_pruning"] == "yes" for row in rows)
    ran = sum(row["torch_pruning"].startswith(("yes", "runs")) for row in rows)
    yield ""
    yield f"Of {len(rows)} architectures edgeprune cuts {ours}, each proved. Torch-Pruning's pruned network runs for {ran}"
    yield f"of them, and is the same as the masked original for {theirs}."


def _reasons(rows: list[dict[str, Any]]) -> Iterator[str]:
    for row in rows:
        by_reason: dict[str, list[str]] = {}
        for group in row["groups"].groups:
            if group.locked is not None and group.width > 1:
                by_reason.setdefault(_without_figures(group.locked), []).append(f"`{group.name}`")
        own = [f"{reason}: {', '.join(names)}" for reason, names in by_reason.items()]
        yield f"- **{row['title']}**: " + "; ".join(own or ["nothing"]) + "."


def _without_figures(reason: str) -> str:
    """A reason without numbers that differ between machines."""
    return reason.partition(" by ")[0].partition(" (largest")[0][:160]
