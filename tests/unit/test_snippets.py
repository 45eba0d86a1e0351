"""Code on the pages is right: options exist, keys are known, names can be imported. A page with a wrong one fails here.

tests/e2e/test_snippets_run.py runs what needs no board.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import inspect
import re
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
import yaml
from snippets import PAGES, ROOT, Block, all_blocks, commands, everywhere, runs_here, scripts, steps

import edgeprune
from edgeprune.api.networks import Compressed, PrunedNetwork
from edgeprune.cli import app
from edgeprune.frontends.sections import ProjectFile
from edgeprune.frontends.toml import TargetFile, keys_of, read_project, read_target

LANGUAGES = {"sh", "console", "python", "toml", "yaml", "text"}
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
MAKEFILE = (ROOT / "Makefile").read_text()
IMPORTED = {"edgeprune", "torch", "os", "sys", "pathlib"}  # modules of pages that are imported; others take seconds
HISTORY = [ROOT / "CHANGELOG.md", *(ROOT / "docs" / "adr").glob("0*.md")]  # they name what is gone


def test_every_code_block_names_its_language() -> None:
    found = {b.where: b.language for b in all_blocks() if b.language not in {*LANGUAGES, "span"}}
    assert not found, f"fence these blocks, with one of {sorted(LANGUAGES)}"


# ------------------------------------------------------------------------------------------------------- commands


def edgeprune_command(words: list[str]) -> None:
    """Parse a command line of edgeprune as the program does, without running it."""
    if words[0] == "--version":
        return
    assert words[0] in COMMANDS, f"edgeprune has no command {words[0]}"
    COMMANDS[words[0]].make_context(words[0], words[1:])


def make_command(words: list[str]) -> None:
    """A call of make has known targets, and variables that the Makefile reads."""
    for word in words:
        name, is_variable, _ = word.partition("=")
        assert re.search(rf"\$\({name}\)" if is_variable else rf"^{name}:", MAKEFILE, re.M), f"make has no {name}"


def pip_command(words: list[str]) -> None:
    """Extras of edgeprune are those of pyproject.toml."""
    for word in words:
        for extra in re.findall(r"[a-z]+", re.sub(r"^edgeprune\[(.+)\]$", r"\1", word) if "edgeprune[" in word else ""):
            assert extra in EXTRAS, f"edgeprune has no extra {extra}"


def python_command(words: list[str]) -> None:
    """A file that Python runs is in the repository, on the page or on a device, and has these options."""
    if words[0] == "-m" and words[1] == "edgeprune":
        edgeprune_command(words[2:])
    if words[0].startswith(("-", "~")) or words[0] in {block.file for block in everywhere("python")}:
        return
    code = (ROOT / words[0]).read_text()
    for word in words[1:]:
        assert not word.startswith("--") or f'"{word}"' in code, f"{words[0]} has no option {word}"


def command(words: list[str]) -> None:
    """Check one simple command of a shell."""
    program, arguments = words[0].rpartition("/")[2], words[1:]
    checks = {"edgeprune": edgeprune_command, "make": make_command, "pip": pip_command, "torchrun": torchrun_command}
    if program in checks:
        checks[program](arguments)
    elif program in ("python", "python3"):
        python_command(arguments)
    else:
        near = difflib.get_close_matches(program, [*checks, "python"], cutoff=0.7)
        assert not near, f"{program} is misspelt: {near[0]}"


def torchrun_command(words: list[str]) -> None:
    """torchrun starts edgeprune as a module."""
    python_command(words[words.index("-m") :])


def sentences() -> list[Block]:
    """Code in the sentences of pages that describe the present."""
    return [block for block in everywhere("span") if block.page not in HISTORY and block.text.strip()]


def reported(where: str, check: Callable[..., None], *arguments: Any) -> str:
    """What is wrong, with its place; empty if nothing is."""
    try:
        check(*arguments)
    except Exception as error:  # noqa: BLE001 - whatever a check raises is what is wrong
        return f"{where}: {' '.join(map(str, arguments[:1]))[:90]}: {getattr(error, 'message', error)}"
    return ""


def test_commands_have_the_options_that_pages_give_them() -> None:
    wrong = [reported(block.where, command, words) for block, text in scripts() for words in commands(text)]
    assert not any(wrong), "\n".join(filter(None, wrong))


@pytest.mark.parametrize(
    "line",
    [
        "edgeprune run --bugdet 5",
        "edgeprun run",
        "edgeprune rnu",
        "edgeprune board sideways",
        "edgeprune setup",
        "edgeprune bench x.onnx --streams 0",
        "torchrun -m edgeprune finetune --nproc 2",
        "make tset",
        "make run TRAGET=pi",
        "pip install 'edgeprune[openvin]'",
        ".venv/bin/python examples/digits/trian.py",
    ],
)
def test_a_wrong_command_is_found(line: str) -> None:
    assert [reported("page", command, words) for words in commands(line)] != [""]


def test_commands_that_need_a_board_are_marked() -> None:
    """tests/e2e/test_snippets_run.py runs the others."""
    unmarked = {
        block.where: words
        for block, text in scripts()
        for words in commands(text)
        if words[0] == "edgeprune" and not block.needs and not runs_here(words) and block.language != "yaml"
    }
    assert not unmarked, f"write <!-- needs: a board --> before these blocks: {unmarked}"


def test_scripts_are_those_of_a_shell() -> None:
    for block, text in scripts():
        shell = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, timeout=600)
        assert shell.returncode == 0, f"{block.where}: {shell.stderr}"


def mentioned(text: str) -> None:
    """A command in a sentence: it exists and has these options. Its arguments may be left out."""
    words = text.split()
    if words[0] == "make":
        make_command(words[1:])
    elif words[0] == "edgeprune" and len(words) > 1 and words[1].isalpha() and words[1].islower():
        assert words[1] in COMMANDS, f"edgeprune has no command {words[1]}"
        known = {name for parameter in COMMANDS[words[1]].params for name in parameter.opts} | {"--help"}
        assert {word.partition("=")[0] for word in words if re.match("--?[a-z]", word)} <= known


def test_commands_in_sentences_exist() -> None:
    wrong = [reported(block.where, mentioned, block.text) for block in sentences()]
    assert not any(wrong), "\n".join(filter(None, wrong))


def test_a_workflow_gives_the_action_what_it_takes() -> None:
    inputs = set(yaml.safe_load((ROOT / "action.yml").read_text())["inputs"])
    ours = [(block, step) for block, step in steps() if step.get("uses", "").startswith("OWNER/edgeprune@")]
    assert len(ours) >= 2 and all(set(step["with"]) <= inputs for _, step in ours)


# ---------------------------------------------------------------------------------------------------------- files

BASES = {  # sections that a page leaves out
    "model": '[model]\nfactory = "m:build"\ninputs = "m:inputs"\n',
    "data": '[data]\ntrain = "m:train"\nvalid = "m:valid"\n',
    "connect": '[connect]\ntransport = "ssh"\nhost = "pi"\n',
    "runtime": '[runtime]\nname = "tensorrt"\n',
}


def load(text: str, folder: Path) -> None:
    """Read a project file or a target file, or a part of one, as the program does."""
    sections = set(tomllib.loads(text))
    shape, read = (TargetFile, read_target) if sections <= set(keys_of(TargetFile, ())) else (ProjectFile, read_project)
    missing = [base for name, base in BASES.items() if name in keys_of(shape, ()) and name not in sections]
    (folder / "edgeprune.toml").write_text("\n".join([text, *missing]))
    for name in re.findall(r'^(?:onnx|keras|tensorflow|transformers) = "(.+?)"', text, re.M):
        place = folder / name
        place.touch() if place.suffix else place.mkdir()
    read(folder / "edgeprune.toml")
    section = ""
    for line in text.splitlines():
        section = (re.findall(r"^\[(\w+)\]", line) or [section])[0]
        for key in re.findall(r"^# (\w+) = ", line):
            assert key in keys_of(shape, (section, "")), f"[{section}] has no key {key}"


@pytest.mark.parametrize("block", everywhere("toml"), ids=lambda block: block.where)
def test_files_on_pages_are_read(block: Block, tmp_path: Path) -> None:
    assert not reported(block.where, load, block.text, tmp_path)


@pytest.mark.parametrize("text", ["[prune]\nimportanec = 1", "[deploy]\nkeep = 1", "[prune]\n# importanec = 1"])
def test_a_wrong_key_is_found(text: str, tmp_path: Path) -> None:
    assert reported("page", load, text, tmp_path)


def fields(page: str, shape: Any) -> list[str]:
    """The keys of a file that its page does not explain in the table of their section."""
    text = (ROOT / "docs" / page).read_text()
    parts = re.split(r"^## ", text, flags=re.M)[1:]
    rows = {part.partition("\n")[0]: "\n".join(re.findall(r"^\| .*", part, re.M)) for part in parts}
    explained = {name: "".join(rows[head] for head in rows if f"`[{name}]`" in head) for name in keys_of(shape, ())}
    return [f"[{s}] {key}" for s in explained for key in keys_of(shape, (s, "")) if f"{key}`" not in explained[s]]


def test_the_pages_of_the_files_explain_every_key() -> None:
    assert fields("project-file.md", ProjectFile) == []
    assert fields("target-file.md", TargetFile) == []


# --------------------------------------------------------------------------------------------------------- Python

KNOWN = {"ep": edgeprune, "edgeprune": edgeprune, "project": edgeprune.Project, "result": Compressed}
KNOWN["pruned"] = PrunedNetwork


def attributes(kind: Any) -> set[str]:
    """The attributes of a module, or of the objects of a class."""
    return {*dir(kind), *getattr(kind, "__dataclass_fields__", {})}


def keywords(function: Callable[..., Any]) -> set[str]:
    """The keywords that a function takes; those of `**options`, too."""
    found: set[str] = set()
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            home = importlib.import_module(getattr(function, "__wrapped__", function).__module__)
            found |= set(get_args(eval(parameter.annotation, vars(home)))[0].__annotations__)
        found.add(parameter.name)
    return found


def known(node: ast.AST) -> Any:
    """What an expression of a page stands for; None if it is not of edgeprune."""
    if isinstance(node, ast.Name):
        return KNOWN.get(node.id)
    if isinstance(node, ast.Attribute) and (owner := known(node.value)) is not None:
        if owner is edgeprune and node.attr not in dir(edgeprune):
            return importlib.import_module(f"edgeprune.{node.attr}")
        assert node.attr in attributes(owner), f"{ast.unparse(node)} does not exist"
        return getattr(owner, node.attr, None)
    return None


def imports(node: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, str]]:
    """The imported modules, with the name that is taken from each."""
    if isinstance(node, ast.Import):
        yield from ((alias.name, "") for alias in node.names)
    else:
        yield from ((node.module or "", alias.name) for alias in node.names)


def names(code: str) -> None:
    """Modules and their names exist; functions of edgeprune take these keywords."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for module, name in imports(node):
                if module.partition(".")[0] not in IMPORTED:
                    continue
                loaded = importlib.import_module(module)
                assert not name or hasattr(loaded, name) or importlib.util.find_spec(f"{module}.{name}"), name
        elif isinstance(node, ast.Attribute):
            known(node)
        elif isinstance(node, ast.Call) and (function := known(node.func)) is not None:
            taken = keywords(function)
            wrong = [k.arg for k in node.keywords if k.arg and k.arg not in taken]
            assert not wrong, f"{ast.unparse(node.func)} takes no {wrong}"


