"""Try the user's model, data, loss and metric before anything is measured or trained."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from edgeprune.errors import UsageError
from edgeprune.frontends import functions
from edgeprune.frontends.data import SPLITS, Loss, Metric, Split
from edgeprune.frontends.model import Network, finite, kind
from edgeprune.records import Project

FRAME = re.compile(r'File "([^"]+)", line (\d+)')  # of a traceback


class Trial:
    """Tries a project's model and data. It raises an error or does nothing: no record depends on it."""

    def __init__(self, network: Network, project: Project) -> None:
        self._network, self._project = network, project

    def data(self) -> None:
        """See `check_data`."""
        check_data(self._network.module, self._project)

    @contextmanager
    def differentiating(self, training: bool) -> Iterator[None]:
        """A context in which a stage differentiates the model. It tries the first training batch before.

        Args:
            training: whether the model runs in training mode.

        Raises:
            UsageError: a backward pass fails. If it is not the first one, all batches are tried, to find the user's line.
        """
        check_backward(self._network.module, self._project, training, batches=1)
        try:
            yield
        except RuntimeError:
            check_backward(self._network.module, self._project, training)
            raise


def check_data(model: nn.Module, project: Project) -> None:
    """Run the model, the loss and the metric on a first batch, and read every split once.

    With the default loss or metric, labels are checked if outputs are (samples, classes) and targets integers, (samples,).

    Raises:
        UsageError: the model cannot take the data, or a label is not one of its classes. The message names the split, the
            batch and the label.
    """
    classes = _first_batch(model, project)
    for name in SPLITS:
        if project.data.split(name) is None:
            continue
        split = Split(project, name)
        for number, (inputs, targets) in enumerate(split):
            where = f"{split.where}: batch {number}"
            if number == 0:
                _outputs(model, project, where, inputs)
            if not finite(targets):
                raise UsageError(f"{where} has NaN or infinity in its targets; clean the data")
            if classes is None:
                continue
            wrong = targets[(targets < 0) | (targets >= classes)]
            if len(wrong):
                raise UsageError(
                    f"{where} has the label {wrong.flatten()[0].item()}, and the model has {classes} classes; "
                    f"give labels from 0 to {classes - 1}"
                )


def check_backward(model: nn.Module, project: Project, training: bool, batches: int | None = None) -> None:
    """Differentiate the loss of training batches by the model's parameters.

    Args:
        model: the original network; a copy of it is used.
        project: names the training data and the loss.
        training: whether the model runs in training mode, as in fine-tuning.
        batches: how many batches are tried; None tries all.

    Raises:
        UsageError: a backward pass fails, for instance after an operation in place. The message names the user's file and
            line.
    """
    loss, tried = Loss(project), copy.deepcopy(model).train(training)
    split, root = Split(project, "train", augmented=training), project.code
    for number, batch in enumerate(islice(split, batches)):
        where = f"{split.where}: batch {number}"
        differentiate = partial(
            _differentiate, tried, loss, batch, partial(project.model.factory.guarded, f"{where}: the model")
        )
        try:
            differentiate()
        except RuntimeError as error:
            line = functions.one_line(error, root).partition(" Hint:")[0]  # the next line does what it hints at
            place = "" if functions.users_line(error, root) else _forward_line(differentiate, root)
            raise UsageError(
                f"{where}: a backward pass of the model raises {line}{place}; training and importance scores need"
                " gradients: do not change a tensor in place if a later step reads it"
            ) from error


def _differentiate(
    model: nn.Module,
    loss: Loss,
    batch: tuple[tuple[Tensor, ...], Tensor],
    guarded: Callable[[], AbstractContextManager[None]],
) -> None:
    inputs, targets = batch
    with guarded():
        outputs = model(*inputs)
    loss(outputs, targets).backward()  # type: ignore[no-untyped-call]


def _forward_line(differentiate: Callable[[], None], root: Path) -> str:
    """The user's line whose backward step fails, as " (net.py, line 4)". Autograd's anomaly mode finds it."""
    with warnings.catch_warnings(record=True) as caught, torch.autograd.set_detect_anomaly(True):
        warnings.simplefilter("always")
        with suppress(RuntimeError):
            differentiate()
    frames = [frame for warning in caught for frame in FRAME.findall(str(warning.message))]
    users = [(Path(name), number) for name, number in frames if functions.is_users(name, root)]
    return f" ({functions.shown(users[-1][0], root)}, line {users[-1][1]})" if users else ""


def _first_batch(model: nn.Module, project: Project) -> int | None:
    """Try the model, the loss and the metric. Returns the number of classes, or None if labels need no check."""
    split = Split(project, "valid")
    inputs, targets = next(iter(split))
    where = f"{split.where}: batch 0"
    outputs = _outputs(model, project, where, inputs)
    if not outputs.ndim or len(outputs) != len(targets):
        raise UsageError(
            f"{where}: the model returns {tuple(outputs.shape)} for {len(targets)} targets; return (samples, ...)"
        )
    if not finite(outputs):
        raise UsageError(f"{where}: the model returns NaN or infinity; check its weights and the range of the inputs")
    index = outputs.ndim == 2 and targets.ndim == 1 and not targets.is_floating_point()
    defaults = project.data.loss is None or project.data.metric is None
    classes = outputs.shape[1] if index and defaults else None
    if classes is None or bool(((targets >= 0) & (targets < classes)).all()):
        with torch.no_grad():
            loss = Loss(project)(outputs, targets)
        if not finite(loss):
            raise UsageError(f"{where}: the loss is {loss.item()}; check [data] loss and the targets")
        metric = Metric(project)
        if not metric.in_closed_loop:
            metric(outputs, targets)
    if project.data.augment:
        next(iter(Split(project, "train", augmented=True)))
    return classes


def _outputs(model: nn.Module, project: Project, where: str, inputs: tuple[Tensor, ...]) -> Tensor:
    """The model's outputs for a batch; they must be one tensor."""
    model.eval()
    with torch.no_grad(), project.model.factory.guarded(f"{where}: the model"):
        outputs = model(*inputs)
    if not isinstance(outputs, Tensor):
        raise UsageError(f"{where}: the model returns {kind(outputs)}; wrap it in a module that returns one tensor")
    return outputs
