"""One run on several GPUs or nodes: every process takes its share of each batch, and the gradients are averaged.

torchrun starts the processes and says in the environment how many there are. All draw the same gate noise, so the
average is the gradient of the whole batch, to rounding. Batch norm sees a process's share only, as in PyTorch's own
data parallelism. The first process decides what is run and writes files; the others follow it. Imports torch only where
it computes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor


together = False  # set by `crbg run`: elsewhere torchrun's variables belong to somebody else's program


def started() -> bool:
    """Tell whether torchrun started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


def size() -> int:
    """Return the number of processes of this run."""
    return int(os.environ.get("WORLD_SIZE", 1)) if together else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return int(os.environ.get("RANK", 0)) if size() > 1 else 0


def first() -> bool:
    """Tell whether this process leads: it writes, reports and decides."""
    return rank() == 0


def place(name: str, pick: Callable[[str], torch.device]) -> torch.device:
    """Give this process its own GPU of its node, where GPUs are used.

    The first process of a node takes the places on all its GPUs, in their order, so that two runs never wait for each
    other.
    """
    import torch

    if size() == 1 or not (name == "cuda" or (name == "auto" and torch.cuda.is_available())):
        return pick(name)
    mine = int(os.environ.get("LOCAL_RANK", 0))
    taken = [pick(f"cuda:{i}") for i in range(int(os.environ.get("LOCAL_WORLD_SIZE", 1)))] if mine == 0 else []
    return taken[0] if taken else torch.device("cuda", mine)


def join(device: torch.device) -> None:
    """Meet the other processes, once; alone there is nobody to meet."""
    import torch
    from torch import distributed as dist

    if size() > 1 and not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        # The others wait while the first one measures, or waits for a run that another job holds.
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(days=1))


def leave() -> None:
    """Part from the other processes."""
    from torch import distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def broadcast(what: Any = None) -> Any:
    """Hear what the first process says; it says `what`."""
    from torch import distributed as dist

    box = [what]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def share(batches: Any) -> tuple[Any, float]:
    """Give this process's share of all batches, and the factor on its mean loss that makes the processes' average that of a batch."""
    return (batches, 1.0) if size() == 1 else batches.shared(rank(), size())


def agree(flag: bool, device: torch.device) -> bool:
    """Tell whether any process says yes."""
    if size() == 1:
        return flag
    import torch
    from torch import distributed as dist

    answer = torch.tensor([float(flag)], device=device)
    dist.all_reduce(answer, dist.ReduceOp.MAX)
    return bool(answer)


def average(parameters: Iterable[Tensor], loss: Tensor) -> Tensor:
    """Average the gradients over all processes in place, and return the average of the loss."""
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
