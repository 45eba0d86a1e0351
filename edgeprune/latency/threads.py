"""One thread of BLAS for the latency model's small matrices."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from typing import ParamSpec, TypeVar

from threadpoolctl import ThreadpoolController

P = ParamSpec("P")
R = TypeVar("R")


def single_threaded(function: Callable[P, R]) -> Callable[P, R]:
    """A function that calls BLAS with one thread.

    Beside other programs, the threads of OpenBLAS wait for each other at every product. A fit to 66 networks took 9 to 17 s
    on two busy cores, and 0.5 to 1.1 s with one thread (ADR 59).
    """

    @wraps(function)
    def called(*args: P.args, **named: P.kwargs) -> R:
        with _controller().limit(limits=1, user_api="blas"):
            return function(*args, **named)

    return called


@cache
def _controller() -> ThreadpoolController:
    """Of the libraries of NumPy and SciPy, which are loaded by now. To look for them takes 2 ms."""
    return ThreadpoolController()
