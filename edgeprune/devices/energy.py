"""The energy of a call: the job that measures it, and what its reply says; pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeprune.devices import wire
from edgeprune.errors import DeviceError
from edgeprune.limits import LIMITS
from edgeprune.records import Energy

WINDOW_S, CYCLES = 1.0, 8  # idle and busy in turn: the sensors of boards average over up to 0.1 s


def job(deadline_s: float, options: Mapping[str, Any], model: str, inputs: tuple[str, ...]) -> wire.GetEnergy:
    """The job for a model and inputs on the device. `options` are those of every job."""
    deadline_s += 3 * CYCLES * WINDOW_S
    return wire.GetEnergy(
        deadline_s, **options, model=model, inputs=inputs, warmup_s=LIMITS.warmup_s, window_s=WINDOW_S, cycles=CYCLES
    )


def beyond_idle(reply: wire.Energy, name: str) -> Energy | None:
    """What a call draws beyond the idle device, by each cycle; None without a rail. `name` is the target's, for errors."""
    if not reply.cycles:
        return None
    if any(min(one.idle_ns, one.busy_ns, one.runs) < 1 for one in reply.cycles):
        raise DeviceError(f"{name}: the device reports energy of no time or of no runs")
    each = ((one.busy_uj - one.idle_uj * one.busy_ns / one.idle_ns) / one.runs for one in reply.cycles)
    return Energy(reply.source, tuple(each))
