"""Events for TensorBoard: training curves, the layers before and after the cut, and the metric by latency.

They are written during a run, where tensorboard is installed. edgeprune does not read them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from edgeprune.latency.model import LatencyModel
from edgeprune.records import Budget, Epoch, Figures, Groups, Plan, Widths, digest

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FRONT = "front"  # holds a run for each budget of a target


def name_of(plan: Plan, budget: Budget | None) -> str:
    """The folder of a plan's events."""
    return f"{budget or 'limits'}-{digest(plan)[:8]}".replace(" ", "")


@contextmanager
def _writer(folder: Path, first_step: int | None = None) -> Iterator[SummaryWriter | None]:
    """A writer; None if tensorboard is not installed. Events from `first_step` on, of a killed run, are dropped."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        yield None
        return
    writer = SummaryWriter(folder, purge_step=first_step)
    try:
        yield writer
    finally:
        writer.close()


def epoch(folder: Path, done: Epoch) -> None:
    """Write an epoch of training."""
    with _writer(folder, done.epoch) as writer:
        if writer is not None:
            for name in ("loss", "metric", "learning_rate"):
                value = getattr(done, name)
                if value is not None:  # nothing was trained in epoch 0
                    writer.add_scalar(f"training/{name}", value, done.epoch)


def layers(folder: Path, groups: Groups, model: LatencyModel, widths: Widths) -> None:
    """Write each layer's output channels and predicted share of the latency, before and after the cut. A step is a layer."""
    full = groups.full()
    before, after = model.layer_ns(full), model.layer_ns(widths)
    totals = {"before": model.sum_ns(model.ns(full)), "after": model.sum_ns(model.ns(widths))}
    rows = ["| step | layer | channels before | after | share of latency before | after |", "|---|---|---|---|---|---|"]
    with _writer(folder) as writer:
        if writer is None:
            return
        for step, layer in enumerate(groups.layers):
            channels = {"before": layer.channels(full)[1], "after": layer.channels(widths)[1]}
            shares = {"before": before[layer.name], "after": after[layer.name]}
            shares = {when: ns / totals[when] for when, ns in shares.items()}
            for when in totals:
                writer.add_scalar(f"channels/{when}", channels[when], step)
                writer.add_scalar(f"latency_share/{when}", shares[when], step)
            cells = [
                f"{channels['before']} | {channels['after']}",
                *(f"{100 * share:.1f}%" for share in shares.values()),
            ]
            rows.append(f"| {step} | {layer.name} | {' | '.join(cells)} |")
        writer.add_text("layers", "\n".join(rows))


def front(folder: Path, budget: Budget | None, figures: Figures) -> None:
    """Write the point of a budget: the metric at a p50 latency. The step is the latency in microseconds.

    Each budget is a run of TensorBoard, which drops what a run wrote at larger steps. A new verdict replaces the old point.
    """
    own = folder / FRONT / ("no budget" if budget is None else str(budget).replace(" ", ""))
    shutil.rmtree(own, ignore_errors=True)
    with _writer(own) as writer:
        if writer is not None:
            step = round(1000 * figures.p50_ms)
            writer.add_scalar("front/metric_by_p50_us", figures.metric, step)
