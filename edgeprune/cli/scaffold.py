"""`edgeprune init`: write a project file for a model file, or for what the user's Python files define. They are not run."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgeprune.errors import UsageError, usage_error
from edgeprune.limits import LIMITS
from edgeprune.storage.store import read_capped

NAME = "edgeprune.toml"
WEIGHTS = (".safetensors", ".pt", ".pth", ".ckpt")
FILES = {".onnx": "onnx", ".keras": "keras", ".h5": "keras", ".tflite": "tensorflow"}  # keys of [model]
FOLDERS = {"saved_model.pb": "tensorflow", "config.json": "transformers"}  # likewise, of a folder with such a file
BUILDS = re.compile(r"build|model|net|create|make|get|load")  # names of functions that build a network


@dataclass(frozen=True)
class Role:
    """A key of the project file whose value is a function.

    Attributes:
        section, key: its place in the file.
        names: matches the names of such functions.
        parameters: how many arguments it takes.
        what: what it returns.
        required: whether a project needs it.
    """

    section: str
    key: str
    names: re.Pattern[str]
    parameters: int
    what: str
    required: bool = True


ROLES = (
    Role("model", "inputs", re.compile(r"input|example|dummy"), 0, "returns a tuple of tensors, (batch, ...) each"),
    Role("data", "train", re.compile(r"train"), 0, "returns batches of (inputs, targets)"),
    Role("data", "valid", re.compile(r"val|dev"), 0, "returns batches of (inputs, targets), for every choice"),
    Role("data", "test", re.compile(r"test"), 0, "returns batches of (inputs, targets), for the verdict", False),
    Role("data", "loss", re.compile(r"loss|criterion"), 2, "returns the loss of (outputs, targets)", False),
    Role("data", "metric", re.compile(r"metric|accuracy|score|f1|iou|psnr"), 2, "larger is better", False),
)
DATA = {"train", "valid"}
FACTORY = Role("model", "factory", BUILDS, 0, "returns a torch.nn.Module")


@dataclass(frozen=True)
class Found:
    """What the files beside a model define.

    Attributes:
        folder: of the project.
        references: {role: "module:function"}.
        weights: the name of the file of weights; None if there is none, or several.
        ambiguous: files of weights, if there are several.
        file: the key of [model] and the name of a model file, if the model is one.
    """

    folder: Path
    references: dict[Role, str]
    weights: str | None
    ambiguous: tuple[str, ...] = ()
    file: tuple[str, str] | None = None

    @property
    def roles(self) -> list[Role]:
        """What a project needs. A model file brings its network and its inputs."""
        return [role for role in (FACTORY, *ROLES) if role.required and not (self.file and role.section == "model")]

    @property
    def missing(self) -> list[Role]:
        """The roles that a project needs and no function has."""
        return [role for role in self.roles if role not in self.references]


def find(given: Path | None, here: Path) -> Found:
    """Look for a model, for data, and for weights.

    Args:
        given: the file or the folder of the model; None to look for it in the folder `here`.

    Raises:
        UsageError: no file defines a network, or several do, or a file is not Python.
    """
    folder = here if given is None else given.parent
    if given is not None and given.suffix in WEIGHTS:
        raise usage_error(f"{given} holds weights only; name the Python file of the model: edgeprune init FILE.py")
    files = [given] if given is not None and not _key(given) else []
    files += sorted(path for path in folder.glob("*.py") if path not in files)[: LIMITS.source_files]
    trees = {path: _parsed(path) for path in files if path.stem.isidentifier() or path == given}
    factories = {path: name for path, tree in trees.items() if (name := _factory(tree))}
    whole = given if given is not None or factories else _only_model_file(folder)
    if whole is not None and (key := _key(whole)):
        return Found(folder, _references(trees, ROLES), None, file=(key, whole.name))
    if given is None and len(factories) > 1:
        names = ", ".join(path.name for path in factories)
        raise usage_error(
            f"several files define a network: {names}; name one: edgeprune init {next(iter(factories)).name}"
        )
    model = given or next(iter(factories), None)
    if model not in factories:
        where = f"{model}" if model else f"no Python file in {folder}"
        raise usage_error(
            f"{where}{' does not define' if model else ' defines'} a network: a torch.nn.Module, or a function that"
            " returns one and takes no arguments; add one, or name its file: edgeprune init FILE.py"
        )
    assert model is not None
    if not model.stem.isidentifier():
        raise usage_error(f"{model} cannot be imported under this name; rename it to letters, digits and '_'")
    others = {path: tree for path, tree in trees.items() if path != model}
    references = {FACTORY: f"{model.stem}:{factories[model]}", **_references({model: trees[model], **others}, ROLES)}
    weights = sorted(path.name for path in folder.iterdir() if path.suffix in WEIGHTS)
    own = [name for name in weights if Path(name).stem == model.stem] or weights
    chosen = own[0] if len(own) == 1 else None
    return Found(folder, references, chosen, tuple(own) if len(own) > 1 else ())


def _only_model_file(folder: Path) -> Path | None:
    found = [path for path in folder.iterdir() if path.suffix in FILES]
    return found[0] if len(found) == 1 else None


def _key(path: Path) -> str:
    """The key of [model] for a model file or its folder; empty if it is none."""
    if path.is_dir():
        return next((key for name, key in FOLDERS.items() if (path / name).is_file()), "")
    return FILES.get(path.suffix, "") if path.is_file() else ""


def _references(trees: Mapping[Path, ast.Module], roles: Iterable[Role]) -> dict[Role, str]:
    """The first function for each role."""
    found: dict[Role, str] = {}
    for path, tree in trees.items():
        for role in roles:
            name = _function(tree, role)
            if name and role not in found:
                found[role] = f"{path.stem}:{name}"
    return found


def write(found: Found) -> Path:
    """Write the project file. Raises `UsageError` if there is one, which stays unchanged."""
    path = found.folder / NAME
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write("\n".join(_lines(found)) + "\n")
    except FileExistsError:
        raise UsageError(f"{path} exists, and edgeprune init never overwrites; edit it, or move it away") from None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; make the folder writable") from error
    return path


def report(found: Found, path: Path) -> Iterator[str]:
    """What was found, what is missing, and the next step."""
    yield f"wrote {path}"
    if found.file:
        yield f"  found    [model] {found.file[0]} = {found.file[1]}"
    for role, reference in found.references.items():
        yield f"  found    [{role.section}] {role.key} = {reference}"
    if found.weights:
        yield f"  found    [model] weights = {found.weights}"
    if found.ambiguous:
        yield f"  fill in  [model] weights: one of {', '.join(found.ambiguous)}"
    if found.file and not DATA & {role.key for role in found.references}:
        yield "  fill in  [data] samples: a folder or a pattern of files of inputs; or train and valid"
    for role in found.missing if not found.file else ():
        yield f"  fill in  [{role.section}] {role.key}: a function that {role.what}"
    yield f"then run: edgeprune doctor --project {path}"


def _lines(found: Found) -> Iterator[str]:
    yield "# Written by edgeprune init. docs/project-file.md lists all keys."
    for section in ("model", "data"):
        yield f"[{section}]"
        if section == "model" and found.file:
            yield f"{found.file[0]} = {json.dumps(found.file[1])}"
        for role in (FACTORY, *ROLES):
            if role.section == section and (role in found.roles or role in found.references):
                yield _line(role, found.references.get(role))
        if section == "data" and not DATA & {role.key for role in found.references}:
            yield '# samples = "FOLDER"  # instead of train and valid: files of inputs without labels'
        if section == "model" and not found.file:
            yield (
                f"weights = {json.dumps(found.weights)}"
                if found.weights
                else '# weights = "FILE"  # the trained weights, if any'
            )
        yield ""
    yield "[budget]"
    yield 'latency = "50%"  # of the original network on the target; or a time, such as "12 ms"'
    yield "max_metric_drop = 0.01"


def _line(role: Role, reference: str | None) -> str:
    given = f'{role.key} = "{reference}"' if reference else f'# {role.key} = "MODULE:FUNCTION"'
    return f"{given}  # {role.what}"


# ------------------------------------------------------------------------------------------------- reading Python


def _parsed(path: Path) -> ast.Module:
    try:
        return ast.parse(read_capped(path, LIMITS.source_bytes))
    except (SyntaxError, ValueError, RecursionError) as error:
        line = getattr(error, "lineno", None)
        raise usage_error(f"{path}{f', line {line}' if line else ''}: is not Python: {error}; fix the file") from error


def _factory(tree: ast.Module) -> str | None:
    """The function that builds a network, else the class of a network. Both are called without arguments."""
    networks = _networks(tree)
    functions = [
        one.name
        for one in _functions(tree)
        if _required(one.args) == 0 and (_called(one.returns) in networks or _returned(one) & networks)
    ]
    named = [name for name in functions if BUILDS.search(name.lower())] or functions
    if named:
        return named[0]
    classes = [one for one in tree.body if isinstance(one, ast.ClassDef) and one.name in networks]
    whole = [one.name for one in classes if _arguments(one) == 0]
    used = {_called(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    outer = [name for name in whole if name not in used] or whole  # no part of another network
    return outer[-1] if outer else None


def _networks(tree: ast.Module) -> set[str]:
    """The names of torch.nn.Module, of containers, and of the file's classes that derive from them."""
    found = {"Module", "Sequential"}
    for one in tree.body:  # a class stands below its base
        if isinstance(one, ast.ClassDef):
            bases = {_called(base) or "" for base in one.bases}
            if bases & found or any(base.endswith("Module") for base in bases):
                found.add(one.name)
    return found


