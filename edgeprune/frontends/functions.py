"""The user's functions that a project file names: find them, load them, and report their errors in one line.

This module does not import torch: a run that reuses everything does not need the user's code.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from edgeprune.errors import EdgepruneError, UsageError
from edgeprune.frontends import sources, tracing
from edgeprune.records import Project

PACKAGE = Path(__file__).parents[1]
LIBRARIES = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib"))
INSTALLED = {"site-packages", "dist-packages"}  # also those of another Python that this one uses
# Functions of torch that call a module or differentiate. An error in code that they call comes from the model.
CALLS_MODEL = {"_call_impl", "_engine_run_backward"}


@dataclass(frozen=True)
class FileFunction:
    """A function that a project file names as "module:function"; see `records.Function`.

    It is looked up beside the project file first. `path` is this file. `key` names the function, such as "[data] loss".
    """

    path: Path
    key: str
    name: str

    @property
    def where(self) -> str:
        """The file, the key and the value."""
        return f"{self.path}: {self.key} = {self.name!r}"

    def load(self) -> Callable[..., Any]:
        """The function. Raises `UsageError` if its module cannot be imported or does not have it."""
        module_name, _, attribute = self.name.partition(":")
        with self.guarded():
            function = getattr(_module(self.path.parent, module_name), attribute, None)
        if function is None:
            raise UsageError(
                f"{self.where}: module {module_name} has no function {attribute}; define it or correct the name"
            )
        if not callable(function):
            raise UsageError(f"{self.where}: {attribute} is a {type(function).__name__}; define a function")
        return function  # type: ignore[no-any-return]

    def sources(self) -> Mapping[str, str]:
        """See `records.Function.sources`."""
        return sources.of_module(self.path.parent, self.name.partition(":")[0])

    def guarded(self, where: str = "") -> AbstractContextManager[None]:
        """See `records.Function.guarded`."""
        return guarded(self.path.parent, where or self.where)


@contextmanager
def guarded(root: Path, where: str) -> Iterator[None]:
    """A context that user code runs in. It can import from the folder `root`; any error of it becomes a `UsageError`."""
    try:
        with _importable(root), tracing.traced(root):
            yield
    except EdgepruneError:
        raise
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise UsageError(f"{where} raises {one_line(error, root)}") from error


@contextmanager
def of_user(project: Project, stage: str) -> Iterator[None]:
    """A context that a stage runs in: an error that comes from the user's code becomes a `UsageError`.

    User code is the code in the folder `project.code`. It is also the code that torch runs when it calls or differentiates
    the user's model. Other errors are edgeprune's, and are raised unchanged.
    """
    try:
        yield
    except EdgepruneError:
        raise
    except Exception as error:
        if not _is_users(error, project.code):
            raise
        raise UsageError(
            f"{project.path}: {stage}: the project's code raises {one_line(error, project.code)}"
        ) from error


def one_line(error: BaseException, root: Path) -> str:
    """An error in one line, with the last line of the user's code in its traceback."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
    return text + users_line(error, root)


def users_line(error: BaseException, root: Path) -> str:
    """The last line of the user's code in an error's traceback, as " (net.py, line 4)"; empty if there is none."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if is_users(frame.filename, root)]
    if not frames:
        return ""
    return f" ({shown(Path(frames[-1].filename), root)}, line {frames[-1].lineno})"


def shown(file: Path, root: Path) -> Path:
    """A file of the user in a message: relative to the project's folder, or else to the working directory."""
    file, folder = file.resolve(), Path.cwd() if root == Path(root.anchor) else root.resolve()
    return file.relative_to(folder) if file.is_relative_to(folder) else file


def _is_users(error: Exception, root: Path) -> bool:
    """Whether the innermost frame outside libraries is the user's code, or code of edgeprune that called the user's model."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if is_users(frame.filename, root):
            return True
        if frame.name in CALLS_MODEL and "torch" in Path(frame.filename).parts:
            return True
        if Path(frame.filename).is_relative_to(PACKAGE):
            return False
    return False


def is_users(filename: str, root: Path) -> bool:
    """Whether a file is the user's: it is in the project's folder, and neither installed nor in edgeprune."""
    if filename.startswith("<frozen "):  # a module of Python itself
        return False
    path = Path(filename).resolve()
    if path.is_relative_to(PACKAGE) or any(path.is_relative_to(library) for library in LIBRARIES):
        return False
    if INSTALLED.intersection(path.parts):
        return False
    return path.is_relative_to(root.resolve())


def _module(root: Path, name: str) -> ModuleType:
    """Import a module of a project, under a name made from its path and text. So projects do not share modules."""
    file = next((f for f in (root / f"{name}.py", root / name / "__init__.py") if f.is_file()), None)
    if file is None:  # it is installed, or in a package, whose relative imports need its real name
        return importlib.import_module(name)
    source = file.read_bytes()
    unique = f"_edgeprune_{hashlib.sha256(str(file).encode() + source).hexdigest()[:16]}"
    if unique not in sys.modules:
        folders = [str(file.parent)] if file.name == "__init__.py" else None
        spec = importlib.util.spec_from_file_location(unique, file, submodule_search_locations=folders)
        if spec is None:
            raise ImportError(f"{file} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[unique] = module
        try:
            # Python's own cache would treat a file that was edited within the same second as unchanged.
            exec(compile(source, file, "exec"), module.__dict__)  # noqa: S102 - the user's own module
        except BaseException:
            del sys.modules[unique]
            raise
    return sys.modules[unique]


_siblings: dict[str, Path] = {}  # modules imported from a project's folder, by their plain names


@contextmanager
def _importable(root: Path) -> Iterator[None]:
    """Put a project's folder first in `sys.path`, and remove another project's modules from `sys.modules`."""
    for name in [name for name, home in _siblings.items() if home != root]:
        del _siblings[name]  # the other project keeps its references to them
        sys.modules.pop(name, None)
    before = [*sys.modules]
    sys.path.insert(0, str(root))
    try:
        yield
    finally:
        if str(root) in sys.path:
            sys.path.remove(str(root))
        after = [*sys.modules]  # mostly the same: a list is quickly copied and compared, and this runs for every batch
        for name in set(after).difference(before) if after != before else ():
            top = root / name.partition(".")[0]
            if top.is_dir() or top.with_suffix(".py").is_file():
                _siblings[name] = root
