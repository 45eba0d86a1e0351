"""The finetune verb: train the cut network, the unpruned one teaching, and keep the best epoch."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from edgeprune.errors import UsageError
from edgeprune.frontends import user_code as user
from edgeprune.network import surgery as network
from edgeprune.records import Epoch, Project
from edgeprune.stages import parallel

TEMPERATURE = 2.0  # of the softened outputs (Hinton et al. 2015)
DISTILLED = 0.5  # share of the teacher in the loss
MOMENTUM = 0.9
CLIP = 5.0  # largest gradient norm
WARM_UP_EPOCHS = 1

log = logging.getLogger("edgeprune")


@dataclass(frozen=True)
class Tuned:
    """The best epoch's network and the history of all."""

    model: nn.Module
    best: Epoch
    history: tuple[Epoch, ...]


Save = Callable[[Path, Callable[[Path], None]], None]  # store.save: atomic replace of one file


def finetune(
    project: Project,
    model: nn.Module,
    teacher: nn.Module,
    checkpoint: Path,
    save: Save,
    on_epoch: Callable[[Epoch], None],
    untrained: nn.Module | None = None,
) -> Tuned:
    """Train `model` in place for `project.epochs` epochs and return its best epoch on the validation metric.

    Epoch 0 is `untrained`, of the same shapes, where that is another network: the best that is known without training, which
    need not be the best to train.

    Stochastic gradient descent with Nesterov momentum, one epoch of warm-up, then a cosine to zero. Where the task loss is
    the default cross-entropy, half of the loss is the divergence from the teacher's softened outputs. After every epoch
    everything needed to go on is saved to `checkpoint`; a run that finds the file goes on after it and gives the same
    result as one that was never stopped. Where a GPU is present it trains there, in mixed precision. With `project.ema` the
    moving average of the weights is what is measured and kept. Under torchrun the processes share every batch (`parallel`)
    and give what one would, but for batch-norm, which sees each share by itself.

    Raises `UsageError` when the first epoch's loss is not finite; a later one ends training, keeps the best epoch and warns.
    """
    device = parallel.device()
    trainer = _Trainer(project, model.to(device), teacher.to(device), device)
    if checkpoint.exists():
        trainer.restore(checkpoint)
    else:
        trainer.record(None, untrained)
        on_epoch(trainer.history[-1])
    for epoch in range(len(trainer.history), project.epochs + 1):
        loss = trainer.train(epoch)
        if loss is None:
            break
        trainer.record(loss)
        save(checkpoint, trainer.write)
        on_epoch(trainer.history[-1])
    for net in (teacher, model, untrained):
        if net is not None:
            network.channels_first(net.cpu())
    model.load_state_dict(trainer.best_state)
    best = max(trainer.history, key=lambda epoch: (epoch.metric, -epoch.epoch))
    return Tuned(model.eval(), best, tuple(trainer.history))


def evaluate(project: Project, model: nn.Module, split: str) -> float:
    """The project's metric of `model` over one split of its data, or in closed loop."""
    model.eval()
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    if project.closed_loop is not None:
        return user.closed_loop(project, partial(_acted, model, device), split)
    outputs, targets = [], []
    with torch.no_grad():
        for inputs, target in user.batches(project, split):
            outputs.append(model(*(tensor.to(device) for tensor in inputs)).cpu())
            targets.append(target)
    value = float(user.metric_function(project)(torch.cat(outputs), torch.cat(targets)))
    if not math.isfinite(value):
        raise UsageError(f"{project.path}: [data] metric gives {value} on the {split} data; it must be a finite number")
    return value


def _acted(model: nn.Module, device: torch.device, *inputs: np.ndarray) -> np.ndarray:
    """The model as a policy: (samples, …) -> (samples, …)."""
    with torch.no_grad():
        result: np.ndarray = model(*(torch.as_tensor(array).to(device) for array in inputs)).cpu().numpy()
    return result


