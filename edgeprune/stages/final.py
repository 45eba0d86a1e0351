"""The network that is compiled and verified: the fine-tuned one. Without a latency budget, it is the original one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from edgeprune.records import Widths

if TYPE_CHECKING:
    from torch import nn

    from edgeprune.frontends.model import Network


@dataclass(frozen=True)
class Final:
    """The network that is compiled.

    Attributes:
        original: the original network.
        tuned: the file of the fine-tuned network; None if the original is compiled.
        source: the digest of what it was made from.
        widths: of all channel groups.
    """

    original: Network
    tuned: Path | None
    source: str
    widths: Widths

    @cached_property
    def module(self) -> nn.Module:
        """The network, in eval mode."""
        from edgeprune.network import weights

        return self.original.module if self.tuned is None else weights.load(self.tuned, self.original.module)
