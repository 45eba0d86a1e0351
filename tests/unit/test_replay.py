"""Networks that run again from the middle give the results of a whole run, in bounded memory."""

from __future__ import annotations

import copy
from typing import Any

import nets
import pytest
import torch
from torch import Tensor, nn

from edgeprune.network.replay import Tape, advance


class InPlace(nn.Module):
    """Operations in place on results, on a view, and on the input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(6, 6) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2)
        y = self.first(x).relu_()
        half = y[:, :3]
        z = self.second(y)
        half.add_(1)
        return self.third(z.add_(y)) + x


class Branching(nn.Module):
    """Python reads a number that an operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> dict[str, Any]:
        y = self.first(x)
        if float(y.abs().sum()) > 0:
            y = y.tanh()
        return {"y": y, "z": (self.second(y), 3)}


CASES: dict[str, tuple[nn.Module, Tensor]] = {
    "residual": (nets.Residual(), torch.randn(3, 3, 16, 16)),
    "depthwise": (nets.Depthwise(), torch.randn(3, 3, 16, 16)),
    "in place": (InPlace(), torch.randn(3, 6)),
    "branching": (Branching(), torch.randn(3, 4)),
    "transformer": (nn.TransformerEncoderLayer(8, 2, batch_first=True), torch.randn(2, 5, 8)),
    "recurrent": (nn.LSTM(4, 4, 2, batch_first=True), torch.randn(2, 5, 4)),
}


def same(first: Any, second: Any) -> None:
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_a_run_from_the_middle_equals_a_whole_run(name: str) -> None:
    model, x = CASES[name][0].eval(), CASES[name][1]
    tape, output = Tape.recorded(model, (x,))
    with torch.no_grad():
        same(output, model(x.clone()))
        for parameter in sorted((n for n, _ in model.named_parameters()), key=lambda n: tape.first_use([n])):
            tape.advance(model, tape.first_use([parameter]))
            changed = copy.deepcopy(model)
            changed.get_parameter(parameter).mul_(0.5)
            expected = changed(x.clone())
            for _ in range(2):  # a run leaves the kept results as they are
                same(tape.run(changed), expected)


class Counted(nn.Module):
    """Counts how many samples it really computes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).relu()
        return x


def test_operations_before_the_change_are_not_executed() -> None:
    model = Counted().eval()
    tape, _ = Tape.recorded(model, (torch.randn(3, 4),))
    tape.advance(model, tape.first_use(["layers.4.weight"]))
    with torch.no_grad():
        model.layers[0].weight.fill_(float("nan"))  # nobody reads it
    assert bool(tape.run(model).isfinite().all())


def test_memory_does_not_grow_with_depth() -> None:
    def kept(depth: int) -> int:
        model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(depth))).eval()
        tape, _ = Tape.recorded(model, (torch.randn(100, 4),))
        tape.advance(model, tape.first_use([f"{depth - 1}.weight"]))
        return tape.kept_bytes

    assert kept(3) == kept(30) == 100 * 4 * 4


def test_tapes_keep_no_more_than_the_cap() -> None:
    model = Counted().eval()
    inputs = [torch.randn(100, 4) for _ in range(4)]
    tapes = [Tape.recorded(model, (x,))[0] for x in inputs]
    advance(tapes, model, ["layers.3.weight"], 2 * 1600)
    assert sum(tape.kept_bytes for tape in tapes) == 2 * 1600
    with torch.no_grad():
        model.layers[3].weight.mul_(2)
        for tape, x in zip(tapes, inputs, strict=True):  # those without kept results execute everything
            same(tape.run(model), model(x))


def test_another_network_is_executed_as_a_whole() -> None:
    model, x = Counted().eval(), torch.randn(3, 4)
    tape, _ = Tape.recorded(model, (x,))
    tape.advance(model, tape.first_use(["layers.4.weight"]))
    other = copy.deepcopy(model)
    other.layers[1] = nn.Sequential(nn.Tanh(), nn.Linear(4, 4))
    with torch.no_grad():
        same(tape.run(other), other(x))


def test_a_network_whose_kept_results_are_not_enough_is_executed_as_a_whole() -> None:
    class Late(Counted):
        """Reads an early result once more."""

        late = False

        def forward(self, x: Tensor) -> Tensor:
            first = self.layers[0](x)
            y = first
            for layer in self.layers[1:]:
                y = layer(y).relu()
            return y + first if self.late else y

    model, x = Late().eval(), torch.randn(3, 4)
    tape, _ = Tape.recorded(model, (x,))
    tape.advance(model, tape.first_use(["layers.5.weight"]))
    model.late = True
    with torch.no_grad():
        same(tape.run(model), model(x))
