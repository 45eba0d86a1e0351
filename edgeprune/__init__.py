"""Latency-driven structured pruning for edge devices: from a PyTorch model to a verified, faster artifact.

This module holds the public names and nothing else. Python loads each name when it is first used. So `import edgeprune`
is instant and imports no torch. The version stands in pyproject.toml alone.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeprune.api import (
        check,
        compile,  # noqa: A004
        deploy,
        finetune,
        groups,
        history,
        load,
        plan,
        profile,
        prune,
        releases,
        rollback,
        run,
        setup,
        verify,
    )

    __version__: str

__all__ = [
    "check",
    "compile",
    "deploy",
    "finetune",
    "groups",
    "history",
    "load",
    "plan",
    "profile",
    "prune",
    "releases",
    "rollback",
    "run",
    "setup",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("edgeprune")
    if name not in __all__:
        raise AttributeError(f"module 'edgeprune' has no attribute {name!r}")
    return getattr(import_module("edgeprune.api"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
