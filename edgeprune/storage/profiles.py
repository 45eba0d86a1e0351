"""Profiles: one file for each network, device, precision and device state."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgeprune.limits import LIMITS
from edgeprune.records import Device, Groups, Precision, Profile, Target, digest
from edgeprune.storage import codec
from edgeprune.storage.store import read_capped, write_atomic


@dataclass(frozen=True)
class ProfileFile:
    """The file of a profile. Users commit it with the project.

    `path` may not exist yet. `empty` is the profile without experiments.
    """

    path: Path
    empty: Profile

    @staticmethod
    def of(
        folder: Path, model: str, target: Target, groups: Groups, device: Device, precision: Precision
    ) -> ProfileFile:
        """The file in `folder` for a network on a device. The file's name holds a digest of all arguments that matter.

        Args:
            folder: `profiles/TARGET` of the project.
            model: the project's name, which the file's name begins with.
            target: the target's threads and device state matter.
            groups: the network.
            device: the device that was identified.
            precision: of the variants that are measured.
        """
        key = digest([groups.network, device.identity, target.threads, precision, *target.state])[:8]
        empty = Profile(target.name, model, groups.network, device, target.threads, precision, ())
        return ProfileFile(folder / f"{model}-{key}.json", empty)

    def read(self) -> Profile:
        """The stored profile, or the empty one if there is no file. Raises `UsageError` for a file that cannot be read."""
        return read(self.path) if self.path.exists() else self.empty

    def keep(self, profile: Profile) -> None:
        """Replace the stored profile in one step."""
        write_atomic(self.path, codec.dumps_kept(profile).encode())

    def others(self) -> Iterator[Profile]:
        """The profiles of the same network on other targets."""
        for path in sorted(self.path.parents[1].glob(f"*/{self.empty.model}-{'[0-9a-f]' * 8}.json")):
            other = read(path)
            if other.network == self.empty.network and other.target != self.empty.target:
                yield other


def read(path: Path) -> Profile:
    """The profile in a file. Raises `UsageError` if it cannot be read."""
    return codec.loads_kept(Profile, read_capped(path, LIMITS.json_bytes).decode(), str(path))
