"""Read JSON objects as dataclasses, with the types of the fields as the rules.

- int: a whole number from 0 to 2⁶³. A bool is no number here.
- float: a finite number between -2⁶³ and 2⁶³.
- str: printable text of at most 255 characters, or of as many as the field's metadata "chars" allow. The metadata "text"
  declares two other kinds: a `MESSAGE` is escaped and cut by the reader, and `RAW` text may hold any character.
- Optional, Union, Literal, Tuple of any length, Dict with text as keys, and dataclasses.
- Any: not checked.

It travels to devices: standard library only, Python 3.8 and up.
"""

from __future__ import annotations

import contextlib
import functools
import math
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Callable, Dict, Literal, Mapping, Type, TypeVar, Union, get_args, get_origin, get_type_hints

LARGEST = 1 << 63
NAME_CHARS = 255
MESSAGE_CHARS = 2000
ENTRIES = 100  # of a Dict
MESSAGE = {"text": "message"}
RAW = {"text": "raw", "chars": 1 << 16}
PATH = {"text": "raw", "chars": 4096}

Message = TypeVar("Message")
Metadata = Mapping[str, Any]


class WireError(ValueError):
    """A message that does not fit its dataclass; the text names the field."""


def printable(text: str, most: int = MESSAGE_CHARS) -> str:
    """Text from a device, safe to print: escaped, on one line, of at most `most` characters."""
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: 4 * most])
    return safe if len(safe) <= most else safe[:most] + "…"


def shown(value: Any) -> str:
    """A value for an error's text: short and printable."""
    return printable(repr(value), 60)


def read(kind: Type[Message], content: Any, where: str = "") -> Message:
    """A JSON object as a dataclass.

    Args:
        where: the path of the object inside the message, for errors.

    Raises:
        WireError: a field is missing, unknown or of another type.
    """
    if not isinstance(content, dict):
        raise WireError(f"{where or 'the message'} must be an object, and is {shown(content)}")
    known = {entry.name: entry for entry in fields(kind)}  # type: ignore[arg-type]
    for name in content:
        if name not in known:
            raise WireError(f"{_at(where, printable(str(name), 60))} is no known field")
    for name, entry in known.items():
        if name not in content and entry.default is MISSING and entry.default_factory is MISSING:
            raise WireError(f"{_at(where, name)} is missing")
    hints = _hints(kind)  # type: ignore[arg-type]
    return kind(**{n: _value(hints[n], value, _at(where, n), known[n].metadata) for n, value in content.items()})


@functools.lru_cache(maxsize=None)
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _at(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _value(kind: Any, value: Any, where: str, metadata: Metadata) -> Any:
    """The value of a field, if it is of this kind."""
    if kind is Any:
        return value
    if is_dataclass(kind):
        return read(kind, value, where)  # type: ignore[arg-type]
    return READERS[get_origin(kind) or kind](get_args(kind), value, where, metadata)


def _tuple(arguments: Any, value: Any, where: str, metadata: Metadata) -> Any:
    if not isinstance(value, list):
        raise WireError(f"{where} must be a list, and is {shown(value)}")
    return tuple(_value(arguments[0], part, f"{where}[{i}]", metadata) for i, part in enumerate(value))


def _dict(arguments: Any, value: Any, where: str, metadata: Metadata) -> Any:
    if not isinstance(value, dict) or len(value) > ENTRIES:
        raise WireError(f"{where} must be an object of at most {ENTRIES} fields, and is {shown(value)}")
    for name in value:
        _text((), name, f"a name in {where}", {})
    return {name: _value(arguments[1], part, f"{where}[{name!r}]", metadata) for name, part in value.items()}


def _union(arguments: Any, value: Any, where: str, metadata: Metadata) -> Any:
    """The value as the first kind that it fits. The error names the first kind."""
    try:
        return _value(arguments[0], value, where, metadata)
    except WireError:
        for kind in arguments[1:]:
            with contextlib.suppress(WireError):
                return _value(kind, value, where, metadata)
        raise


def _none(arguments: Any, value: Any, where: str, metadata: Metadata) -> None:
    if value is not None:
        raise WireError(f"{where} must be null, and is {shown(value)}")


def _literal(arguments: Any, value: Any, where: str, metadata: Metadata) -> Any:
    if value not in arguments:
        raise WireError(f"{where} must be one of {', '.join(arguments)}, and is {shown(value)}")
    return value


def _bool(arguments: Any, value: Any, where: str, metadata: Metadata) -> bool:
    if not isinstance(value, bool):
        raise WireError(f"{where} must be true or false, and is {shown(value)}")
    return value


def _int(arguments: Any, value: Any, where: str, metadata: Metadata) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= LARGEST:
        raise WireError(f"{where} must be a whole number from 0 to 2^63, and is {shown(value)}")
    return value


def _float(arguments: Any, value: Any, where: str, metadata: Metadata) -> float:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not abs(value) <= LARGEST or not math.isfinite(value):
        raise WireError(f"{where} must be a finite number, and is {shown(value)}")
    return value  # type: ignore[no-any-return]


def _text(arguments: Any, value: Any, where: str, metadata: Metadata) -> str:
    most = metadata.get("chars", NAME_CHARS)
    kind = metadata.get("text")
    if not isinstance(value, str):
        raise WireError(f"{where} must be text, and is {shown(value)}")
    if kind == "message":
        return printable(value)
    if len(value) > most or not (kind == "raw" or value.isprintable()):
        raise WireError(f"{where} must be printable text of at most {most} characters, and is {shown(value)}")
    return value


READERS: Dict[Any, Callable[[Any, Any, str, Metadata], Any]] = {
    tuple: _tuple,
    dict: _dict,
    Union: _union,
    type(None): _none,
    Literal: _literal,
    bool: _bool,
    int: _int,
    float: _float,
    str: _text,
}
