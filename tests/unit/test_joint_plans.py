"""Whatever the planner may return can be cut and exported: widths, all or some blocks of a stage, every group at its least."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from functools import cache

import nets
import pytest
import torch
from nets import NETS, Blocks, Inner, image, inputs_of
from torch import Tensor, nn

from edgeprune.graph.groups import candidate_widths, make_recipe
from edgeprune.network.cut import cut_as_is, formed, provable
from edgeprune.network.survey import generic, survey
from edgeprune.records import Groups
from edgeprune.runtimes.formats import FORMATS

Keep = dict[str, tuple[int, ...]]


def least(groups: Groups) -> Keep:
    """One unit of every group, and no block."""
    return {group.name: tuple(range(groups.least()[group.name])) for group in groups.free}


def plans(groups: Groups, count: int) -> Iterator[Keep]:
    """Random plans. Blocks of one stage are removed together, or each by chance, or not at all."""
    drawn = random.Random(0)
    stages: dict[str, list[str]] = defaultdict(list)
    for block in groups.blocks:
        stages[block.name.rpartition(".")[0]].append(block.name)
    for _ in range(count):
        gone: set[str] = set()
        for blocks in stages.values():
            share = drawn.choice((0.0, 0.5, 1.0))
            gone.update(name for name in blocks if drawn.random() < share)
        inner = {group for block in groups.blocks if block.name in gone for group in block.groups}
        widths = {g.name: 0 if g.name in inner else drawn.choice((1, *candidate_widths(g))) for g in groups.free}
        yield {g.name: tuple(sorted(drawn.sample(range(g.width), widths[g.name]))) for g in groups.free}


def proved(original: nn.Module, inputs: tuple[Tensor, ...], groups: Groups, count: int) -> Iterator[nn.Module]:
    """The networks of some plans, and of the least one, each proved."""
    whole = provable(original, groups, inputs)  # once for all cuts
    for keep in (least(groups), *plans(groups, count)):
        yield cut_as_is(original, make_recipe(groups, keep), inputs, whole)


@cache
def surveyed(name: str) -> tuple[nn.Module, tuple[Tensor, ...], Groups]:
    """One of `NETS` in the form to cut, its example inputs and its groups. Tests must not change them."""
    torch.manual_seed(0)
    return prepared(NETS[name](), inputs_of(name), nets.surveyed(name))


def prepared(
    model: nn.Module, inputs: tuple[Tensor, ...], groups: Groups
) -> tuple[nn.Module, tuple[Tensor, ...], Groups]:
    """The same of any network."""
    return formed(generic(model, inputs), groups, inputs), inputs, groups


@pytest.mark.parametrize("name", NETS)
def test_every_free_group_survives_any_cut(name: str) -> None:
    model, inputs, groups = surveyed(name)
    assert groups.free
    original = provable(model, groups, inputs)  # once for all cuts
    for group in groups.free:
        for kept in ({0}, {group.width - 1}, set(range(1, group.width)) or {0}):
            cut_as_is(model, make_recipe(groups, {group.name: sorted(kept)}), inputs, original)


@pytest.mark.parametrize("name", NETS)
def test_any_joint_plan_of_a_small_network_is_cut(name: str) -> None:
    assert len(list(proved(*surveyed(name), 3))) == 4


class Iterated(Blocks):
    """Its forward takes the blocks of a stage one by one, so their container must stay."""

    def __init__(self) -> None:
        super().__init__()
        self.stage = nn.ModuleList([nn.ModuleDict({"blocks": nn.ModuleList([Inner(6), Inner(4)])})])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.stage[0]["blocks"]:
            x = block(x)
        return self.fc(self.attending(x.flatten(2).transpose(1, 2)).mean(1))


class Counted(Blocks):
    """A stage that returns all its results."""

    def __init__(self) -> None:
        super().__init__()
        self.stage = Stage()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.stage(self.stem(x))[-1].mean((2, 3)))


class Stage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Inner(6), Inner(4))

    def forward(self, x: Tensor) -> list[Tensor]:
        found = [x]
        for block in self.blocks:
            found.append(block(found[-1]))
        return found


@pytest.mark.parametrize("net", [Iterated, Counted])
def test_all_blocks_of_a_stage_may_be_removed(net: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = net()
    original, inputs, groups = prepared(model, image(), survey(model, image()))
    small, *_ = proved(original, inputs, groups, 3)
    assert len(groups.blocks) >= 2
    assert not any(isinstance(module, Inner) for module in small.modules())
    assert FORMATS["onnx"].export(small, inputs, groups.folds)
