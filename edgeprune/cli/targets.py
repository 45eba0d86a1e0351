"""`edgeprune targets`: the known targets, and the places of their farms."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgeprune.devices import transports
from edgeprune.devices.validate import printable
from edgeprune.errors import UsageError
from edgeprune.frontends import toml
from edgeprune.records import Target

if TYPE_CHECKING:
    from rich.console import Console

log = logging.getLogger("edgeprune")


@dataclass(frozen=True)
class Known:
    """A target file. `error` says what is wrong with it; the other texts are then empty."""

    name: str
    path: Path
    runtime: str = ""
    precision: str = ""
    host: str = ""
    error: str = ""


@dataclass(frozen=True)
class Rack:
    """A place of a farm. `board` is empty if its board is offline, and `holder` is empty if it is free."""

    place: str
    tags: Mapping[str, str]
    board: str
    holder: str
    coordinator: str


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


def racks(folder: Path) -> list[Rack]:
    """The places of the farms that the targets of `folder` name; if none names one, of the default farm.

    Places that a killed command of this user left are released first.
    """
    transports.require("labgrid", "farm")
    from edgeprune.devices.transports.farm import Farm, address_of, free_left

    hosts = []
    for path in toml.target_files(folder).values():
        with suppress(UsageError):  # `targets` shows what is wrong with a file
            hosts.append(toml.read_target(path).host)
    addresses = {address_of(host) for host in hosts if host is not None and host.place} or {address_of(None)}
    found = []
    for address in sorted(addresses):
        farm = Farm(address)
        free_left(farm, log.warning)
        for place in farm.places():
            board = ", ".join(f"{one.user}@{one.address}:{one.port}" for one in place.services)
            found.append(Rack(place.name, place.tags, board, place.holder, address))
    return found


def show(targets: list[Known], screen: Console) -> None:
    """Print a table of targets."""
    rows = [(one.name, one.runtime, one.precision, one.host, one.error or str(one.path)) for one in targets]
    _print(("target", "runtime", "precision", "host", "file"), rows, screen)


def show_racks(places: list[Rack], screen: Console) -> None:
    """Print a table of places."""
    rows = []
    for one in places:
        tags = ",".join(f"{key}={value}" for key, value in sorted(one.tags.items()))
        rows.append((one.place, tags, one.board or "offline", one.holder or "free", one.coordinator))
    _print(("place", "tags", "board", "taken by", "coordinator"), rows, screen)


def _print(headings: Sequence[str], rows: Sequence[Sequence[str]], screen: Console) -> None:
    """Print a table. Only its last column may be wrapped."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    shown = Table(box=box.SIMPLE_HEAD)
    for heading in headings:
        shown.add_column(heading, no_wrap=heading != headings[-1], overflow="fold")
    for cells in rows:
        shown.add_row(*(escape(printable(cell)) for cell in cells))
    screen.print(shown)
