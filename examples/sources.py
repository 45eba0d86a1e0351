"""Finds the examples' data: in a folder, at the public source, or in a few samples beside the example.

    EDGEPRUNE_DATA=DIR           a folder with the files that each example names
    EDGEPRUNE_DATA=download      the public repository, at the commit that the example names

Without the variable, an example uses its built-in samples. They suffice to run the pipeline. They are too few for
meaningful figures.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

CACHE = Path.home() / ".cache" / "edgeprune" / "data"
TIMEOUT_S = 1800


def found(name: str) -> Path | None:
    """The file `name` in the folder that `EDGEPRUNE_DATA` names, or None if it names no folder.

    Raises `FileNotFoundError` if the folder lacks the file.
    """
    given = os.environ.get("EDGEPRUNE_DATA", "")
    if given in ("", "download"):
        return None
    path = Path(given) / name
    if not path.is_file():
        raise FileNotFoundError(f"{path}: EDGEPRUNE_DATA names a folder without it; unset it for the built-in samples")
    return path


def downloaded(url: str, commit: str) -> Path | None:
    """A checkout of a public git repository, kept in `CACHE`; None unless `EDGEPRUNE_DATA` is "download".

    The commit is the checksum: git verifies every file against it.
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
