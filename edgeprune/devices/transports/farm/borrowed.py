"""The transport to any free board of a farm: reserve, wait, acquire, connect over SSH, and release at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from edgeprune.devices.transports import ssh
from edgeprune.devices.transports.base import Document, Transport, slowness
from edgeprune.devices.transports.farm import holders
from edgeprune.devices.transports.farm.coordinator import Farm, Place, Refused, Service, Ticket, address_of, free_left
from edgeprune.devices.validate import printable
from edgeprune.errors import BusyError, DeviceError, UsageError
from edgeprune.records import Host, Target

POLL_S = 2.0
LISTED = 5  # places in a message


class Borrowed(Transport):
    """A board of a farm that has the target's tags. It is acquired at the first use, and released by `close`.

    Args:
        target: must have a host with tags of a place.
        wait_s: how long to wait in the farm's queue, in seconds.
        notice: gets what is waited for, and which boards were refused.
    """

    def __init__(self, target: Target, wait_s: float, notice: Callable[[str], None]) -> None:
        assert target.host is not None
        self._target, self._host, self._wait_s, self._notice = target, target.host, wait_s, notice
        self.slowness = slowness(target)
        self._tags = dict(target.host.place)
        self._farm = Farm(address_of(target.host))
        self._place = ""  # that is acquired, or about to be
        self._link: ssh.Ssh | None = None
        self._said: set[str] = set()

    def put(self, files: Sequence[Path]) -> str:
        """See `Transport.put`."""
        return self._board().put(files)

    def get(self, remote: str, path: Path) -> None:
        """See `Transport.get`."""
        self._board().get(remote, path)

    def call(self, jobs: Sequence[Document], deadline_s: float) -> Iterator[Document]:
        """See `Transport.call`."""
        return self._board().call(jobs, deadline_s)

    def close(self) -> None:
        """End the agent, and give the board back to the farm."""
        link, self._link = self._link, None
        try:
            if link is not None:
                link.close()
        finally:
            self._release()

    def _say(self, text: str) -> None:
        """Give a notice once."""
        if text not in self._said:
            self._said.add(text)
            self._notice(text)

    # ------------------------------------------------------------------------------------------------ choosing a board

    def _board(self) -> ssh.Ssh:
        if self._link is None:
            free_left(self._farm, self._say)
            until = time.monotonic() + self._wait_s
            while self._link is None:
                try:
                    self._link = self._first(until)
                except BusyError as error:
                    if time.monotonic() >= until:
                        raise
                    self._say(f"{error}; waiting")
                    time.sleep(POLL_S)
        return self._link

    def _first(self, until: float) -> ssh.Ssh:
        """The first board that answers. Refused boards stay reserved meanwhile, so that the farm offers others."""
        refused: dict[str, DeviceError | BusyError] = {}
        tokens: list[str] = []
        try:
            while True:
                self._require_any(refused)
                ticket = self._allocated(tokens, until)
                try:
                    return self._taken(ticket.place)
                except (DeviceError, BusyError) as error:
                    refused[ticket.place] = error
                    self._say(f"{self._target.name}: {printable(ticket.place)} is not used: {error}")
        finally:
            for token in tokens:
                with suppress(DeviceError):  # without polls, the coordinator forgets it within a minute
                    self._farm.cancel(token)

    def _matching(self) -> list[Place]:
        return [place for place in self._farm.places() if place.has(self._tags)]

    def _require_any(self, refused: dict[str, DeviceError | BusyError]) -> None:
        """Raises an error if no place has the tags, or if all that have them were refused."""
        names = {place.name for place in self._matching()}
        where = f"{self._target.path}: [connect] place = {self._host.name}"
        if not names:
            known = sorted({f"{key}={value}" for place in self._farm.places() for key, value in place.tags.items()})
            if not known:
                raise DeviceError(f"{where}: the farm at {self._farm.address} has no place with tags")
            tags = printable(", ".join(known), 300)
            raise UsageError(f"{where}: no place of the farm has these tags; known: {tags}")
        if names <= refused.keys():
            reasons = printable("; ".join(f"{name}: {refused[name]}" for name in sorted(names)[:LISTED]))
            busy = any(isinstance(error, BusyError) for error in refused.values())
            raise (BusyError if busy else DeviceError)(f"{where}: no board can be used: {reasons}")

    def _allocated(self, tokens: list[str], until: float) -> Ticket:
        """A reservation with a place. It waits in the queue. `tokens` get the new reservation, and all are kept alive."""
        ticket, shown = self._farm.reserve(self._tags), ""
        tokens.append(ticket.token)
        while ticket.waits:
            position = self._position(ticket)
            if time.monotonic() >= until:
                raise BusyError(f"{position}. Wait, or pass --wait.")
            if position != shown:
                self._say(f"{position}; waiting")
            shown = position
            time.sleep(POLL_S)
            self._require_any({})  # the administrator may have deleted the places
            alive = {found.token: found for found in self._farm.poll(tokens)}
            if ticket.token in alive:
                ticket = alive[ticket.token]
            else:  # the coordinator was restarted
                ticket = self._farm.reserve(self._tags)
                tokens.append(ticket.token)
        return ticket

    def _position(self, ticket: Ticket) -> str:
        """The place in the queue, and who has the boards."""
        matching = self._matching()
        queue = [one for one in self._farm.tickets() if one.waits and any(place.has(one.tags) for place in matching)]
        number = 1 + [one.token for one in queue].index(ticket.token) if ticket in queue else 1
        held = [f"{place.name} by {place.holder}" for place in matching if place.holder]
        taken = printable(", ".join(held[:LISTED])) or "reserved by others"
        return (
            f"{self._target.name}: every board with {self._host.name} is taken ({taken}); number {number} in the queue"
        )

    # ------------------------------------------------------------------------------------------------- taking a board

    def _taken(self, name: str) -> ssh.Ssh:
        """Acquire a place and its board's lease. Raises `DeviceError` or `BusyError`, and has then released the place."""
        service = self._service(name)
        self._place = name
        link = ssh.Ssh(replace(self._target, host=self._address(service)))
        try:
            self._farm.acquire(name)
            link.open()
        except Refused:
            self._place = ""  # somebody has it, perhaps another thread of this process
            raise
        except BaseException:
            link.close()
            self._release()
            raise
        return link

    def _service(self, name: str) -> Service:
        """The network service of a place. Raises `DeviceError` if the board is offline."""
        services = next((place.services for place in self._farm.places() if place.name == name), ())
        if not services:
            raise DeviceError(
                "it is offline: no exporter offers a NetworkService with address, username and port for it"
            )
        if len(services) > 1:
            raise DeviceError(f"it has {len(services)} NetworkServices, and needs exactly one")
        return services[0]

    def _address(self, service: Service) -> Host:
        return replace(self._host, name=service.address, user=service.user, port=service.port, place=())

    def _release(self) -> None:
        name, self._place = self._place, ""
        if not name:
            return
        try:
            self._farm.release(name, holders.own())
        except DeviceError as error:
            self._say(f"{printable(name)} may stay taken: {error} The next command on this farm releases it.")


def commands(target: Target) -> list[str]:
    """What a connection does, for `--dry-run`."""
    assert target.host is not None
    reached = replace(target, host=replace(target.host, name="BOARD", place=()))
    first = f"labgrid at {address_of(target.host)}: reserve and acquire a place with {target.host.name}; released at the end"
    return [first, *ssh.commands(reached)]
