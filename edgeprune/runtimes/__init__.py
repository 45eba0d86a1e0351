"""Runtimes. Each is one folder: `NAME/host.py` makes its artifacts, `NAME/device.py` runs them on a device.

`NAME/load.cpp` shows how C++ loads a release. Whoever adds a folder adds a runtime: no list names them.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from edgeprune.errors import UsageError

if TYPE_CHECKING:
    from edgeprune.runtimes.base import Runtime


def names() -> tuple[str, ...]:
    """The names that `[runtime] name` may give, sorted."""
    return tuple(sorted(path.parent.name for path in Path(__file__).parent.glob("*/host.py")))


def host(name: str) -> Runtime:
    """The host side of a runtime: it makes artifacts and understands profiles.

    Raises:
        UsageError: there is no runtime of this name.

    Example:
        >>> host("onnxruntime").candidates("auto")
        ('fp32', 'fp16', 'int8')
    """
    if name not in names():
        raise UsageError(f"no runtime {name!r}; known: {', '.join(names())}")
    found: Runtime = importlib.import_module(f"{__name__}.{name}.host").RUNTIME
    return found


def reading(suffix: str) -> Runtime | None:
    """The runtime whose own model files have this suffix."""
    return next((found for found in map(host, names()) if suffix and found.own == suffix), None)


def snippet(name: str) -> Path | None:
    """The C++ file that shows how to load a release of this runtime, or None."""
    path = Path(__file__).parent / name / "load.cpp"
    return path if path.exists() else None
