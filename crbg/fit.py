"""The one training loop: gates, scores or weights; exact resume; its own deadline.

Everything random is either a pure function of (seed, epoch), as the data order, or drawn from torch's global generator,
which owns the gate noise: it is seeded when a fit starts, saved with every checkpoint, and put back afterwards.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from crbg import parallel, rng
from crbg.errors import CrbgError, choose
from crbg.files import cannot_write

Loss = Callable[[Tensor, Tensor], Tensor]
Objective = Callable[[nn.Module, Tensor, Tensor], Tensor]
Row = dict[str, float]


class Batches(Protocol):
    """Minibatches by epoch: `Feed`, or a wrapper around somebody's own loader."""

    def __len__(self) -> int: ...

    def epoch(self, epoch: int, start: int = 0) -> Iterable[tuple[Tensor, Tensor]]: ...


class Search:
    """Hooks of a step, for what needs more than one tensor at a time: penalties, controllers, annealing, global choices."""

    def before_forward(self, progress: float) -> None:
        """Prepare a step; `progress` runs from 0 at the first step towards 1 at the last."""

    def after_backward(self, progress: float) -> None:
        """Change gradients before the optimiser sees them."""

    def after_step(self, progress: float) -> None:
        """Look at, or project, what the optimiser made."""

    def log(self) -> Row:
        """Give numbers for the history, once an epoch."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return everything the hooks carry from step to step."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a saved state."""


class Clip(Search):
    """Clip the norm of the gradient over all parameters together."""

    def __init__(self, parameters: Sequence[Tensor], norm: float) -> None:
        self.parameters, self.norm = list(parameters), norm

    def after_backward(self, progress: float) -> None:
        nn.utils.clip_grad_norm_(self.parameters, self.norm)


class OutOfTime(Exception):  # noqa: N818 - an outcome, not an error
    """The deadline came before the end; the checkpoint holds all that was done."""


class Collapse(Exception):  # noqa: N818
    """The loss is not finite, or nothing is left of a layer: an outcome to record, not a mistake to mend."""


@dataclass
class Clock:
    """When to stop, how often to save, and whom to tell.

    `deadline` is a time.monotonic() value; `report` receives (steps done, steps in all).
    """

    deadline: float = math.inf
    save_every: float = 60.0
    asked: Callable[[], bool] = lambda: False  # whether somebody asked the process to stop
    report: Callable[[int, int], None] = lambda done, total: None
    stop_after: int | None = None  # stop after this many steps of this process; tests interrupt a fit with it
    steps: int = field(default=0)
    earlier: float = 0.0  # seconds that attempts before this one have searched
    earlier_cpu: float = 0.0  # their processor seconds, of all threads: a pause does not count
    base: int = 0  # steps of this run before the present fit
    whole: int = 0  # steps of all fits of this run together, where that is known

    def over(self) -> bool:
        """Tell whether to stop now."""
        return time.monotonic() >= self.deadline or self.asked() or (self.stop_after is not None and self.steps >= self.stop_after)

    def tell(self, done: int, total: int) -> None:
        """Report steps of the present fit as steps of the run."""
        whole = max(self.whole, total)
        self.report(min(self.base + done, whole), whole)


