"""Train a pruned network by distillation from the original (Hinton et al. 2015), and keep the best epoch."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from edgeprune.errors import UsageError
from edgeprune.frontends import agreement
from edgeprune.frontends.data import Loss, Metric, Split
from edgeprune.limits import LIMITS
from edgeprune.network import layout
from edgeprune.network.outputs import Flat, Structure, main_of, tensors
from edgeprune.records import Epoch, FinetuneSection
from edgeprune.stages import parallel

TEMPERATURE = 2.0  # of the softened outputs
DISTILLED = 0.5  # share of the divergence from the original network in the loss
MOMENTUM = 0.9
CLIP = 5.0  # largest gradient norm
WARM_UP_EPOCHS = 1

log = logging.getLogger("edgeprune")


@dataclass(frozen=True)
class Course:
    """The data, the loss, the metric and the settings of a training."""

    train: Split
    valid: Split
    loss: Loss
    metric: Metric
    settings: FinetuneSection


@dataclass(frozen=True)
class Networks:
    """The networks of a training.

    Attributes:
        start: is trained in place.
        original: `start` is distilled from it.
        untrained: epoch 0: the best known network without training, with the shapes of `start`. None in processes that only
            help.
    """

    start: nn.Module
    original: nn.Module
    untrained: nn.Module | None = None


@dataclass(frozen=True)
class Checkpoint:
    """The file that a killed training resumes from. `save` replaces a file in one step; see `Store.save`."""

    path: Path
    save: Callable[[Path, Callable[[Path], None]], None]


def train(
    course: Course, networks: Networks, checkpoint: Checkpoint, on_epoch: Callable[[Epoch], None]
) -> tuple[nn.Module, tuple[Epoch, ...]]:
    """Train a network by distillation.

    - The optimiser is stochastic gradient descent with Nesterov momentum, or AdamW. The learning rate rises in one epoch of
      warm-up, and then falls to zero along a cosine.
    - With the default loss (cross-entropy), half of the loss is the divergence from the original network's softened outputs.
    - After every epoch, a checkpoint is saved. A resumed training gives the same weights as an uninterrupted one.
    - On a GPU, it trains in mixed precision.
    - With `ema`, the moving average of the weights is evaluated and kept.
    - Under torchrun, each process works on its shard of every batch. Only batch norm differs from one process, since its
      statistics are of a shard.

    Args:
        course: the data, the loss, the metric and the settings.
        networks: the network to train, and the one to distil from.
        checkpoint: the file to resume from, if it exists.
        on_epoch: called after every epoch.

    Returns:
        The network with the weights of the best epoch on the validation metric, in eval mode, and the history.

    Raises:
        UsageError: the loss is not finite in the first epoch. In a later one, training stops with a warning.
    """
    device = parallel.device()
    trainer = _Trainer(course, networks, device)
    if checkpoint.path.exists():
        trainer.restore(checkpoint.path)
    else:
        trainer.record(None, networks.untrained)
        on_epoch(trainer.history[-1])
    for epoch in range(len(trainer.history), course.settings.epochs + 1):
        loss = trainer.train(epoch)
        if loss is None:
            break
        trainer.record(loss)
        checkpoint.save(checkpoint.path, trainer.write)
        on_epoch(trainer.history[-1])
    for network in (networks.original, networks.start, networks.untrained):
        if network is not None:
            layout.channels_first(network.cpu())
    networks.start.load_state_dict(trainer.best_state)
    return networks.start.eval(), tuple(trainer.history)


def evaluate(model: nn.Module, metric: Metric, split: Split) -> float:
    """The metric of a network on a split of the data; in closed loop, in the split's episodes."""
    model.eval()
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    if metric.in_closed_loop:
        return metric.of_policy(partial(_acted, model, device), split.name)
    outputs, targets = [], []
    with torch.no_grad():
        for inputs, target in split:
            found = model(*(tensor.to(device) for tensor in inputs))
            outputs.append([tensor.cpu() for tensor in tensors(found)])
            targets.append(target)
    columns = zip(zip(*outputs, strict=True), metric.structure.batch_dims, strict=True)
    return metric([torch.cat(column, dim) for column, dim in columns], torch.cat(targets, split.target_dim))


def _acted(model: nn.Module, device: torch.device, *inputs: np.ndarray) -> list[np.ndarray]:
    """The model as a policy: its outputs, (samples, ...) each."""
    with torch.no_grad():
        found = model(*(torch.as_tensor(array).to(device) for array in inputs))
    return [tensor.cpu().numpy() for tensor in tensors(found)]


