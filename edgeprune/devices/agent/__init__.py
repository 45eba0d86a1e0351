"""What runs on the device: scripts of the standard library and the runtime. edgeprune only knows their paths."""

from __future__ import annotations

from pathlib import Path

AGENT = Path(__file__).with_name("agent.py")
RELEASING = Path(__file__).with_name("releasing.py")
RUNNER = Path(__file__).with_name("runner.py")
SNIPPETS = Path(__file__).with_name("snippets")
TENSORRT = Path(__file__).with_name("tensorrt.py")
ENGINE = Path(__file__).with_name("engine.py")
