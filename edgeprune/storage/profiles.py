"""What a device answered about a network: one file for each network, device, precision and device state."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgeprune.limits import LIMITS
from edgeprune.records import Device, Groups, Profile, Target, digest
from edgeprune.storage import codec
from edgeprune.storage.store import read_capped, write_atomic


@dataclass(frozen=True)
class ProfileFile:
    """The file of a profile, and the `empty` profile that it begins as. Profiles are committed beside the project."""

    path: Path
    empty: Profile

    @staticmethod
    def of(folder: Path, model: str, target: Target, groups: Groups, device: Device, precision: str) -> ProfileFile:
        """The file in `folder` for a network on a device. Its name holds a digest of all that makes profiles differ."""
        key = digest([groups.network, device.identity, target.threads, precision, *target.state])[:8]
        empty = Profile(target.name, model, groups.network, device, target.threads, precision, ())
        return ProfileFile(folder / f"{model}-{key}.json", empty)

    def read(self) -> Profile:
        """What is kept, or the empty profile. Raises `UsageError` for a file that cannot be read."""
        return _read(self.path) if self.path.exists() else self.empty

    def keep(self, profile: Profile) -> None:
        """Replace what is kept, in one step."""
        write_atomic(self.path, codec.dumps_kept(profile).encode())

    def others(self) -> Iterator[Profile]:
        """The profiles of the same network on other targets."""
        for path in sorted(self.path.parents[1].glob(f"*/{self.empty.model}-{'[0-9a-f]' * 8}.json")):
            other = _read(path)
            if other.network == self.empty.network and other.target != self.empty.target:
                yield other


def _read(path: Path) -> Profile:
    return codec.loads_kept(Profile, read_capped(path, LIMITS.json_bytes).decode(), str(path))
