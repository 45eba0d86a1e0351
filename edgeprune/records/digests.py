"""Canonical digests of records."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, is_dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

# Fields that later versions added. They are left out where they are empty, so that files and digests stay the same.
ADDED = frozenset({"limits", "target"})


def content(record: Any) -> dict[str, Any]:
    """The fields of a data class as dictionaries, lists and plain values, as files and digests hold them."""

    def kept(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return {name: value for name, value in pairs if value or name not in ADDED}

    return asdict(record, dict_factory=kept)


def digest(record: Any) -> str:
    """SHA-256, in hex, of a record's canonical JSON. The same content has the same digest on every machine.

    Args:
        record: a data class, or anything that JSON can hold. Enums and paths count as text, bytes as their own digest.

    Raises:
        TypeError: it holds something else.
        ValueError: it holds NaN or infinity.
    """

    def plain(value: Any) -> Any:
        if is_dataclass(value) and not isinstance(value, type):
            return content(value)
        if isinstance(value, StrEnum | Path):
            return str(value)
        if isinstance(value, bytes):
            return hashlib.sha256(value).hexdigest()
        raise TypeError(f"{type(value).__name__} has no canonical form")

    text = json.dumps(record, default=plain, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
