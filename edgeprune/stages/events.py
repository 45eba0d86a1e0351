"""How a run went, for TensorBoard: curves of training, what the plan did to each layer, and the front of metric and latency.

Written while a run goes, where tensorboard is installed; nothing reads it back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from edgeprune.latency.model import LatencyModel
from edgeprune.records import Epoch, Figures, Groups, Widths

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FRONT = "front"  # the run that all budgets of a target share


@contextmanager
def _writer(folder: Path, first_step: int | None = None) -> Iterator[SummaryWriter | None]:
    """Events of steps from `first_step` on that an earlier, killed run left are dropped."""
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
    """One more epoch of training."""
    with _writer(folder, done.epoch) as writer:
        if writer is not None:
            for name in ("loss", "metric", "learning_rate"):
                value = getattr(done, name)
                if value is not None:  # nothing was trained in epoch 0
                    writer.add_scalar(f"training/{name}", value, done.epoch)


def layers(folder: Path, groups: Groups, model: LatencyModel, widths: Widths) -> None:
    """Output channels of every layer and its predicted share of the latency, before and after the cut; a step is a layer."""
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


def front(folder: Path, figures: Figures) -> None:
    """One more point: the metric that is left at a p50 latency, in microseconds as the step."""
    with _writer(folder / FRONT) as writer:
        if writer is not None:
            step = round(1000 * figures.p50_ms)
            writer.add_scalar("front/metric_by_p50_us", figures.metric, step)
