"""Answers that hold a network: it is loaded when it is first used."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from edgeprune.records import Confirmed, Project, Result

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, repr=False)
class Compressed(Result):
    """The result of a whole run, with the network.

    Attributes:
        network: the file of the pruned, fine-tuned network; see `edgeprune.load`.
        project: the project.
    """

    network: Path
    project: Project

    @cached_property
    def model(self) -> nn.Module:
        """The pruned, fine-tuned network, in eval mode. It is called as the original network is."""
        return _loaded(self.network, self.project)


@dataclass(frozen=True, eq=False)
class PrunedNetwork:
    """A pruned network before fine-tuning.

    Attributes:
        project: the project that it is made from.
        target: the target that it is made for.
        confirmed: the plan that was confirmed on the device.
        network: its file; see `edgeprune.load`.
    """

    project: Project
    target: str
    confirmed: Confirmed
    network: Path

    @cached_property
    def model(self) -> nn.Module:
        """The network, in eval mode. It is called as the original network is. Train this object, then `finish`."""
        return _loaded(self.network, self.project)


def _loaded(path: Path, project: Project) -> nn.Module:
    from edgeprune.frontends.model import build_model
    from edgeprune.network import weights

    return weights.load(path, build_model(project))
