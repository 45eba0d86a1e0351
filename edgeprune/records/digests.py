"""Canonical digests of records."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, is_dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any


def digest(noun: Any) -> str:
    """SHA-256, in hex, of a noun's canonical JSON: the same content has the same digest on every machine."""

    def plain(value: Any) -> Any:
        if is_dataclass(value) and not isinstance(value, type):
            return asdict(value)
        if isinstance(value, StrEnum | Path):
            return str(value)
        if isinstance(value, bytes):
            return hashlib.sha256(value).hexdigest()
        raise TypeError(f"{type(value).__name__} has no canonical form")

    text = json.dumps(noun, default=plain, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
