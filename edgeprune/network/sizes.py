"""Make the size attributes of modules follow their sliced parameters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from edgeprune.graph.groups import remaining_groups
from edgeprune.network.attention import Attention
from edgeprune.records import Recipe

# Names that attention modules use for the width of a head, for the number of heads, and for their product.
HEAD_WIDTHS = ("head_dim", "head_size", "head_width", "attention_head_size", "dim_head", "dim_per_head", "d_head")
HEAD_COUNTS = ("num_heads", "num_attention_heads", "n_heads", "nhead")
PRODUCTS = ("all_head_size", "inner_dim", "split_size")


def qualified(path: str, name: str) -> str:
    """The full name of a parameter of the module at `path`, which is "" for the root."""
    return f"{path}.{name}" if path else name


def update_sizes(module: nn.Module, before: nn.Module, kept: Mapping[int, Sequence[int]]) -> None:
    """Set the size attributes of a module from the shapes of its sliced parameters.

    Args:
        module: The module with sliced parameters.
        before: The original module.
        kept: The kept indices of its weight, by dimension.
    """
    attributes: Any = module
    if isinstance(module, _ConvNd):
        if module.groups > 1 and 0 in kept:
            attributes.groups = remaining_groups(module.groups, len(before.get_parameter("weight")), kept[0])
        first, second = module.weight.shape[0], module.weight.shape[1] * module.groups
        transposed = isinstance(module, _ConvTransposeNd)
        attributes.in_channels, attributes.out_channels = (first, second) if transposed else (second, first)
    elif isinstance(module, nn.Linear):
        attributes.out_features, attributes.in_features = module.weight.shape
    elif _is_transposed(module):
        attributes.nx, attributes.nf = module.get_parameter("weight").shape
    elif isinstance(module, nn.Embedding | nn.EmbeddingBag):
        attributes.num_embeddings, attributes.embedding_dim = module.weight.shape
    elif isinstance(module, nn.RNNBase):
        gates = len(before.get_parameter("weight_ih_l0")) // before.hidden_size  # type: ignore[operator]
        into = module.get_parameter("weight_ih_l0")
        attributes.hidden_size, attributes.input_size = len(into) // gates, into.shape[1]
        if module.proj_size:
            attributes.proj_size = module.get_parameter("weight_hh_l0").shape[1]
    elif isinstance(module, nn.RNNCellBase):
        attributes.hidden_size = module.get_parameter("weight_hh").shape[1]
        attributes.input_size = module.get_parameter("weight_ih").shape[1]
    elif isinstance(module, nn.Bilinear):
        attributes.out_features, attributes.in1_features, attributes.in2_features = module.weight.shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        size = next(t for t in (module.weight, module.running_mean) if t is not None).shape[0]
        attributes.num_features = size
    elif isinstance(module, nn.GroupNorm):
        attributes.num_groups = remaining_groups(module.num_groups, module.num_channels, kept[0])
        attributes.num_channels = module.weight.shape[0]
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
        attributes.normalized_shape = tuple(module.get_parameter("weight").shape)
    elif isinstance(module, nn.PReLU):
        attributes.num_parameters = module.weight.shape[0]


def update_heads(module: nn.Module, kept: Sequence[int], size: int) -> None:
    """Set the head counts and widths of an attention module from the kept outputs of its first linear layer.

    The layer had `size` outputs: queries, or queries, keys and values in any order. Every head count shrinks by the same
    share. Attributes are recognised by name, which is a guess. The proof of the cut confirms or refutes it.
    """
    name = next((name for name in HEAD_WIDTHS if isinstance(getattr(module, name, None), int)), None)
    if name is None:
        return
    width = getattr(module, name)
    places = Counter(index // width for index in kept)
    if size % width or len(set(places.values())) != 1:
        return
    setattr(module, name, next(iter(places.values())))
    shares = dict.fromkeys(HEAD_COUNTS, (len(places), size // width)) | dict.fromkeys(PRODUCTS, (len(kept), size))
    for attribute, (part, full) in shares.items():
        before = getattr(module, attribute, None)
        if isinstance(before, int):
            setattr(module, attribute, before * part // full)


def kept_outputs(module: nn.Module, path: str, names: Mapping[str, str], recipe: Recipe) -> tuple[Sequence[int], int]:
    """The outputs that the first linear layer of a module keeps, and their number before the cut."""
    if isinstance(module, Attention):
        weight, dim = ("q" if module.in_proj_weight is None else "in") + "_proj_weight", 0
        size: int = module.get_parameter(weight).shape[0]
    else:
        children = ((n, m) for n, m in module.named_children() if isinstance(m, nn.Linear) or _is_transposed(m))
        name, child = next(children, ("", None))
        if child is None:
            return (), 0
        weight = f"{name}.weight"
        dim, size = (1, child.nf) if _is_transposed(child) else (0, child.out_features)  # type: ignore[assignment]
    canonical = names.get(qualified(path, weight), "")  # a computed weight has another name
    return recipe.get(canonical, {}).get(dim, range(size)), size


def _is_transposed(module: nn.Module) -> bool:
    """Whether it is Hugging Face's `Conv1D` (GPT-2): a linear layer whose weight is (inputs, outputs)."""
    weight = getattr(module, "weight", None)
    return (
        type(module).__name__ == "Conv1D" and hasattr(module, "nf") and isinstance(weight, Tensor) and weight.ndim == 2
    )
