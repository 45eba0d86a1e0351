"""Training in several processes: PyTorch's distributed data parallelism, started by torchrun.

Process 0 runs the pipeline, and holds the device, the run folder and the checkpoint. The others wait until it trains, and
receive its network. Every process reads all batches and works on its shard of each. So a step uses the same samples as in one
process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from edgeprune.errors import UsageError
from edgeprune.limits import LIMITS

_sent = False  # whether process 0 has sent anything


@cache
def started_by_torchrun() -> bool:
    """Whether torchrun started this process.

    Environment variables do not prove it: schedulers set `RANK`, too, and a shell inside a job inherits all variables. But if
    torchrun started a process, it is the parent.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return False
    try:
        parent = Path(f"/proc/{os.getppid()}/cmdline").read_bytes()
    except OSError:  # without /proc, only the variable is known
        return True
    return b"torchrun" in parent or b"torch.distributed" in parent


def rank() -> int:
    """The number of this process among torchrun's, from 0; 0 without torchrun."""
    return int(os.environ.get("RANK", "0")) if started_by_torchrun() else 0


def count() -> int:
    """How many processes torchrun started; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1")) if started_by_torchrun() else 1


def device() -> torch.device:
    """The GPU that this process trains on, or the CPU if there is no GPU.

    Raises:
        UsageError: torchrun started more processes on this machine than it has GPUs. NCCL cannot share a GPU.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    own, there = int(os.environ.get("LOCAL_RANK", "0")) if started_by_torchrun() else 0, torch.cuda.device_count()
    if own >= there:
        raise UsageError(
            f"torchrun started more processes than this machine has GPUs; pass torchrun --nproc-per-node {there}"
        )
    return torch.device("cuda", own)


@contextmanager
def joined() -> Iterator[None]:
    """Connect all processes. The others wait for process 0 as long as its measurements may take."""
    if count() == 1:
        yield
        return
    backend = "nccl" if device().type == "cuda" else "gloo"
    distributed.init_process_group(backend, timeout=timedelta(seconds=LIMITS.lease_wait_s))
    try:
        yield
    finally:
        distributed.destroy_process_group()


def broadcast(content: bytes = b"") -> bytes:
    """Send `content` of process 0 to all processes, and return it in each. It is bytes, so that nothing is unpickled."""
    global _sent
    _sent = True
    if not _several():
        return content
    size = torch.tensor([len(content)], device=device())
    distributed.broadcast(size, 0)
    data = torch.empty(int(size.item()), dtype=torch.uint8, device=device())
    if rank() == 0 and content:
        data.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
    distributed.broadcast(data, 0)
    return data.cpu().numpy().tobytes()


def end_others() -> None:
    """End the other processes, if process 0 had nothing to train and sent nothing."""
    if not _sent:
        broadcast()


def trained(model: nn.Module) -> nn.Module:
    """The module to call in training. Its gradients are averaged over the processes."""
    return DistributedDataParallel(model) if _several() else model


def shard(inputs: tuple[Tensor, ...], targets: Tensor) -> tuple[tuple[Tensor, ...], Tensor, float]:
    """This process's shard of a batch.

    Args:
        inputs: (batch, ...) each.
        targets: (batch, ...). If the first dimension of a tensor does not hold the samples, the shard is the whole batch.

    Returns:
        The shard's inputs and targets, and the weight of its mean loss. The average of weighted losses over the processes is
        the mean loss of the batch.
    """
    samples, processes = len(targets), count() if _several() else 1
    if samples < processes or any(len(tensor) != samples for tensor in inputs):  # every process takes all of them
        return inputs, targets, 1.0
    place = slice(rank() if processes > 1 else 0, None, processes)
    part = targets[place]
    return tuple(tensor[place] for tensor in inputs), part, processes * len(part) / samples


def mean(value: Tensor) -> float:
    """The average of a scalar over the processes."""
    if not _several():
        return value.item()
    total = value.detach().clone()
    distributed.all_reduce(total)
    return total.item() / count()


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized()
