"""Save and load pruned networks; count parameters."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from edgeprune.errors import CutError, UsageError, first_line
from edgeprune.graph.editable import GraphNetwork, recorded_inputs
from edgeprune.network.adapter import adapted, input_names
from edgeprune.network.attention import opened
from edgeprune.network.cut import graph_of, sliced
from edgeprune.network.preprocessing import preprocess_of, preprocessed
from edgeprune.records import Preprocess, Recipe


def save(path: Path, model: nn.Module, recipe: Recipe) -> None:
    """Write a pruned network to a safetensors file that `load` reads.

    The file's metadata holds the kept indices (`recipe`) and the preprocessing. Shared tensors are written once.
    """
    shared = _shared_names(model)
    own = {name: t.contiguous() for name, t in model.state_dict().items() if name not in shared}
    text = json.dumps({name: {str(dim): list(kept) for dim, kept in dims.items()} for name, dims in recipe.items()})
    metadata = {"edgeprune": "1", "recipe": text}
    preprocess = preprocess_of(model)
    if preprocess is not None:
        metadata["preprocess"] = json.dumps(asdict(preprocess))
    if isinstance(model, GraphNetwork):
        metadata["graph"] = json.dumps({"inputs": model.exported_from.inputs, "names": model.meta["names"]})
    save_file(own, path, metadata=metadata)


def load(path: Path | str, model: nn.Module) -> nn.Module:
    """Load a pruned network.

    Args:
        path: A file that `save` wrote.
        model: A new instance of the original network. It stays unchanged, and its weights do not matter.

    Returns:
        A pruned copy with the saved weights and preprocessing, in eval mode. If the user's code fixes sizes, it is the
        exported graph: it takes tensors by position, and in eval mode it returns tensors (`graph.editable`).

    Raises:
        UsageError: The file cannot be read, was not written by `save`, or belongs to another model.

    Example:
        >>> pruned = load("runs/pi5/pruned.safetensors", build())
    """
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{path}: cannot be read as safetensors: {first_line(error)}") from error
    if metadata.get("edgeprune") != "1":
        raise UsageError(f"{path}: holds no kept indices; give a file that edgeprune wrote (pruned.safetensors)")
    try:
        kept = {
            name: {int(dim): tuple(indices) for dim, indices in dims.items()}
            for name, dims in json.loads(metadata["recipe"]).items()
        }
        pruned = sliced(_formed(opened(model), metadata), kept)
        missing, unexpected = pruned.load_state_dict(stored, strict=False)
    except (CutError, RuntimeError, IndexError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: does not belong to this model: {first_line(error)}") from error
    aliases = {name for name in missing if name in _shared_names(pruned)}
    if unexpected or set(missing) - aliases:
        first = [*unexpected, *(set(missing) - aliases)][0]
        raise UsageError(
            f"{path}: does not belong to this model: tensor {first!r} is not in both;"
            " a model that makes tensors in its first call must be called once before"
        )
    return pruned.eval()


def _formed(model: nn.Module, metadata: Mapping[str, str]) -> nn.Module:
    """The network that was cut: the model with its preprocessing, or its exported graph."""
    if "preprocess" in metadata and preprocess_of(model) is None:
        known = json.loads(metadata["preprocess"])
        preprocess = Preprocess(tuple(known["mean"]), tuple(known["std"]), known["scale"])
        model = preprocessed(copy.deepcopy(model), preprocess)
    if "graph" not in metadata:
        return model
    known = json.loads(metadata["graph"])
    if known["names"] and not input_names(model):
        model = adapted(copy.deepcopy(model), tuple(known["names"]))
    return graph_of(model, recorded_inputs(known["inputs"]))


def count_parameters(model: nn.Module) -> int:
    """Number of trainable and frozen parameters. Shared parameters count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def _shared_names(model: nn.Module) -> set[str]:
    """All but the first name of each tensor that has several names."""
    seen: set[int] = set()
    shared = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        (shared.add(name) if id(tensor) in seen else seen.add(id(tensor)))
    return shared
