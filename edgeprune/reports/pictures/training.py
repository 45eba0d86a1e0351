"""Training curves."""

from __future__ import annotations

from collections.abc import Sequence

from edgeprune.records import Epoch, Tuned
from edgeprune.reports.pictures.svg import COLOUR, WIDTH, Picture, canvas, keys, label

TOP = 20  # above the panels


def training(tuned: Tuned, metric: str = "metric") -> Picture:
    """The training loss and the validation metric after every epoch. Epoch 0 is the network before training.

    Args:
        tuned: has at least one epoch.
        metric: the metric's name.
    """
    epochs, best = tuned.history, tuned.best
    trained = [one for one in epochs if one.loss is not None]
    panels: list[tuple[str, Sequence[Epoch], list[float], str]] = [
        (f"validation: {label(metric, 40)}", epochs, [one.metric for one in epochs], "after")
    ]
    if trained:
        losses = [one.loss for one in trained if one.loss is not None]
        panels.append(("training loss", trained, losses, "third"))
    high = 108
    with canvas(TOP + len(panels) * (high + 52)) as picture:
        for i, (title, own, values, colour) in enumerate(panels):
            axes = picture.axes(56, picture.height - TOP - (i + 1) * (high + 52) + 36, WIDTH - 66, high)
            numbers = [one.epoch for one in own]
            axes.plot(numbers, values, color=COLOUR[colour], lw=1.5, marker="o", ms=3.5, mew=0)
            axes.axvline(best.epoch, color=COLOUR["second"], lw=1.2, ls="--", zorder=1)
            axes.set_title(title, pad=4)
            axes.set(xlim=(-0.3, max(1, epochs[-1].epoch) + 0.3), xlabel="epoch")
            axes.locator_params(axis="x", integer=True)
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
            axes.locator_params(axis="y", nbins=4)
            axes.margins(y=0.15)
        keys(picture.page(), [("--", "line", "second", f"epoch {best.epoch} was kept")])
        alt = f"{len(trained)} epochs of training. The validation metric was {epochs[0].metric:.4g} before, and is"
        alt += f" {best.metric:.4g} in epoch {best.epoch}, which was kept."
        rows = [
            {"epoch": one.epoch, "loss": "" if one.loss is None else float(f"{one.loss:.5g}"),
             f"validation {metric}": float(f"{one.metric:.5g}"),
             "learning rate": "" if one.learning_rate is None else float(f"{one.learning_rate:.3g}"),
             "note": "kept" if one is best else ""}
            for one in epochs
        ]  # fmt: skip
        return Picture(picture.svg(alt), alt, rows)
