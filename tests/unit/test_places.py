"""The reason of a lock names the operator, the user's file and line, and what to change."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeprune.graph.trace import trace
from edgeprune.network.survey import survey
from edgeprune.records import Groups

FILE = Path(__file__).name
LINES = Path(__file__).read_text().splitlines()


def line(code: str) -> int:
    """The first line of this file with that code."""
    return next(number for number, text in enumerate(LINES, start=1) if code in text)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.fc, self.norm = nn.Linear(6, 8), nn.Linear(8, 3), nn.Softmax(-1)
        self.register_buffer("place", torch.arange(8.0), persistent=False)


class Selecting(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.fc(x * x[:, 3].unsqueeze(1))


class Adding(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.a(x) + self.place)


class Multiplying(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.fc(x - x.prod(1, keepdim=True))


class Normalising(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.a(x)))


class Limiting(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.a(x).renorm(2, 0, 1.0))


class Sized(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.layer_norm(self.a(x).view(1, 2, 4), (4,)).view(1, 8))


def reason(groups: Groups) -> str:
    return next(group.locked or "" for group in groups.groups if group.name == "a" and group.width > 1)


@pytest.mark.parametrize(
    ("net", "code", "operator", "advice"),
    [
        (Selecting, "x[:, 3]", "select", "use chunk"),
        (Adding, "+ self.place", "add", "make that tensor a parameter"),
        (Multiplying, "x.prod(1", "prod", "a sum, a norm"),
        (Normalising, "self.norm(self", "softmax", "normalises over these channels"),
        (Limiting, ".renorm(2", "renorm", "docs/operators.md"),
    ],
)
def test_a_reason_names_the_operator_the_line_and_the_remedy(
    net: type[Net], code: str, operator: str, advice: str
) -> None:
    found = reason(trace(net(), (torch.randn(1, 6),)))
    assert found.startswith(f"{FILE}:{line(code)}, {operator}: ") and advice in found


def test_an_error_of_the_pruned_network_names_the_line() -> None:
    groups = survey(Sized(), (torch.randn(2, 6)[:1],))
    assert f"{FILE}:{line('.view(1, 8))')}, " in reason(groups)


def test_a_module_is_named_where_no_code_of_the_user_calls_the_operator() -> None:
    groups = trace(nn.Sequential(nn.Linear(6, 8), nn.Softmax(-1), nn.Linear(8, 3)), (torch.randn(1, 6),))
    found = next(group.locked for group in groups.groups if group.name == "0")
    assert (found or "").startswith("module 1, softmax: ")
