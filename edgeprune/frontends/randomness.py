"""Random numbers that do not depend on what ran before in this process."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

MOST_OBJECTS = 10_000  # that are searched for the generators that data holds
PLAIN = (str, bytes, int, float, bool, type(None), torch.Tensor, np.ndarray, type, type(random))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of torch, numpy and Python, and restore their states at the end."""
    python, legacy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)


class Generators:
    """The random generators that objects hold, such as a DataLoader's, with their first states."""

    def __init__(self, *roots: object) -> None:
        self._found = [(found, copy.deepcopy(_state(found))) for found in _generators(roots)]

    def restart(self, seed: int | None = None) -> None:
        """Reset every generator to its first state, or seed it."""
        for generator, first in self._found:
            if seed is None:
                _restore(generator, first)
            else:
                _restore(generator, _state(_fresh(generator, seed)))


def _generators(roots: tuple[object, ...]) -> list[Any]:
    """The generators that can be reached through attributes and containers, each once, in a fixed order."""
    todo, seen, found = list(roots), set[int](), []
    while todo and len(seen) < MOST_OBJECTS:
        one = todo.pop()
        if isinstance(one, PLAIN) or id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, torch.Generator | np.random.Generator | np.random.RandomState | random.Random):
            found.append(one)
        elif isinstance(one, dict):
            todo += list(one.values())
        elif isinstance(one, list | tuple):
            todo += list(one[:MOST_OBJECTS])
        else:
            todo += list(getattr(one, "__dict__", {}).values())
    return found


def _state(generator: Any) -> Any:
    read: Callable[[], Any]
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    read = generator.getstate if isinstance(generator, random.Random) else generator.get_state
    return read()


def _restore(generator: Any, state: Any) -> None:
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.set_state(state)


def _fresh(generator: Any, seed: int) -> Any:
    """A generator of the same kind, seeded."""
    if isinstance(generator, torch.Generator):
        return torch.Generator(generator.device).manual_seed(seed)
    if isinstance(generator, np.random.Generator):
        return np.random.Generator(type(generator.bit_generator)(seed))
    if isinstance(generator, np.random.RandomState):
        return np.random.RandomState(seed % 2**32)
    return random.Random(seed)  # noqa: S311 - for the order of data, not for secrets
