"""Files of weights: safetensors, shards of them, and what `torch.load(weights_only=True)` loads. No file can run code."""

from __future__ import annotations

import json
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprune.errors import SecurityError, UsageError
from edgeprune.frontends.functions import one_line
from edgeprune.limits import LIMITS
from edgeprune.storage.store import read_capped

if TYPE_CHECKING:
    from torch import Tensor

INDEX = ".index.json"  # a file that names the shards of a large checkpoint
GLOBAL = re.compile(r"GLOBAL ([\w.]+)")  # a class that torch refuses to load
DEPTH = 8  # of dictionaries in a checkpoint
CONVERT = "if you trust it, load it and save its tensors: safetensors.torch.save_file(model.state_dict(), FILE)"


def files(path: Path) -> list[Path]:
    """The files that a checkpoint consists of. It does not import torch.

    Raises:
        UsageError: it is an index that cannot be read.
        SecurityError: it is an index that names a file outside its folder.
    """
    if not path.name.endswith(INDEX) or not path.is_file():
        return [path]
    try:
        shards = set(map(str, json.loads(read_capped(path, LIMITS.json_bytes))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(f"{path} is no index of shards: it has no weight_map; save the checkpoint again") from error
    for shard in shards:
        if Path(shard).name != shard:
            raise SecurityError(
                f"{path} names {shard!r}, which is outside its folder; give a checkpoint that you trust"
            )
    return [path, *(path.with_name(shard) for shard in sorted(shards))]


def read(where: str, path: Path, code: Path) -> Mapping[str, Tensor]:
    """The tensors of a checkpoint by name. Names of dictionaries inside it are prefixes: "state_dict.conv.weight".

    Args:
        where: names the checkpoint in messages.
        path: its file, or the index of its shards.
        code: the folder of the user's code.

    Raises:
        UsageError: a file is missing, too large, cannot be read, or holds no tensors.
        SecurityError: loading it would run code.
    """
    parts = files(path)
    for part in parts:
        if not part.is_file():
            name = "" if part == path else f" needs {part}, which"
            raise UsageError(f"{where}{name} does not exist; make it, or give a path relative to the project's folder")
    if sum(part.stat().st_size for part in parts) > LIMITS.weights_bytes:
        raise UsageError(f"{where} is over {LIMITS.weights_bytes} bytes; is it the right file?")
    found: dict[str, Tensor] = {}
    for part in parts[1:] or parts:
        found |= _tensors(_content(where, part, code), "")
    if not found:
        raise UsageError(f"{where} holds no tensors with names; save model.state_dict()")
    return found


def _content(where: str, path: Path, code: Path) -> Any:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of a pickle protocol, and then refuses it
            return load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = GLOBAL.search(str(error))
        holds = (
            f"it holds an object of {found[1]}, and loading it runs code" if found else "it is a pickle that runs code"
        )
        raise SecurityError(f"{where} is refused: {holds}; {CONVERT}") from error
    except (
        SafetensorError,
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
    ) as error:
        # torch raises the last three for a file that is cut short or is not a checkpoint.
        raise UsageError(f"{where} cannot be read: {one_line(error, code)}; save it again") from error


def _tensors(content: Any, prefix: str, depth: int = 0) -> dict[str, Tensor]:
    """The tensors in a dictionary, and in dictionaries inside it."""
    return dict(_named(content, prefix, depth))


def _named(content: Any, prefix: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    import torch

    if isinstance(content, torch.Tensor) and prefix:
        yield prefix.removesuffix("."), content
    elif isinstance(content, Mapping) and depth < DEPTH:
        for name, value in content.items():
            if isinstance(name, str):
                yield from _named(value, f"{prefix}{name}.", depth + 1)
