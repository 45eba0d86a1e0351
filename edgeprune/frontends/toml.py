"""Project and target files in TOML -> records."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, Field, StringConstraints, ValidationError

from edgeprune import runtimes
from edgeprune.errors import QUOTED_CHARS, quoted, usage_error
from edgeprune.frontends.functions import FileFunction
from edgeprune.frontends.sections import ProjectFile, Section, Source, Text, project_of
from edgeprune.limits import LIMITS
from edgeprune.records import (
    Deployment,
    Host,
    Prepare,
    Project,
    Target,
)
from edgeprune.runtimes import cores
from edgeprune.storage.store import read_capped

PATH_CHARS = 1000  # of a path in a message; nearly all paths are shown whole, since the end matters most

Threads = Annotated[int, Field(ge=1, le=1024, description="a whole number from 1 to 1024")]

# No tool reads such a name as an option, and no shell as a command.
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._:%@-]*$", max_length=255)]
Tags = Annotated[
    str, StringConstraints(pattern=r"^[a-z][a-z0-9_]+=[\w.:-]+(,[a-z][a-z0-9_]+=[\w.:-]+)*$", max_length=500)
]
Address = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.\[\]:-]+:\d{1,5}$", max_length=255)]
# A host may also be an address with its port, or a URI: [::1]:2222, ssh://pi@board:2222.
HostName = Annotated[
    str, StringConstraints(pattern=r"^(ssh://)?[A-Za-z0-9_:\[][A-Za-z0-9._:%@\[\]-]*$", max_length=255)
]
Cores = Annotated[str, StringConstraints(pattern=r"^\d{1,4}(-\d{1,4})?(,\d{1,4}(-\d{1,4})?)*$", max_length=255)]
Fingerprint = Annotated[str, StringConstraints(pattern=r"^SHA256:[A-Za-z0-9+/]{43}$")]


class _Connect(Section):
    transport: Literal["local", "ssh"]
    host: Annotated[HostName | None, Field(description="a host name, an address, or a Host of ~/.ssh/config")] = None
    hosts: Annotated[
        list[HostName], Field(max_length=LIMITS.boards, description='a list of equal boards, such as ["pi-1", "pi-2"]')
    ] = []  # noqa: RUF012 - pydantic copies it
    place: Annotated[Tags | None, Field(description='tags of a labgrid place, such as "board=pi5,ram=8g"')] = None
    boards: Annotated[int, Field(ge=1, le=LIMITS.boards, description=f"a whole number from 1 to {LIMITS.boards}")] = 1
    coordinator: Annotated[
        Address | None, Field(description='the address of a labgrid coordinator, such as "127.0.0.1:20408"')
    ] = None
    user: Annotated[Name | None, Field(description="a user name")] = None
    port: Annotated[int | None, Field(ge=1, le=65535, description="a whole number from 1 to 65535")] = None
    identity: Annotated[Text | None, Field(description="the path of a private key")] = None
    known_hosts: Annotated[Text | None, Field(description="the path of a known_hosts file")] = None
    fingerprint: Annotated[
        Fingerprint | None, Field(description='a fingerprint as ssh-keygen -lf prints it: "SHA256:..."')
    ] = None
    python: Annotated[Text, Field(description="the Python on the device, 3.8 or newer")] = "python3"


class _Runtime(Section):
    name: Literal[runtimes.names()]  # type: ignore[valid-type] # mypy wants a list of names here
    dla: Annotated[int | None, Field(ge=0, le=7, description="the number of a DLA core, such as 0")] = None
    threads: Threads = 1
    cores: Annotated[Cores | None, Field(description='cores as Linux writes them, such as "4-7"')] = None
    precision: Literal["fp32", "fp16", "int8", "auto"] = "fp32"


class _Expect(Section):
    emulated: Annotated[bool, Field(description="true or false")] = False
    simulated: Annotated[bool, Field(description="true or false")] = False
    power_mode: Annotated[Name | None, Field(description='a power mode as nvpmodel names it, such as "MAXN"')] = None
    clocks_pinned: Annotated[Literal[True] | None, Field(description="true, or left out")] = None


class _Prepare(Section):
    power_mode: Annotated[Name | None, Field(description='a power mode as nvpmodel names it, such as "MAXN"')] = None
    jetson_clocks: Annotated[bool, Field(description="true or false")] = False


class _Deploy(Section):
    hosts: Annotated[list[HostName], Field(description='a list of host names, such as ["pi-1", "pi-2"]')] = []  # noqa: RUF012 - pydantic copies it
    key: Annotated[Text | None, Field(description="the path of a private Ed25519 key")] = None
    reload: Annotated[
        list[Text], Field(description='a command in words, such as ["systemctl", "--user", "reload", "vision"]')
    ] = []  # noqa: RUF012 - pydantic copies it
    keep: Annotated[int, Field(ge=2, le=100, description="a whole number from 2 to 100")] = 5


class TargetFile(Section):
    """All sections of a target file."""

    connect: _Connect
    runtime: _Runtime
    expect: _Expect = _Expect()
    prepare: _Prepare | None = None
    deploy: _Deploy = _Deploy()


File = TypeVar("File", bound=BaseModel)


def read_project(path: Path, budget: str | None = None) -> Project:
    """Read an `edgeprune.toml`. The project is named after the file's folder, and its paths are absolute.

    Args:
        path: the file.
        budget: "12 ms" or "50%"; replaces the file's.

    Raises:
        UsageError: the file is wrong. The message, of one line, names the file, the key and what to write.
    """
    path = Path(os.path.abspath(path))
    if not os.path.lexists(path):
        raise usage_error(f"{path}: does not exist; write one: edgeprune init, or name yours: --project FILE")

    def function(section: str, key: str, name: str) -> FileFunction:
        return FileFunction(path, f"[{section}] {key}", name)

    source = Source(path, path.parent.name or "project", function)
    return project_of(source, _read_toml(path, ProjectFile), budget)


def read_target(path: Path) -> Target:
    """Read a target file. The target is named after it. Raises `UsageError` with the file and the key."""
    path = Path(os.path.abspath(path))
    if not re.fullmatch(r"\w[\w.-]*", path.stem):  # the name becomes a folder's
        raise usage_error(f"{path}: a target's name may hold letters, digits, '_', '-' and '.'; rename the file")
    file = _read_toml(path, TargetFile)
    jetsons = file.runtime.dla, file.prepare, file.expect.power_mode, file.expect.clocks_pinned
    if file.runtime.name != "tensorrt" and any(key is not None for key in jetsons):
        text = "[runtime] dla, [prepare] and [expect] power_mode and clocks_pinned"
        raise usage_error(f'{path}: {text} need [runtime] name = "tensorrt"')
    host = _host(path, file.connect)
    return Target(
        path=path,
        name=path.stem,
        transport=file.connect.transport,
        runtime=file.runtime.name,
        threads=file.runtime.threads,
        precision=file.runtime.precision,
        host=host,
        others=_others(host, file.connect),
        cores=_cores(path, file.runtime),
        dla=file.runtime.dla,
        **file.expect.model_dump(),
        prepare=Prepare(**file.prepare.model_dump()) if file.prepare else None,
        deploy=_deployment(path, file),
    )


def _cores(path: Path, runtime: _Runtime) -> str | None:
    """The cores to pin to, in one way of writing."""
    if runtime.cores is None:
        return None
    try:
        known = cores.listed(runtime.cores)
    except ValueError as error:
        raise usage_error(f'{path}: [runtime] {error}; write the first core first: cores = "4-7"') from error
    if runtime.threads > len(known):
        text = f"threads = {runtime.threads} do not fit on cores = {quoted(runtime.cores)}"
        raise usage_error(f"{path}: [runtime] {text}; set threads = {len(known)}, or name more cores")
    return cores.written(known)


def _deployment(path: Path, file: TargetFile) -> Deployment:
    given = file.deploy
    if given.hosts and file.connect.transport != "ssh":
        raise usage_error(f'{path}: [deploy] hosts needs [connect] transport = "ssh"')
    if given.hosts and file.connect.fingerprint is not None:
        raise usage_error(
            f"{path}: [connect] fingerprint pins one host; list the keys of [deploy] hosts in known_hosts instead"
        )
    if len(set(given.hosts)) < len(given.hosts):
        raise usage_error(f"{path}: [deploy] hosts names a host twice; name each once")
    key = path.parent / Path(given.key).expanduser() if given.key else None
    return Deployment(tuple(given.hosts), key, tuple(given.reload), given.keep)


def _host(path: Path, connect: _Connect) -> Host | None:
    """The keys of `[connect]` that only SSH uses."""
    given = connect.model_dump(exclude={"transport"}, exclude_unset=True)
    if connect.transport != "ssh":
        if given:
            raise usage_error(f'{path}: [connect] {next(iter(given))} needs transport = "ssh"')
        return None
    ways = [key for key in ("host", "hosts", "place") if given.get(key)]
    if not ways:
        raise usage_error(f'{path}: [connect] host is missing; add it: host = "raspberrypi.local"')
    if len(ways) > 1:
        raise usage_error(f"{path}: [connect] has both {ways[0]} and {ways[1]}; keep one of them")
    _require_fitting(path, ways[0], given)

    def place(name: str | None) -> Path | None:
        return path.parent / Path(name).expanduser() if name else None

    return Host(
        connect.host or connect.place or connect.hosts[0],
        connect.user,
        connect.port,
        place(connect.identity),
        place(connect.known_hosts),
        connect.fingerprint,
        connect.python,
        tuple(
            (key, value) for key, _, value in (tag.partition("=") for tag in (connect.place or "").split(",") if tag)
        ),
        connect.coordinator,
    )


def _require_fitting(path: Path, way: str, given: dict[str, Any]) -> None:
    """Keys of `[connect]` that do not fit the way to the device are refused."""
    if way == "place":
        for key in ("user", "port"):
            if key in given:
                raise usage_error(f"{path}: [connect] {key}: the farm says the {key} of a place; remove it")
    else:
        for key in ("boards", "coordinator"):
            if key in given:
                raise usage_error(f'{path}: [connect] {key} needs a place; add it: place = "board=pi5"')
    if way != "host" and "fingerprint" in given:
        raise usage_error(
            f"{path}: [connect] fingerprint pins one host; list the keys of all boards in known_hosts instead"
        )
    if len(set(given.get("hosts", ()))) < len(given.get("hosts", ())):
        raise usage_error(f"{path}: [connect] hosts names a host twice; name each once")


def _others(host: Host | None, connect: _Connect) -> tuple[Host, ...]:
    """The boards that share the experiments of a profile with the first one."""
    if host is None:
        return ()
    return tuple(replace(host, name=name) for name in connect.hosts[1:]) + (host,) * (connect.boards - 1)


def find_target(name: str, project_dir: Path) -> Path:
    """The file of a target.

    Args:
        name: a path, or the NAME of a file `targets/NAME.toml`. It is looked up beside the project, in the working directory,
            and in edgeprune itself.
        project_dir: the project's folder.

    Raises:
        UsageError: there is no such file. The message lists the known names.
    """
    folders = _target_folders(project_dir)
    if "/" in name or os.sep in name or name.endswith(".toml"):
        places = [Path(name)]
    else:
        places = [folder / f"{name}.toml" for folder in folders]
    for place in places:
        if os.path.isfile(place):
            return Path(os.path.abspath(place))
    known = sorted(target_files(project_dir))
    stem = name.replace(os.sep, "/").rpartition("/")[2].removesuffix(".toml")
    raise usage_error(
        f"no target {quoted(name, PATH_CHARS)}{nearest(stem, known)}; give a known one or the path of a target file"
    )


def target_files(project_dir: Path) -> dict[str, Path]:
    """The known targets, {name: file}, as `find_target` finds them by name."""
    folders = reversed(_target_folders(project_dir))
    return {path.stem: Path(os.path.abspath(path)) for folder in folders for path in sorted(folder.glob("*.toml"))}


def _target_folders(project_dir: Path) -> list[Path]:
    return [project_dir / "targets", Path.cwd() / "targets", _shipped_targets()]


def _shipped_targets() -> Path:
    """The targets of edgeprune: in the package if it is installed, or at the top of a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "targets"
    return installed if installed.is_dir() else package.parent / "targets"


