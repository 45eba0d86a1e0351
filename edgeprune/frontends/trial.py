"""Try the user's model, data, loss and metric before anything is measured or trained."""

from __future__ import annotations

import copy
import logging
import re
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from edgeprune.errors import UsageError
from edgeprune.frontends import functions, plausible
from edgeprune.frontends.data import Loss, Metric, Split
from edgeprune.frontends.model import Network, finite, kind, size_of
from edgeprune.limits import LIMITS
from edgeprune.network.adapter import batch_dims_of, structure_of
from edgeprune.network.outputs import Structure, tensors
from edgeprune.records import Project
from edgeprune.records.project import SPLITS

FRAME = re.compile(r'File "([^"]+)", line (\d+)')  # of a traceback
SHOWN_S = 0.25  # between two steps of the progress
REMARKED_S = 5.0  # of reading, after which data without an end is remarked on

Step = Callable[[int, int, str], None]  # of (done, total, note); see `Watch.step`
Batch = tuple[tuple[Tensor, ...], Tensor]

log = logging.getLogger("edgeprune")


class Checker:
    """Checks a project's model and data. It raises an error or does nothing: no record depends on it."""

    def __init__(self, network: Network, project: Project) -> None:
        self._network, self._project = network, project
        self._read = False

    def first(self, scored: bool, trained: bool) -> None:
        """Try the first batch of every split, and start to read each split again.

        Args:
            scored: whether importance scores differentiate the model.
            trained: whether the model is trained.

        Raises:
            UsageError: the model, the data, the loss, the metric or a backward pass fails, or a split can only be read once.
        """
        model, project = self._network.module, self._project
        structure, _ = check_first_batches(model, project)
        if not structure.is_certain and (project.data.loss is None or project.data.metric is None):
            name, default = structure.names[structure.main], "loss" if project.data.loss is None else "metric"
            log.warning(
                "%s is missing, so the default reads output %r of %s; give one, or return that output as logits",
                *(project.where("data", default), name, ", ".join(structure.names)),
            )
        for split in _splits(project):
            check_readable_again(split)
        for training in [False] * scored + [True] * trained:
            check_backward(model, project, training, batches=1)

    def remarks(self, metric: Metric, value: float, outputs: Sequence[Tensor], targets: Tensor) -> Iterator[str]:
        """See `frontends.plausible.remarks`."""
        return plausible.remarks(self._project, metric, value, outputs, targets)

    def data(self, step: Step | None = None) -> None:
        """See `check_data`. With `step`, reading is bounded in time. What one process has read is not read again."""
        if not self._read:
            self._read = check_data(self._network.module, self._project, step)

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


# --------------------------------------------------------------------------------------------------- first batches


def check_first_batches(model: nn.Module, project: Project) -> tuple[Structure, int | None]:
    """Run the model on the first batch of every split, and the loss and the metric on one of the validation split.

    Returns:
        The structure of the model's outputs, and the number of classes, or None if labels need no check. With the default loss
        or metric, they are checked if the main output is (samples, classes) and targets are integers, (samples,).

    Raises:
        UsageError: one of them fails or gives NaN or infinity, or an output is not (samples, ...).
    """
    split = Split(project, "valid")
    inputs, targets = next(iter(split))
    where = f"{split.where}: batch 0"
    with project.model.factory.guarded(f"{where}: the model"):
        structure = structure_of(model, inputs)
    if structure is None:
        raise UsageError(
            f"{where}: the model returns no tensor; return a tensor, or a tuple, dict or data class of them"
        )
    outputs = _outputs(model, project, where, inputs)
    dims, size = batch_dims_of(model, inputs, split.dims(len(inputs))), targets.shape[split.target_dim]
    for name, tensor, dim in zip(structure.names, outputs, dims, strict=True):
        shown = f"output {name} of shape {tuple(tensor.shape)}" if name else str(tuple(tensor.shape))
        if size_of(tensor, dim) != size:
            fix = "leave it out in a wrapper" if len(outputs) > 1 else "return (samples, ...)"
            raise UsageError(f"{where}: the model returns {shown} for {size} targets; {fix}")
        if not finite(tensor):
            raise UsageError(
                f"{where}: the model returns NaN or infinity; check its weights and the range of the inputs"
            )
    main = outputs[structure.main]
    index = main.ndim == 2 and targets.ndim == 1 and not targets.is_floating_point()
    defaults = project.data.loss is None or project.data.metric is None
    classes = main.shape[1] if index and defaults else None
    if classes is None or bool(((targets >= 0) & (targets < classes)).all()):
        _loss_and_metric(project, structure, outputs, targets, where)
    for other in _splits(project):
        if other.name != "valid":
            _outputs(model, project, f"{other.where}: batch 0", next(iter(other))[0])
    if project.data.augment and project.data.train:
        next(iter(Split(project, "train", augmented=True)))
    return structure, classes


