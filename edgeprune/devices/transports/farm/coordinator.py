"""A labgrid coordinator as its clients see it: places, reservations, acquiring and releasing.

It speaks labgrid's gRPC protocol with labgrid's own messages. Every call opens a separate connection and has a deadline. So
nothing runs while a board measures, and the coordinator may restart between two calls.
"""

from __future__ import annotations

import os
import queue
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from labgrid.remote import common
from labgrid.remote.common import ReservationState
from labgrid.remote.generated import labgrid_coordinator_pb2 as messages
from labgrid.remote.generated.labgrid_coordinator_pb2_grpc import CoordinatorStub

from edgeprune.devices.transports.farm import holders
from edgeprune.devices.validate import printable
from edgeprune.errors import DeviceError, UsageError, quoted
from edgeprune.limits import LIMITS
from edgeprune.records import Host

DEFAULT = "127.0.0.1:20408"  # labgrid's
ADDRESS = re.compile(r"[A-Za-z0-9_.\[\]:-]+:\d{1,5}")
OPTIONS = (
    ("grpc.enable_http_proxy", 0),  # the address is that of a tunnel, which no proxy reaches
    ("grpc.use_local_subchannel_pool", 1),  # a connection that failed does not delay the next one
)
_used: set[tuple[str, str]] = set()  # (coordinator, place) that this process uses
GONE = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED


class Refused(DeviceError):
    """The coordinator refuses a request, such as to acquire a place that somebody else has."""


@dataclass(frozen=True)
class Service:
    """How to reach a board over SSH, as its exporter says."""

    address: str
    user: str
    port: int


@dataclass(frozen=True)
class Place:
    """A place of the farm. `holder` is empty if it is free. `services` are those of boards that are online."""

    name: str
    tags: Mapping[str, str]
    holder: str
    services: tuple[Service, ...]

    def has(self, tags: Mapping[str, str]) -> bool:
        """Whether it has all these tags. As in labgrid, the tag "name" is the place's name."""
        return tags.items() <= {**self.tags, "name": self.name}.items()


@dataclass(frozen=True)
class Ticket:
    """A reservation. `place` is empty until the coordinator has allocated one."""

    token: str
    owner: str
    waits: bool
    tags: Mapping[str, str]
    place: str = ""


def address_of(host: Host | None) -> str:
    """The coordinator of a host: `[connect] coordinator`, then LG_COORDINATOR, then labgrid's default."""
    given = (host.coordinator if host else None) or os.environ.get("LG_COORDINATOR") or DEFAULT
    if not ADDRESS.fullmatch(given):
        raise UsageError(f"LG_COORDINATOR = {quoted(given)} is not an address; write HOST:PORT, such as {DEFAULT}")
    return given


