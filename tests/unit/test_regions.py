"""Code under autocast, without gradients, under a checkpoint or of a condition is traced like any other."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from edgeprune.graph.groups import make_recipe
from edgeprune.network.cut import cut
from edgeprune.network.survey import randomised, survey


def autocast(net: Net, x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return net.b(x).relu() * x.sum(1, keepdim=True)


def without_gradients(net: Net, x: Tensor) -> Tensor:
    with torch.no_grad():
        x = torch.relu(x - 1)
        with torch.autocast("cpu", enabled=False):
            return net.b(x).relu()


def checkpoint(net: Net, x: Tensor) -> Tensor:
    made: Tensor = torch.utils.checkpoint.checkpoint(lambda y: net.b(y).relu(), x, use_reentrant=False)
    return made


def constant_condition(net: Net, x: Tensor) -> Tensor:
    made: Tensor = torch.cond(torch.tensor(True), lambda y: net.b(y).relu(), lambda y: net.other(y), (x,))
    return made


def condition(net: Net, x: Tensor) -> Tensor:
    made: Tensor = torch.cond(x.sum() > 0, lambda y: net.b(y).relu(), lambda y: net.other(y), (x,))
    return made


class Net(nn.Module):
    def __init__(self, region: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.other, self.fc = (
            nn.Conv2d(3, 8, 1),
            nn.Conv2d(8, 10, 1),
            nn.Conv2d(8, 10, 1),
            nn.Linear(10, 5),
        )
        self.region = region

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.region(self, self.a(x).relu()).mean((2, 3)))


@pytest.mark.parametrize("region", [autocast, without_gradients, checkpoint, constant_condition, condition])
def test_the_layers_of_a_region_are_cut_and_count(region: Callable[[Net, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    inputs = (torch.randn(1, 3, 4, 4),)
    groups = survey(Net(region), inputs)
    assert not groups.unknown_operators
    assert {group.name: group.width for group in groups.free} == {"a": 8, "b": 10}
    both = region is condition
    assert [layer.name for layer in groups.layers] == ["a", "b", *["other"] * both, "fc"]
    cut(randomised(Net(region)), make_recipe(groups, {"a": [0, 3, 4], "b": [1, 7]}), inputs)
