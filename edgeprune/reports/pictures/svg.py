"""A picture as a small SVG that follows the colours of its page.

matplotlib draws. Its SVG is then cleaned: colours become CSS variables, text has the page's font, and ids are unique.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from edgeprune.devices.validate import printable
from edgeprune.errors import RuntimeMissing
from edgeprune.records import digest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 360  # of every picture, in units. One is a CSS pixel on a phone.
TEXT = 10.5  # size of text, in units
LABEL_CHARS = 60  # of a text from a record

# Colours stand for CSS variables. They are Okabe and Ito's, which people see who confuse red and green, and differ in
# brightness, so that a grey print shows them.
COLOURS: Mapping[str, tuple[str, str]] = {  # name: on white, on black
    "ink": ("#1f2328", "#e6edf3"),
    "muted": ("#59636e", "#9ba6b2"),
    "grid": ("#d5dae0", "#3a424c"),
    "paper": ("#ffffff", "#0d1117"),
    "before": ("#b4bdc7", "#57616d"),
    "after": ("#0060a8", "#56b4e9"),
    "limit": ("#b8420a", "#ff8c4a"),
    "second": ("#007a56", "#35c79a"),
    "third": ("#9a4a7d", "#e29bc8"),
    "fourth": ("#6b5f00", "#e0cf3c"),
}
_NUMBERED = {f"#0{i:x}0{i:x}0{i:x}": name for i, name in enumerate(COLOURS, 1)}
COLOUR = {name: mark for mark, name in _NUMBERED.items()}  # what matplotlib draws with


def _variables(dark: bool) -> str:
    return "".join(f"--picture-{name}:{pair[dark]};" for name, pair in COLOURS.items())


# The variables for a page that holds pictures. They follow the reader's light or dark mode. Paper is light.
STYLE = f":root{{{_variables(False)}}}@media screen and (prefers-color-scheme:dark){{:root{{{_variables(True)}}}}}"
FONT = "font-family:system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif"

_RC: Mapping[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "edgeprune",
    "text.usetex": False,
    "text.parse_math": False,
    "path.simplify": False,
    "font.family": ["DejaVu Sans"],
    "font.size": TEXT,
    "axes.titlesize": TEXT,
    "axes.labelsize": TEXT,
    "xtick.labelsize": TEXT - 0.5,
    "ytick.labelsize": TEXT - 0.5,
    "axes.titlelocation": "left",
    "axes.unicode_minus": True,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "grid.color": COLOUR["grid"],
    "grid.linewidth": 0.7,
    "text.color": COLOUR["ink"],
    "axes.labelcolor": COLOUR["muted"],
    "axes.edgecolor": COLOUR["muted"],
    "xtick.color": COLOUR["muted"],
    "ytick.color": COLOUR["muted"],
    "xtick.labelcolor": COLOUR["ink"],
    "ytick.labelcolor": COLOUR["ink"],
    "legend.frameon": False,
    "legend.fontsize": TEXT - 0.5,
    "legend.borderpad": 0.0,
    "legend.handlelength": 1.6,
}

NAMESPACE = "http://www.w3.org/2000/svg"
Row = Mapping[str, object]


@dataclass(frozen=True)
class Picture:
    """A picture for an HTML page.

    Attributes:
        svg: an element `<svg>` for a page with `STYLE`. It has an alternative text, and no script and no style sheet.
        alt: what the picture shows, in one sentence or two.
        rows: the same figures as a table, a dictionary for each row.
    """

    svg: str
    alt: str
    rows: Sequence[Row]

    @property
    def file(self) -> str:
        """The picture as a separate SVG file. It follows the reader's light or dark mode."""
        head, rest = self.svg.removeprefix("<svg").split(">", 1)
        return f'<svg xmlns="{NAMESPACE}"{head}><style>{STYLE}:root{{{FONT}}}</style>{rest}\n'

    def save(self, path: str | Path) -> Path:
        """Write the picture as an SVG file, and return its path."""
        Path(path).write_text(self.file, encoding="utf-8")
        return Path(path)

    def _repr_html_(self) -> str:
        return f"<style>{STYLE}</style><div style='max-width:{2 * WIDTH}px;{FONT}'>{self.svg}</div>"


def label(text: str, most: int = LABEL_CHARS) -> str:
    """The begin of a text from a record, printable."""
    safe = printable(text)
    return safe if len(safe) <= most else f"{safe[: most - 1]}…"


def tail(text: str, most: int) -> str:
    """The end of a text from a record, printable. Names of layers differ there."""
    safe = printable(text)
    return safe if len(safe) <= most else f"…{safe[1 - most :]}"


class Canvas:
    """A figure of matplotlib that becomes a picture. Sizes are in units; see `WIDTH`."""

    def __init__(self, figure: Figure, height: float) -> None:
        self.figure, self.height = figure, height

    def axes(self, left: float, bottom: float, width: float, height: float) -> Axes:
        """Axes with this place inside the picture, without their labels."""
        return self.figure.add_axes((left / WIDTH, bottom / self.height, width / WIDTH, height / self.height))

    def page(self) -> Axes:
        """The whole picture, with units as coordinates and the origin at the top left."""
        page = self.axes(0, 0, WIDTH, self.height)
        page.set(xlim=(0, WIDTH), ylim=(self.height, 0))
        page.axis("off")
        return page

    def svg(self, alt: str) -> str:
        """The element `<svg>`."""
        from matplotlib.backends.backend_svg import FigureCanvasSVG

        text = io.StringIO()
        with warnings.catch_warnings():  # the reader's font has the characters that matplotlib's has not
            warnings.filterwarnings("ignore", "Glyph", UserWarning)
            FigureCanvasSVG(self.figure).print_svg(text, metadata={"Date": None})  # type: ignore[no-untyped-call]
        return _cleaned(text.getvalue(), alt)


