"""A network by layer, before and after a cut."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgeprune.latency.model import LatencyModel
from edgeprune.records import Groups, Layer, Widths, output_dim
from edgeprune.reports.pictures.svg import COLOUR, TEXT, WIDTH, Picture, canvas, label, tail

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CHANNELS, COUNTS, SHARES = (104, 192), 197, (270, 304)  # columns, in units; names begin at 0
HEAD = 38  # above the first row
TALL, LOW = 15.0, 5.0  # rows of a small network and of a large one
ALL_NAMED = 40  # layers up to which each row has a name
REASONS = 4  # reasons below the picture; the table has all of them


@dataclass(frozen=True)
class _Row:
    """A layer: channels and shares of the original network's latency, before and after the cut."""

    name: str
    channels: tuple[int, int]
    shares: tuple[float, float]
    removed: bool
    locked: str


def network(groups: Groups, model: LatencyModel | None, widths: Widths) -> Picture:
    """The width and the share of latency of every layer before and after a cut, removed blocks, and what is locked.

    Args:
        groups: of the original network.
        model: predicts the latency of its layers. Without one, the shares are of multiply-accumulates.
        widths: {group: remaining units}; other groups keep all.
    """
    layers, figure = _rows(groups, model, widths), "latency" if model else "MACs"
    reasons = list(dict.fromkeys(row.locked for row in layers if row.locked))
    step = TALL if len(layers) <= ALL_NAMED else max(LOW, TALL * ALL_NAMED / len(layers))
    below = _reasons(reasons)
    height = HEAD + step * len(layers) + 10 + 14 * len(below)
    with canvas(height) as picture:
        page = picture.page()
        _head(page, figure)
        named = _named(layers, step)
        most = max(max(row.channels) for row in layers)
        longest = max(max(row.shares) for row in layers) or 1.0
        for i, row in enumerate(layers):
            middle = HEAD + step * (i + 0.5)
            _widths(page, row, middle, step, most)
            _shares(page, row, middle, step, longest)
            if i in named:
                _name(page, row, middle, reasons)
        for i, text in enumerate(below):
            page.text(0, HEAD + step * len(layers) + 13 + 14 * i, text, va="center", color=COLOUR["muted"])
        alt = _alt(groups, layers, widths, figure)
        return Picture(picture.svg(alt), alt, [_record(row, figure) for row in layers])


def locked(groups: Groups) -> dict[str, str]:
    """{layer: why no unit of its outputs can be removed}, of all layers for which this is so."""
    reasons = {group.name: group.locked for group in groups.groups if group.locked}
    slots = {
        (slot.parameter, slot.dim): group.locked for group in groups.groups if group.locked for slot in group.slots
    }
    found = {}
    for layer in groups.layers:
        own = [reasons[name] for name in sorted(layer.outputs.groups) if name in reasons]
        reason = own[0] if own else slots.get((layer.weight, output_dim(layer.kind)))
        if reason:
            found[layer.name] = reason
    return found


def _rows(groups: Groups, model: LatencyModel | None, widths: Widths) -> list[_Row]:
    full, why = groups.full(), locked(groups)
    now = {**full, **widths}
    before, after = (
        model.layer_ns(own) if model else {layer.name: float(layer.macs(own)) for layer in groups.layers}
        for own in (full, now)
    )
    total = sum(before.values()) + (model.overhead_ns if model else 0.0)

    def row(layer: Layer) -> _Row:
        channels = layer.channels(full)[1], layer.channels(now)[1]
        shares = before.get(layer.name, 0.0) / total, after.get(layer.name, 0.0) / total
        return _Row(layer.name, channels, shares, channels[1] == 0, why.get(layer.name, ""))

    return [row(layer) for layer in groups.layers]


def _head(page: Axes, figure: str) -> None:
    page.text(CHANNELS[0], 7, "channels", va="center", color=COLOUR["ink"])
    page.text(SHARES[0], 7, f"{figure}, %", va="center", color=COLOUR["ink"])
    _bar(page, CHANNELS[0], 25, 14, 8, "before")
    page.text(CHANNELS[0] + 18, 25, "before", va="center", color=COLOUR["muted"])
    _bar(page, CHANNELS[0] + 62, 25, 14, 8, "after")
    page.text(CHANNELS[0] + 80, 25, "after", va="center", color=COLOUR["muted"])


