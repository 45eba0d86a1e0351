"""Where in the user's code something happens: the file's name and the line, never a path of this machine."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import fx

from edgeprune.errors import EdgepruneError, first_line

LIBRARIES = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]), "<")
_NEEDS_VALUES = re.compile("data-?dependent|DynamicOutputShape|but got FakeTensor", re.IGNORECASE)
_BY_VALUE = (
    "the code depends on values of a tensor (if, for, int, tolist); use torch.where, or compute it outside the model"
)
_FRAME = re.compile(r'File "([^"]+)", line (\d+)')


def of_call(node: fx.Node) -> str:
    """The line that calls an operator: `net.py:31`. If no code of the user is known, the module: `module encoder.0`."""
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    modules = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values() if path]
    return _innermost((path, int(line)) for path, line in frames) or (f"module {modules[-1]}" if modules else "")


def of_error(error: BaseException) -> str:
    """The line of the user's code that raises an error, or that raised the error behind it; "" if there is none."""
    place: str = ""
    behind: BaseException | None = error
    while behind is not None and not place:
        place = _innermost((frame.filename, frame.lineno or 0) for frame in traceback.extract_tb(behind.__traceback__))
        behind = behind.__cause__ or behind.__context__
    return place


def of_failure(error: BaseException) -> str:
    """An error of a model that is called or exported, in one line: what it is, where, and a remedy if one is known."""
    if isinstance(error, EdgepruneError):
        return first_line(error)
    kind, place = type(error).__name__, of_error(error)
    if _NEEDS_VALUES.search(f"{kind} {error}"):
        return f"{place}: {_BY_VALUE}" if place else _BY_VALUE
    return f"{kind}: {first_line(error)}" + (f" ({place})" if place else "")


def _innermost(frames: Iterable[tuple[str, int]]) -> str:
    """The last frame that is not in torch and not in edgeprune."""
    own = [(path, line) for path, line in frames if not path.startswith(LIBRARIES)]
    return f"{Path(own[-1][0]).name}:{own[-1][1]}" if own else ""
