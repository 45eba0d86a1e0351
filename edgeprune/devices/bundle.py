"""Put the code that runs on devices together into one file: the agent, and the runner of a release.

Such a file holds modules of this package as text, and a small importer. The importer mounts them under a package name of the
file's own, so that no installed edgeprune and no other release in the same process can replace them. Therefore modules that
travel import each other relatively. The bytes depend on nothing but the modules, so that a digest names the file.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterable, Iterator
from importlib.util import resolve_name
from pathlib import Path

from edgeprune import runtimes

ROOT = "edgeprune"
LEAST_PYTHON = (3, 8)  # that runs such a file
IMPORTER = '''
import importlib
import os
import sys
from importlib.machinery import ModuleSpec

PACKAGE = {package!r}
HERE = os.path.dirname(os.path.abspath(__file__))


class Sources:
    """Imports the modules in SOURCES: file name -> text. Folders become packages."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] != PACKAGE:
            return None
        file = name.replace(".", "/") + ".py"
        folder = any(known.startswith(name.replace(".", "/") + "/") for known in SOURCES)
        if file not in SOURCES and not folder:
            return None
        spec = ModuleSpec(name, Sources, origin=os.path.join(os.path.abspath(__file__), file), is_package=folder)
        spec.has_location = True
        return spec

    @staticmethod
    def create_module(spec):
        return None

    @staticmethod
    def exec_module(module):
        exec(compile(Sources.get_source(module.__name__), module.__spec__.origin, "exec"), vars(module))

    @staticmethod
    def get_source(name):
        return SOURCES.get(name.replace(".", "/") + ".py", "")


'''
AGENT_DOC = "The agent of edgeprune: it runs on a device and measures there. See devices/agent/main.py below."
AGENT_START = """
if __name__ == "__main__":
    sys.meta_path.insert(0, Sources)
    importlib.import_module(PACKAGE + ".devices.agent.main").main(sys.argv[1:])
"""
RUNNER_DOC = """Runs the model of the release that this file lies in. Needs numpy and the runtime; Python 3.8 and up.

    python3 runner.py --check              run the kept input and compare with the kept output: a line of JSON, exit 0 or 1
    python3 runner.py x.npy [y.npy ...]    run these inputs, one file each: writes output_0.npy, ... into the working folder
    python3 runner.py --metrics [PORT]     answer Prometheus: calls, errors, p50, p90, p99, temperature, release
    python3 runner.py --install FILE.tar   put another bundle into service; also --rollback, --withdraw, --releases, --audit

In a program, which uses a new release once it loads `current` again:

    sys.path.insert(0, os.path.realpath(".../services/NAME/current"))
    import runner
    outputs = runner.load()([array, ...])

`--site` is a folder to find the runtime in. See load.cpp for C++."""
RUNNER_START = '''
sys.meta_path.insert(0, Sources)
runner = importlib.import_module(PACKAGE + ".runtimes.runner")


def load(folder=HERE):
    """The release's model as a function: arrays in, arrays out."""
    return runner.load(folder)


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1] in ("--install", "--rollback", "--withdraw", "--releases", "--audit"):
        runner = importlib.import_module(PACKAGE + ".devices.agent.offline")
    sys.exit(runner.main(HERE, sys.argv[1:]))
'''


@functools.cache
def agent() -> bytes:
    """The agent as one Python file, with every runtime."""
    return _file(AGENT_DOC, _agent_sources(), AGENT_START)


def agent_needs() -> list[str]:
    """The modules of Python's standard library that the agent imports when it starts."""
    nodes = [node for text in _agent_sources().values() for node in ast.parse(text).body]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return sorted(names | {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom) and not node.level})


def _agent_sources() -> dict[str, str]:
    return sources([f"{ROOT}.devices.agent.main", *_devices()])


@functools.cache
def runner() -> bytes:
    """The runner.py of a release, which loads models as the agent does. It has every runtime, for bundles that it installs."""
    entries = [f"{ROOT}.runtimes.runner", f"{ROOT}.devices.agent.offline", *_devices()]
    return _file(RUNNER_DOC, sources(entries), RUNNER_START)


def _devices() -> list[str]:
    return [f"{ROOT}.runtimes.{name}.device" for name in runtimes.names()]


def sources(entries: Iterable[str]) -> dict[str, str]:
    """The text of these modules and of all that they import relatively, by file name such as "edgeprune/a/b.py"."""
    found: dict[str, str] = {}
    todo = list(entries)
    while todo:
        name = todo.pop()
        path = _path(name)
        file = f"{name.replace('.', '/')}.py"
        if file not in found and path.is_file():
            found[file] = path.read_text(encoding="utf-8")
            todo += _imported(name, found[file])
    return dict(sorted(found.items()))


def _path(name: str) -> Path:
    return Path(__file__).parents[1].joinpath(*name.split(".")[1:]).with_suffix(".py")


def _imported(name: str, text: str) -> list[str]:
    """What a module imports relatively; `from . import a` may name a module or a part of one."""
    package, found = name.rpartition(".")[0], []
    for node in _statements(ast.parse(text).body):
        if isinstance(node, ast.ImportFrom) and node.level:
            origin = resolve_name("." * node.level + (node.module or ""), package)
            found += [origin, *(f"{origin}.{alias.name}" for alias in node.names)]
    return found


def _statements(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """All statements, also inside others. Expressions, which are most of a module, hold no imports."""
    for node in nodes:
        yield node
        for name in ("body", "orelse", "handlers", "finalbody", "cases"):
            yield from _statements(getattr(node, name, ()))


def _file(doc: str, texts: dict[str, str], start: str) -> bytes:
    """The file. Its package is named after its content."""
    digest = hashlib.sha256(repr(texts).encode()).hexdigest()[:16]
    package = f"{ROOT}_{digest}"
    entries = [f"    {package + file[len(ROOT) :]!r}: {_literal(file, text)},\n" for file, text in texts.items()]
    table = f"SOURCES = {{\n{''.join(entries)}}}\n"
    return f'"""{doc}"""\n{IMPORTER.format(package=package)}{table}{start}'.encode()


def _literal(file: str, text: str) -> str:
    """A text as a raw literal, which people can read."""
    if "'''" in text or text.endswith("\\"):
        raise ValueError(
            f"{file} cannot travel: it must hold no three single quotes, and must not end with a backslash"
        )
    return f"r'''{text}'''"
