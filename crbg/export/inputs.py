"""Example inputs of a network, its outputs on them, and the time that a network takes."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from crbg.errors import CrbgError, reason
from crbg.gates.layers import unwrap
from crbg.training.forward import outputs_and_labels
from crbg.training.trees import map_tensors, tensors

BATCHES = (1, 2, 5)  # sizes at which an exported network is compared with the original one
TIMED = (1, 32, 256)  # sizes at which the speed is measured
ROUNDS = 30


def arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return positional and keyword arguments; a tuple or list is positional, and a mapping has the keywords."""
    if isinstance(example, Mapping):
        return (), dict(example)
    return (tuple(example) if isinstance(example, tuple | list) else (example,)), {}


def copied(model: Any) -> nn.Module:
    """Return a copy of a network on the CPU.

    Raises:
        CrbgError: the object is no network, or its parameters are on the meta device.
    """
    if not isinstance(model, nn.Module):
        fix = "; pass `found.apply(model)` or `found.ticket()`" if hasattr(model, "mask") else ""
        raise CrbgError(f"expected a network, not {type(model).__name__}{fix}")
    if any(t.is_meta for t in (*model.parameters(), *model.buffers())):
        raise CrbgError("the network is on the meta device and has no weights; load them first")
    try:
        return copy.deepcopy(unwrap(model)).cpu()
    except RuntimeError as error:
        raise CrbgError(
            f"the network cannot be copied ({' '.join(str(error).split())[:100]}...); if its layers were pruned with "
            "torch.nn.utils.prune, call `prune.remove(layer, 'weight')` for each of them"
        ) from None


def check_example(example: Any) -> None:
    """Check that a batch of inputs contains a tensor, and that no tensor is empty.

    Raises:
        CrbgError: a tensor is missing or empty.
    """
    found = list(tensors(example))
    if not found or any(not t.ndim or not len(t) for t in found):
        raise CrbgError("`example` must be a batch of at least one input: a tensor, or a tuple or mapping of tensors")


def check_computes(model: nn.Module, example: Any) -> list[Tensor]:
    """Return the outputs of a network in eval mode on a batch.

    Raises:
        CrbgError: the network cannot compute it, or the outputs are not finite.
    """
    try:
        found = outputs(model, example)
    except Exception as error:  # of many types, depending on the layer
        raise CrbgError(f"the network cannot compute the example: {reason(error)}") from error
    if not all(bool(t.isfinite().all()) for t in found):
        raise CrbgError("the outputs of the network for the example contain NaN or infinity; check the example")
    return found


def rows(example: Any, count: int) -> Any:
    """Return a batch of another size, by repeating or leaving out examples (the first axis of each tensor)."""
    check_example(example)
    return map_tensors(lambda t: t.detach().cpu()[torch.arange(count) % len(t)], example)


def dynamic_shapes(example: Any) -> Any:
    """Return the description of a dynamic batch size for `torch.export`."""
    args, keywords = arguments(example)
    free: Any = {0: torch.export.Dim.DYNAMIC}
    return map_tensors(lambda t: free, keywords if keywords else args)


@torch.no_grad()
def outputs(model: nn.Module, x: Any) -> list[Tensor]:
    """Return the tensors in the outputs of a network."""
    return list(tensors(outputs_and_labels(model, x, None)[0]))


def difference(expected: list[Tensor], found: list[Tensor]) -> float:
    """Return the largest difference between two lists of outputs, relative to the largest expected output."""
    if [t.shape for t in expected] != [t.shape for t in found]:
        return float("inf")
    pairs = [(a.double(), b.double()) for a, b in zip(expected, found, strict=True)]
    largest = max(float(a.abs().max()) for a, _ in pairs)
    return max(float((a - b).abs().max()) for a, b in pairs) / max(largest, 1e-30)


def worst_difference(model: nn.Module, run: Callable[[Any], list[Tensor]], example: Any) -> float:
    """Return the largest relative difference between a network and its exported form, at several batch sizes."""
    batches = [rows(example, size) for size in BATCHES]
    return max(difference(outputs(model, x), run(x)) for x in batches)


def first_output(run: Callable[[Any], list[Tensor]], inputs: Tensor, batch: int = 100) -> Tensor:
    """Return the first output of a function on many inputs, which are passed in batches."""
    return torch.cat([run(inputs[i : i + batch])[0] for i in range(0, len(inputs), batch)])


def microseconds(ways: Mapping[str, Callable[[Any], Any]], example: Any) -> dict[str, float]:
    """Return the time of one call of each function at several batch sizes, with PyTorch on one thread."""
    found: dict[str, float] = {}
    with one_thread():
        for size in TIMED:
            x = rows(example, size)
            for name, seconds in zip(ways, shortest([partial(run, x) for run in ways.values()]), strict=True):
                found[f"{name}, batch {size}, microseconds"] = 1e6 * seconds
    return found


def shortest(calls: Sequence[Callable[[], Any]], rounds: int | None = None) -> list[float]:
    """Return the shortest time of each call in seconds. The calls take turns, so that all see the same machine."""
    best = [math.inf] * len(calls)
    for _ in range(rounds or ROUNDS):
        for i, call in enumerate(calls):
            start = time.perf_counter()
            call()
            best[i] = min(best[i], time.perf_counter() - start)
    return best


@contextmanager
def one_thread() -> Iterator[None]:
    """Let PyTorch use one thread inside the block."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
