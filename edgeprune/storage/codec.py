"""JSON <-> records."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from edgeprune import records
from edgeprune.errors import quoted, usage_error
from edgeprune.records import Baseline, Profile

Noun = TypeVar("Noun")
SCHEMAS: dict[type, int] = {records.Profile: 2, records.Baseline: 1}  # of the files that outlive an edgeprune
# What to do about a file, or a line, that cannot be read; most are made again where there are none.
MENDED = {
    records.Profile: "put back an earlier copy, or delete it to measure again",
    records.Baseline: "put back an earlier copy, or make a new one: edgeprune check --update --reason …",
    records.Record: "remove that line",
}

# pydantic takes a dataclass's rules from its class, and records are standard library only: so they are set
# here.
for _class in vars(records).values():
    if isinstance(_class, type) and is_dataclass(_class) and _class.__module__.startswith(records.__name__):
        _class.__pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)  # type: ignore[attr-defined]


def dumps(noun: object) -> str:
    """A noun, or a list of nouns, as JSON.

    Raises `ValueError` for NaN and infinity and `TypeError` for what is no noun.
    """
    return json.dumps(noun, default=_plain, indent=1, allow_nan=False)


def loads(cls: type[Noun], text: str, source: str) -> Noun:
    """A noun from its JSON, strictly.

    Raises `UsageError`, naming `source` and the key, for what `dumps` would not have written.
    """
    try:
        noun: Noun = _adapter(cls).validate_json(text, strict=True)  # type: ignore[arg-type]
        return noun
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        problem = f"{key + ': ' if key else ''}{first['msg'][:200]}"
        mended = MENDED.get(cls, "delete the file to have it made again")
        raise usage_error(f"{source}: {problem}; {mended}") from None


def with_paths(record: Noun, change: Callable[[Path], Path | str]) -> Noun:
    """A record whose paths, and tuples of paths, are changed; those in records inside it are not."""
    if not is_dataclass(record) or isinstance(record, type):
        return record
    changed: dict[str, Any] = {}
    for name, value in vars(record).items():
        if isinstance(value, Path):
            changed[name] = change(value)
        elif isinstance(value, tuple) and value and all(isinstance(item, Path) for item in value):
            changed[name] = tuple(map(change, value))
    return replace(record, **changed) if changed else record


def dumps_kept(noun: Profile | Baseline) -> str:
    """A noun that is kept for long, as JSON that a person can read and compare, the raw times of a process on one line.

    Raises `ValueError` for NaN and infinity.
    """
    return _block({"schema": SCHEMAS[type(noun)], **asdict(noun)}, "") + "\n"


def loads_kept(cls: type[Noun], text: str, source: str) -> Noun:
    """What `dumps_kept` wrote. Raises `UsageError` naming `source` and the key."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise usage_error(f"{source}: is not JSON: {quoted(str(error))}; {MENDED[cls]}") from None
    schema = content.pop("schema", None) if isinstance(content, dict) else None
    if type(schema) is not int or schema != SCHEMAS[cls]:
        message = f"has schema {quoted(schema)}, this edgeprune reads {SCHEMAS[cls]}"
        raise usage_error(f"{source}: {message}; upgrade, or {MENDED[cls]}")
    return loads(cls, json.dumps(content), source)


def dumps_line(noun: object) -> str:
    """A noun on one line."""
    return json.dumps(noun, default=_plain, allow_nan=False)


@cache
def _adapter(cls: Any) -> Any:
    return TypeAdapter(cls)


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, Path):
        return value.as_posix()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _block(value: Any, indent: str) -> str:
    """JSON with an item a line, but a list of plain values whole on one."""
    inner = indent + " "
    if isinstance(value, dict) and value:
        items = [f"{inner}{json.dumps(key)}: {_block(item, inner)}" for key, item in value.items()]
        return "{\n" + ",\n".join(items) + f"\n{indent}}}"
    if isinstance(value, list | tuple) and any(isinstance(item, dict | list | tuple) for item in value):
        return "[\n" + ",\n".join(inner + _block(item, inner) for item in value) + f"\n{indent}]"
    return json.dumps(value, allow_nan=False)
