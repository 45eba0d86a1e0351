"""Latency-driven structured pruning for edge devices: from a PyTorch model to a verified, faster artifact.

    import edgeprune

    project = edgeprune.Project(model, example_inputs, train=train_loader, valid=valid_loader, metric=accuracy)
    result = project.compress(target="raspberrypi", budget="12 ms")

This module only holds the public names. Python loads each name at its first use. So `import edgeprune` is fast and does not
import torch. The version is defined in pyproject.toml.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeprune.api.fleets import bundle, deploy, releases, rollback, withdraw
    from edgeprune.api.project import Project
    from edgeprune.api.series import compare, front
    from edgeprune.api.sweeps import sweep
    from edgeprune.api.verbs import (
        bench,
        check,
        compile,  # noqa: A004
        finetune,
        finish,
        groups,
        history,
        load,
        plan,
        profile,
        prune,
        run,
        setup,
        verify,
    )

    __version__: str

__all__ = [
    "Project",
    "bench",
    "bundle",
    "check",
    "compare",
    "compile",
    "deploy",
    "finetune",
    "finish",
    "front",
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
    "sweep",
    "verify",
    "withdraw",
]
MODULES = {  # of the names that are not in `edgeprune.api.verbs`
    "Project": "edgeprune.api.project",
    **dict.fromkeys(("compare", "front"), "edgeprune.api.series"),
    "sweep": "edgeprune.api.sweeps",
    **dict.fromkeys(("bundle", "deploy", "releases", "rollback", "withdraw"), "edgeprune.api.fleets"),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("edgeprune")
    if name not in __all__:
        raise AttributeError(f"module 'edgeprune' has no attribute {name!r}")
    return getattr(import_module(MODULES.get(name, "edgeprune.api.verbs")), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