def _read_toml(path: Path, shape: type[File]) -> File:
    data = read_capped(path, LIMITS.toml_bytes)
    try:
        content = tomllib.loads(data.decode("utf-8-sig"))  # editors on Windows put a byte-order mark
    except (ValueError, RecursionError) as error:  # Python also raises for numbers of thousands of digits
        raise usage_error(f"{path}: is not TOML: {quoted(str(error), 200)}; fix the file") from error
    try:
        return shape.model_validate(content)
    except ValidationError as error:
        raise usage_error(f"{path}: {_explain(error, shape)}") from None


def _explain(error: ValidationError, shape: type[BaseModel]) -> str:
    """The first problem, with the key, what is wrong and what to write; and how many more problems there are.

    Unknown keys come first, since a misspelt key also makes another one missing.
    """
    problems = error.errors(include_url=False)
    unknown = [problem for problem in problems if problem["type"] == "extra_forbidden"]
    meant = {(*p["loc"][:-1], _match(str(p["loc"][-1]), keys_of(shape, p["loc"][:-1]))) for p in unknown}
    others = [
        p for p in problems if p["type"] != "extra_forbidden" and not (p["type"] == "missing" and p["loc"] in meant)
    ]
    ordered = unknown + others
    more = f" (and {len(ordered) - 1} more)" if len(ordered) > 1 else ""
    return _sentence(ordered[0]["type"], ordered[0]["loc"][:2], ordered[0]["input"], shape) + more


