"""The pages of the site that follow from the code: the command line, the keys of the files, and the Python API."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import typer
from pydantic import BaseModel

import edgeprune
from edgeprune.cli import app
from edgeprune.frontends.modelfile import FORMATS
from edgeprune.frontends.sections import ProjectFile
from edgeprune.frontends.toml import TargetFile, keys_of, wanted_of
from edgeprune.records import keyword

Row = tuple[str, ...]


def table(head: Row, rows: Iterator[Row]) -> str:
    """A table in Markdown."""
    lines = (head, ("---",) * len(head), *rows)
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


# ------------------------------------------------------------------------------------------------ the command line


def command_line() -> str:
    """The page of all commands with all options, as `--help` has them."""
    commands: Mapping[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    guide = "[Commands](../commands.md) explains how they work together."
    sections = (_command(name, command) for name, command in commands.items())
    return "# All commands and options\n\n" + "\n\n".join((guide, *sections)) + "\n"


def _command(name: str, command: Any) -> str:
    context = command.make_context(f"edgeprune {name}", [], resilient_parsing=True)
    usage = command.get_usage(context).partition(": ")[2]
    records = (one.get_help_record(context) for one in command.get_params(context) if not one.hidden)
    rows = ((f"`{names}`", meaning) for names, meaning in records)
    return f"## `edgeprune {name}`\n\n{command.help}\n\n```text\n{usage}\n```\n\n" + table(("option", "meaning"), rows)


# --------------------------------------------------------------------------------------------- the keys of the files


def project_file() -> str:
    """The page of all keys of the project file."""
    head = "key", "keyword of `Project`", "value", "default"
    guide = "[The project file](../project-file.md) explains each key."
    return "# All keys of the project file\n\n" + guide + "\n" + _sections(ProjectFile, head, _project_key)


def target_file() -> str:
    """The page of all keys of a target file."""
    guide = "[The target file](../target-file.md) explains each key."
    rows = _sections(TargetFile, ("key", "value", "default"), _key)
    return "# All keys of a target file\n\n" + guide + "\n" + rows


def _sections(shape: type[BaseModel], head: Row, row: Callable[[type[BaseModel], str, str], Row]) -> str:
    return "".join(
        f"\n## `[{section}]`\n\n"
        + table(head, (row(shape, section, key) for key in keys_of(shape, (section, ""))))
        + "\n"
        for section in keys_of(shape, ())
    )


def _project_key(shape: type[BaseModel], section: str, key: str) -> Row:
    name, *others = _key(shape, section, key)
    return name, "" if key in FORMATS else f"`{keyword(section, key)}`", *others


def _key(shape: type[BaseModel], section: str, key: str) -> Row:
    annotation: Any = shape.model_fields[section].annotation
    field = (get_args(annotation) or (annotation,))[0].model_fields[key]
    value = wanted_of(shape, (section, key))
    if field.is_required():
        return f"`{key}`", value, "required"
    return f"`{key}`", value, "" if field.default is None else f"`{_toml(field.default)}`"


def _toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else str(value)


# ------------------------------------------------------------------------------------------------------- Python

ANSWERS = "edgeprune.api.networks.Compressed", "edgeprune.api.networks.PrunedNetwork"
OPTIONS = (
    "edgeprune.frontends.objects.Options",
    "edgeprune.pipeline.request.Options",
)  # keywords, which Python calls options


def python() -> str:
    """The page of the Python API. Sphinx reads the docstrings."""
    functions = [name for name in edgeprune.__all__ if name != "Project"]
    blocks = [
        "## The project\n\n" + _directive("autoclass", _home("Project"), ":members:"),
        "## Functions\n\n" + "\n".join(_directive("autofunction", _home(name)) for name in functions),
        "## Keywords\n\n" + "\n".join(_directive("autoclass", name, ":no-index:") for name in OPTIONS),
        "## Answers\n\n" + "\n".join(_directive("autoclass", name, ":members:") for name in ANSWERS),
        "## Errors\n\n" + _directive("automodule", "edgeprune.errors", ":members:"),
    ]
    guide = "[Python](../python.md) shows how to use it."
    return "# The Python API\n\n" + "\n\n".join((guide, *blocks)) + "\n"


def _home(name: str) -> str:
    """The full name of a public object."""
    return f"{getattr(edgeprune, name).__module__}.{name}"


def _directive(kind: str, name: str, option: str = "") -> str:
    return f"```{{eval-rst}}\n.. {kind}:: {name}\n   {option}\n```\n"


# --------------------------------------------------------------------------------------------------------- a notebook


def notebook(text: str) -> str:
    """The page of a notebook in the percent format: `# %%` begins a cell of code, `# %% [markdown]` one of text."""
    pages = []
    for cell in re.split(r"^# %%", text, flags=re.M)[1:]:
        kind, _, body = cell.partition("\n")
        is_text = kind.strip() == "[markdown]"
        shown = re.sub(r"^# ?", "", body, flags=re.M) if is_text else f"```python\n{body.strip()}\n```"
        pages.append(shown.strip())
    return "\n\n".join(pages) + "\n"


PAGES: Mapping[str, Callable[[], str]] = {
    "command-line": command_line,
    "project-keys": project_file,
    "target-keys": target_file,
    "api": python,
}


def write(folder: Path) -> None:
    """Write the pages into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, page in PAGES.items():
        (folder / f"{name}.md").write_text(page())
