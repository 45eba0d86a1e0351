"""All stages of the pipeline, in their order, and the inputs that they read."""

from __future__ import annotations

from edgeprune.pipeline.stage import Rules
from edgeprune.stages import compile as compiling
from edgeprune.stages import (
    confirm,
    finetune,
    plan,
    precision,
    profile,
    prune,
    reference,
    scores,
    survey,
    trial,
    unpruned,
    verify,
)
from edgeprune.stages.inputs import INPUTS

STAGES = (
    trial.STAGE,
    survey.STAGE,
    survey.TRACE,
    compiling.ORIGINAL,
    precision.STAGE,
    unpruned.STAGE,
    reference.STAGE,
    profile.STAGE,
    scores.STAGE,
    plan.STAGE,
    confirm.STAGE,
    prune.STAGE,
    finetune.STAGE,
    compiling.STAGE,
    verify.STAGE,
)
RULES = Rules({stage.name: stage for stage in STAGES}, INPUTS)
