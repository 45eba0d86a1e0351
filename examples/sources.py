"""Where the examples' data comes from: a folder, the public source, or a few samples that lie beside the example.

    EDGEPRUNE_DATA=DIR           a folder with the files that each example names
    EDGEPRUNE_DATA=download      the public repository, at the commit that the example names

Without either, the built-in samples: enough to walk the road anywhere, too few for figures that mean anything.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

CACHE = Path.home() / ".cache" / "edgeprune" / "data"
TIMEOUT_S = 1800


def found(name: str) -> Path | None:
    """The file `name` in the folder that was given, or None where none was, or the public source is asked for.

    Raises `FileNotFoundError` where the folder lacks the file.
    """
    given = os.environ.get("EDGEPRUNE_DATA", "")
    if given in ("", "download"):
        return None
    path = Path(given) / name
    if not path.is_file():
        raise FileNotFoundError(f"{path}: EDGEPRUNE_DATA names a folder without it; unset it for the built-in samples")
    return path


def downloaded(url: str, commit: str) -> Path | None:
    """A checkout of a public git repository, kept in `CACHE`; None where it was not asked for.

    The commit is the checksum: git verifies that every file is what its id says.
    """
    if os.environ.get("EDGEPRUNE_DATA") != "download":
        return None
    folder = CACHE / commit
    if not folder.is_dir():
        partial = CACHE / f"{commit}.partial"
        partial.mkdir(parents=True, exist_ok=True)
        for arguments in (["init", "-q"], ["fetch", "-q", "--depth=1", url, commit], ["checkout", "-q", commit]):
            subprocess.run(["git", "-C", str(partial), *arguments], check=True, timeout=TIMEOUT_S)
        partial.rename(folder)
    return folder
