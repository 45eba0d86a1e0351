"""How sure a verdict is: raw times by process, drift, differences of outputs, and the history of checks."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from edgeprune.latency import stats
from edgeprune.records import Differences, Evidence, History, Outcome, Profile, TimedProcess
from edgeprune.records.budget import date_text
from edgeprune.reports.pictures.svg import COLOUR, TEXT, WIDTH, Canvas, Picture, Row, canvas, dots, label, unit_of
from edgeprune.reports.pictures.svg import keys as draw_keys

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DOTS = 1600  # of all processes together
TALL, LOW = 15.0, 4.0  # rows of few processes and of many
SHOWN, FAR = 99.0, 2.0  # a picture shows this percentile of all times, up to so many times the largest median
REASONS = 3  # of discarded processes, in the picture
PANEL, GAP = 84, 56  # heights: a panel, and the space above and below it


# ------------------------------------------------------------------------------------------------ times by process


def processes(evidence: Evidence, budget_ns: float | None = None, most: int = DOTS) -> Picture:
    """Raw times of every process of a verdict: a row for each pair of processes, in which time runs down.

    Args:
        evidence: of the verdict.
        budget_ns: is drawn as a line.
        most: how many times are drawn.
    """
    pairs = len(evidence.pruned)
    networks = [("pruned", evidence.pruned, "after", 3.0), ("original", evidence.original, "before", 3.0)]
    if evidence.pruned == evidence.original:  # one artifact without a budget
        networks = networks[:1]
    every = np.concatenate([one.times_ns for _, own, _, _ in networks for one in own])
    unit, name = unit_of(float(np.median(every)))
    largest = max(one.median_ns for _, own, _, _ in networks for one in own)
    last = 1.15 * min(float(np.percentile(every, SHOWN)), FAR * largest)
    last = max(last, 1.15 * largest, 1.05 * (budget_ns or 0.0))
    beyond = int((every > last).sum())
    step = max(LOW, min(TALL, 400 / pairs))
    notes = [part for line in _lines(evidence, beyond) for part in textwrap.wrap(line, 58)]
    high = step * (pairs + bool(evidence.discarded))
    with canvas(62 + high + 13 * len(notes)) as picture:
        axes = picture.axes(40, 36 + 13 * len(notes), WIDTH - 56, high)
        for _, own, colour, size in networks:
            _dots(axes, own, (unit, last), most // (len(networks) * pairs), (colour, size))
        for i, (_, own, _, _) in enumerate(networks):
            for row, one in enumerate(own):
                axes.plot(
                    [one.median_ns / unit] * 2, [row - 0.42, row + 0.42], color=COLOUR["ink"], lw=1.4, zorder=4 + i
                )
        if evidence.discarded:
            lost = [min(one.median_ns, last) / unit for one in evidence.discarded]
            axes.plot(lost, [pairs] * len(lost), "x", ms=5, mew=1.2, color=COLOUR["limit"], zorder=5, clip_on=False)
        if budget_ns is not None:
            axes.axvline(budget_ns / unit, color=COLOUR["limit"], lw=1.3, ls="--", zorder=1)
        _process_axes(axes, pairs, bool(evidence.discarded), (last / unit, f"latency, {name}"))
        keys = [("o", "fill", colour, text) for text, _, colour, _ in networks] + [("|", "none", "ink", "median")]
        keys += [("x", "none", "limit", "discarded")] if evidence.discarded else []
        draw_keys(picture.page(), keys + ([("--", "line", "limit", "budget")] if budget_ns is not None else []))
        _write(picture, notes)
        alt = f"Raw times of {pairs} processes of each network."
        for text, own, _, _ in networks:
            medians = [one.median_ns / unit for one in own]
            alt += f" The medians of the {text} network's are from {min(medians):.4g} to {max(medians):.4g} {name}."
        alt += "".join(f" {line}." for line in _lines(evidence, beyond))
        return Picture(picture.svg(alt), alt, _process_rows(evidence, unit, name))


def _dots(
    axes: Axes, own: Sequence[TimedProcess], scale: tuple[float, float], most: int, style: tuple[str, float]
) -> None:
    (unit, last), (colour, size) = scale, style
    x: list[float] = []
    y: list[float] = []
    for row, one in enumerate(own):
        times = stats.thinned(one.times_ns, max(1, most))
        shown = [(i, ns) for i, ns in enumerate(times) if ns <= last]
        x += [ns / unit for _, ns in shown]
        y += [row + 0.8 * ((i + 0.5) / len(times) - 0.5) for i, _ in shown]
    dots(axes, x, y, size, colour)


def _process_axes(axes: Axes, pairs: int, lost: bool, x: tuple[float, str]) -> None:
    axes.set(xlim=(0, x[0]), ylim=(pairs - 0.5 + lost, -0.5), xlabel=x[1])
    places = [i for i in range(pairs) if i == 0 or (i + 1) % max(1, round(pairs / 8)) == 0]
    axes.set_yticks(
        [*places, *([pairs] if lost else [])], [*map(str, (i + 1 for i in places)), *(["×"] if lost else [])]
    )
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set_ylabel("process", labelpad=2)


def _lines(evidence: Evidence, beyond: int) -> list[str]:
    reasons = Counter(one.reason for one in evidence.discarded)
    lines = [f"{count} discarded: {label(reason, 120)}" for reason, count in reasons.most_common(REASONS)]
    if reasons and len(reasons) > REASONS:
        lines.append(f"{len(reasons) - REASONS} other reasons are in the table")
    if beyond:
        lines.append(f"{beyond} slow times are to the right of the picture")
    return lines


def _write(picture: Canvas, notes: Sequence[str]) -> None:
    page = picture.page()
    for i, note in enumerate(reversed(notes)):
        page.text(0, picture.height - 5 - 13 * i, note, fontsize=TEXT - 0.5, color=COLOUR["muted"])


def _process_rows(evidence: Evidence, unit: float, name: str) -> list[Row]:
    def row(network: str, number: int, one: TimedProcess) -> Row:
        return {
            "network": network,
            "process": number + 1,
            f"median, {name}": float(f"{one.median_ns / unit:.5g}"),
            "times": one.count,
            "peak memory, MB": round(one.peak_memory_bytes / 1e6, 1),
            "note": "",
        }

    kept = [("pruned", evidence.pruned), ("original", evidence.original)]
    rows = [row(network, i, one) for network, own in kept for i, one in enumerate(own)]
    for lost in evidence.discarded:
        why = f"discarded: {lost.reason}" + (f" ({lost.facts})" if lost.facts else "")
        rows.append({"network": "", "process": "", f"median, {name}": float(f"{lost.median_ns / unit:.5g}"), "times": "",
                     "peak memory, MB": "", "note": why})  # fmt: skip
    return rows


# ---------------------------------------------------------------------------------------------------------- drift


def drift(profile: Profile | None, evidence: Evidence) -> Picture:
    """How the machine drifted: medians of the same network over time, in percent of their median.

    Args:
        profile: its anchor is in every batch; None if nothing was profiled.
        evidence: its original network is in every pair of processes.
    """
    series: dict[str, list[float]] = {}
    if profile is not None:
        anchors = sorted((one for one in profile.experiments if one.role == "anchor"), key=lambda one: one.batch)
        series["profile: the anchor"] = [ns for one in anchors for ns in stats.per_process(one.samples).tolist()]
    series["verdict: the original network"] = [one.median_ns for one in evidence.original]
    moved = {name: [100 * (ns / float(np.median(own)) - 1) for ns in own] for name, own in series.items()}
    parts = (
        f"{name} moved by {min(own):+.1f}% to {max(own):+.1f}% in {len(own)} processes" for name, own in moved.items()
    )
    alt = f"Drift of the machine: {'; '.join(parts)}."
    rows = [
        {"measurement": name, "process": i + 1, "median, µs": round(ns / 1e3, 2), "drift, %": round(moved[name][i], 2)}
        for name, own in series.items()
        for i, ns in enumerate(own)
    ]
    with canvas(len(series) * (PANEL + GAP)) as picture:
        for i, (name, percent) in enumerate(moved.items()):
            axes = picture.axes(44, picture.height - (i + 1) * (PANEL + GAP) + 38, WIDTH - 54, PANEL)
            axes.set_title(name, pad=4)
            _drifted(axes, percent)
        return Picture(picture.svg(alt), alt, rows)


def _drifted(axes: Axes, percent: Sequence[float]) -> None:
    axes.plot(range(1, len(percent) + 1), percent, "o", ms=4, mew=0, color=COLOUR["after"])
    axes.axhline(0, color=COLOUR["muted"], lw=0.8)
    most = 1.15 * max(2.0, *map(abs, percent))
    axes.set(ylim=(-most, most), xlim=(0, len(percent) + 1), xlabel="process, in the order of time")
    axes.locator_params(axis="y", nbins=4)
    axes.locator_params(axis="x", integer=True)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:+.3g}%" if value else "0")


# -------------------------------------------------------------------------------------------- differences of outputs


def differences(found: Differences) -> Picture:
    """How many values of an artifact's output differ from torch's, by how much, with the tolerance."""
    name = f"output {label(found.output, 30)}" if found.output else "the output"
    values = found.equal + sum(found.counts)
    alt = f"Differences of {values:,} values of {name} from torch's, on {found.samples:,} samples. {found.equal:,} are equal."
    if not found.counts:
        with canvas(40) as picture:
            picture.page().text(0, 20, f"All {values:,} values of {name} are the same as torch's.", va="center")
            return Picture(picture.svg(alt), alt, _difference_rows(found))
    alt += f" The largest is {found.largest:.3g}, in sample {found.worst}; up to {found.tolerance:.3g} passes."
    with canvas(212) as picture:
        axes = picture.axes(54, 36, WIDTH - 66, 148)
        axes.stairs(found.counts, found.edges, fill=True, facecolor=COLOUR["after"], edgecolor="none", zorder=2)
        keys = [("s", "fill", "after", "values"), ("v", "fill", "ink", f"the worst: sample {found.worst}")]
        if found.tolerance > 0:
            axes.axvline(found.tolerance, color=COLOUR["limit"], lw=1.4, ls="--")
            keys.append(("--", "line", "limit", "limit"))
        high = max(found.counts)
        axes.plot([found.largest], [0.06 * high], "v", ms=7, mew=0, color=COLOUR["ink"], zorder=4)
        axes.set_xscale("log")
        axes.set(ylim=(0, 1.08 * high), ylabel="values", xlabel="absolute difference from torch's output")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e"))
        axes.xaxis.set_minor_formatter(lambda value, _: "")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.locator_params(axis="y", nbins=5)
        draw_keys(picture.page(), keys)
        return Picture(picture.svg(alt), alt, _difference_rows(found))


def _difference_rows(found: Differences) -> list[Row]:
    rows: list[Row] = [{"difference": "0", "values": found.equal, "note": "equal"}]
    rows += [
        {
            "difference": f"{low:.2g} to {high:.2g}",
            "values": count,
            "note": "over the limit" if low > found.tolerance else "",
        }
        for (low, high), count in zip(pairwise(found.edges), found.counts, strict=True)
        if count
    ]
    worst = f"the worst, sample {found.worst}: {found.got:.6g} instead of {found.expected:.6g}"
    return [*rows, {"difference": f"{found.largest:.3g}", "values": 1, "note": worst}]


# -------------------------------------------------------------------------------------------------------- history

OUTCOMES = {  # marker, kind, colour
    Outcome.PASS: ("o", "fill", "after"),
    Outcome.INCONCLUSIVE: ("s", "none", "muted"),
    Outcome.FAIL: ("X", "fill", "limit"),
}


def history(record: History) -> Picture:
    """A figure over all checks, the level of each part, and the checks at which the level changed."""
    unit, name = _figure(record)
    values = [value / unit for value in record.values]
    with canvas(222) as picture:
        axes = picture.axes(54, 36, WIDTH - 66, 158)
        for begin, end in pairwise([0, *record.changes, len(values)]):
            level = float(np.median(values[begin:end]))
            axes.plot([begin + 0.6, end + 0.4], [level] * 2, color=COLOUR["second"], lw=1.6, zorder=2)
        for at in record.changes:
            axes.axvline(at + 0.5, color=COLOUR["third"], lw=1.1, ls=":")
        used = []
        for outcome, (marker, kind, colour) in OUTCOMES.items():
            own = [i for i, one in enumerate(record.records) if one.outcome is outcome]
            if own:
                fill = COLOUR[colour] if kind == "fill" else "none"
                axes.plot([i + 1 for i in own], [values[i] for i in own], marker, ms=5.5, mfc=fill, mec=COLOUR[colour],
                          mew=0 if kind == "fill" else 1.2, zorder=3)  # fmt: skip
                used.append((marker, kind, colour, outcome.value))
        axes.set(xlabel="check", ylabel=name, xlim=(0.4, len(values) + 0.6))
        axes.margins(y=0.2)
        axes.locator_params(axis="x", integer=True)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.4g}")
        draw_keys(picture.page(), [*used, ("-", "line", "second", "level"), (":", "line", "third", "change")])
        days = [date_text(one.created_s, "%Y-%m-%d") for one in record.records]
        alt = f"{name} over {len(values)} checks from {days[0]} to {days[-1]}, with {_changes(len(record.changes))}."
        rows: list[Row] = [
            {"check": i + 1, "day": days[i], "commit": one.commit, "outcome": one.outcome.value,
             name: float(f"{values[i]:.5g}"), "note": "the level changes" if i in record.changes else one.note}
            for i, one in enumerate(record.records)
        ]  # fmt: skip
        return Picture(picture.svg(alt), alt, rows)


def _changes(count: int) -> str:
    return f"{count} change{'' if count == 1 else 's'} of level"


def _figure(record: History) -> tuple[float, str]:
    """The unit of a figure, and its name with the unit."""
    name, _, unit = record.figure.rpartition("_")
    if unit == "ns":
        size, text = unit_of(float(np.median(record.values)))
        return size, f"{name.replace('_', ' ')}, {text}"
    return (1e6, f"{name.replace('_', ' ')}, MB") if unit == "bytes" else (1.0, label(record.figure, 30))