class _Trainer:
    """The state of a training. A checkpoint holds all of it."""

    def __init__(self, course: Course, networks: Networks, device: torch.device) -> None:
        self.course, self.settings, self.device = course, course.settings, device
        with course.train.repeatable(self.settings.seed):
            batches = iter(course.train)
            first = tuple(tensor.to(device) for tensor in parallel.shard(*next(batches))[0])
            self.steps = 1 + sum(1 for _ in batches)
        model = layout.channels_last(networks.start.to(device), first)
        self.teacher = _Teacher(layout.channels_last(networks.original.to(device), first).eval())
        self.model, self.parallel = model, parallel.trained(model)
        ema = self.settings.ema
        self.averaged = AveragedModel(model, multi_avg_fn=_moving(ema), use_buffers=True) if ema else None
        gpu = device.type == "cuda"
        self.half = torch.bfloat16 if not gpu or torch.cuda.is_bf16_supported() else torch.float16
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.half is torch.float16)  # its gradients underflow
        self.optimiser = _optimiser(model, self.settings)
        self.history: list[Epoch] = []
        self.best_state: dict[str, Tensor] = {}

    def record(self, loss: float | None, untrained: nn.Module | None = None) -> None:
        """Evaluate the epoch that just ended, or `untrained` as epoch 0. Keep its weights if it is the best so far."""
        model = self.averaged.module if self.averaged else self.model
        if untrained is not None:
            model = untrained.to(self.device)
        metric = evaluate(model, self.course.metric, self.course.valid)
        if not self.history or metric > max(epoch.metric for epoch in self.history):
            self.best_state = {name: tensor.cpu().clone() for name, tensor in model.state_dict().items()}
        rate = self.optimiser.param_groups[0]["lr"] if self.history else None
        self.history.append(Epoch(len(self.history), loss, metric, rate))

    def train(self, epoch: int) -> float | None:
        """Train one epoch. Returns its mean loss, or None if a batch's loss is not finite and training must stop."""
        with self.course.train.repeatable(self.settings.seed, epoch):  # so that a resumed epoch is the same
            return self._epoch(epoch)

    def _epoch(self, epoch: int) -> float | None:
        self.model.train()
        total, count = 0.0, 0
        for step, (inputs, targets) in enumerate(self.course.train):
            inputs, targets, weight = parallel.shard(inputs, targets)
            with torch.autocast(self.device.type, self.half, enabled=self.device.type == "cuda"):
                value = weight * self._loss(tuple(x.to(self.device) for x in inputs), targets.to(self.device))
            loss = parallel.mean(value)
            if not math.isfinite(loss):
                self._not_finite(epoch, step, loss)
                return None
            for settings in self.optimiser.param_groups:
                settings["lr"] = self._rate((epoch - 1) * self.steps + step)
            self.optimiser.zero_grad()
            self.scaler.scale(value).backward()  # type: ignore[no-untyped-call]
            self.scaler.unscale_(self.optimiser)
            nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
            self.scaler.step(self.optimiser)
            self.scaler.update()
            if self.averaged:
                self.averaged.update_parameters(self.model)
            total, count = total + loss, count + 1
        return total / count

    def _loss(self, inputs: tuple[Tensor, ...], targets: Tensor) -> Tensor:
        outputs = self.parallel(*inputs)
        task = self.course.loss.of_training(outputs, targets)
        if not self.course.loss.is_default:
            return task
        with torch.no_grad():
            original = self.teacher(inputs)
        pairs = _distilled(outputs, original, self.course.loss.structure)
        divergence = torch.stack([agreement.divergence(*pair, TEMPERATURE) for pair in pairs]).mean()
        return (1 - DISTILLED) * task + DISTILLED * TEMPERATURE**2 * divergence

    def _rate(self, step: int) -> float:
        warm = WARM_UP_EPOCHS * self.steps
        if step < warm:
            return self.settings.rate * (step + 1) / warm
        progress = (step - warm) / max(1, self.settings.epochs * self.steps - warm)
        return self.settings.rate * 0.5 * (1 + math.cos(math.pi * progress))

    def _not_finite(self, epoch: int, step: int, value: float) -> None:
        where = f"the loss is {value} in epoch {epoch}, batch {step}"
        if epoch == 1:
            raise UsageError(f"{self.course.train.where}: {where}; lower the learning rate or check the data")
        log.warning("%s: training stops, and the best of the %d epochs before is kept", where, epoch - 1)

    # ------------------------------------------------------------------------------------------- checkpoints

    def write(self, path: Path) -> None:
        """Save everything that the next epoch depends on. The file is safetensors, so reading it runs no code."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best_state.items()}
        if self.averaged:
            tensors |= {f"averaged.{name}": tensor for name, tensor in self.averaged.state_dict().items()}
        for i, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{i}.{name}": tensor for name, tensor in state.items() if tensor is not None}
        kept = {"history": [astuple(epoch) for epoch in self.history], "scaler": self.scaler.state_dict()}
        metadata = {name: json.dumps(value) for name, value in kept.items()}
        save_file({k: t.detach().clone().contiguous() for k, t in tensors.items()}, path, metadata)

    def restore(self, path: Path) -> None:
        """Restore the state that `write` saved."""
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            self.history = [Epoch(*entry) for entry in json.loads(file.metadata()["history"])]
            self.scaler.load_state_dict(json.loads(file.metadata()["scaler"]))
        if self.averaged:
            self.averaged.load_state_dict(dict(_under(tensors, "averaged.")))
        self.model.load_state_dict(dict(_under(tensors, "model.")))
        self.best_state = dict(_under(tensors, "best."))
        states: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _under(tensors, "optimiser."):
            parameter, _, key = name.partition(".")
            states.setdefault(int(parameter), {})[key] = tensor
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": states})


@dataclass
class _Outputs:
    """Outputs by the digest of their batch, and the bytes of all."""

    by_batch: dict[bytes, Any] = field(default_factory=dict)
    nbytes: int = 0


_KNOWN: WeakKeyDictionary[nn.Module, _Outputs] = WeakKeyDictionary()


class _Teacher:
    """The original network. Its outputs for a batch are kept, since other trainings of a sweep read the same batches.

    Only outputs on the CPU are kept, as long as all together are within `LIMITS.teacher_bytes`.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network, self._known = network, _KNOWN.setdefault(network, _Outputs())

    def __call__(self, inputs: tuple[Tensor, ...]) -> Any:
        if any(x.device.type != "cpu" for x in inputs):
            return self._network(*inputs)
        key = _content(inputs)
        known = self._known
        if key in known.by_batch:
            return known.by_batch[key]
        found = self._network(*inputs)
        nbytes = known.nbytes + sum(one.nbytes for one in tensors(found))
        if nbytes <= LIMITS.teacher_bytes:
            known.by_batch[key], known.nbytes = found, nbytes
        return found