def cosine(progress: float) -> float:
    """Anneal the learning rate from 1 to 0 along half a cosine."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def optimiser(
    name: str, parameters: list[nn.Parameter], lr: float, momentum: float = 0.9, weight_decay: float = 0.0
) -> torch.optim.Optimizer:
    """Make the optimiser of weights that are trained: sgd (with momentum) or adam."""
    if name == "sgd":
        return torch.optim.SGD(parameters, lr, momentum, weight_decay=weight_decay)
    if name == "adam":
        return torch.optim.Adam(parameters, lr, weight_decay=weight_decay, fused=True)
    raise CrbgError(f"unknown optimiser {name!r}: {choose(name, ('sgd', 'adam'))}")


def fit(
    model: nn.Module,
    batches: Batches,
    optimiser: torch.optim.Optimizer,
    epochs: int,
    seed: int,
    loss: Loss = nn.functional.cross_entropy,
    search: Search | None = None,
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
    clock, search = clock or Clock(), search or Search()
    modules = nn.ModuleList([model, *carried])
    per_epoch = len(batches)
    if per_epoch == 0:
        raise CrbgError("there is not a single batch to train on; make the batch smaller")
    total, step, history = per_epoch * epochs, 0, list[Row]()
    if precision == "bf16":
        modules.to(memory_format=torch.channels_last)
    rates = [float(group["lr"]) for group in optimiser.param_groups]
    device = next(model.parameters()).device
    mine, weight = parallel.share(batches)
    running = torch.zeros((), dtype=torch.float64, device=device)  # summed where it is: reading every loss would wait for every step
    with _Noise(seed, device):
        saved, earlier, earlier_cpu = load_checkpoint(checkpoint) if parallel.first() else None, 0.0, 0.0
        if parallel.size() > 1:
            saved = parallel.told(saved)  # not every file system shows all processes the same file at once
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
                over = parallel.agree(clock.over(), device)
                if checkpoint and parallel.first() and (over or time.monotonic() - last_save >= clock.save_every):
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
                value = parallel.average((p for group in optimiser.param_groups for p in group["params"]), value)
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


@contextmanager
def computing(device: torch.device, precision: str) -> Iterator[None]:
    """Run a forward pass in the precision asked for: under autocast for "bf16", as it is for "fp32".

    On a processor attention in bfloat16 is computed by plain matrix products: the backward pass of torch's fused
    kernel takes two fifths of a training step of ViT-tiny there.
    """
    plain = precision == "bf16" and device.type == "cpu"
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"), sdpa_kernel(SDPBackend.MATH) if plain else nullcontext():
        yield


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write atomically and keep the checkpoint before, in case this one is found damaged.

    Raises:
        WriteError: the disk is full; the checkpoints before are still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    try:
        torch.save(dict(state), fresh)
        if path.exists():
            path.replace(path.with_suffix(".previous"))
        fresh.replace(path)
    except (OSError, RuntimeError) as error:  # torch raises the latter for a full disk
        fresh.unlink(missing_ok=True)
        raise cannot_write(path, error) from None


def load_checkpoint(path: Path | None) -> dict[str, Any] | None:
    """Read the newest intact checkpoint, without pickle; None when there is none. A damaged one is said to be, and passed over."""
    for candidate in (path, path.with_suffix(".previous")) if path else ():
        if candidate.exists():
            try:
                return dict(torch.load(candidate, weights_only=True, map_location="cpu"))  # what takes it up knows its device
            except Exception as error:  # a truncated zip, a short read: torch raises many types for one cause
                what = f"{candidate} is damaged ({type(error).__name__}): taking the checkpoint before it, or starting again"
                warnings.warn(what, stacklevel=2)
    return None


class _Noise:
    """Own torch's global generator within the block, seeded from the run's seed, and give it back afterwards."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.seed, devices = seed, [device] if device.type == "cuda" else []
        self.fork = torch.random.fork_rng(devices=devices)

    def __enter__(self) -> None:
        self.fork.__enter__()
        torch.manual_seed(rng.torch_seed(self.seed, "gate noise"))

    def __exit__(self, *error: Any) -> None:
        self.fork.__exit__(*error)


def _noise_state(device: torch.device) -> list[Tensor]:
    return [torch.get_rng_state()] + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])


def _set_noise_state(state: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)


class Later:
    """Batches whose first epoch is a later one of others: a schedule that goes on where another training stopped."""

    def __init__(self, batches: Batches, first: int) -> None:
        self.batches, self.first = batches, first

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int, start: int = 0) -> Iterable[tuple[Tensor, Tensor]]:
        """Yield the batches of an epoch, counted from the first."""
        return self.batches.epoch(self.first + epoch, start)

    def shared(self, k: int, n: int) -> tuple[Later, float]:
        """Share the same batches as `Feed.shared` does."""
        mine, weight = cast(Any, self.batches).shared(k, n)
        return Later(mine, self.first), weight


class LoaderBatches:
    """Somebody's own loader, any iterable of (inputs, labels), walked once an epoch."""

    def __init__(self, loader: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> None:
        if not hasattr(loader, "__len__"):
            raise CrbgError("the loader must have a length (batches per epoch): a DataLoader or a list of (x, y) batches")
        if isinstance(loader, Iterator):
            raise CrbgError("the loader can be walked only once; give a DataLoader or a list of batches")
        self.loader, self.device = loader, device

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of an epoch on the device, from batch `start` on."""
        for i, (x, y) in enumerate(self.loader):
            if i >= start:
                yield x.to(self.device), y.to(self.device)
