"""Pictures of a run: pure functions from records to an SVG, an alternative text and the rows of a table.

matplotlib draws them. It is imported when the first one is drawn; `RuntimeMissing` says how to install it.
"""

from __future__ import annotations

from edgeprune.reports.pictures.measuring import DOTS, differences, drift, history, processes
from edgeprune.reports.pictures.network import network
from edgeprune.reports.pictures.planning import Marked, Point, comparison, confirmed, front, latency_by_width
from edgeprune.reports.pictures.svg import FONT, STYLE, Picture
from edgeprune.reports.pictures.training import training

__all__ = [
    "DOTS",
    "FONT",
    "STYLE",
    "Marked",
    "Picture",
    "Point",
    "comparison",
    "confirmed",
    "differences",
    "drift",
    "front",
    "history",
    "latency_by_width",
    "network",
    "processes",
    "training",
]
