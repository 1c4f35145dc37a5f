"""The library in one call: a ticket in anyone's own model, from anyone's own data."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from crbg import measure, methods
from crbg.errors import CrbgError
from crbg.gates.attach import attached_gates
from crbg.masks.select import keep_count
from crbg.methods.contract import SearchResult, SearchTask
from crbg.models.initial_weights import tensor_digest
from crbg.search.run_search import guard_roles
from crbg.training.batches import LoaderBatches
from crbg.training.clock import Clock
from crbg.training.loop import Loss


def find_ticket(
    model: nn.Module,
    data: Iterable[tuple[Tensor, Tensor]] | tuple[Any, Any] | torch.utils.data.Dataset[Any],
    density: float | None,
    method: str = "crbg",
    loss: Loss = nn.functional.cross_entropy,
    epochs: int = 10,
    seed: int = 0,
    batch: int = 256,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> SearchResult:
    """Search a sparse subnetwork of `model` with its weights as they are.

    None of them is changed, except by the methods that train or redraw weights, which say so in `found.changed`.

    `data` is a loader of (inputs, labels) batches, or a data set or one pair of tensors or arrays, shuffled into
    batches of `batch`. `loss(outputs, labels)` is a mean over the batch; with the default loss CRBG chooses the logits'
    temperature itself, since frozen weights of any scale must do. On a processor its noise is counter-based
    (`source="counter"`). `options` are the method's own settings (`crbg list methods` shows them). The model keeps its
    device; apply the result with `found.apply(model)`. Where the model has batch norm, that writes statistics of the
    sparse network, from one more pass over the data.

    Raises:
        CrbgError: unknown method or option, a loader without length, or a tensor that changed in the search.
    """
    if method == "crbg":
        options = _crbg_defaults(model, loss) | options
    chosen = methods.options(method, options)
    if density is not None:
        if isinstance(density, bool) or not isinstance(density, int | float):
            raise CrbgError(f"density {density!r} is no number; density = kept / total, sparsity = 1 - density")
        keep_count(density, 1)  # refuses a density outside [0, 1] before the search, not after it
        if density == 0:
            raise CrbgError("density 0 keeps nothing; density = kept / total, sparsity = 1 - density")
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
        raise CrbgError(f"epochs {epochs!r} must be a whole number of at least 1")
    if seed < 0:
        raise CrbgError(f"seed {seed} must be >= 0")
    try:
        device = next(model.parameters()).device
    except StopIteration:
        raise CrbgError("the model has no parameters, so there is nothing to find in it") from None
    if batch < 1:
        raise CrbgError(f"batch {batch} must be at least 1")
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
    batches = LoaderBatches(data, device)
    clock = Clock(report=progress or (lambda done, total: None))
    clock.whole = round(methods.work(method, chosen, density, epochs) * len(batches))
    before = {n: t.clone() for n, t in model.state_dict().items() if isinstance(t, Tensor)}
    initial = tensor_digest(before)
    if attached_gates(model):
        raise CrbgError("the model carries gates already; detach() or bake() it first")
    _try(model, batches, loss if loss is nn.functional.cross_entropy else None)
    found: SearchResult = methods.get(method).find(
        model, SearchTask(batches, density, epochs, seed, loss, clock=clock), chosen
    )
    if "trained" not in found.changed.values():
        kept = {n: t for n, t in model.state_dict().items() if n in dict(model.named_parameters())}
        guard_roles({n: before[n] for n in kept}, kept, found.changed)
        before = {n: t for n, t in before.items() if n not in found.changed}
        model.load_state_dict(before, strict=False)  # running statistics of the search belong to its noisy network
    if found.start is None and measure.has_batch_norm(model):
        found.statistics = measure.running_statistics(model, (x for x, _ in batches.epoch(0)), found.mask)
    found.initial = initial
    return found


def _crbg_defaults(model: nn.Module, loss: Loss) -> dict[str, Any]:
    """Choose what the library does by default where the method's `Options`, which recorded runs rest on, say otherwise."""
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
        text = " ".join(str(error).split())[:200]
        raise CrbgError(
            f"the model cannot take the data, inputs of {tuple(x.shape[1:])} and type {x.dtype} ({text})"
        ) from None
    try:
        _ = loss(out, y) if loss else None
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        text = " ".join(str(error).split())[:200]
        raise CrbgError(
            f"the loss cannot take outputs {tuple(out.shape)} and labels {tuple(y.shape)} of type {y.dtype} ({text})"
        ) from None