def _sentence(kind: str, loc: tuple[int | str, ...], given: Any, shape: type[BaseModel]) -> str:
    known, key = keys_of(shape, loc[:-1]), str(loc[-1])
    what = f"[{loc[0]}] {key}" if len(loc) > 1 else f"[{key}]"
    if kind == "extra_forbidden":
        if len(loc) == 1 and not isinstance(given, dict):
            place = _home(key, shape) or f"unknown key {quoted(key)}{nearest(key, known)}"
            return f"{place}; write keys below the header of their section"
        home = _home(key, shape) if len(loc) > 1 else ""
        place = f"[{loc[0]}] has no key {quoted(key)}" if len(loc) > 1 else f"unknown section {quoted(key)}"
        return f"{place}; {home}" if home else f"{place}{nearest(key, known)}"
    if kind == "missing":
        wanted = "" if len(loc) == 1 else f": {wanted_of(shape, loc)}"
        return f"{what} is missing; add it{wanted}"
    if len(loc) == 1:
        return f"{what} must be a section of keys, not {quoted(given)}"
    if kind == "literal_error" and (choices := _choices(_field(shape, loc).annotation)):
        return f"{what} = {quoted(given)} is unknown{nearest(str(given), choices)}"
    return f"{what} must be {wanted_of(shape, loc)}, not {quoted(given)}"


