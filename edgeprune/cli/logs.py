"""Warnings on the screen: those of edgeprune and of the user's code, and not those of libraries."""

from __future__ import annotations

import logging
import os
import sys
import sysconfig
import warnings
from pathlib import Path
from typing import Any, TextIO

PACKAGE = Path(__file__).parents[1]
STANDARD = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib"))
INSTALLED = {"site-packages", "dist-packages"}


def listen(verbose: bool = False, quiet: bool = False) -> None:
    """Send log records and Python's warnings to stderr.

    Args:
        verbose: also print what libraries log, and debug records of edgeprune.
        quiet: print no warnings, only errors.
    """
    if not verbose:
        os.environ.setdefault("TORCH_LOGS", "-all")  # torch has its own handlers; below errors, this ends them
    handler = _Screen()
    handler.setLevel(logging.ERROR if quiet else logging.DEBUG if verbose else logging.WARNING)
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    if not verbose:
        handler.addFilter(lambda record: record.levelno >= logging.ERROR or not of_library(record.pathname))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("edgeprune").setLevel(logging.DEBUG if verbose else logging.NOTSET)
    warnings.showwarning = _log_warning


def of_library(filename: str) -> bool:
    """Whether a source file is a library's: installed, and not edgeprune's. Code without a file counts as a library's."""
    path = Path(filename)
    if path.is_relative_to(PACKAGE):
        return False
    return filename.startswith("<") or bool(INSTALLED & set(path.parts)) or any(map(path.is_relative_to, STANDARD))


class _Screen(logging.StreamHandler[TextIO]):
    """Writes to the stderr of the moment. While a bar is shown, that is a stream that prints above the bar."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, stream: TextIO) -> None:
        raise AttributeError("the stream is always stderr")


def _log_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, *rest: Any, **more: Any
) -> None:
    """Log a warning of Python as if it had been logged at the line that it is about."""
    text = f"{category.__name__}: {message} ({Path(filename).name}, line {lineno})"
    log = logging.getLogger("py.warnings")
    log.handle(log.makeRecord(log.name, logging.WARNING, filename, lineno, text, (), None))