@contextmanager
def canvas(height: float) -> Iterator[Canvas]:
    """An empty picture of this height. The user's settings of matplotlib do not change it.

    Raises:
        RuntimeMissing: matplotlib is not installed.
    """
    try:
        from matplotlib import style
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RuntimeMissing("pictures need matplotlib: pip install 'edgeprune[report]'") from error
    with style.context(["default", dict(_RC)]):
        yield Canvas(Figure((WIDTH / 72, height / 72), dpi=72), height)


def dots(axes: Axes, x: Sequence[float], y: Sequence[float], size: float, colour: str) -> None:
    """Many round dots as one path, which is a tenth of the text of as many markers."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Line

    points = [(a, b) for a, b in zip(x, y, strict=True) for _ in range(2)]
    codes = [Line.MOVETO, Line.LINETO] * len(x)
    axes.add_patch(
        PathPatch(Line(points, codes), facecolor="none", edgecolor=COLOUR[colour], linewidth=size, capstyle="round")
    )


def unit_of(ns: float) -> tuple[float, str]:
    """The unit that suits a time: its nanoseconds, and its name."""
    return (1e6, "ms") if ns >= 1e6 else (1e3, "µs")


def keys(page: Axes, marks: Sequence[tuple[str, str, str, str]], y: float = 10.0, x: float = 4.0) -> None:
    """What marks mean, on one line. A mark is (marker or line, "fill", "none" or "line", colour, text)."""
    for mark, kind, colour, text in marks:
        if kind == "line":
            page.plot([x, x + 16], [y, y], mark, color=COLOUR[colour], lw=1.4)
        else:
            fill = "none" if kind == "none" else COLOUR[colour]
            page.plot([x + 6], [y], mark, ms=6, mfc=fill, mec=COLOUR[colour], mew=1.4 if kind == "none" else 0)
        page.text(x + 20, y, text, va="center", color=COLOUR["muted"])
        x += 31 + 5.8 * len(text)


def even(items: Sequence[Any], most: int) -> Sequence[Any]:
    """At most so many of the items, at even distances and in their order."""
    return items if len(items) <= most else [items[i * len(items) // most] for i in range(most)]


# ------------------------------------------------------------------------------------------------------- cleaning

_COORDINATES = frozenset({"d", "x", "y", "width", "height", "transform", "points", "viewBox"})
_DROPPED = frozenset({"font-family", "text-align", "line-height"})
_DOT = re.compile(r"M (\S+) (\S+) L \1 \2(?= M|$)")  # of `dots`
_NUMBER = re.compile(r"-?\d+\.\d+")


def _cleaned(text: str, alt: str) -> str:
    root = ElementTree.fromstring(text)  # noqa: S314 - matplotlib wrote it
    prefix = f"p{digest([text, alt])[:8]}-"
    used = set(re.findall(r"url\(#([^)]+)\)", text)) | set(re.findall(r'xlink:href="#([^"]+)"', text))
    picture = ElementTree.Element(
        "svg", {"viewBox": _rounded(root.attrib["viewBox"]), "role": "img", "aria-label": alt}
    )
    ElementTree.SubElement(picture, "title").text = alt
    for element in root.iter():
        _clean(element, prefix, used)
    picture.extend(_plain(root))
    return ElementTree.tostring(picture, encoding="unicode").replace("\n", "")


def _plain(parent: ElementTree.Element) -> Iterator[ElementTree.Element]:
    """The children of an element, without groups that only hold other elements."""
    for child in parent:
        if child.tag in ("metadata", "style"):
            continue
        children = list(_plain(child))
        if child.tag == "g" and not child.attrib:
            yield from children
        elif children or child.tag != "defs":
            child[:] = children
            yield child


def _clean(element: ElementTree.Element, prefix: str, used: set[str]) -> None:
    element.tag = element.tag.rpartition("}")[2]
    attributes = dict(element.attrib)
    element.attrib.clear()
    for name, value in [*attributes.items(), *_declarations(attributes.pop("style", ""))]:
        name = name.rpartition("}")[2]
        if name == "style" or (name == "id" and value not in used) or value.startswith(("rotate(-0 ", "rotate(0 ")):
            continue
        element.set(name, _value(name, value, prefix))
    if element.text is not None and not element.text.strip():
        element.text = None
    element.tail = None


def _declarations(style: str) -> Iterator[tuple[str, str]]:
    """The declarations of a style that matplotlib wrote, as attributes. A page's policy may forbid inline styles."""
    for declaration in style.split(";"):
        name, _, value = (part.strip() for part in declaration.partition(":"))
        if name == "font":
            size = re.search(r"([\d.]+)px", value)
            yield "font-size", size[1] if size else str(TEXT)
            if "bold" in value or "700" in value.split():
                yield "font-weight", "bold"
        elif name and name not in _DROPPED:
            yield name, value


def _value(name: str, value: str, prefix: str) -> str:
    if name == "id":
        return prefix + value
    if name in ("href", "clip-path"):
        return value.replace("#", f"#{prefix}")
    if value in _NUMBERED:
        return f"var(--picture-{_NUMBERED[value]})"
    if name == "d":
        return _DOT.sub(r"M\1 \2h0", _rounded(value))
    return _rounded(value) if name in _COORDINATES else value.removesuffix("px")


def _rounded(value: str) -> str:
    return _NUMBER.sub(lambda found: f"{float(found[0]):.1f}".removesuffix(".0"), " ".join(value.split()))
