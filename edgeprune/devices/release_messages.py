"""The messages about releases, keys and logs; `wire` has the table of all messages.

It travels to devices: standard library only, Python 3.8 and up. So the annotations of fields are types that Python 3.8 can
evaluate.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Dict, Literal, Optional, Tuple

from .jobs import Job, Reply, Work
from .validate import MESSAGE, PATH, RAW


@dataclass(frozen=True)
class Published:
    """Whether the device accepted the key of this bundle as its first one."""

    enrolled: bool


@dataclass(frozen=True)
class Check:
    """What a release's runner answered to --check."""

    ok: bool
    relative_error: float
    limit: float
    median_ms: float


@dataclass(frozen=True)
class Activated:
    """The digests of the releases that are in service and before it."""

    current: str
    previous: Optional[str]
    check: Check


@dataclass(frozen=True)
class ReleaseEntry:
    """A release on the device, with its manifest, or with what damaged it."""

    service: str
    digest: str
    state: Literal["kept", "previous", "current"]
    since_s: Optional[int] = None
    manifest: Optional[Dict[str, Any]] = None
    damage: str = field(default="", metadata=MESSAGE)


@dataclass(frozen=True)
class Releases:
    """Every release of every service."""

    releases: Tuple[ReleaseEntry, ...]


@dataclass(frozen=True)
class Withdrawn:
    """The digest of the release that is in service now, if any."""

    current: Optional[str]


@dataclass(frozen=True)
class KeyEntry:
    """A public key that the device knows."""

    key: str = field(metadata=PATH)
    state: Literal["accepted", "retired", "revoked"]


@dataclass(frozen=True)
class Keys:
    """Every key that the device knows."""

    keys: Tuple[KeyEntry, ...]


@dataclass(frozen=True)
class AuditLog:
    """The last lines of the audit log."""

    lines: Tuple[str, ...] = field(metadata=RAW)


@dataclass(frozen=True)
class Metrics:
    """The figures of a service in Prometheus' text format."""

    text: str = field(metadata=RAW)


@dataclass(frozen=True)
class Publish(Work[Published]):
    """Check a signed bundle in the folder `source`, run it, and keep it as a release. Nothing is switched."""

    service: str
    digest: str
    source: str = field(metadata=PATH)
    signer: str = field(metadata=RAW)
    check_s: float
    who: str = ""


@dataclass(frozen=True)
class Switch(Work[Reply]):
    """A change of the release that is in service. It runs the release, and notifies the server by `reload`."""

    service: str
    digest: str
    check_s: float
    reload: Tuple[str, ...] = field(metadata=RAW)
    reload_s: float
    keep: int
    who: str = ""
    finishes: ClassVar[bool] = True


@dataclass(frozen=True)
class Activate(Switch[Activated]):
    """Put a release into service: switch, run it, and have `reload` notify the server. Undo it where any of that fails."""


@dataclass(frozen=True)
class Withdraw(Switch[Withdrawn]):
    """Refuse a release from now on. Where it is in service, return to the one before first, as `Activate` does."""


@dataclass(frozen=True)
class ChangeKeys(Job[Keys]):
    """Add, retire and revoke public keys, and list all."""

    who: str = ""
    add: Tuple[str, ...] = field(default=(), metadata=PATH)
    retire: Tuple[str, ...] = field(default=(), metadata=PATH)
    revoke: Tuple[str, ...] = field(default=(), metadata=PATH)


@dataclass(frozen=True)
class ReadAudit(Job[AuditLog]):
    """Read the end of the audit log."""

    most_bytes: int


@dataclass(frozen=True)
class ReadMetrics(Job[Metrics]):
    """Read the figures of a service that is running."""

    service: str


@dataclass(frozen=True)
class ListReleases(Work[Releases]):
    """List every release of every service."""
