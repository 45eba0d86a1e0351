"""Builds the site of the documentation into build/site. A warning is an error, and so is a link that leads nowhere.

The pages are the Markdown files of the repository. They are copied to build/pages, with the files that they link to and the
pages that follow from the code (`reference.py`). The navigation is the list of links in docs/README.md.
"""

from __future__ import annotations

import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import reference
from sphinx.cmd.build import build_main

ROOT = Path(__file__).parents[2]
PAGES, SITE = ROOT / "build" / "pages", ROOT / "build" / "site"
SOURCES = "*.md", "docs/*.md", "docs/adr/*.md", "examples/*/README.md", "benchmarks/README.md", "profiles/README.md"
CONTENTS = "docs/README.md"
NOTEBOOK = "examples/quickstart.py"  # becomes a page
LINK = re.compile(r"\[([^\]]*)\]\(([^)#\s]+)[^)]*\)")  # its text and its file
FILE = re.compile(r'(?:\]\(|<img src=")([^)"#\s]+)')  # that a page links to, or shows
FROM_CODE = "Reference, from the code"


def collect() -> None:
    """Copy the pages, and the files that they link to, and write the pages that follow from the code."""
    shutil.rmtree(PAGES, ignore_errors=True)
    sources = {path for pattern in SOURCES for path in ROOT.glob(pattern)}
    linked = {(page.parent / link).resolve() for page in sources for link in FILE.findall(page.read_text())}
    for path in sources | {path for path in linked if path.is_file()}:
        copy = PAGES / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path in sources:
            copy.write_text(path.read_text().replace(f"{NOTEBOOK})", f"{_page(NOTEBOOK)}.md)"))
        else:
            shutil.copyfile(path, copy)
    (PAGES / f"{_page(NOTEBOOK)}.md").write_text(reference.notebook((ROOT / NOTEBOOK).read_text()))
    reference.write(PAGES / "docs" / "reference")
    _append("README.md", navigation())
    _append("docs/adr/README.md", toctree("", sorted(path.stem for path in (ROOT / "docs" / "adr").glob("0*.md"))))


def _append(page: str, text: str) -> None:
    with (PAGES / page).open("a") as file:
        file.write(f"\n{text}")


def _page(path: str) -> str:
    return path.rpartition(".")[0]


def navigation() -> str:
    """The navigation: a list of pages for each heading of docs/README.md, and the pages that follow from the code."""
    folder = (ROOT / CONTENTS).parent
    parts = re.split(r"^## (.+)$", (ROOT / CONTENTS).read_text(), flags=re.M)[1:]
    trees = []
    for heading, text in zip(parts[::2], parts[1::2], strict=True):
        links = {name.strip("`"): (folder / link).resolve().relative_to(ROOT) for name, link in LINK.findall(text)}
        trees.append(toctree(heading, [f"{name} <{_page(link.as_posix())}>" for name, link in links.items()]))
    trees.insert(0, toctree("", [_page(CONTENTS)]))
    return "\n".join([*trees, toctree(FROM_CODE, [f"docs/reference/{name}" for name in reference.PAGES])])


def toctree(caption: str, pages: list[str]) -> str:
    """A list of pages in the navigation."""
    head = [":hidden:", *([f":caption: {caption}"] if caption else [])]
    return "\n".join(["```{toctree}", *head, "", *pages, "```", ""])


class _Page(HTMLParser):
    """The anchors and the links of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors = {""}  # the page itself
        self.links: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id":
                self.anchors.add(value or "")
            elif name in ("href", "src"):
                self.links.add(value or "")


def broken() -> list[str]:
    """The links of the site that lead nowhere. Links to other sites are not followed."""
    pages = {path: _Page(path) for path in SITE.rglob("*.html")}
    found = []
    for path, page in pages.items():
        for link in sorted(page.links):
            parts = urlsplit(link)
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            known = target.exists() and (target not in pages or unquote(parts.fragment) in pages[target].anchors)
            if not parts.scheme and not parts.netloc and not known:
                found.append(f"{path.relative_to(SITE)}: {link} leads nowhere")
    return found


def main() -> int:
    """Build the site and check its links."""
    collect()
    shutil.rmtree(SITE, ignore_errors=True)
    options = "--fail-on-warning", "--keep-going", "--quiet", "--jobs", "auto"
    places = "--conf-dir", str(Path(__file__).parent), "--doctree-dir", str(ROOT / "build" / "doctrees")
    if status := build_main([*options, *places, "-b", "html", str(PAGES), str(SITE)]):
        return status
    shutil.copyfile(SITE / "README.html", SITE / "index.html")
    print(
        "\n".join(problems := broken())
        or f"{SITE.relative_to(ROOT)}/index.html: {len(list(SITE.rglob('*.html')))} pages"
    )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
