"""What the runs of one process share: the user's model and data are built and read once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from edgeprune.pipeline.run import Run
from edgeprune.pipeline.stage import Input, Rules
from edgeprune.records import digest

# Inputs that no target and no budget matters to. Stages leave their values as they found them.
SHARED = (
    *("network", "samples", "train", "augmented", "valid", "test", "loss", "metric", "calibration"),
    *("confirmed_ahead", "timed_ahead"),  # by what they belong to
)


def shared(rules: Rules) -> Rules:
    """The same rules, for several runs of one project. Equal inputs of these runs are one object.

    With `fresh`, they redo each stage once.

    Two values of an input are equal if its part of the keys is.
    """
    known: dict[str, Any] = {}
    inputs = {name: _remembered(name, one, known) if name in SHARED else one for name, one in rules.inputs.items()}
    return replace(rules, inputs=inputs, redone=set())


def _remembered(name: str, one: Input, known: dict[str, Any]) -> Input:
    def value(run: Run) -> Any:
        key = digest([name, dict(one.settings(run)), dict(one.machine(run))])
        if key not in known:
            known[key] = one.value(run)
        return known[key]

    return replace(one, value=value)
