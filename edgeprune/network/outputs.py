"""The tensors in what a model returns."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree


def tensors(outputs: Any) -> list[Tensor]:
    """All tensors in a model's outputs (nested tuples, lists and dictionaries), in order."""
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]
