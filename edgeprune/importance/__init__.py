"""Importance criteria, by the name that `[prune] importance` gives."""

from __future__ import annotations

from edgeprune.importance.base import Importance
from edgeprune.importance.magnitude import magnitude
from edgeprune.importance.taylor import taylor

CRITERIA: dict[str, Importance] = {"magnitude": magnitude, "taylor": taylor}
