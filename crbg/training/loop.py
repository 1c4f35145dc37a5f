"""The one training loop: gates, scores or weights; exact resume; its own deadline.

Everything random is either a pure function of (seed, epoch), as the data order, or drawn from torch's global generator,
which owns the gate noise: it is seeded when a fit starts, saved with every checkpoint, and put back afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from crbg.errors import CrbgError
from crbg.training import distributed
from crbg.training.batches import Batches
from crbg.training.checkpoint import GateNoise, TrainingState
from crbg.training.clock import Clock, Collapse, OutOfTime
from crbg.training.hooks import Row, SearchHook
from crbg.training.precision import computing
from crbg.training.schedules import cosine

Loss = Callable[[Tensor, Tensor], Tensor]
Objective = Callable[[nn.Module, Tensor, Tensor], Tensor]


def fit(
    model: nn.Module,
    batches: Batches,
    optimiser: torch.optim.Optimizer,
    epochs: int,
    seed: int,
    loss: Loss = nn.functional.cross_entropy,
    search: SearchHook | None = None,
    schedule: Callable[[float], float] = cosine,
    carried: Sequence[nn.Module] = (),
    checkpoint: Path | None = None,
    clock: Clock | None = None,
    precision: str = "fp32",
    objective: Objective | None = None,
) -> list[Row]:
    """Train what the optimiser holds and return one row of history an epoch.

    `objective(model, x, y)` takes the place of loss(model(x), y) where a loss needs more than the outputs. A checkpoint
    at `checkpoint` is taken up where it stopped and removed at the end by the caller. `model` is saved as a whole, raw
    weights and gates; `carried` names modules beside it that have state. With precision "bf16" the forward pass runs
    under autocast and images lie channels last; parameters and optimiser stay fp32.

    Raises:
        OutOfTime: the clock's deadline passed; a checkpoint was written.
        Collapse: the loss is NaN or infinite.
    """
    clock, search = clock or Clock(), search or SearchHook()
    per_epoch, device = len(batches), next(model.parameters()).device
    if per_epoch == 0:
        raise CrbgError("there is not a single batch to train on; make the batch smaller")
    total = per_epoch * epochs
    modules = nn.ModuleList([model, *carried])
    if precision == "bf16":
        modules.to(memory_format=torch.channels_last)
    rates = [float(group["lr"]) for group in optimiser.param_groups]
    mine, weight = distributed.share(batches)

    def train_step(x: Tensor, y: Tensor, progress: float) -> Tensor:
        """Do one step of the optimiser and return the loss."""
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * schedule(progress)
        search.before_forward(progress)
        optimiser.zero_grad()
        with computing(device, precision):
            value = weight * (objective(model, x, y) if objective else loss(model(x), y))
        value.backward()  # type: ignore[no-untyped-call]
        value = distributed.average((p for group in optimiser.param_groups for p in group["params"]), value)
        search.after_backward(progress)
        optimiser.step()
        search.after_step(progress)
        return value.detach()

    with GateNoise(seed, device):
        state = TrainingState(modules, optimiser, search, device)
        state.resume(checkpoint, clock)
        for epoch in range(state.step // per_epoch, epochs):
            for x, y in mine.epoch(epoch, state.step % per_epoch):
                over = distributed.agree(clock.over(), device)
                state.save_if_due(checkpoint, clock, over)
                if over:
                    raise OutOfTime(f"stopped after {state.step} of {total} steps")
                state.running += train_step(x, y, state.step / total)
                state.step += 1
                clock.count(state.step, total)
            mean = state.mean_loss(per_epoch)
            if not math.isfinite(mean):
                raise Collapse(f"the loss is not finite in epoch {epoch + 1} of {epochs}")
            state.history.append({"epoch": float(epoch + 1), "loss": mean, **search.log()})
    clock.base += total
    modules.to(memory_format=torch.contiguous_format)  # what is measured next is rounded as on any other machine
    return state.history
