"""An explanation shows the steps of a device, and the groups with different steps on two (synthetic devices)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from nets import conv, image
from rich.console import Console
from test_latency import profile
from torch import Tensor, nn

from edgeprune.latency.explain import explain, steps
from edgeprune.network.survey import survey
from edgeprune.records import Explanation, Groups
from edgeprune.reports import console
from edgeprune.storage import codec


class Wide(nn.Module):
    """Two convolutions, wide enough to show steps."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = conv(3, 96), conv(96, 64), nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.b(self.a(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def groups() -> Groups:
    return survey(Wide(), image())


@pytest.fixture(scope="module")
def explanation(groups: Groups) -> Explanation:
    fine, coarse = (profile(groups, 60, step, noise=0.0) for step in (1, 16))
    return explain(groups, coarse, {"fine": replace(fine, target="fine")})


def test_two_devices_have_different_steps(explanation: Explanation) -> None:
    assert {group.name: {name: step for name, (step, _) in group.steps.items()} for group in explanation.groups} == {
        "a.0": {"t": 1, "fine": 1},  # most of its latency is in the layer that reads it, which has no steps
        "b.0": {"t": 16, "fine": 1},
    }


def test_layers_have_points_steps_and_shares(groups: Groups, explanation: Explanation) -> None:
    assert [layer.name for layer in explanation.layers] == [layer.name for layer in groups.layers]
    assert sum(layer.share for layer in explanation.layers) + explanation.overhead == pytest.approx(1)
    second = explanation.layers[1]
    assert (second.inputs, second.outputs, second.input_step, second.output_step) == (96, 64, 1, 16)
    assert len(second.points) >= 50 and (96, 64) in {point[:2] for point in second.points}
    assert explanation.layers[0].input_step is None and explanation.layers[-1].output_step is None


@pytest.mark.parametrize("block", [8, 16, 32, 64])
def test_steps_of_a_staircase_are_found(block: int) -> None:
    widths = np.arange(1, 257)
    assert steps(np.ceil(widths / block) * block * 10.0 + 500) == (block, 0.0)


def test_steps_are_found_on_a_slope_with_unaligned_widths_and_with_few_channels() -> None:
    widths = np.arange(1, 129)
    assert steps(widths * 7.0) == (1, pytest.approx(0.0))
    step, extra = steps(widths * np.where(widths % 4 == 0, 1.0, 3.0))
    assert step == 4 and extra == pytest.approx(2.0)
    assert steps(np.arange(1.0, 9.0)) == (1, 0.0)


def test_an_explanation_is_saved_loaded_and_shown(explanation: Explanation, groups: Groups) -> None:
    assert codec.loads(Explanation, codec.dumps(explanation), "file") == explanation
    screen = Console(width=120, record=True)
    console.show(explanation, groups, screen)
    text = screen.export_text()
    assert "multiples of 16" in text and "any" in text and "a.0" in text and "median error" in text
