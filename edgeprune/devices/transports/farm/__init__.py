"""Boards of a labgrid coordinator. Only this package imports labgrid, which the extra `farm` installs."""

from __future__ import annotations

from edgeprune.devices.transports.farm.borrowed import Borrowed, commands
from edgeprune.devices.transports.farm.coordinator import Farm, Place, address_of, free_left

__all__ = ["Borrowed", "Farm", "Place", "address_of", "commands", "free_left"]