def _content(inputs: tuple[Tensor, ...]) -> bytes:
    """A digest of a batch: its types, shapes and values."""
    sha = hashlib.sha256()
    for x in inputs:
        sha.update(f"{x.dtype}{tuple(x.shape)}".encode())
        sha.update(x.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.digest()


def _optimiser(model: nn.Module, settings: FinetuneSection) -> torch.optim.Optimizer:
    """The optimiser of a model's parameters, as the project chooses it."""
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=settings.rate, weight_decay=settings.decay)
    return torch.optim.SGD(
        model.parameters(), lr=settings.rate, momentum=MOMENTUM, nesterov=True, weight_decay=settings.decay
    )


def _distilled(outputs: Any, original: Flat, structure: Structure) -> list[tuple[Tensor, Tensor]]:
    """The outputs to distil, each with the original network's: the main one or, if that is not certain, all with real numbers.

    `structure` is that of `original`. In training, a model may return more than in eval mode.
    """
    wanted, found = tensors(original), tensors(outputs)
    if structure.is_certain or len(found) != len(wanted):
        return [(main_of(outputs), wanted[structure.main])]
    pairs = zip(found, wanted, strict=True)
    return [(a, b) for a, b in pairs if b.is_floating_point() and b.ndim > 1 and a.shape == b.shape]


def _moving(decay: float) -> Callable[[Sequence[Tensor], Sequence[Tensor], Tensor | int], None]:
    """An exponential moving average. Its decay is smaller in the first steps, so that the first weights count less."""

    def average(kept: Sequence[Tensor], new: Sequence[Tensor], count: Tensor | int) -> None:
        share = 1 - min(decay, (1 + int(count)) / (10 + int(count)))
        for a, b in zip(kept, new, strict=True):
            if a.is_floating_point():
                a.lerp_(b, share)
            else:
                a.copy_(b)

    return average


def _under(tensors: dict[str, Tensor], prefix: str) -> Iterator[tuple[str, Tensor]]:
    return ((name.removeprefix(prefix), tensor) for name, tensor in tensors.items() if name.startswith(prefix))
