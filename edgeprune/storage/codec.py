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
from edgeprune.records.digests import content

T = TypeVar("T")  # a record
SCHEMAS: dict[type, int] = {records.Profile: 2, records.Baseline: 1}  # of files that later versions read
# What to do about a file, or a line, that cannot be read.
FIXES = {
    records.Profile: "put back an earlier copy, or delete it to measure again",
    records.Baseline: "put back an earlier copy, or make a new one: edgeprune check --update --reason …",
    records.Record: "remove that line",
}

# pydantic reads its settings from the data class. They are set here, so that records need only the standard library.
for _class in vars(records).values():
    if isinstance(_class, type) and is_dataclass(_class) and _class.__module__.startswith(records.__name__):
        _class.__pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)  # type: ignore[attr-defined]


def dumps(record: object) -> str:
    """A record, or a list of records, as JSON.

    Raises:
        ValueError: it holds NaN or infinity.
        TypeError: it holds something that is neither a record nor plain.
    """
    return json.dumps(record, default=_plain, indent=1, allow_nan=False)


def loads(cls: type[T], text: str, source: str) -> T:
    """A record from its JSON.

    Args:
        cls: the class of the record.
        text: the JSON.
        source: names the text in messages, such as the path of its file.

    Raises:
        UsageError: `dumps` would not have written this. The message names the source and the key.
    """
    try:
        record: T = _adapter(cls).validate_json(text, strict=True)  # type: ignore[arg-type]
        return record
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        problem = f"{key + ': ' if key else ''}{first['msg'][:200]}"
        raise usage_error(f"{source}: {problem}; {FIXES.get(cls, 'delete the file: it is then made again')}") from None


def with_paths(record: T, change: Callable[[Path], Path | str]) -> T:
    """The record with its paths and tuples of paths changed. Paths of records inside it stay unchanged."""
    if not is_dataclass(record) or isinstance(record, type):
        return record
    changed: dict[str, Any] = {}
    for name, value in vars(record).items():
        if isinstance(value, Path):
            changed[name] = change(value)
        elif isinstance(value, tuple) and value and all(isinstance(item, Path) for item in value):
            changed[name] = tuple(map(change, value))
    return replace(record, **changed) if changed else record


def dumps_kept(record: Profile | Baseline) -> str:
    """A record with a schema, as JSON that people can read and compare: the raw times of a process are on one line.

    Raises `ValueError` for NaN and infinity.
    """
    return _block({"schema": SCHEMAS[type(record)], **asdict(record)}, "") + "\n"


def loads_kept(cls: type[T], text: str, source: str) -> T:
    """The record that `dumps_kept` wrote. Args and Raises as in `loads`; a record of another schema is an error, too."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise usage_error(f"{source}: is not JSON: {quoted(str(error))}; {FIXES[cls]}") from None
    schema = content.pop("schema", None) if isinstance(content, dict) else None
    if type(schema) is not int or schema != SCHEMAS[cls]:
        message = f"has schema {quoted(schema)}, this edgeprune reads {SCHEMAS[cls]}"
        raise usage_error(f"{source}: {message}; upgrade, or {FIXES[cls]}")
    return loads(cls, json.dumps(content), source)


def dumps_line(record: object) -> str:
    """A record as one line of JSON. Raises as `dumps` does."""
    return json.dumps(record, default=_plain, allow_nan=False)


@cache
def _adapter(cls: Any) -> Any:
    return TypeAdapter(cls)


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return content(value)
    if isinstance(value, Path):
        return value.as_posix()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _block(value: Any, indent: str) -> str:
    """JSON with one item on each line. A list of plain values is on one line."""
    inner = indent + " "
    if isinstance(value, dict) and value:
        items = [f"{inner}{json.dumps(key)}: {_block(item, inner)}" for key, item in value.items()]
        return "{\n" + ",\n".join(items) + f"\n{indent}}}"
    if isinstance(value, list | tuple) and any(isinstance(item, dict | list | tuple) for item in value):
        return "[\n" + ",\n".join(inner + _block(item, inner) for item in value) + f"\n{indent}]"
    return json.dumps(value, allow_nan=False)