class Farm:
    """The coordinator at an address. Every method raises `DeviceError` if it does not answer."""

    def __init__(self, address: str) -> None:
        self.address = address

    def places(self) -> list[Place]:
        """All places, by name."""
        with self._session() as (_, updates):
            resources = [one.resource for one in updates if one.WhichOneof("kind") == "resource"]
            places = [common.Place.from_pb2(one.place) for one in updates if one.WhichOneof("kind") == "place"]
            found = [Place(p.name, dict(p.tags), p.acquired or "", _services(p, resources)) for p in places]
        return sorted(found, key=lambda place: place.name)

    def tickets(self) -> list[Ticket]:
        """All reservations, in the order in which they are served."""
        with self._stub() as stub:
            found = stub.GetReservations(messages.GetReservationsRequest(), timeout=LIMITS.farm_s).reservations
        return [_ticket(one) for one in sorted(found, key=lambda one: (-one.prio, one.created))]

    def reserve(self, tags: Mapping[str, str]) -> Ticket:
        """Reserve any place with these tags, or join the queue for one."""
        wanted = {"main": messages.Reservation.Filter(filter=tags)}
        with self._session() as (stub, _):
            request = messages.CreateReservationRequest(filters=wanted, prio=0.0)
            return _ticket(stub.CreateReservation(request, timeout=LIMITS.farm_s).reservation)

    def poll(self, tokens: Sequence[str]) -> list[Ticket]:
        """These reservations, for another minute each. The coordinator forgets a reservation that nobody polls."""
        with self._stub() as stub:
            known = {ticket.token for ticket in self.tickets()}
            requests = [messages.PollReservationRequest(token=token) for token in tokens if token in known]
            found = [stub.PollReservation(request, timeout=LIMITS.farm_s).reservation for request in requests]
        return [_ticket(one) for one in found if one.state in (0, 1, 2)]  # neither expired nor invalid

    def cancel(self, token: str) -> None:
        """Give up a reservation."""
        with self._stub() as stub:
            stub.CancelReservation(messages.CancelReservationRequest(token=token), timeout=LIMITS.farm_s)

    def acquire(self, place: str) -> None:
        """Take a place for this process. Raises `Refused` if somebody else has it."""
        _used.add((self.address, place))
        with self._session() as (stub, _):
            stub.AcquirePlace(messages.AcquirePlaceRequest(placename=place), timeout=LIMITS.farm_s)

    def release(self, place: str, holder: str) -> None:
        """Give a place back if `holder` has it. Otherwise nothing happens."""
        _used.discard((self.address, place))
        with self._stub() as stub:
            request = messages.ReleasePlaceRequest(placename=place, fromuser=holder)
            stub.ReleasePlace(request, timeout=LIMITS.farm_s)

    @contextmanager
    def _stub(self) -> Iterator[Any]:
        try:
            with grpc.insecure_channel(self.address, OPTIONS) as channel:
                yield CoordinatorStub(channel)
        except grpc.RpcError as error:
            said = printable(str(error.details()), 200)
            if error.code() not in GONE:
                raise Refused(f"the labgrid coordinator at {self.address} refuses: {said}") from error
            port = self.address.rpartition(":")[2]
            raise DeviceError(
                f"the labgrid coordinator at {self.address} does not answer ({said}). Open the tunnel to it:"
                f" ssh -N -L {port}:127.0.0.1:20408 HOST"
            ) from error

    @contextmanager
    def _session(self) -> Iterator[tuple[Any, list[Any]]]:
        """A connection that is announced as this process, and all places and resources."""
        outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for message in (
            messages.ClientInMessage(startup=messages.StartupDone(version="edgeprune", name=holders.own())),
            messages.ClientInMessage(subscribe=messages.Subscribe(all_places=True)),
            messages.ClientInMessage(subscribe=messages.Subscribe(all_resources=True)),
            messages.ClientInMessage(sync=messages.Sync(id=1)),
        ):
            outbox.put(message)
        with self._stub() as stub:
            stream = stub.ClientStream(iter(outbox.get, None), timeout=LIMITS.farm_s)
            try:
                yield stub, self._until_sync(stream)
            finally:
                outbox.put(None)
                stream.cancel()

    def _until_sync(self, stream: Any) -> list[Any]:
        updates: list[Any] = []
        for message in stream:
            updates += message.updates
            if len(updates) > LIMITS.farm_updates:
                raise DeviceError(f"the labgrid coordinator at {self.address} has over {LIMITS.farm_updates} entries")
            if message.HasField("sync"):
                return updates
        raise DeviceError(f"the labgrid coordinator at {self.address} ended the connection. Run the command again.")


def free_left(farm: Farm, notice: Callable[[str], None]) -> None:
    """Release the places and cancel the reservations that ended commands of this user left.

    This process may also hold a place that it could not release: its coordinator did not answer then.
    """
    for place in farm.places():
        unused = place.holder == holders.own() and (farm.address, place.name) not in _used
        if unused or holders.has_ended(place.holder):
            farm.release(place.name, place.holder)
            notice(f"{printable(place.name)} is released: a command that has ended held it")
    for ticket in farm.tickets():
        if holders.has_ended(ticket.owner):
            farm.cancel(ticket.token)


def _ticket(one: Any) -> Ticket:
    tags, place = dict(one.filters["main"].filter), one.allocations.get("main", "")
    return Ticket(one.token, one.owner, one.state == ReservationState.waiting.value, tags, place)


def _services(place: Any, resources: Sequence[Any]) -> tuple[Service, ...]:
    """The network services of a place that are online. A service without a usable address is none."""
    found = []
    for one in resources:
        path = one.path.exporter_name, one.path.group_name, one.cls, one.path.resource_name
        if one.cls == "NetworkService" and one.avail and place.hasmatch(path):
            given = {"port": 22, **common.build_dict_from_map(one.params)}
            address, user, port = given.get("address"), given.get("username"), given["port"]
            if isinstance(address, str) and isinstance(user, str) and isinstance(port, int) and 0 < port < 1 << 16:
                found.append(Service(address, user, port))
    return tuple(found)
