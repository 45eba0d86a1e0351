"""Code that uses the batch size as a Python number: its graph takes any batch size, or one line says why not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from nets import image
from torch import Tensor, nn

from edgeprune.errors import CutError, UsageError
from edgeprune.graph.editable import as_graph
from edgeprune.graph.groups import make_recipe
from edgeprune.network.cut import cut
from edgeprune.network.survey import randomised, survey

FILE = Path(__file__).name
LINES = Path(__file__).read_text().splitlines()


def line(code: str) -> str:
    return f"{FILE}:{next(number for number, text in enumerate(LINES, start=1) if code in text)}"


def length(x: Tensor) -> Tensor:
    return x.reshape(len(x), 2, 8, 64).transpose(1, 2).reshape(len(x), 16, 8, 8)


def integer(x: Tensor) -> Tensor:
    batch = int(x.shape[0])
    return x.view(batch * 2, 8, 8, 8).relu().view(batch, 16, 8, 8) + torch.zeros(batch, 16, 1, 1)


def with_an_offset(x: Tensor) -> Tensor:
    return torch.cat([x, x.mean(0, keepdim=True)]).narrow(0, 1, len(x)) * torch.arange(len(x) + 1)[1:, None, None, None]


def sizes(x: Tensor) -> Tensor:
    shape = [len(x), *x.shape[1:]]
    shape[1] = 8
    return torch.cat([x[:, 8:] * x[:, :8], torch.ones(shape)], 1)


# Name -> (operation of 16 channels, widths of the groups that can be cut)
NUMBERS: dict[str, tuple[Callable[[Tensor], Tensor], list[int]]] = {
    "length": (length, [2, 8]),
    "integer": (integer, [2, 8]),
    "offset": (with_an_offset, [16]),
    "sizes": (sizes, [8, 8]),
}


class Net(nn.Module):
    def __init__(self, body: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.a, self.b = body, nn.Conv2d(3, 16, 1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.body(self.a(x).relu())).mean((2, 3))


@pytest.mark.parametrize("name", NUMBERS)
def test_the_graph_takes_any_batch_and_all_its_channels_can_be_cut(name: str) -> None:
    torch.manual_seed(0)
    body, widths = NUMBERS[name]
    model = Net(body).eval()
    graph = as_graph(model, image())
    for batch in (1, 2, 5):
        x = torch.randn(batch, 3, 8, 8)
        torch.testing.assert_close(graph(x), model(x))
    groups = survey(model, image())
    assert sorted(group.width for group in groups.free) == widths
    pruned = cut(randomised(model), make_recipe(groups, {g.name: range(g.width // 2) for g in groups.free}), image())
    assert pruned(torch.randn(5, 3, 8, 8)).shape == (5, 4)


def looped(x: Tensor) -> Tensor:
    return torch.cat([x[i].view(2, 8, 64).sum(0).view(1, 8, 8, 8).repeat(1, 2, 1, 1) for i in range(len(x))])


def counted(x: Tensor) -> Tensor:
    return x.view(-1, 2, 8, 64).flatten(1, 2).unflatten(2, (8, 8)) * (1 / len(x))


@pytest.mark.parametrize("body", [looped, counted])
def test_other_uses_of_the_batch_size_are_named_with_the_line_of_the_forward(body: Callable[[Tensor], Tensor]) -> None:
    model, code = Net(body).eval(), "self.body(self.a(x).relu())"
    with pytest.raises(CutError, match="depends on the batch size as a Python number") as caught:
        as_graph(model, image())
    assert line(code) in str(caught.value) and "\n" not in str(caught.value)
    reasons = [group.locked or "" for group in survey(model, image()).groups if group.name == "a"]
    assert any("a trial cut fails" in reason and line(code) in reason for reason in reasons)


class Asking(nn.Module):
    """Its code depends on values."""

    def __init__(self, body: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.a, self.b = body, nn.Linear(3, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.body(self.a(x)))


def branching(x: Tensor) -> Tensor:
    return x if x.sum() > 0 else -x


def listing(x: Tensor) -> Tensor:
    return x * max(x.tolist()[0])


def selecting(x: Tensor) -> Tensor:
    return x[x[:, 0] > 0]


@pytest.mark.parametrize(
    ("body", "code"),
    [(branching, "if x.sum() > 0"), (listing, "x.tolist()"), (selecting, "self.body(self.a(x)))")],
)
def test_code_that_depends_on_values_is_named_with_its_line_and_the_remedy(
    body: Callable[[Tensor], Tensor], code: str
) -> None:
    with pytest.raises(UsageError, match=r"depends on (the )?values of a tensor.*torch\.where") as caught:
        survey(Asking(body), (torch.randn(2, 3),))
    assert line(code) in str(caught.value) and "\n" not in str(caught.value)


def test_one_number_of_a_tensor_may_scale_the_others() -> None:
    """torch.export keeps `.item()` as an operator."""

    def scaled(x: Tensor) -> Tensor:
        return x / (1 + x.square().sum().item())

    groups = survey(Asking(scaled), (torch.randn(2, 3),))
    assert [group.width for group in groups.free] == [8]