class _Trainer:
    """All the state of training: what a checkpoint holds, and nothing else."""

    def __init__(self, project: Project, model: nn.Module, teacher: nn.Module, device: torch.device) -> None:
        self.project = project
        self.batches = user.batches(project, "train", augmented=True)
        batches = iter(self.batches)
        first = tuple(tensor.to(device) for tensor in parallel.own(*next(batches))[0])
        self.steps = 1 + sum(1 for _ in batches)
        model, teacher = network.channels_last(model, first), network.channels_last(teacher, first)
        self.model, self.parallel = model, parallel.trained(model)
        self.averaged = (
            AveragedModel(model, multi_avg_fn=_moving(project.ema), use_buffers=True) if project.ema else None
        )
        self.teacher = teacher.eval()
        self.device = device
        gpu = device.type == "cuda"
        self.half = torch.bfloat16 if not gpu or torch.cuda.is_bf16_supported() else torch.float16
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.half is torch.float16)  # which underflows
        self.loss = user.loss_function(project)
        self.optimiser = torch.optim.SGD(
            model.parameters(), lr=project.learning_rate, momentum=MOMENTUM, nesterov=True, weight_decay=1e-4
        )
        self.history: list[Epoch] = []
        self.best_state: dict[str, Tensor] = {}

    def record(self, loss: float | None, untrained: nn.Module | None = None) -> None:
        """Measure the epoch that just ended, or `untrained` before the first; keep its weights if none was better."""
        model = self.averaged.module if self.averaged else self.model
        if untrained is not None:
            model = untrained.to(self.device)
        metric = evaluate(self.project, model, "valid")
        if not self.history or metric > max(epoch.metric for epoch in self.history):
            self.best_state = {name: tensor.cpu().clone() for name, tensor in model.state_dict().items()}
        rate = self.optimiser.param_groups[0]["lr"] if self.history else None
        self.history.append(Epoch(len(self.history), loss, metric, rate))

    def train(self, epoch: int) -> float | None:
        """One epoch; its mean loss, or None when a batch's loss is not finite and training must stop."""
        torch.manual_seed(self.project.seed + epoch)  # so that a resumed epoch is the same epoch
        self.batches.set_epoch(epoch)
        self.model.train()
        total, count = 0.0, 0
        for step, (inputs, targets) in enumerate(self.batches):
            inputs, targets, weight = parallel.own(inputs, targets)
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
        task = self.loss(outputs, targets)
        if self.project.loss is not None:
            return task
        with torch.no_grad():
            taught = self.teacher(*inputs)
        divergence = F.kl_div(
            F.log_softmax(outputs / TEMPERATURE, 1),
            F.log_softmax(taught / TEMPERATURE, 1),
            log_target=True,
            reduction="batchmean",
        )
        return (1 - DISTILLED) * task + DISTILLED * TEMPERATURE**2 * divergence

    def _rate(self, step: int) -> float:
        warm = WARM_UP_EPOCHS * self.steps
        if step < warm:
            return self.project.learning_rate * (step + 1) / warm
        progress = (step - warm) / max(1, self.project.epochs * self.steps - warm)
        return self.project.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))

    def _not_finite(self, epoch: int, step: int, value: float) -> None:
        where = f"the loss is {value} in epoch {epoch}, batch {step}"
        if epoch == 1:
            raise UsageError(f"{self.project.path}: {where}; lower [finetune] learning_rate or check [data] train")
        log.warning("%s: training stopped, the best of the %d epochs before is kept", where, epoch - 1)

    # ------------------------------------------------------------------------------------------- checkpoints

    def write(self, path: Path) -> None:
        """Save everything that the next epoch depends on; safetensors, so that reading it can run no code."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best_state.items()}
        if self.averaged:
            tensors |= {f"averaged.{name}": tensor for name, tensor in self.averaged.state_dict().items()}
        for i, parameter in enumerate(self.model.parameters()):
            momentum = self.optimiser.state[parameter].get("momentum_buffer")
            if momentum is not None:
                tensors[f"momentum.{i}"] = momentum
        told = {"history": [astuple(epoch) for epoch in self.history], "scaler": self.scaler.state_dict()}
        metadata = {name: json.dumps(value) for name, value in told.items()}
        save_file({k: t.detach().clone().contiguous() for k, t in tensors.items()}, path, metadata)

    def restore(self, path: Path) -> None:
        """Go on from what `write` saved."""
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            self.history = [Epoch(*entry) for entry in json.loads(file.metadata()["history"])]
            self.scaler.load_state_dict(json.loads(file.metadata()["scaler"]))
        if self.averaged:
            self.averaged.load_state_dict(dict(_under(tensors, "averaged.")))
        self.model.load_state_dict(dict(_under(tensors, "model.")))
        self.best_state = dict(_under(tensors, "best."))
        parameters = list(self.model.parameters())
        for name, momentum in _under(tensors, "momentum."):
            self.optimiser.state[parameters[int(name)]]["momentum_buffer"] = momentum.to(self.device)


def _moving(decay: float) -> Callable[[Sequence[Tensor], Sequence[Tensor], Tensor | int], None]:
    """The exponential moving average, faster in the first steps so that it forgets where training began."""

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