def _loss_and_metric(
    project: Project, structure: Structure, outputs: list[Tensor], targets: Tensor, where: str
) -> None:
    with torch.no_grad():
        loss = Loss(project, structure)(outputs, targets)
    if not finite(loss):
        raise UsageError(f"{where}: the loss is {loss.item()}; check the loss and the targets")
    metric = Metric(project, structure)
    if not metric.in_closed_loop:
        metric(outputs, targets)


def _splits(project: Project) -> list[Split]:
    return [Split(project, name) for name in SPLITS if project.data.split(name) is not None]


def _outputs(model: nn.Module, project: Project, where: str, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """The tensors that a model returns for a batch."""
    model.eval()
    with torch.no_grad(), project.model.factory.guarded(f"{where}: the model"):
        outputs = model(*inputs)
    found = tensors(outputs)
    if not found:
        raise UsageError(f"{where}: the model returns {kind(outputs)}; return at least one tensor")
    return found


def check_readable_again(split: Split) -> None:
    """Read the first batch of a split twice.

    Raises:
        UsageError: the second reading gives nothing, or goes on with the same iterator.
    """
    first, again = _first(split), _first(split)
    if not _same(first, again) and split.is_one_iterator:
        raise UsageError(
            f"{split.where}: a second reading goes on where the first one ended, so the data can only be read once;"
            " return an object whose __iter__ starts again, such as a list or a DataLoader"
        )


def _first(split: Split) -> Batch:
    with split.repeatable(0):
        return next(iter(split))


def _same(a: Batch, b: Batch) -> bool:
    pairs = zip((*a[0], a[1]), (*b[0], b[1]), strict=True)
    return all(one.shape == other.shape and torch.equal(one, other) for one, other in pairs)


# ----------------------------------------------------------------------------------------------------- all batches


def check_data(model: nn.Module, project: Project, step: Step | None = None) -> bool:
    """Try the first batches (see `check_first_batches`), and read every split once.

    Args:
        model: the network.
        project: names the data, the loss and the metric.
        step: is called with the progress. A split of known length is then read for at most `LIMITS.trial_read_s`.

    Returns:
        Whether everything was read.

    Raises:
        UsageError: the model cannot take the data, a target is not finite, or a label is not one of the classes. The message
            names the split, the batch and the label. Or a split without a length has no end within `LIMITS.trial_read_s`.
    """
    _, classes = check_first_batches(model, project)
    complete = [_check_split(split, classes, step) for split in _splits(project)]
    return all(complete)


def _check_split(split: Split, classes: int | None, step: Step | None) -> bool:
    """Read a split. Returns whether it was read to its end."""
    began = shown = time.monotonic()
    total, remarked = split.length or 0, False
    for number, (_, targets) in enumerate(split):
        _check_targets(f"{split.where}: batch {number}", targets, classes)
        now = time.monotonic()
        if step is not None and now - shown > SHOWN_S:
            step(number + 1, max(total, number + 1), "")
            shown = now
        endless = number >= total
        if endless and not remarked and now - began > REMARKED_S:
            remarked = True
            log.warning("%s gave %s batches in %.0f s, and has no end yet%s", *_so_far(split, number, now - began))
        if now - began > LIMITS.trial_read_s and (endless or step is not None):
            if not endless:
                return False
            where, count, spent_s, why = _so_far(split, number, now - began)
            raise UsageError(
                f"{where} gave {count} batches in {spent_s:.0f} s without an end{why}; end the iteration after an epoch,"
                " or give the object a __len__: its number of batches"
            )
    _first(split)  # data that can only be read once has no batch now
    return True


def _so_far(split: Split, number: int, spent_s: float) -> tuple[str, str, float, str]:
    why = ": it has no len()" if split.length is None else f": its len() is {split.length}"
    return split.where, f"{number + 1:,}", spent_s, why


def _check_targets(where: str, targets: Tensor, classes: int | None) -> None:
    if not finite(targets):
        raise UsageError(f"{where} has NaN or infinity in its targets; clean the data")
    if classes is None:
        return
    wrong = targets[(targets < 0) | (targets >= classes)]
    if len(wrong):
        raise UsageError(
            f"{where} has the label {wrong.flatten()[0].item()}, and the model has {classes} classes; "
            f"give labels from 0 to {classes - 1}"
        )


# --------------------------------------------------------------------------------------------------- backward passes


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
    if not any(parameter.requires_grad for parameter in model.parameters()):
        where = project.model.factory.where
        raise UsageError(f"{where}: no parameter requires a gradient; call model.requires_grad_(True) first")
    tried = copy.deepcopy(model).train(training)
    split, root = Split(project, "train", augmented=training), project.code
    loss: Callable[..., Tensor] = Loss(project).of_training
    if not training:
        structure = structure_of(model, next(iter(split))[0])
        assert structure is not None  # the first batches have been tried
        loss = Loss(project, structure)
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
    model: nn.Module, loss: Callable[..., Tensor], batch: Batch, guarded: Callable[[], AbstractContextManager[None]]
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
    return f" ({users[-1][0].resolve().relative_to(root.resolve())}, line {users[-1][1]})" if users else ""
