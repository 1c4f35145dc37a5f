"""The one training loop: gates, scores or weights; exact resume; its own deadline.

Everything random is either a pure function of (seed, epoch), as the data order, or drawn from torch's global generator,
which owns the gate noise: it is seeded when a fit starts, saved with every checkpoint, and put back afterwards.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from crbg.errors import CrbgError
from crbg.training import distributed
from crbg.training.batches import Batches
from crbg.training.checkpoint import _Noise, _noise_state, _set_noise_state, load_checkpoint, save_checkpoint
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

    `objective(model, x, y)` takes the place of loss(model(x), y) where a loss needs more than the outputs. A checkpoint at
    `checkpoint` is taken up where it stopped and removed at the end by the caller. `model` is saved as a
    whole, raw weights and gates; `carried` names modules beside it that have state. With precision "bf16" the forward pass
    runs under autocast and images lie channels last; parameters and optimiser stay fp32.

    Raises:
        OutOfTime: the clock's deadline passed; a checkpoint was written.
        Collapse: the loss is NaN or infinite.
    """
    clock, search = clock or Clock(), search or SearchHook()
    modules = nn.ModuleList([model, *carried])
    per_epoch = len(batches)
    if per_epoch == 0:
        raise CrbgError("there is not a single batch to train on; make the batch smaller")
    total, step, history = per_epoch * epochs, 0, list[Row]()
    if precision == "bf16":
        modules.to(memory_format=torch.channels_last)
    rates = [float(group["lr"]) for group in optimiser.param_groups]
    device = next(model.parameters()).device
    mine, weight = distributed.share(batches)
    running = torch.zeros((), dtype=torch.float64, device=device)  # summed where it is: reading every loss would wait for every step
    with _Noise(seed, device):
        saved, earlier, earlier_cpu = load_checkpoint(checkpoint) if distributed.first() else None, 0.0, 0.0
        if distributed.size() > 1:
            saved = distributed.told(saved)  # not every file system shows all processes the same file at once
        if saved:
            modules.load_state_dict(saved["modules"])
            optimiser.load_state_dict(saved["optimiser"])
            search.load_state_dict(saved["search"])
            step, history = int(saved["step"]), list(saved["history"])
            running += float(saved["running"])
            _set_noise_state(saved["noise"], device)
            earlier = float(saved.get("seconds", 0.0))
            clock.earlier += earlier
            earlier_cpu = float(saved.get("cpu_seconds", earlier))
            clock.earlier_cpu += earlier_cpu
        began, began_cpu = time.monotonic() - earlier, time.process_time() - earlier_cpu
        last_save = time.monotonic()
        for epoch in range(step // per_epoch, epochs):
            for x, y in mine.epoch(epoch, step % per_epoch):
                over = distributed.agree(clock.over(), device)
                if checkpoint and distributed.first() and (over or time.monotonic() - last_save >= clock.save_every):
                    state = {"modules": modules.state_dict(), "optimiser": optimiser.state_dict(), "step": step}
                    state |= {
                        "search": search.state_dict(),
                        "history": history,
                        "running": float(running),
                        "seconds": time.monotonic() - began,
                        "cpu_seconds": time.process_time() - began_cpu,
                    }
                    save_checkpoint(checkpoint, state | {"noise": _noise_state(device)})
                    last_save = time.monotonic()
                if over:
                    raise OutOfTime(f"stopped after {step} of {total} steps")
                progress = step / total
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
                running += value.detach()
                step += 1
                clock.steps += 1
                clock.tell(step, total)
            mean = float(running) / per_epoch
            if not math.isfinite(mean):
                raise Collapse(f"the loss is not finite in epoch {epoch + 1} of {epochs}")
            history.append({"epoch": float(epoch + 1), "loss": mean, **search.log()})
            running.zero_()
    clock.base += total
    modules.to(memory_format=torch.contiguous_format)  # what is measured next is rounded as on any other machine
    return history
