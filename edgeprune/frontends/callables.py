"""Digests of Python functions and objects, so that runs of a project that is made of objects can be reused.

A function counts by its code, its defaults, and the variables of its closure and its module that it reads. This goes on for
the functions and classes that it refers to. What is installed counts by the version of its package.
"""

from __future__ import annotations

import dis
import functools
import hashlib
import logging
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgeprune.frontends.functions import is_users
from edgeprune.frontends.sources import installed
from edgeprune.limits import LIMITS

log = logging.getLogger("edgeprune")

CONSTANTS = (type(None), bool, int, float, complex, str, bytes, type(...), Path, torch.dtype, torch.device, torch.Size)
READS = {"LOAD_GLOBAL", "LOAD_NAME"}
OF_MODULES = set(vars(nn.Module()))  # attributes of every module; hooks, tensors and submodules count apart
OF_CLASSES = {"__dict__", "__weakref__", "__doc__", "__module__", "__firstlineno__"}  # attributes that do not count
HOOKS = "_forward_pre_hooks", "_forward_hooks"


def of_value(value: object, where: str) -> str:
    """The digest of a function, a class or an object, and of all that it refers to.

    Args:
        value: is digested.
        where: names it in a warning.
    """
    return _Digest(where).of(value)


def of_class(value: object, where: str) -> str:
    """The digest of an object's code without its content: of its class, and of the classes of its attributes."""
    parts: list[object] = [type(value)]
    for one in _attributes(value).values():
        parts.append(one if callable(one) else type(one))
    return _Digest(where).of(parts)


def of_tensors(named: Iterable[tuple[str, Tensor]]) -> str:
    """The digest of named tensors: names, types, shapes and content."""
    sha = hashlib.sha256()
    for name, tensor in named:
        sha.update(name.encode())
        _add_tensor(sha, tensor)
    return sha.hexdigest()


def of_structure(model: nn.Module, where: str) -> str:
    """The digest of a module without its tensors: the code of its classes, its attributes and its hooks."""
    digest = _Digest(where)
    for name, module in model.named_modules():
        digest.add([name, type(module), module.extra_repr()])
        digest.add({key: value for key, value in vars(module).items() if key not in OF_MODULES})
        digest.add([list(getattr(module, hooks).values()) for hooks in HOOKS])
        digest.add([(key, one.requires_grad) for key, one in module.named_parameters(recurse=False)])
    return digest.hexdigest()


