"""Digests of the source files that a user's function depends on. It reads import statements and runs no user code.

A function depends on its module and on every module that this one imports from the project's folder, directly or indirectly.
An installed module counts by the version of its package. Files that the code opens are not found here. Of those that data is
made from, `tracing` keeps record.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from functools import cache, lru_cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path

from edgeprune.errors import UsageError
from edgeprune.limits import LIMITS
from edgeprune.storage.store import file_sha256, read_capped

SKIPPED = {"runs", "profiles", "__pycache__", "venv", "node_modules", "site-packages"}
IMPORTERS = {"import_module", "__import__"}
VARIABLE = re.compile(r"[A-Z][A-Z0-9_]+")  # the usual name of a variable of the environment


def of_module(root: Path, module: str) -> dict[str, str]:
    """Digests of the files that a module depends on.

    Args:
        root: the project's folder; the module is looked up there first.
        module: its name, such as "package.module".

    Returns:
        {path relative to `root`: SHA-256}; for an installed module, {"package NAME": version}.

    Raises:
        UsageError: `root` holds too many Python files.
    """
    found = _files(root, module)
    if not found:
        return {f"package {name}": installed(name) for name in _distributions(module)}
    todo, seen = list(found), dict[Path, None]()
    while todo:
        file = todo.pop()
        if file not in seen:
            seen[file] = None
            todo += _imported(root, file)
    return {file.relative_to(root).as_posix(): file_sha256(file) for file in sorted(seen)}


@cache
def installed(package: str) -> str:
    """The version of a package; "none" if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def variables(root: Path, files: Iterable[str]) -> set[str]:
    """The variables of the environment that source files may read: all texts in them that look like a name of one."""
    paths = (root / file for file in files)
    return {name for path in paths if path.is_file() for name in _variables(_source(path))}


@lru_cache(maxsize=1024)
def _variables(source: bytes) -> frozenset[str]:
    texts = (node.value for node in _nodes(source) if isinstance(node, ast.Constant) and isinstance(node.value, str))
    return frozenset(text for text in texts if VARIABLE.fullmatch(text))


def _source(file: Path) -> bytes:
    return read_capped(file, LIMITS.source_bytes)


def _nodes(source: bytes) -> Iterator[ast.AST]:
    """The syntax of a source file. Nothing if it has errors, which its import will report."""
    try:
        yield from ast.walk(ast.parse(source))
    except (SyntaxError, ValueError):
        return


@cache
def _distributions(module: str) -> list[str]:
    top = module.partition(".")[0]
    return [] if top in sys.stdlib_module_names else packages_distributions().get(top, [])


def _imported(root: Path, file: Path) -> Iterator[Path]:
    """The files of `root` that a file imports, and those of the packages around it."""
    for name in _names(_source(file), file.parent.relative_to(root).parts):
        yield from _beside(root) if name is None else _files(root, name)


@lru_cache(maxsize=1024)
def _names(source: bytes, package: tuple[str, ...]) -> tuple[str | None, ...]:
    """The modules that a source file may import; None stands for those that are known only when it runs."""
    return tuple(dict.fromkeys(name for node in _nodes(source) for name in _names_in(node, package)))


def _names_in(node: ast.AST, package: tuple[str, ...]) -> Iterator[str | None]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        above = package[: len(package) - node.level + 1] if node.level else []
        module = ".".join([*above, *([node.module] if node.module else [])])
        if module:
            yield module
        yield from (f"{module}.{alias.name}".lstrip(".") for alias in node.names)
    elif isinstance(node, ast.Call) and _called(node) in IMPORTERS and node.args:
        first = node.args[0]
        yield first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else None


def _called(node: ast.Call) -> str:
    return str(getattr(node.func, "attr", getattr(node.func, "id", "")))


def _files(root: Path, module: str) -> list[Path]:
    """The files of a module and of the packages around it. If the code extends `sys.path`, they may be in any folder."""
    parts = module.split(".")
    if parts[0] in sys.stdlib_module_names:
        return []
    found = [file for n in range(1, len(parts) + 1) for file in _candidates(root.joinpath(*parts[:n]))]
    return found or [file for file in _beside(root) if any(file == place for place in _deeper(root, file, parts))]


def _candidates(place: Path) -> Iterator[Path]:
    yield from (file for file in (place.with_name(f"{place.name}.py"), place / "__init__.py") if file.is_file())


def _deeper(root: Path, file: Path, parts: list[str]) -> Iterator[Path]:
    """The files of the module `parts`, if one of the folders above `file` were in `sys.path`."""
    for folder in file.parents:
        if not folder.is_relative_to(root):
            return
        yield from _candidates(folder.joinpath(*parts))


@cache
def _beside(root: Path) -> tuple[Path, ...]:
    """Every Python file of a project's folder, except in environments, runs and hidden folders."""
    files = tuple(
        sorted(
            path
            for path in root.rglob("*.py")
            if not any(part.startswith(".") or part in SKIPPED for part in path.relative_to(root).parts)
        )
    )
    if len(files) > LIMITS.source_files:
        raise UsageError(
            f"{root} holds over {LIMITS.source_files} Python files; keep edgeprune.toml in a folder with only its own code"
        )
    return files
