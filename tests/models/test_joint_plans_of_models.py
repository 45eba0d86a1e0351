"""Whatever the planner may return for an architecture of docs/models.md can be cut and exported (make test-models)."""

from __future__ import annotations

import pytest
import torch
from test_joint_plans import proved
from zoo import ZOO

from edgeprune.errors import UsageError
from edgeprune.network.cut import formed
from edgeprune.network.survey import survey
from edgeprune.runtimes.formats import FORMATS


@pytest.mark.parametrize("title", ZOO)
def test_any_joint_plan_of_an_architecture_is_cut_and_exported(title: str) -> None:
    torch.manual_seed(0)
    model, inputs = ZOO[title]()
    try:
        FORMATS["onnx"].export(model.eval(), inputs, ())
    except UsageError as error:  # such as a Fourier transform
        pytest.skip(str(error))
    groups = survey(model, inputs)
    for number, small in enumerate(proved(formed(model, groups, inputs), inputs, groups, 6)):
        if number < 2:  # the least one, and a random one
            assert FORMATS["onnx"].export(small, inputs, groups.folds)
