"""Criteria against small cases worked by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgeprune import network
from edgeprune.errors import UsageError
from edgeprune.importance import CRITERIA


class Two(nn.Module):
    """y = v·w·x with two hidden units and no activation, so that gradients are short."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.v = nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False)
        with torch.no_grad():
            self.w.weight.copy_(torch.tensor([[2.0], [3.0]]))
            self.v.weight.copy_(torch.tensor([[5.0, -1.0]]))

    def forward(self, x: Tensor) -> Tensor:
        return self.v(self.w(x))


def total(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).sum()


def score(name: str, batches: list[tuple[tuple[Tensor, ...], Tensor]]) -> tuple[float, ...]:
    model = Two()
    groups = network.survey(model, (torch.ones(1, 1),))
    return CRITERIA[name](model, groups, batches, total).units["w"]


def test_magnitude_sums_squares_over_all_layers_of_the_group() -> None:
    assert score("magnitude", []) == pytest.approx((2**2 + 5**2, 3**2 + 1**2))


def test_taylor_is_the_squared_sum_of_gradient_times_weight_averaged_over_batches() -> None:
    # d/dw_j = v_j·x and d/dv_j = w_j·x, so Σ g·p = 2·v_j·w_j·x: 20 and -6 for x = 1, twice that for x = 2.
    batches = [((torch.full((1, 1), x),), torch.zeros(1, 1)) for x in (1.0, 2.0)]
    assert score("taylor", batches) == pytest.approx(((400 + 1600) / 2, (36 + 144) / 2))


def test_a_loss_that_is_not_finite_is_named() -> None:
    with pytest.raises(UsageError, match="batch 0"):
        score("taylor", [((torch.full((1, 1), float("nan")),), torch.zeros(1, 1))])


@pytest.mark.parametrize("name", sorted(CRITERIA))
def test_the_model_is_left_as_it_was(name: str) -> None:
    model = Two()
    groups = network.survey(model, (torch.ones(1, 1),))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    CRITERIA[name](model, groups, [((torch.ones(1, 1),), torch.zeros(1, 1))], total)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
