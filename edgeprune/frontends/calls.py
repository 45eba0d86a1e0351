"""Samples as calls of an artifact, whose batch size is fixed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor


def first(samples: Tensor, most: int | None, dim: int) -> Tensor:
    """At most so many of the samples that are in a dimension; None keeps all."""
    return samples if most is None else samples.narrow(dim, 0, min(most, samples.shape[dim]))


def calls(arrays: Sequence[np.ndarray], size: int, dims: Sequence[int]) -> list[np.ndarray]:
    """Samples as calls with the batch size `size`: (calls, *shape of a call) each.

    The last call is filled up with copies of the first sample.

    Args:
        arrays: the samples of each input.
        size: samples of a call.
        dims: the dimension of each array that holds the samples.
    """
    found = []
    for array, dim in zip(arrays, dims, strict=True):
        samples = np.moveaxis(array, dim, 0)
        filled = np.concatenate([samples, samples[:1].repeat(-len(samples) % size, axis=0)])
        split = filled.reshape(-1, size, *samples.shape[1:])
        found.append(np.ascontiguousarray(np.moveaxis(split, 1, 1 + dim)))
    return found


def joined(arrays: Sequence[np.ndarray], count: int, dims: Sequence[int]) -> list[np.ndarray]:
    """The first samples of calls, (calls, *shape of a call) each, with the samples in these dimensions: `calls` undone."""
    found = []
    for array, dim in zip(arrays, dims, strict=True):
        samples = np.moveaxis(array, 1 + dim, 1)
        found.append(np.moveaxis(samples.reshape(-1, *samples.shape[2:])[:count], 0, dim))
    return found
