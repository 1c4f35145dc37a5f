"""Data parallelism: one run on several GPUs or nodes.

Each process computes the gradient of its share of every batch, and gradients are averaged. torchrun starts the
processes and sets their environment variables. All processes draw the same gate noise, so the average is the gradient
of the whole batch, up to rounding. Batch norm uses the statistics of each process's share of the batch, as in
PyTorch's DistributedDataParallel. The first process decides what to run and writes all files. torch is imported inside
functions, because the command line also imports this module for commands that do not need torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor


together = False  # set by `crbg run`; other programs may use torchrun's variables for their own purposes


def started() -> bool:
    """Return whether torchrun started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


def size() -> int:
    """Return the number of processes of this run."""
    return int(os.environ.get("WORLD_SIZE", 1)) if together else 1


def rank() -> int:
    """Return the rank of this process, counted from 0."""
    return int(os.environ.get("RANK", 0)) if size() > 1 else 0


def first() -> bool:
    """Return whether this is the first process, which decides what to run, reports progress and writes files."""
    return rank() == 0


def place(name: str, pick: Callable[[str], torch.device]) -> torch.device:
    """Return the device of this process; if GPUs are used, each process on a node has its own.

    The first process on a node reserves one GPU for each process on the node, in the order of the GPU indices, so that
    two runs cannot deadlock.

    Args:
        name: Name of a device, as for `crbg.training.device.pick`.
        pick: Function that returns the device for a name.
    """
    import torch

    if size() == 1 or not (name == "cuda" or (name == "auto" and torch.cuda.is_available())):
        return pick(name)
    local = int(os.environ.get("LOCAL_RANK", 0))
    taken = [pick(f"cuda:{i}") for i in range(int(os.environ.get("LOCAL_WORLD_SIZE", 1)))] if local == 0 else []
    return taken[0] if taken else torch.device("cuda", local)


def join(device: torch.device) -> None:
    """Initialise the process group, unless it exists or there is only one process."""
    import torch
    from torch import distributed as dist

    if size() > 1 and not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        # The timeout is long because the other processes wait while the first one evaluates a ticket, or while it waits
        # for a run that another job has locked.
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(days=1))


def leave() -> None:
    """Destroy the process group, if there is one."""
    from torch import distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def broadcast(what: Any = None) -> Any:
    """Return, in every process, the object that the first process passes as `what`."""
    from torch import distributed as dist

    box = [what]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def share(batches: Any) -> tuple[Any, float]:
    """Return this process's share of every batch, and the factor by which its mean loss is multiplied.

    With this factor, the average over processes is the mean over the batch, even if shares have unequal sizes.
    """
    return (batches, 1.0) if size() == 1 else batches.shared(rank(), size())


def agree(flag: bool, device: torch.device) -> bool:
    """Return whether the flag is true in at least one process."""
    if size() == 1:
        return flag
    import torch
    from torch import distributed as dist

    answer = torch.tensor([float(flag)], device=device)
    dist.all_reduce(answer, dist.ReduceOp.MAX)
    return bool(answer)


def average(parameters: Iterable[Tensor], loss: Tensor) -> Tensor:
    """Average the gradients in place over all processes, and return the average loss."""
    if size() == 1:
        return loss
    import torch
    from torch import distributed as dist

    grads = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([loss.detach().reshape(1).to(grads[0].dtype), *(g.flatten() for g in grads)])
    dist.all_reduce(flat)
    flat /= size()
    for g, part in zip(grads, torch.split(flat[1:], [g.numel() for g in grads]), strict=True):
        g.copy_(part.reshape(g.shape))
    return flat[0]
