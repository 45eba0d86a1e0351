"""Models that `[model] transformers` names on Hugging Face's hub: from its cache on this machine, or downloaded once."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from edgeprune.errors import RuntimeMissing, UsageError, first_line, usage_error
from edgeprune.limits import LIMITS

NAME = re.compile(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}", re.ASCII)
WANTED = ("*.json", "model*.safetensors")  # no pickle, no code
Value = TypeVar("Value")


def is_name(text: str) -> bool:
    """Whether a text looks like the name of a model on the hub, such as "google/vit-base-patch16-224"."""
    return NAME.fullmatch(text) is not None


def folder(where: str, name: str) -> Path:
    """The folder of a model on the hub. It is downloaded if it is not in the cache.

    Raises:
        UsageError: the hub cannot be reached in time, or has no such model with safetensors. `where` begins the message.
        RuntimeMissing: the hub's client is not installed.
    """
    try:
        from huggingface_hub import HfApi, constants, snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError
    except ImportError as error:
        raise RuntimeMissing(
            f"{where}: this is no folder, and the client of the hub is not installed; install it:"
            " pip install 'edgeprune[huggingface]'"
        ) from error

    def cached() -> Path:
        return Path(snapshot_download(name, local_files_only=True, allow_patterns=list(WANTED)))

    try:
        return cached()
    except LocalEntryNotFoundError:
        pass
    absent = f"{where}: this is no folder, and the model is not in the cache of the hub"
    if constants.is_offline_mode():
        raise usage_error(f"{absent}, which HF_HUB_OFFLINE forbids to reach; correct the path, or download it first")
    try:
        info = _within(LIMITS.hub_s, lambda: HfApi().model_info(name, files_metadata=True, timeout=LIMITS.hub_s / 2))
    except Exception as error:  # the client of the hub and its transport raise many classes
        raise usage_error(
            f"{absent}; asking the hub failed: {first_line(error) or type(error).__name__};"
            " correct the path or the name, or connect to the network"
        ) from error
    sizes = [file.size or 0 for file in info.siblings or () if file.rfilename.endswith(".safetensors")]
    if not sizes or sum(sizes) > LIMITS.weights_bytes:
        problem = (
            f"over {LIMITS.weights_bytes:,} bytes of weights" if sizes else "no safetensors, only what may run code"
        )
        raise usage_error(f"{where}: the hub has {problem}; give another model")
    try:
        return Path(_within(LIMITS.download_s, lambda: snapshot_download(name, allow_patterns=list(WANTED))))
    except Exception as error:
        raise usage_error(f"{where}: the download failed: {first_line(error)}; run again to go on with it") from error


def _within(seconds: float, call: Callable[[], Value]) -> Value:
    """What a call returns or raises. It raises `UsageError` if that takes too long; the thread ends with the process."""
    found: list[Value] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            found.append(call())
        except BaseException as error:  # noqa: BLE001 - raised again below, in the caller's thread
            failed.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if failed:
        raise failed[0]
    if not found:
        raise UsageError(f"no answer in {seconds:.0f} s")
    return found[0]
