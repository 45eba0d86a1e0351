"""Training in several processes: PyTorch's own data parallelism, started by torchrun.

Process 0 runs the pipeline and holds the device, the run folder and the checkpoint. The others wait until it trains, and
receive what it trains. Every process reads all batches and works on its share of each, so that a step uses the same samples
as in one process.
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

_shared = False  # whether process 0 has sent anything


@cache
def started_by_torchrun() -> bool:
    """Whether torchrun started this very process.

    Its variables alone do not say so: schedulers set `RANK`, too, and a shell inside a job inherits all of them. The parent of
    a process that torchrun started is torchrun.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return False
    try:
        parent = Path(f"/proc/{os.getppid()}/cmdline").read_bytes()
    except OSError:  # not Linux: the variable is all that there is
        return True
    return b"torchrun" in parent or b"torch.distributed" in parent


def rank() -> int:
    """Which of torchrun's processes this is; 0 without torchrun."""
    return int(os.environ.get("RANK", "0")) if started_by_torchrun() else 0


def count() -> int:
    """How many processes torchrun started; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1")) if started_by_torchrun() else 1


def device() -> torch.device:
    """The GPU that this process trains on, or the CPU.

    Raises `UsageError` where torchrun started more processes here than there are GPUs: NCCL does not share one.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    own, there = int(os.environ.get("LOCAL_RANK", "0")) if started_by_torchrun() else 0, torch.cuda.device_count()
    if own >= there:
        raise UsageError(
            f"torchrun: a process for every GPU, of which this machine has {there}; --nproc-per-node {there}"
        )
    return torch.device("cuda", own)


@contextmanager
def joined() -> Iterator[None]:
    """Connect all processes. The others wait for process 0 as long as measuring may take."""
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
    """Send `content` of process 0 to all processes, and return it. As bytes, so that nothing is unpickled."""
    global _shared
    _shared = True
    if not _several():
        return content
    size = torch.tensor([len(content)], device=device())
    distributed.broadcast(size, 0)
    data = torch.empty(int(size.item()), dtype=torch.uint8, device=device())
    if rank() == 0 and content:
        data.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
    distributed.broadcast(data, 0)
    return data.cpu().numpy().tobytes()


def dismiss() -> None:
    """Have the other processes end, where process 0 had nothing to train and sent nothing."""
    if not _shared:
        share()


def trained(model: nn.Module) -> nn.Module:
    """The module to call in training: its gradients are averaged over the processes."""
    return DistributedDataParallel(model) if _several() else model


def own(inputs: tuple[Tensor, ...], targets: Tensor) -> tuple[tuple[Tensor, ...], Tensor, float]:
    """This process's share of a batch, and its weight: with it, the average over processes is the mean of the batch."""
    samples, processes = len(targets), count() if _several() else 1
    if samples < processes:  # too few to share: every process takes all of them
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
