"""Importance criteria, by their name in `[prune] importance`."""

from __future__ import annotations

from edgeprune.network.importance.base import Importance
from edgeprune.network.importance.curves import loss_curves
from edgeprune.network.importance.gradients import fisher, taylor
from edgeprune.network.importance.weights import chance, fpgm, magnitude_l1, magnitude_l2, norm_scale

CRITERIA: dict[str, Importance] = {
    "loss-curves": loss_curves,
    "taylor": taylor,
    "fisher": fisher,
    "magnitude-l1": magnitude_l1,
    "magnitude-l2": magnitude_l2,
    "bn-scale": norm_scale,
    "fpgm": fpgm,
    "random": chance,
}

DIFFERENTIATING = frozenset({"loss-curves", "taylor", "fisher"})  # criteria that need the gradient of the loss
