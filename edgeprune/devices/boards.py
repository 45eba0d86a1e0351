"""The devices of several targets at the same time, for measurements that alternate between them."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from edgeprune.devices import transports
from edgeprune.devices.bench import Bench
from edgeprune.devices.patience import Patience
from edgeprune.devices.transports.base import Transport
from edgeprune.records import Host, Target

Place = tuple[str, int | None]


class Boards:
    """Opens each device when it is first used. A context manager that restores all of them at the end.

    A board has one lease. Targets with the same `[connect]` share its connection. Another target of the same board, such as
    one with another Python, takes the board over.
    """

    def __init__(self, scratch: Path, wait_s: float, patience: Patience) -> None:
        self._scratch, self._wait_s, self._patience = scratch, wait_s, patience
        self._links: dict[Place, tuple[Host | None, Transport]] = {}
        self._benches: dict[tuple[Place, str], Bench] = {}

    def __enter__(self) -> Boards:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with ExitStack() as closing:
            for _, transport in self._links.values():
                closing.callback(transport.close)

    def bench(self, target: Target) -> Bench:
        """The identified device of a target. Raises as `open_bench` does."""
        place = ("", None) if target.host is None else (target.host.name, target.host.port)
        key = place, str(target.path)
        transport = self._transport(place, target)
        if key not in self._benches:
            self._benches[key] = Bench(target, transport, self._scratch, self._patience)
        return self._benches[key]

    def _transport(self, place: Place, target: Target) -> Transport:
        if place in self._links:
            host, transport = self._links[place]
            if host == target.host:
                return transport
            del self._links[place]
            self._benches = {key: bench for key, bench in self._benches.items() if key[0] != place}
            transport.close()
        self._links[place] = target.host, transports.connect(target, self._wait_s, self._patience.notice)
        return self._links[place][1]
