"""The training loop of all searches. It trains gates, scores or weights, resumes exactly, and stops at a deadline.

All randomness is either a pure function of (seed, epoch), such as the data order, or comes from torch's global
generator, such as the gate noise. `fit` seeds this generator, and checkpoints save and restore its state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crbg.errors import CrbgError
from crbg.training import distributed
from crbg.training.batches import Batches
from crbg.training.checkpoint import GateNoise, TrainingState
from crbg.training.clock import Clock, Collapse, OutOfTime
from crbg.training.forward import outputs_and_labels
from crbg.training.hooks import Row, SearchHook
from crbg.training.precision import channels_last, computing
from crbg.training.schedules import cosine

Loss = Callable[[Any, Any], Tensor]  # (outputs, labels)
Objective = Callable[[nn.Module, Any, Any], Tensor]  # (model, inputs, labels)


@dataclass(frozen=True)
class FitOptions:
    """Options of `fit`.

    Attributes:
        loss: Function of (outputs, labels) that returns the mean loss over the batch.
        objective: Function of (model, inputs, labels). If given, it is minimised instead of `loss`.
        search: Hooks that are called in every step.
        schedule: Multiplier of the learning rates as a function of progress in [0, 1).
        carried: Additional modules to be saved in checkpoints.
        checkpoint: Path of the checkpoint. `fit` resumes from it; the caller deletes it.
        clock: Deadline, checkpoint interval and progress reports.
        precision: `fp32`, or `bf16` for a forward pass under autocast with channels-last images. Parameters and
            optimiser state stay in fp32.
        watch: Measures the model after each epoch; its values are added to the row of the epoch.
    """

    loss: Loss = nn.functional.cross_entropy
    objective: Objective | None = None
    search: SearchHook | None = None
    schedule: Callable[[float], float] = cosine
    carried: Sequence[nn.Module] = ()
    checkpoint: Path | None = None
    clock: Clock | None = None
    precision: str = "fp32"
    watch: Callable[[nn.Module], Row] | None = None


def fit(
    model: nn.Module,
    batches: Batches,
    optimiser: torch.optim.Optimizer,
    epochs: int,
    seed: int,
    options: FitOptions | None = None,
) -> list[Row]:
    """Train the parameters of the optimiser and return one history row per epoch.

    Checkpoints contain the state of the model (raw weights and gates), the optimiser, the hooks and the random
    generators.

    Raises:
        CrbgError: there is no batch to train on.
        OutOfTime: the clock's deadline passed; a checkpoint was written.
        Collapse: the loss is NaN or infinite.
    """
    o = options or FitOptions()
    clock, search = o.clock or Clock(), o.search or SearchHook()
    per_epoch, device = len(batches), next(model.parameters()).device
    if per_epoch == 0:
        raise CrbgError("there is no batch to train on: the batch size exceeds the number of examples; reduce it")
    total = per_epoch * epochs
    modules = nn.ModuleList([model, *o.carried])
    own, weight = distributed.share(batches)
    step = _step(model, optimiser, o, search, weight)
    with channels_last(modules, o.precision), GateNoise(seed, device):
        state = TrainingState(modules, optimiser, search, device)
        state.resume(o.checkpoint, clock)
        for epoch in range(state.step // per_epoch, epochs):
            for x, y in own.epoch(epoch, state.step % per_epoch):
                over = distributed.agree(clock.over(), device)
                state.save_if_due(o.checkpoint, clock, over)
                if over:
                    raise OutOfTime(f"stopped after {state.step} of {total} steps")
                try:
                    state.running += step(x, y, state.step / total)
                except Exception as error:
                    error.add_note(f"raised in batch {state.step % per_epoch + 1} of epoch {epoch + 1}")
                    raise
                state.step += 1
                clock.count(state.step, total)
            mean = state.mean_loss(per_epoch)
            if not math.isfinite(mean):
                raise Collapse(f"the loss is not finite in epoch {epoch + 1} of {epochs}")
            seen = o.watch(model) if o.watch else {}
            state.history.append({"epoch": float(epoch + 1), "loss": mean, **search.log(), **seen})
    clock.base += total
    return state.history


def _step(
    model: nn.Module, optimiser: torch.optim.Optimizer, o: FitOptions, search: SearchHook, weight: float
) -> Callable[[Any, Any, float], Tensor]:
    """Return a function (inputs, labels, progress) that takes one optimiser step and returns the loss.

    This process's loss is multiplied by `weight`. The schedule scales the learning rates that the optimiser has when
    this function is called, so call it before loading a checkpoint.
    """
    device = next(model.parameters()).device
    rates = [float(group["lr"]) for group in optimiser.param_groups]

    def step(x: Any, y: Any, progress: float) -> Tensor:
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * o.schedule(progress)
        search.before_forward(progress)
        optimiser.zero_grad()
        with computing(device, o.precision):
            loss = o.objective(model, x, y) if o.objective else o.loss(*outputs_and_labels(model, x, y))
            value = weight * loss
        value.backward()  # type: ignore[no-untyped-call]
        value = distributed.average((p for group in optimiser.param_groups for p in group["params"]), value)
        search.after_backward(progress)
        optimiser.step()
        search.after_step(progress)
        return value.detach()

    return step
