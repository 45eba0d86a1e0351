"""Training in more than one process: PyTorch's own data parallelism, started by torchrun.

Process 0 walks the road and holds the device, the run folder and the checkpoint; the others wait until it trains, and are sent
what it trains. Every process reads all batches and works on its share of each, so that a step sees the same samples as in one
process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from edgeprune.errors import UsageError
from edgeprune.limits import LIMITS


def rank() -> int:
    """Which of torchrun's processes this is; 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def count() -> int:
    """How many processes torchrun started; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def device() -> torch.device:
    """Where this process trains: a GPU of its own, or the processor.

    Raises `UsageError` where torchrun started more processes here than there are GPUs: NCCL does not share one.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    own, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if own >= there:
        raise UsageError(
            f"torchrun: a process for every GPU, of which this machine has {there}; --nproc-per-node {there}"
        )
    return torch.device("cuda", own)


@contextmanager
def joined() -> Iterator[None]:
    """All processes, connected; nothing to do for one alone. The others wait for process 0 as long as measuring may take."""
    if count() == 1:
        yield
        return
    backend = "nccl" if device().type == "cuda" else "gloo"
    distributed.init_process_group(backend, timeout=timedelta(seconds=LIMITS.lease_wait_s))
    try:
        yield
    finally:
        distributed.destroy_process_group()


def share(content: bytes = b"") -> bytes:
    """What process 0 gave, in all of them. Bytes, so that nothing has to be unpickled."""
    if not _several():
        return content
    size = torch.tensor([len(content)], device=device())
    distributed.broadcast(size, 0)
    data = torch.empty(int(size.item()), dtype=torch.uint8, device=device())
    if rank() == 0 and content:
        data.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
    distributed.broadcast(data, 0)
    return data.cpu().numpy().tobytes()


def trained(model: nn.Module) -> nn.Module:
    """The module to call in training: its gradients are averaged over the processes."""
    return DistributedDataParallel(model) if _several() else model


def own(inputs: tuple[Tensor, ...], targets: Tensor) -> tuple[tuple[Tensor, ...], Tensor, float]:
    """This process's share of a batch, and the weight of its loss that makes the average over processes the batch's mean."""
    samples, processes = len(targets), count() if _several() else 1
    if samples < processes:  # too few to share: everybody does them all
        return inputs, targets, 1.0
    place = slice(rank() if processes > 1 else 0, None, processes)
    part = targets[place]
    return tuple(tensor[place] for tensor in inputs), part, processes * len(part) / samples


def mean(value: Tensor) -> float:
    """The average over processes of a scalar that each has."""
    if not _several():
        return value.item()
    total = value.detach().clone()
    distributed.all_reduce(total)
    return total.item() / count()


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized()
