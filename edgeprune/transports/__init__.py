"""Ways to a device, by the name that `[connect] transport` gives."""

from __future__ import annotations

from edgeprune.transports.base import Transport
from edgeprune.transports.local import Local
from edgeprune.types import Target


def connect(target: Target) -> Transport:
    """The transport of a target."""
    return {"local": Local}[target.transport]()