def _widths(page: Axes, row: _Row, middle: float, step: float, most: int) -> None:
    """Two bars around the same middle, so that the rows look like the network."""
    left, right = CHANNELS
    for channels, colour in zip(row.channels, ("before", "after"), strict=True):
        length = (right - left) * channels / most
        if channels:
            _bar(page, (left + right - length) / 2, middle, max(length, 1.0), 0.8 * step, colour)


def _shares(page: Axes, row: _Row, middle: float, step: float, longest: float) -> None:
    thick = 0.38 * step
    for i, (share, colour) in enumerate(zip(row.shares, ("before", "after"), strict=True)):
        length = (SHARES[1] - SHARES[0]) * share / longest
        _bar(page, SHARES[0], middle + (i - 0.5) * thick, length, thick, colour)


def _bar(page: Axes, x: float, middle: float, length: float, thick: float, colour: str) -> None:
    from matplotlib.patches import Rectangle

    page.add_patch(Rectangle((x, middle - thick / 2), length, thick, facecolor=COLOUR[colour], edgecolor="none"))


def _named(layers: Sequence[_Row], step: float) -> set[int]:
    """The rows with a name: those with the largest shares, as far as the names do not overlap."""
    apart = TEXT * 1.25 / step
    chosen: set[int] = set()
    for i in sorted(range(len(layers)), key=lambda i: -layers[i].shares[0]):
        if all(abs(i - other) >= apart for other in chosen):
            chosen.add(i)
    return chosen


def _name(page: Axes, row: _Row, middle: float, reasons: Sequence[str]) -> None:
    before, after = row.channels
    page.text(0, middle, tail(row.name, 16), va="center", fontsize=TEXT - 1)
    counts = f"{before}, locked {_letter(reasons.index(row.locked))}" if row.locked else f"{before} → {after}"
    if row.removed:
        counts = f"{before} removed"
    page.text(COUNTS, middle, counts, va="center", fontsize=TEXT - 1, color=COLOUR["muted"])
    shares = "{:.1f} → {:.1f}".format(*(100 * share for share in row.shares))
    page.text(WIDTH, middle, shares, va="center", ha="right", fontsize=TEXT - 2, color=COLOUR["muted"])


def _letter(number: int) -> str:
    return chr(ord("a") + number) if number < REASONS else "*"


def _reasons(reasons: Sequence[str]) -> list[str]:
    lines = []
    for i, reason in enumerate(reasons[:REASONS]):
        lines += textwrap.wrap(f"{_letter(i)}: {label(reason, 160)}", 58)
    if reasons[REASONS:]:
        lines.append(f"*: other reasons are in the table ({len(reasons) - REASONS})")
    return lines


def _alt(groups: Groups, layers: Sequence[_Row], widths: Widths, figure: str) -> str:
    before, after = (100 * sum(row.shares[i] for row in layers) for i in (0, 1))
    blocks = [label(block.name, 40) for block in groups.removed({**groups.full(), **widths})]
    fewer = sum(row.channels[1] < row.channels[0] for row in layers)
    text = f"The network by layer: {fewer} of {len(layers)} layers have fewer output channels or are removed. The layers take"
    text += f" {before:.0f}% of the original network's {figure} before, and {after:.0f}% after."
    return text + (f" Removed blocks: {', '.join(blocks[:10])}{', …' if blocks[10:] else ''}." if blocks else "")


def _record(row: _Row, figure: str) -> Mapping[str, object]:
    return {
        "layer": row.name,
        "channels before": row.channels[0],
        "channels after": row.channels[1],
        f"{figure} before, %": round(100 * row.shares[0], 2),
        f"{figure} after, %": round(100 * row.shares[1], 2),
        "note": "removed" if row.removed else f"locked: {row.locked}" if row.locked else "",
    }