def test_python_on_pages_has_names_and_keywords_that_exist() -> None:
    wrong = [reported(block.where, names, block.text) for block in everywhere("python")]
    assert not any(wrong), "\n".join(filter(None, wrong))


def test_python_in_sentences_has_names_and_keywords_that_exist() -> None:
    for block in sentences():
        if re.match(r"(ep|edgeprune|project)\.(?!toml)\w+[^…*]*$", block.text):
            assert not reported(block.where, names, block.text)


@pytest.mark.parametrize(
    "code",
    [
        "project.compres()",
        "ep.run('x', tarfet='pi')",
        "ep.nothing('x')",
        "ep.Project(m, x, trian=1)",
        "ep.Project.from_onx('x')",
        "result.latency",
        "from edgeprune import prun",
        "import torch.nothing",
    ],
)
def test_a_wrong_name_or_keyword_is_found(code: str) -> None:
    assert reported("page", names, code)


# ------------------------------------------------------------------------------------------------- pages of the site


def test_every_page_is_in_the_list_of_pages() -> None:
    listed = re.findall(r"\]\(([^)#]+)\)", (ROOT / "docs" / "README.md").read_text())
    pages = {(ROOT / "docs" / link).resolve() for link in listed}
    parts = {path for path in PAGES if path.parent.name == "adr" and path.name != "README.md"}
    assert set(PAGES) - pages - parts == {ROOT / "README.md", ROOT / "docs" / "README.md"}


def test_exit_codes_are_explained() -> None:
    from edgeprune import errors

    rows = re.findall(r"^\| (\d+) \| (.*?) \|", (ROOT / "docs" / "exit-codes.md").read_text(), re.M)
    explained = {(int(code), name) for code, classes in rows for name in re.findall(r"`(\w+)`", classes)}
    classes = {
        (kind.exit_code, kind.__name__)
        for kind in vars(errors).values()
        if inspect.isclass(kind) and issubclass(kind, errors.EdgepruneError) and kind is not errors.EdgepruneError
    }
    assert explained == classes
    assert {int(code) for code, _ in rows} >= {errors.EXIT_PASS, errors.EXIT_INTERRUPTED}
