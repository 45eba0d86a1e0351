"""The code blocks and the commands of all pages."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[1]
PATTERNS = "*.md", "docs/*.md", "docs/adr/*.md", "examples/*/README.md", "benchmarks/README.md", "profiles/README.md"
PAGES = sorted(path for pattern in PATTERNS for path in ROOT.glob(pattern))
MARK = re.compile(r"<!-- (\w+): (.+?) -->")
ENDS = {"&&", "||", "|", ";", ";;", "(", ")", "&"}  # of a simple command
PARSER = MarkdownIt("commonmark").enable("table")


@dataclass(frozen=True)
class Block:
    """A code block, or a span of code in a line.

    Attributes:
        page: its file.
        line: where it begins.
        language: the word after the fence; "span" for code in a line, empty for an indented block.
        text: the code.
        file: the name of the file that a reader saves it as: <!-- file: NAME --> before the block.
        needs: what tests lack to run it, such as a board: <!-- needs: a board --> before the block.
    """

    page: Path
    line: int
    language: str
    text: str
    file: str = ""
    needs: str = ""

    @property
    def where(self) -> str:
        """The place in messages."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    """The code of a page, in order."""
    marks: dict[str, str] = {}
    for token in PARSER.parse(page.read_text()):
        line = token.map[0] + 1 if token.map else 0
        if token.type == "html_block":
            marks = dict(MARK.findall(token.content))
        elif token.type in ("fence", "code_block"):
            yield Block(page, line, token.info, token.content, marks.get("file", ""), marks.get("needs", ""))
            marks = {}
        for child in token.children or ():
            if child.type == "code_inline":
                yield Block(page, line, "span", child.content)


@cache
def all_blocks() -> tuple[Block, ...]:
    """The code of all pages."""
    return tuple(block for page in PAGES for block in blocks(page))


def everywhere(*languages: str) -> list[Block]:
    """The code in these languages of all pages."""
    return [block for block in all_blocks() if block.language in languages]


def scripts() -> Iterator[tuple[Block, str]]:
    """The shell scripts of all pages: blocks, what consoles show after `$`, and the steps of workflows."""
    for block in everywhere("sh", "console"):
        shown = [line[2:] for line in block.text.splitlines() if line.startswith("$ ")]
        yield block, block.text if block.language == "sh" else "\n".join(shown)
    yield from ((block, step["run"]) for block, step in steps() if "run" in step)


def steps() -> Iterator[tuple[Block, dict[str, Any]]]:
    """The steps of the workflows of all pages."""
    for block in everywhere("yaml"):
        for job in _mappings(yaml.safe_load(block.text)):
            yield from ((block, step) for step in job.get("steps", ()))


def _mappings(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from _mappings(value)


def commands(script: str) -> Iterator[list[str]]:
    """The simple commands of a shell script, in words and without assignments."""
    for line in script.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="();&|")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word not in ENDS:
                words.append(word)
                continue
            while words and re.match(r"\w+=", words[0]):
                del words[0]
            if words:
                yield words
            words = []


HERE = {"local", "local-openvino", "local-tflite", "local-ncnn"}  # targets that need no board


def runs_here(words: list[str]) -> bool:
    """Whether a command of edgeprune needs no board, no farm and no virtual board."""
    named = [words[i + 1] for i, word in enumerate(words) if word in ("-t", "--target")]
    named += words[2:3] if words[1] == "doctor" else []
    return set(named) <= HERE and words[1] not in ("board", "setup")
