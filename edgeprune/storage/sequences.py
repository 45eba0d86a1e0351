"""The number of the last release of a project on a target. It counts releases, so that no clock has to be right.

It is kept beside the profiles, in `profiles/TARGET/PROJECT.sequence`. Commit it if releases are made on several machines.
"""

from __future__ import annotations

from pathlib import Path

from edgeprune.errors import usage_error
from edgeprune.storage.store import read_capped, write_atomic

MOST = 2**53  # which every JSON reader can hold
BYTES = 64


def last(profiles: Path, project: str) -> int:
    """The number of the last release; 0 if there is none. Raises `UsageError` if the file does not hold a number."""
    path = profiles / f"{project}.sequence"
    if not path.is_file():
        return 0
    text = read_capped(path, BYTES).decode("utf-8", "replace").strip()
    if not text.isascii() or not text.isdigit() or int(text) > MOST:
        raise usage_error(f"{path} must hold the number of the last release; delete it, or write the number")
    return int(text)


def following(profiles: Path, project: str, highest: int) -> int:
    """The number of the next release. `highest` is that of the releases on the hosts.

    Raises:
        UsageError: no number comes after the last one, or the file does not hold a number.
    """
    number = 1 + max(last(profiles, project), highest)
    if number > MOST:
        raise usage_error(
            f"the last release of {project} has the number {number - 1}, and no number comes after it. See edgeprune releases,"
            f" withdraw it with edgeprune withdraw DIGEST, and delete {profiles / project}.sequence"
        )
    return number


def remember(profiles: Path, project: str, number: int) -> None:
    """Keep the number of a release, unless a higher one is kept."""
    if number > last(profiles, project):
        profiles.mkdir(parents=True, exist_ok=True)
        write_atomic(profiles / f"{project}.sequence", f"{number}\n".encode())
