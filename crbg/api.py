"""The library in one call: search a ticket in any model, on any data."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from crbg import measure, methods
from crbg.errors import CrbgError
from crbg.masks.select import keep_count
from crbg.methods.contract import SearchResult, SearchTask
from crbg.models.initial_weights import tensor_digest
from crbg.search.run_search import run_search
from crbg.training.batches import LoaderBatches
from crbg.training.clock import Clock
from crbg.training.loop import Loss

Examples = Iterable[tuple[Tensor, Tensor]] | tuple[Any, Any] | torch.utils.data.Dataset[Any]


def find_ticket(
    model: nn.Module,
    data: Examples,
    density: float | None,
    method: str = "crbg",
    loss: Loss = nn.functional.cross_entropy,
    epochs: int = 10,
    seed: int = 0,
    batch: int = 256,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> SearchResult:
    """Search a sparse subnetwork of `model` that works with its weights as they are.

    No weight changes, except with methods that train or redraw weights; `found.changed` names what they changed. The
    model keeps its device and its modes, also if the search raises. Apply the result with `found.apply(model)`.

    With the default loss, CRBG chooses the temperature of the logits from the first batch, since frozen weights may
    have any scale. On a CPU its noise is counter-based (`source="counter"`). If the model has batch norm, `apply`
    writes running statistics of the sparse network, which one more pass over the data estimates.

    Args:
        model: The network, on the device to search on.
        data: A loader of (inputs, labels) batches; or a data set, or one pair of tensors or arrays, from which shuffled
            batches are drawn.
        density: Share of weights to keep, kept / total; None for methods that decide themselves.
        method: Name of a method (`crbg list methods`).
        loss: Function of (outputs, labels), a mean over the batch.
        epochs: Passes over the data.
        seed: Seed of all random numbers.
        batch: Batch size for a data set or a pair of tensors.
        progress: Called with (steps done, steps in all).
        **options: Settings of the method (`crbg list methods` shows them).

    Raises:
        CrbgError: an unknown method or option, an argument out of range, data that the model or the loss cannot take, a
            loader without length, or a frozen tensor that changed in the search.
    """
    if method == "crbg":
        options = _crbg_defaults(model, loss) | options
    chosen = methods.options(method, options)
    _check_numbers(density, epochs, seed, batch)
    if (first := next(model.parameters(), None)) is None:
        raise CrbgError("the model has no parameters, so there is nothing to search")
    batches = _batches(data, batch, seed, first.device)
    clock = Clock(report=progress or (lambda done, total: None))
    clock.whole = round(methods.work(method, chosen, density, epochs) * len(batches))
    _try(model, batches, loss if loss is nn.functional.cross_entropy else None)
    initial = tensor_digest({n: t for n, t in model.state_dict().items() if isinstance(t, Tensor)})
    task = SearchTask(batches, density, epochs, seed, loss, clock=clock)
    found = run_search(model, task, methods.get(method), chosen)
    if found.start is None and measure.has_batch_norm(model):
        found.statistics = measure.running_statistics(model, (x for x, _ in batches.epoch(0)), found.mask)
    found.initial = initial
    return found


def _check_numbers(density: float | None, epochs: int, seed: int, batch: int) -> None:
    """Check the numbers before the search, so that no search ends in an error about them."""
    if density is not None:
        if isinstance(density, bool) or not isinstance(density, int | float):
            raise CrbgError(f"density {density!r} is not a number; density = kept / total, sparsity = 1 - density")
        keep_count(density, 1)  # raises for a density outside [0, 1]
        if density == 0:
            raise CrbgError("density 0 keeps nothing; density = kept / total, sparsity = 1 - density")
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
        raise CrbgError(f"epochs {epochs!r} must be a whole number of at least 1")
    if seed < 0:
        raise CrbgError(f"seed {seed} must be >= 0")
    if batch < 1:
        raise CrbgError(f"batch {batch} must be at least 1")


def _batches(data: Examples, batch: int, seed: int, device: torch.device) -> LoaderBatches:
    """Return minibatches on the device, from a loader, a data set or a pair of tensors or arrays."""
    if isinstance(data, tuple | list) and len(data) == 2 and all(hasattr(t, "__array__") for t in data):
        x, y = map(torch.as_tensor, data)
        if len(x) != len(y):
            raise CrbgError(f"there are {len(x)} inputs and {len(y)} labels")
        data = torch.utils.data.TensorDataset(x, y)
    if isinstance(data, Tensor):
        raise CrbgError("data is one tensor; give a pair (inputs, labels), a data set or a loader")
    if isinstance(data, torch.utils.data.Dataset):
        size = min(batch, len(data))  # type: ignore[arg-type]
        order = torch.Generator().manual_seed(seed)
        data = torch.utils.data.DataLoader(data, size, shuffle=True, drop_last=True, generator=order)
    return LoaderBatches(data, device)


def _crbg_defaults(model: nn.Module, loss: Loss) -> dict[str, Any]:
    """Return the library's defaults that differ from those of the method's `Options`, on which recorded runs rest."""
    chosen: dict[str, Any] = {}
    if loss is nn.functional.cross_entropy:
        chosen["temperature"] = 0.0
    first = next(model.parameters(), None)
    if first is not None and first.device.type == "cpu":
        chosen["source"] = "counter"  # as accurate as independent draws (lenet_noise_counter), and nearly free
    return chosen


@torch.no_grad()
def _try(model: nn.Module, batches: LoaderBatches, loss: Loss | None) -> None:
    """Pass two examples through model and loss, so that data of another shape or type is one clear error."""
    with torch.random.fork_rng(devices=[batches.device] if batches.device.type == "cuda" else []):
        x, y = next(iter(batches.epoch(0)))
        x, y = x[:2], y[:2]
    try:
        with measure.keeping_modes(model):
            out = model.eval()(x)
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        raise CrbgError(
            f"the model cannot take the data, inputs of {tuple(x.shape[1:])} and type {x.dtype} ({_short(error)})"
        ) from None
    try:
        _ = loss(out, y) if loss else None
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        raise CrbgError(
            f"the loss cannot take outputs {tuple(out.shape)} and labels {tuple(y.shape)} of type {y.dtype}"
            f" ({_short(error)})"
        ) from None


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
