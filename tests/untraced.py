"""Coverage does not look into torch's exporters. They run millions of lines, and none of them is edgeprune's."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch


def _untraced(work: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(work)
    def call(*arguments: Any, **named: Any) -> Any:
        tracer = sys.gettrace()
        sys.settrace(None)
        try:
            return work(*arguments, **named)
        finally:
            sys.settrace(tracer)

    return call


def exporters() -> None:
    """Stop tracing while they run, in this process."""
    torch.export.export = _untraced(torch.export.export)
    torch.onnx.export = _untraced(torch.onnx.export)
