"""The library in one call: search for a ticket in any model, on any data."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from crbg import defaults, measure, methods
from crbg.errors import CrbgError
from crbg.masks.select import keep_count
from crbg.methods.contract import SearchResult, SearchTask
from crbg.models.initial_weights import tensor_digest
from crbg.search.gain import scaled
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
    gain: str | None = None,
    **options: Any,
) -> SearchResult:
    """Search for a sparse subnetwork of `model` that performs well without any training of its weights.

    Apply the returned result with `result.apply(model)`. Weights change only with methods that train or redraw them;
    `result.changed` names these tensors. The search restores the model's device and its train and eval modes, even if
    it raises.

    The method `crbg` runs the variant that `result.variant` names, with the defaults of `crbg.defaults`. The options
    `noise=0.5, lr=0.03, firmness=1.0, polish=0.0, gain="none"` give the thesis's form.

    With the default loss, the method `crbg` chooses the temperature of the logits from the first batch, because frozen
    weights can have any scale. On a CPU, it uses counter-based noise (`source="counter"`). If the model has batch norm,
    the running statistics of the sparse network are estimated in one more pass over the data, and `apply` loads them.

    Args:
        model: The network, already on the device that the search should use.
        data: A loader of batches (inputs, labels), or a data set or a pair of tensors or arrays, from which shuffled
            batches are made.
        density: Fraction of weights to keep, kept / total; None for methods that determine the density themselves.
        method: Name of a method (`crbg list methods`).
        loss: Loss function of (outputs, labels) that returns the mean over the batch.
        epochs: Number of passes over the data.
        seed: Seed of all random numbers in the search.
        batch: Batch size for a data set or a pair of tensors.
        progress: Called with (steps done, total steps).
        gain: `variance` multiplies each weight tensor by a factor that keeps the signal's variance from layer to layer
            (`crbg.search.gain`); the factors belong to the ticket, as `result.weight_gain`. `none` leaves the weights
            as they are. By default, `variance` for `crbg` with frozen weights, and `none` otherwise.
        **options: Options of the method (`crbg list methods NAME` explains them).

    Raises:
        CrbgError: the method or an option is unknown, an argument is out of range, the model or the loss does not
            accept the data, the loader has no length, or a frozen tensor changed during the search.
    """
    if method == "crbg":
        options = _crbg_defaults(model, loss) | options
    _check_numbers(density, epochs, seed, batch)
    if problems := list(methods.conflicts(method, methods.options(method, options), density)):
        raise CrbgError("; ".join(problems))
    if (first := next(model.parameters(), None)) is None:
        raise CrbgError("the model has no parameters, so there is nothing to search")
    batches = _batches(data, batch, seed, first.device)
    choice = defaults.choose(model, method, options, density, gain, epochs * len(batches))
    clock = Clock(report=progress or (lambda done, total: None))
    clock.whole = round(methods.work(method, choice.options, density, epochs) * len(batches))
    _try(model, batches, loss if loss is nn.functional.cross_entropy else None)
    initial = tensor_digest({n: t for n, t in model.state_dict().items() if isinstance(t, Tensor)})
    task = SearchTask(batches, density, epochs, seed, loss, clock=clock)
    with scaled(model, choice.gains):
        found = run_search(model, task, methods.get(method), choice.options)
    found.variant = choice.variant
    found.weight_gain = {n: choice.gains.get(n, 1.0) * float(found.gain.get(n, 1.0)) for n in found.mask}
    if found.start is None and measure.has_batch_norm(model):
        found.statistics = measure.running_statistics(model, (x for x, _ in batches.epoch(0)), found.multipliers())
    found.initial = initial
    return found


def _check_numbers(density: float | None, epochs: int, seed: int, batch: int) -> None:
    """Check the numeric arguments, so that an invalid one raises before the search and not after it."""
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
    """Return minibatches on the device, made from a loader, a data set or a pair of tensors or arrays."""
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
    """Return the defaults of `find_ticket` that differ from `Options`.

    The defaults in `Options` cannot change, because recorded runs depend on them.
    """
    chosen: dict[str, Any] = {}
    if loss is nn.functional.cross_entropy:
        chosen["temperature"] = 0.0
    first = next(model.parameters(), None)
    if first is not None and first.device.type == "cpu":
        # As accurate as independent samples (experiment lenet_noise_counter), at almost no cost.
        chosen["source"] = "counter"
    return chosen


@torch.no_grad()
def _try(model: nn.Module, batches: LoaderBatches, loss: Loss | None) -> None:
    """Pass two examples through the model and the loss, so that a wrong shape or type raises one clear error."""
    with torch.random.fork_rng(devices=[batches.device] if batches.device.type == "cuda" else []):
        x, y = next(iter(batches.epoch(0)))
        x, y = x[:2], y[:2]
    try:
        with measure.keeping_modes(model):
            out = model.eval()(x)
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        raise CrbgError(
            f"the model cannot take the data, inputs of shape {tuple(x.shape[1:])} and type {x.dtype} ({_short(error)})"
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
