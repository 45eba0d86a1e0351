"""Keras for tests. Its import takes seconds, so it waits until a test uses it, and tests are collected without it."""

from __future__ import annotations

from functools import reduce
from typing import Any

import numpy as np

from edgeprune.frontends.keras import files


class Lazy:
    """A module of Keras, imported at the first use of one of its names."""

    def __init__(self, *path: str) -> None:
        self._path = path

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # pytest asks for some while it collects tests
            raise AttributeError(name)
        return reduce(getattr, (*self._path, name), files.require_keras())


keras: Any = Lazy()
L: Any = Lazy("layers")


def Input(*arguments: Any, **keywords: Any) -> Any:
    return keras.Input(*arguments, **keywords)


def randomised(model: Any) -> Any:
    """The model with no weight at its usual first value, so that none can be left out."""
    random = np.random.default_rng(0)
    for weight in model.weights:
        value = keras.ops.convert_to_numpy(weight)
        if value.ndim < 2 and value.dtype.kind == "f":
            weight.assign(value + random.uniform(0.05, 0.3, value.shape))
    return model
