"""The records that flow through the pipeline: frozen data classes of the standard library."""

from __future__ import annotations

from edgeprune.records.budget import Budget
from edgeprune.records.device import CROWDED, THROTTLED_NOW, Conditions, Device, Interval, Run, Samples
from edgeprune.records.digests import digest
from edgeprune.records.network import (
    Block,
    Group,
    Groups,
    Layer,
    Recipe,
    Slot,
    Span,
    Survey,
    SurveyedGroup,
    Widths,
    output_dim,
)
from edgeprune.records.plan import Confirmed, Epoch, Plan, Round, Scores
from edgeprune.records.profile import Experiment, ExplainedGroup, ExplainedLayer, Explanation, Profile
from edgeprune.records.project import Preprocess, Project
from edgeprune.records.release import Manifest, Release
from edgeprune.records.result import Result
from edgeprune.records.target import Deployment, Host, Prepare, Target
from edgeprune.records.verdict import (
    Artifact,
    Baseline,
    Candidate,
    Check,
    Choice,
    Figures,
    Finding,
    History,
    Measurement,
    Outcome,
    Record,
    Report,
    Shift,
    Verdict,
)

__all__ = [
    "CROWDED",
    "THROTTLED_NOW",
    "Artifact",
    "Baseline",
    "Block",
    "Budget",
    "Candidate",
    "Check",
    "Choice",
    "Conditions",
    "Confirmed",
    "Deployment",
    "Device",
    "Epoch",
    "Experiment",
    "ExplainedGroup",
    "ExplainedLayer",
    "Explanation",
    "Figures",
    "Finding",
    "Group",
    "Groups",
    "History",
    "Host",
    "Interval",
    "Layer",
    "Manifest",
    "Measurement",
    "Outcome",
    "Plan",
    "Prepare",
    "Preprocess",
    "Profile",
    "Project",
    "Recipe",
    "Record",
    "Release",
    "Report",
    "Result",
    "Round",
    "Run",
    "Samples",
    "Scores",
    "Shift",
    "Slot",
    "Span",
    "Survey",
    "SurveyedGroup",
    "Target",
    "Verdict",
    "Widths",
    "digest",
    "output_dim",
]
