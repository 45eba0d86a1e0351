"""`edgeprune targets`: the known targets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgeprune.errors import UsageError
from edgeprune.frontends import toml
from edgeprune.records import Target

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Known:
    """A target file. `error` says what is wrong with it; the other texts are then empty."""

    name: str
    path: Path
    runtime: str = ""
    precision: str = ""
    host: str = ""
    error: str = ""


def known(folder: Path) -> list[Known]:
    """The targets that a project in `folder` can name, by name. A wrong file does not hide the others."""
    return [_read(name, path) for name, path in sorted(toml.target_files(folder).items())]


def _read(name: str, path: Path) -> Known:
    try:
        target = toml.read_target(path)
    except UsageError as error:
        return Known(name, path, error=str(error))
    return Known(name, path, target.runtime, target.precision, _host(target))


def _host(target: Target) -> str:
    if target.host is None:
        return "this machine"
    user, port = target.host.user, target.host.port
    return (f"{user}@" if user else "") + target.host.name + (f":{port}" if port else "")


def show(targets: list[Known], screen: Console) -> None:
    """Print a table of targets."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    shown = Table(box=box.SIMPLE_HEAD)
    for heading in ("target", "runtime", "precision", "host", "file"):
        shown.add_column(heading, no_wrap=heading != "file", overflow="fold")
    for one in targets:
        cells = one.name, one.runtime, one.precision, one.host, one.error or str(one.path)
        shown.add_row(*map(escape, cells))
    screen.print(shown)