def _function(tree: ast.Module, role: Role) -> str | None:
    """The first function with a name and as many arguments as a role asks for. It must return something."""
    for one in _functions(tree):
        fits = role.names.search(one.name.lower()) and _required(one.args) == role.parameters
        of_model = role.parameters and one.args.args and BUILDS.search(one.args.args[0].arg)  # it evaluates a network
        if fits and not of_model and _returns(one):
            return one.name
    return None


def _returns(function: ast.FunctionDef) -> bool:
    """Whether a function returns or yields a value."""
    return any(
        isinstance(node, ast.Yield | ast.YieldFrom) or (isinstance(node, ast.Return) and node.value is not None)
        for node in ast.walk(function)
    )


def _functions(tree: ast.Module) -> Iterable[ast.FunctionDef]:
    return (one for one in tree.body if isinstance(one, ast.FunctionDef) and not one.name.startswith("_"))


def _required(arguments: ast.arguments) -> int:
    keywords = sum(default is None for default in arguments.kw_defaults)
    return len(arguments.posonlyargs) + len(arguments.args) - len(arguments.defaults) + keywords


def _arguments(one: ast.ClassDef) -> int:
    """How many arguments a class needs."""
    inits = [node for node in one.body if isinstance(node, ast.FunctionDef) and node.name == "__init__"]
    return _required(inits[0].args) - 1 if inits else 0


def _returned(function: ast.FunctionDef) -> set[str]:
    """The names of the classes whose instances a function returns, directly or by a variable."""
    assigned = {
        target.id: _called(node.value.func)
        for node in ast.walk(function)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    found: set[str] = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Return):
            match node.value:
                case ast.Call(func=called):
                    found.add(_called(called) or "")
                case ast.Name(id=name):
                    found.add(assigned.get(name) or "")
    return found


def _called(node: ast.AST | None) -> str | None:
    """The last part of a dotted name: Module of torch.nn.Module. An annotation may be a string."""
    match node:
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name
        case ast.Constant(value=str(text)):
            return text.rpartition(".")[2]
    return None