def _field(shape: type[BaseModel], loc: tuple[int | str, ...]) -> Any:
    return _fields(shape, str(loc[0]))[str(loc[1])]


def _fields(shape: type[BaseModel], section: str) -> dict[str, Any]:
    annotation: Any = shape.model_fields[section].annotation
    one: type[BaseModel] = (get_args(annotation) or (annotation,))[0]  # an optional section is a union with None
    return dict(one.model_fields)


def wanted_of(shape: type[BaseModel], loc: tuple[int | str, ...]) -> str:
    """The values of a key, in words."""
    field = _field(shape, loc)
    if field.description:
        return str(field.description)
    choices = _choices(field.annotation)
    return " or ".join(f'"{value}"' for value in choices) or 'a function as "module:function"'


def _choices(annotation: Any) -> list[str]:
    """The texts that a key may have, also if it may be left out; empty if they are not listed."""
    parts = get_args(annotation)
    return [value for value in parts if isinstance(value, str)] or [text for part in parts for text in _choices(part)]


def keys_of(shape: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """The known sections, or the known keys of a section."""
    if not loc:
        return list(shape.model_fields)
    return list(_fields(shape, str(loc[0])))


def _home(key: str, shape: type[BaseModel]) -> str:
    """The section that a misplaced key belongs to, in words; empty if there is none."""
    homes = [section for section in keys_of(shape, ()) if key in keys_of(shape, (section,))]
    return f"{key} belongs to [{homes[0]}]" if homes else ""


def _match(name: str, known: list[str]) -> str:
    return next(iter(difflib.get_close_matches(name[:QUOTED_CHARS], known, 1)), "")


def nearest(name: str, known: list[str]) -> str:
    match = _match(name, known)
    return (f"; did you mean {match}?" if match else "") + f"; known: {', '.join(known) or 'none'}"
