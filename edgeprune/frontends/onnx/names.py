"""Names of modules from the names in a file.

They become attributes of modules, so they consist of letters, digits and underscores.
"""

from __future__ import annotations

import re

from torch import nn

DEPTH = 32  # modules in one another
CHARS = 80  # of one name
PARTS = re.compile(r"[^\W]+", re.ASCII)
QUOTED = re.compile(r"'([^']*)'|\"([^\"]*)\"")
PARAMETER = re.compile(r"^([A-Za-z_]\w*(?:\.\w+)*)\.(\w+)$", re.ASCII)  # such as layer1.0.conv1.weight
LOST = re.compile(r"^(onnx::|p2o\.|val_\d|_val_\d|const_fold_opt|\d|const_)")  # names that exporters make up


def scope_of(name: str, metadata: str | None) -> tuple[str, ...]:
    """The modules that a node belongs to, outermost first.

    Args:
        name: the node's. PyTorch writes "/layer1/layer1.0/conv1/Conv", and TensorFlow "model/conv1/Conv2D".
        metadata: PyTorch's newer exporter writes "['', 'layer1', 'layer1.0', 'layer1.0.conv1', 'conv2d']" beside its nodes.
    """
    if metadata is not None:
        scopes = [first or second for first, second in QUOTED.findall(metadata[:10_000])]
        return _valid(scopes[-2].split(".")) if len(scopes) > 1 and scopes[-2] else ()
    *modules, _ = name.split("/")
    found: list[str] = []
    before = ""
    for module in filter(None, modules):
        own = module[len(before) + 1 :] if before and module.startswith(f"{before}.") else module
        found += own.split(".")
        before = module
    return _valid(found)


def parameter_path(name: str) -> tuple[tuple[str, ...], str] | None:
    """The modules and the own name of a weight that is called like a parameter, such as layer1.0.conv1.weight; else None."""
    found = PARAMETER.match(name)
    if found is None or LOST.match(name):
        return None
    return _valid(found[1].split(".")), valid(found[2])


def valid(name: str) -> str:
    """A name that a module or a parameter may have."""
    name = "_".join(PARTS.findall(name[:CHARS])) or "_"
    return f"{name}_" if hasattr(nn.Module, name) or name in ("training", "calls") else name


def _valid(names: list[str]) -> tuple[str, ...]:
    return tuple(valid(name) for name in names[:DEPTH] if name)
