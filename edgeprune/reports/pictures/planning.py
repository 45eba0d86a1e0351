"""Why a plan was chosen: latency by width, predictions and measurements, the front of loss against latency."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from edgeprune.latency.model import LatencyModel
from edgeprune.latency.surface import LayerCost
from edgeprune.records import Confirmed, Groups, Interval, MeasuredPlan, Profile, Widths
from edgeprune.records.budget import time_text
from edgeprune.reports.pictures.svg import COLOUR, TEXT, WIDTH, Picture, Row, canvas, even, label, tail, unit_of
from edgeprune.reports.pictures.svg import keys as draw_keys

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LAYERS = 6  # whose latency is drawn
WIDE = 30.0  # largest loss over the smallest one above which the axis is logarithmic
POINTS = 120  # measured points of a layer
GRAIN = 4  # a long curve is drawn at its multiples; other widths are rarely chosen, since they are often slower
PANEL, GAP, KEYS = 128, 38, 36  # heights: a panel with its title, the space below it, the keys above all
# Colour, marker and line of each series. Eight series differ in print, too.
LOOKS = tuple(zip(("after", "second", "third", "fourth") * 2, "os^DvP*h", ("-", "--", "-.", ":") * 2, strict=True))


class Point(Protocol):
    """A plan on a front."""

    @property
    def latency_ns(self) -> float:
        """Its latency."""

    @property
    def loss(self) -> float:
        """Its expected increase of the loss."""


@dataclass(frozen=True)
class Marked:
    """A point of a comparison: a measured latency with its interval, and the metric there. A sweep draws it."""

    name: str
    latency: Interval
    metric: float


# ----------------------------------------------------------------------------------------------- latency by width


def latency_by_width(groups: Groups, profile: Profile, model: LatencyModel, widths: Widths) -> Picture:
    """The latency of the layers with the largest share: measured points, and the fitted curve through the original widths.

    Args:
        groups: of the original network.
        profile: its measured variants.
        model: fitted to them.
        widths: {group: remaining units}: where the plan is; other groups keep all.
    """
    full = groups.full()
    now, spent = {**full, **widths}, model.layer_ns(full)
    able = [cost for cost in model.layers if any(side.terms for side in cost.layer.sides)]
    chosen = sorted(able, key=lambda cost: -spent[cost.layer.name])[:LAYERS]
    lines = math.ceil(len(chosen) / 2)
    with canvas(KEYS + lines * (PANEL + GAP)) as picture:
        rows: list[Row] = []
        for i, cost in enumerate(chosen):
            left, line = 34 + i % 2 * (WIDTH / 2 + 4), i // 2
            axes = picture.axes(left, picture.height - KEYS - line * (PANEL + GAP) - PANEL, 134, PANEL - 16)
            rows.append(_layer(axes, cost, _measured(cost, profile), (full, now)))
        _keys(picture.page())
        total = sum(spent.values()) + model.overhead_ns
        share = 100 * sum(spent[cost.layer.name] for cost in chosen) / total
        alt = (
            f"Latency against width of the {len(chosen)} layers with the largest share, {share:.0f}% of the network's:"
        )
        alt += f" {', '.join(label(cost.layer.name, 40) for cost in chosen)}. Points are measured, lines are the fitted model."
        return Picture(picture.svg(alt), alt, rows)


def _measured(cost: LayerCost, profile: Profile) -> list[tuple[int, int, int]]:
    """(inputs, outputs, nanoseconds by the profiler) of every variant that has the layer."""
    return [
        (*cost.layer.sizes(one.widths), one.layer_ns[cost.layer.name])
        for one in profile.variants
        if one.layer_ns.get(cost.layer.name)
    ]


def _layer(axes: Axes, cost: LayerCost, measured: Sequence[tuple[int, int, int]], widths: tuple[Widths, Widths]) -> Row:
    """One panel: the layer at different output channels, or input channels if its outputs cannot be cut."""
    full, now = widths
    (ins, outs), after = cost.layer.sizes(full), cost.layer.sizes(now)
    side = 1 if cost.layer.sides[1].terms else 0
    most = (ins, outs)[side]
    grain = GRAIN if most >= 8 * GRAIN else 1
    channels = np.unique([*range(grain, most, grain), most]).astype(float)
    other = np.full(len(channels), float((outs, ins)[side]))
    whole = cost.ns(*((other, channels) if side else (channels, other)))
    scale = _scale(cost, measured)
    shown = even(measured, POINTS)
    alike = [one for one in shown if one[1 - side] == (ins, outs)[1 - side]]
    for points, colour, size in ((shown, "before", 2.2), (alike, "ink", 3.2)):
        axes.plot(
            [one[side] for one in points], [one[2] * scale / 1e3 for one in points], "o", ms=size, mew=0,
            color=COLOUR[colour], zorder=3,
        )  # fmt: skip
    axes.plot(channels, whole / 1e3, color=COLOUR["after"], lw=1.4, drawstyle="steps-pre", zorder=2)
    at = float(cost.ns([after[0]], [after[1]])[0]) if min(after) else 0.0
    if 0 < after[1 - side] < other[0]:
        here = np.full(len(channels), float(after[1 - side]))
        planned = cost.ns(*((here, channels) if side else (channels, here)))
        axes.plot(channels, planned / 1e3, color=COLOUR["limit"], lw=1, ls="--", drawstyle="steps-pre", zorder=2)
    axes.plot([after[side]], [at / 1e3], "D", ms=6, mfc="none", mec=COLOUR["limit"], mew=1.6, zorder=4, clip_on=False)
    top = max([*whole, at, *(one[2] * scale for one in shown)]) / 1e3
    axes.set(xlim=(0, most * 1.04), ylim=(0, 1.1 * top))
    axes.set_title(tail(cost.layer.name, 24), fontsize=TEXT - 0.5, pad=4)
    axes.set_xlabel(("input" if side == 0 else "output") + " channels", labelpad=2)
    axes.locator_params(nbins=4)
    before = float(cost.ns([ins], [outs])[0])
    return {
        "layer": cost.layer.name,
        "channels": f"{ins}×{outs}",
        "planned": f"{after[0]}×{after[1]}",
        "latency, µs": round(before / 1e3, 2),
        "planned, µs": round(at / 1e3, 2),
        "measured points": len(measured),
    }


def _scale(cost: LayerCost, measured: Sequence[tuple[int, int, int]]) -> float:
    """The model's latency over the profiler's, since the profiler makes a network slower than it is."""
    if not measured:
        return 1.0
    ins, outs, ns = (np.array(column, float) for column in zip(*measured, strict=True))
    return float(np.median(cost.ns(ins, outs) / ns))


def _keys(page: Axes) -> None:
    """What the marks of `latency_by_width` mean."""
    page.text(0, 8, "µs", va="center", color=COLOUR["muted"])
    measured, fitted = ("o", "fill", "ink", "measured"), ("-", "line", "after", "fitted")
    draw_keys(page, [measured, fitted, ("D", "none", "limit", "the plan")], 8, 34)
    draw_keys(page, [("o", "fill", "before", "measured"), ("--", "line", "limit", "fitted")], 24, 34)
    page.text(178, 24, "with a narrower other side", va="center", color=COLOUR["muted"])


# --------------------------------------------------------------------------------- predicted against confirmed


def confirmed(record: Confirmed) -> Picture:
    """The predicted latency of each measured plan, its measured latency with the interval, and the budget."""
    plans = record.measured
    budget_ns = (record.measurement or plans[-1]).budget_ns
    unit, name = unit_of(budget_ns)
    with canvas(62 + 16 * len(plans)) as picture:
        axes = picture.axes(58, 34, WIDTH - 76, picture.height - 56)
        for i, one in enumerate(plans):
            _plan(axes, i, one, unit, chosen=one is record.measurement)
        axes.axvline(budget_ns / unit, color=COLOUR["limit"], lw=1.4, ls="--", zorder=1)
        axes.set(ylim=(len(plans) - 0.4, -0.6), xlabel=f"latency, {name}")
        axes.set_yticks(range(len(plans)), _rounds(plans))
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        draw_keys(picture.page(), (("o", "none", "muted", "predicted"), ("o", "fill", "after", "measured"),
                                 ("D", "fill", "second", "the plan"), ("--", "line", "limit", "budget")))  # fmt: skip
        alt = _confirmed_alt(record)
        return Picture(picture.svg(alt), alt, [_plan_row(one, record) for one in plans])


def _plan(axes: Axes, at: int, one: MeasuredPlan, unit: float, *, chosen: bool) -> None:
    measured, colour = one.measured, COLOUR["second" if chosen else "after"]
    axes.plot([one.predicted_ns / unit, measured.mid / unit], [at, at], color=COLOUR["grid"], lw=1, zorder=1)
    axes.plot([measured.low / unit, measured.high / unit], [at, at], color=colour, lw=3, solid_capstyle="butt")
    axes.plot([one.predicted_ns / unit], [at], "o", ms=6, mfc="none", mec=COLOUR["muted"], mew=1.2)
    axes.plot([measured.mid / unit], [at], "D" if chosen else "o", ms=6.5 if chosen else 5, mew=0, color=colour)


def _rounds(plans: Sequence[MeasuredPlan]) -> list[str]:
    numbers = [one.round for one in plans]
    return [f"round {n + 1}" if i == 0 or numbers[i - 1] != n else "" for i, n in enumerate(numbers)]


def _plan_row(one: MeasuredPlan, record: Confirmed) -> Row:
    return {
        "round": one.round + 1,
        "predicted, ms": round(one.predicted_ns / 1e6, 4),
        "measured, ms": f"{one.measured.mid / 1e6:.4g} ({one.measured.low / 1e6:.4g} to {one.measured.high / 1e6:.4g})",
        "of the budget, %": round(100 * one.share, 1),
        "note": "the plan" if one is record.measurement else "",
    }


def _confirmed_alt(record: Confirmed) -> str:
    text = f"{len(record.measured)} plans in {record.rounds} rounds, predicted and measured latency."
    if (found := record.measurement) is not None:
        off = 100 * abs(found.measured.mid / found.predicted_ns - 1)
        text += f" The chosen plan was predicted within {off:.1f}%, and uses {100 * found.share:.1f}% of the budget."
    return text


# ---------------------------------------------------------------------------------------------------------- fronts


def front(points: Sequence[Point], budget_ns: float | None = None, plan: Point | None = None,
          knee: Point | None = None) -> Picture:  # fmt: skip
    """The expected loss against the latency of the best plans.

    Args:
        points: of the front, in any order.
        budget_ns: is drawn as a line.
        plan: is marked: the plan of this run, which is one of the points.
        knee: is marked, likewise: where more latency begins to buy little.
    """
    ordered = sorted(points, key=lambda one: one.latency_ns)
    unit, name = unit_of(ordered[-1].latency_ns)
    with canvas(232) as picture:
        axes = picture.axes(60, 36, WIDTH - 76, 168)
        shown = _loss_axis(axes, [one.loss for one in ordered])
        axes.plot(
            [one.latency_ns / unit for one in ordered], shown, color=COLOUR["after"], lw=1.6, marker="o", ms=4, mew=0
        )
        keys = [("o", "fill", "after", "best plans")]
        if budget_ns is not None:
            axes.axvline(budget_ns / unit, color=COLOUR["limit"], lw=1.4, ls="--", zorder=1)
            keys.append(("--", "line", "limit", "budget"))
        marks: dict[int, str] = {}
        for i, one in enumerate(ordered):
            for marked, marker, colour, text in ((plan, "D", "second", "the plan"), (knee, "s", "third", "knee")):
                if one is marked:
                    axes.plot(one.latency_ns / unit, shown[i], marker, ms=10, mfc="none", mec=COLOUR[colour], mew=2,
                              clip_on=False)  # fmt: skip
                    keys.append((marker, "none", colour, text))
                    marks[i] = text if i not in marks else f"{marks[i]}, {text}"
        axes.set(xlabel=f"latency, {name}", xlim=(0, None))
        draw_keys(picture.page(), keys)
        alt = _front_alt(ordered, knee)
        rows = [
            {
                "latency, ms": round(one.latency_ns / 1e6, 4),
                "expected loss": float(f"{one.loss:.4g}"),
                "note": marks.get(i, ""),
            }
            for i, one in enumerate(ordered)
        ]
        return Picture(picture.svg(alt), alt, rows)


def _loss_axis(axes: Axes, losses: Sequence[float]) -> list[float]:
    """Prepare the axis of the loss. It is logarithmic if the loss spans orders of magnitude; no loss is then below the rest.

    Returns:
        Where to draw each loss.
    """
    axes.set_ylabel("expected increase of the loss", labelpad=2)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
    some = [loss for loss in losses if loss > 0]
    if not some or max(some) < WIDE * min(some):
        axes.set_ylim(0, 1.08 * max([*some, 1e-9]))
        return list(losses)
    floor = min(some) / 3
    powers = range(math.ceil(math.log10(min(some))), math.floor(math.log10(max(some))) + 1)
    places = [10.0**power for power in powers]
    axes.set_yscale("log")
    axes.set_ylim(floor, 1.5 * max(some))
    axes.set_yticks([*even(places, 6), floor], [*(f"{place:.0e}".replace("e-0", "e-") if place < 1e-3 else f"{place:g}"
                                                 for place in even(places, 6)), "0"])  # fmt: skip
    axes.set_yticks([], minor=True)
    return [max(loss, floor) for loss in losses]


def _front_alt(ordered: Sequence[Point], knee: Point | None) -> str:
    text = f"The expected loss against latency of {len(ordered)} best plans, from {time_text(ordered[0].latency_ns)} to"
    text += f" {time_text(ordered[-1].latency_ns)}."
    return text + (f" The knee is at {time_text(knee.latency_ns)}." if knee is not None else "")


def comparison(series: Mapping[str, Sequence[Marked]], others: Sequence[Marked], metric: str) -> Picture:
    """The metric against the measured latency: a line for each series, such as a target's budgets.

    Args:
        series: {name: pruned networks}.
        others: single points, such as the original network in each precision.
        metric: the metric's name.
    """
    everything = [one for points in series.values() for one in points] + list(others)
    unit, name = unit_of(max(one.latency.mid for one in everything))
    with canvas(228 + 15 * len(series)) as picture:
        axes = picture.axes(54, 36, WIDTH - 70, 180)
        lines: list[tuple[str, str, str, str]] = []
        for i, (title, points) in enumerate(series.items()):
            colour, marker, style = LOOKS[i % len(LOOKS)]
            ordered = sorted(points, key=lambda one: one.latency.mid)
            _marks(axes, ordered, unit, (colour, marker, style))
            lines.append((marker, "fill", colour, label(title, 44)))
        if others:
            _marks(axes, others, unit, ("ink", "X", "none"))
            for one in others:
                axes.annotate(label(one.name, 24), (one.latency.mid / unit, one.metric), (0, 6), ha="center",
                              textcoords="offset points", fontsize=TEXT - 1.5, color=COLOUR["muted"])  # fmt: skip
        axes.set(xlabel=f"measured latency, {name}", ylabel=label(metric, 30), xlim=(0, None))
        axes.margins(y=0.15)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
        page = picture.page()
        for i, line in enumerate(lines):
            draw_keys(page, [line], 8 + 15 * i)
        alt = f"{label(metric)} against measured latency of {', '.join(label(title) for title in series)}."
        return Picture(picture.svg(alt), alt, _marked_rows(series, others, metric))


def _marks(axes: Axes, points: Sequence[Marked], unit: float, style: tuple[str, str, str]) -> None:
    colour, marker, line = style
    xs, ys = [one.latency.mid / unit for one in points], [one.metric for one in points]
    for one in points:
        ends = [one.latency.low / unit, one.latency.high / unit]
        axes.plot(ends, [one.metric] * 2, color=COLOUR[colour], lw=1)
    axes.plot(xs, ys, color=COLOUR[colour], lw=1.4, marker=marker, ms=6, mew=0, ls=line)


def _marked_rows(series: Mapping[str, Sequence[Marked]], others: Sequence[Marked], metric: str) -> list[Row]:
    named = [(title, one) for title, points in series.items() for one in points] + [("", one) for one in others]
    return [
        {"series": title, "network": one.name, "latency, ms": round(one.latency.mid / 1e6, 4), metric: one.metric}
        for title, one in named
    ]
