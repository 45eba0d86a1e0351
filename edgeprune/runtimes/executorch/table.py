"""Read a flatbuffer by the numbers of its fields. It also reports where a number stands, so that it can be replaced there.

It travels to devices: standard library only, Python 3.8 and up. A damaged file raises struct.error, ValueError or IndexError.
"""

from __future__ import annotations

import struct
from mmap import mmap
from typing import Any

MOST = 100_000  # entries of one vector, but the bytes of a text


class Table:
    """One table of a flatbuffer; `at` is its place in the content."""

    def __init__(self, content: bytes | mmap, at: int) -> None:
        self.content, self.at = content, at
        self._fields = at - number(content, at, "i")

    def place(self, field: int) -> int | None:
        """Where the value of a field stands; None if the file leaves the field out."""
        if 4 + 2 * field >= number(self.content, self._fields, "H"):
            return None
        offset = number(self.content, self._fields + 4 + 2 * field, "H")
        return self.at + offset if offset else None

    def number(self, field: int, kind: str = "I", default: int = 0) -> Any:
        """A number; `kind` is its format as in the module `struct`."""
        place = self.place(field)
        return default if place is None else number(self.content, place, kind)

    def table(self, field: int) -> Table | None:
        """The table that a field refers to."""
        place = self.place(field)
        return None if place is None else Table(self.content, _target(self.content, place))

    def vector(self, field: int, size: int = 4) -> list[int]:
        """The places of the entries of a vector; each takes `size` bytes."""
        place = self.place(field)
        if place is None:
            return []
        start = _target(self.content, place)
        count = number(self.content, start, "I")
        if count > MOST * 4 // size or start + 4 + size * count > len(self.content):
            raise ValueError("a vector is longer than the file")
        return list(range(start + 4, start + 4 + size * count, size))

    def numbers(self, field: int, kind: str = "I") -> list[Any]:
        """The numbers of a vector."""
        return [number(self.content, place, kind) for place in self.vector(field, struct.calcsize(kind))]

    def tables(self, field: int) -> list[Table]:
        """The tables of a vector."""
        return [Table(self.content, _target(self.content, place)) for place in self.vector(field)]

    def text(self, field: int) -> str:
        """A text; empty if it is left out."""
        places = self.vector(field, 1)
        return self.content[places[0] : places[-1] + 1].decode("utf-8", "backslashreplace") if places else ""


def root(content: bytes | mmap, at: int = 0) -> Table:
    """The first table of a flatbuffer that starts at this place."""
    return Table(content, _target(content, at))


def number(content: bytes | bytearray | mmap, place: int, kind: str) -> Any:
    """The number at a place."""
    if place < 0:
        raise ValueError("a place lies before the file")
    return struct.unpack_from("<" + kind, content, place)[0]


def _target(content: bytes | mmap, place: int) -> int:
    return int(place + number(content, place, "I"))