class _Digest:
    """A digest of values that may refer to each other."""

    def __init__(self, where: str) -> None:
        self._where, self._sha = where, hashlib.sha256()
        self._seen: dict[int, tuple[int, object]] = {}  # the object is kept alive, so that no other one gets its id
        self._todo: deque[object] = deque()

    def of(self, value: object) -> str:
        self.add(value)
        return self.hexdigest()

    def hexdigest(self) -> str:
        while self._todo:  # no recursion, since objects may refer to each other in long chains
            self._add_object(self._todo.popleft())
        return self._sha.hexdigest()

    def add(self, value: object) -> None:
        if isinstance(value, CONSTANTS):
            self._put(type(value).__name__, repr(value))
        elif isinstance(value, tuple | frozenset):  # equal ones may be one object in one process and two in another
            self._add_object(value)
        elif id(value) in self._seen:
            self._put("seen", str(self._seen[id(value)][0]))
        elif len(self._seen) == LIMITS.covered_objects:
            log.warning(
                "%s refers to over %d objects; after changing those beyond, pass fresh=True",
                self._where,
                LIMITS.covered_objects,
            )
            self._seen[id(self)] = (0, self)  # once
        elif len(self._seen) < LIMITS.covered_objects:
            self._put("object", str(len(self._seen)))
            self._seen[id(value)] = (len(self._seen), value)
            self._todo.append(value)

    def _put(self, *texts: str) -> None:
        for text in texts:
            self._sha.update(f"{len(text)}:{text}".encode("utf-8", "surrogatepass"))

    def _add_object(self, value: object) -> None:
        match value:
            case list() | tuple():
                self._put("sequence", str(len(value)))
                self._add_all(value)
            case dict():
                self._put("mapping", str(len(value)))
                self._add_all(part for pair in value.items() for part in pair)
            case set() | frozenset():
                self._put("set", *sorted(_Digest(self._where).of(one) for one in value))
            case Tensor():
                _add_tensor(self._sha, value)
            case np.ndarray() | np.generic():
                self._put("array", str(value.dtype), str(value.shape))
                self._sha.update(np.ascontiguousarray(value).data if value.dtype != object else repr(value).encode())
            case FunctionType():
                self._add_function(value)
            case MethodType():
                self._add_all([value.__func__, value.__self__])
            case functools.partial():
                self._add_all([value.func, value.args, value.keywords])
            case staticmethod() | classmethod():
                self.add(value.__func__)
            case property():
                self._add_all([value.fget, value.fset])
            case BuiltinFunctionType():
                self._put("built in", str(value.__module__), value.__qualname__)
            case ModuleType():
                self._put("module", *_named(value.__name__))
            case CodeType():
                self._add_code(value)
            case type():
                self._add_class(value)
            case nn.Module():
                self._put("module", of_structure(value, self._where), of_tensors(state(value)))
            case _:
                self._add_all([value.__wrapped__] if hasattr(value, "__wrapped__") else [])  # lru_cache and others
                self._add_instance(value)

    def _add_all(self, values: Iterable[object]) -> None:
        for value in values:
            self.add(value)

    def _add_function(self, function: FunctionType) -> None:
        self._put("function", function.__qualname__)
        if not _is_users(function.__module__, function.__code__.co_filename):
            self._put(*_named(function.__module__))
            return
        self._add_all([function.__code__, function.__defaults__, function.__kwdefaults__])
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            self._put(name)
            self._add_cell(cell)
        for name, value in _read_by(function.__code__, function.__globals__):
            self._put(name)
            self.add(value)

    def _add_cell(self, cell: Any) -> None:
        try:
            content = cell.cell_contents
        except ValueError:  # the variable has no value yet
            return
        self.add(content)

    def _add_code(self, code: CodeType) -> None:
        self._put("code", code.co_name, str(code.co_flags), *code.co_varnames, *code.co_names)
        self._sha.update(code.co_code)
        self._add_all(code.co_consts)

    def _add_class(self, kind: type) -> None:
        self._put("class", kind.__qualname__)
        if not _is_users(kind.__module__):
            self._put(*_named(kind.__module__))
            return
        self._add_all(kind.__bases__)
        own = {k: v for k, v in vars(kind).items() if k not in OF_CLASSES}
        self._add_all(part for pair in own.items() for part in pair)

    def _add_instance(self, value: object) -> None:
        """An object: its class and its attributes. Of an installed class, only attributes that are constants count."""
        kind = type(value)
        self.add(kind)
        users = _is_users(kind.__module__)
        self.add({k: v for k, v in _attributes(value).items() if users or isinstance(v, CONSTANTS)})


def state(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All parameters and buffers of a module by name, those that no state dict holds, too."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _attributes(value: object) -> dict[str, object]:
    slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
    return {**{name: getattr(value, name) for name in slots if hasattr(value, name)}, **getattr(value, "__dict__", {})}


def _read_by(code: CodeType, variables: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    """The module's variables that a function reads. Of the user's modules among them, it is the attributes it reads."""
    for one in (code, *_nested(code)):
        for name in dict.fromkeys(step.argval for step in dis.get_instructions(one) if step.opname in READS):
            value = variables.get(name)
            if isinstance(value, ModuleType) and _is_users(value.__name__):
                yield from ((f"{name}.{a}", vars(value)[a]) for a in one.co_names if a in vars(value))
            elif name in variables:
                yield name, value


def _nested(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _nested(constant)


def _is_users(module: str | None, filename: str = "") -> bool:
    """Whether code is the user's: it is neither installed, nor in Python, nor in edgeprune."""
    if module in ("__main__", None) or module not in sys.modules:
        return not filename or is_users(filename, Path(Path.cwd().anchor))
    if str(module).partition(".")[0] in sys.stdlib_module_names:
        return False
    file = getattr(sys.modules[str(module)], "__file__", None)
    return file is not None and is_users(file, Path(Path.cwd().anchor))


def _named(module: str | None) -> list[str]:
    """A module by its name and the versions of its package."""
    return [str(module), *_versions(str(module).partition(".")[0])]


@cache
def _versions(top: str) -> tuple[str, ...]:
    return tuple(f"{name} {installed(name)}" for name in sorted(set(_distributions().get(top, []))))


@cache
def _distributions() -> Mapping[str, list[str]]:
    return packages_distributions()


def _add_tensor(sha: Any, tensor: Tensor) -> None:
    sha.update(f"{tensor.dtype}{tuple(tensor.shape)}{tensor.layout}".encode())
    dense = tensor.detach().to_dense() if tensor.layout != torch.strided else tensor.detach()
    sha.update(dense.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
