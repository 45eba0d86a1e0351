"""What runs on the device: one script of the standard library and the runtime. edgeprune only knows its path."""

from __future__ import annotations

from pathlib import Path

AGENT = Path(__file__).with_name("agent.py")
