"""Sources of minibatches: the protocol, tensors in memory, a user's loader, and a source that starts later."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from crbg import rng
from crbg.errors import CrbgError
from crbg.training.trees import map_tensors, move, tensors

Pack = Callable[[Any], tuple[Any, Any]]  # converts what a loader returns to (inputs, labels)

RESIDENT = 2**30  # tensors of up to this many bytes are moved to the device once, not batch by batch


def resident(data: Any, device: torch.device) -> Any:
    """Return a nested structure of tensors, moved to the device if it has at most `RESIDENT` bytes."""
    size = sum(t.numel() * t.element_size() for t in tensors(data))
    return move(data, device) if size <= RESIDENT else data


class Batches(Protocol):
    """The protocol of a source of minibatches; `BatchLoader` and the classes below implement it.

    `len` is the number of batches in an epoch. `epoch(e, start)` yields the pairs (inputs, labels) of epoch e, from
    batch `start` on. `crbg.training.forward` describes what inputs can be.
    """

    def __len__(self) -> int: ...

    def epoch(self, epoch: int, start: int = 0) -> Iterable[tuple[Any, Any]]: ...


class Later:
    """A source that starts at epoch `first` of another source, to continue an earlier training stage."""

    def __init__(self, batches: Batches, first: int) -> None:
        self.batches, self.first = batches, first

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int, start: int = 0) -> Iterable[tuple[Any, Any]]:
        """Yield the batches of epoch `first + epoch` of the source."""
        return self.batches.epoch(self.first + epoch, start)

    def shared(self, k: int, n: int) -> tuple[Later, float]:
        """Return the batches of process k of n, and the weight of its mean loss, as `BatchLoader.shared` does."""
        own, weight = cast(Any, self.batches).shared(k, n)
        return Later(own, self.first), weight


class TensorBatches:
    """Batches from tensors in memory, in a new order in each epoch; the order depends on the seed and the epoch only.

    Args:
        data: A nested structure of tensors whose first axis has one entry per example; see `resident`.
        size: Largest number of examples in a batch; the batches of an epoch are of equal size, up to one example.
        device: Device of the batches.
        pack: Converts a batch of `data` to (inputs, labels).
        seed: Seed of the order; None keeps the order of the data.
        rows: Positions of the examples to use; all by default.
    """

    def __init__(
        self, data: Any, size: int, device: torch.device, pack: Pack, seed: int | None, rows: Tensor | None = None
    ) -> None:
        total = next(tensors(data)).shape[0]
        self.rows = torch.arange(total) if rows is None else rows
        self.data, self.size, self.device, self.pack, self.seed = data, size, device, pack, seed

    def __len__(self) -> int:
        return -(-len(self.rows) // self.size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Any, Any]]:
        """Yield the batches of an epoch from batch `start` on."""
        rows = self.rows
        if self.seed is not None:
            rows = rows[torch.from_numpy(rng.permutation(len(rows), self.seed, "order", str(epoch)))]
        rows = rows.to(next(tensors(self.data)).device)
        for index in rows.tensor_split(len(self))[start:]:
            batch = map_tensors(lambda t, index=index: t[index], self.data)  # type: ignore[misc]
            yield self.pack(move(batch, self.device))


class LoaderBatches:
    """Batches from a user's loader: any iterable of batches that can be iterated several times.

    The loader alone decides the order of the examples, which may depend on the epochs that were read before.

    Args:
        loader: For example a DataLoader or a list of batches.
        device: Device of the batches.
        pack: Converts a batch to (inputs, labels); by default, a batch is such a pair.
        steps: Number of batches in an epoch, for a loader without a length. The next epoch continues where the last one
            ended, and the loader starts again when it is exhausted.
        once: Whether each epoch starts at the beginning of the loader and ends with it, after at most `steps` batches.

    Raises:
        CrbgError: the loader has no length and `steps` is not given, or it can be iterated only once.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        device: torch.device,
        pack: Pack = lambda batch: batch,
        steps: int | None = None,
        once: bool = False,
    ) -> None:
        if isinstance(loader, Iterator):
            raise CrbgError(
                "the loader can be iterated only once; pass a DataLoader, a list of (x, y) batches, or an object whose "
                "__iter__ starts again"
            )
        if steps is None and length(loader) is None:
            raise CrbgError(
                "the loader has no length; pass `steps`, the number of batches per epoch, or a loader with a length"
            )
        self.loader, self.device, self.pack, self.steps, self.once = loader, device, pack, steps, once
        self.open: Iterator[Any] = iter(())

    def __len__(self) -> int:
        return self.steps or length(self.loader) or 0

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Any, Any]]:
        """Yield the batches of an epoch, moved to the device, from batch `start` on.

        Raises:
            CrbgError: the loader yields fewer batches than its length, or no batch at all.
        """
        restarts = self.steps is not None and not self.once
        source = self._restarting() if restarts else iter(self.loader)
        for i in range(start if restarts else 0, len(self)):
            batch = next(source, None)
            if batch is None and self.once and self.steps:
                return
            if batch is None:
                raise CrbgError(
                    f"the loader has the length {len(self)}, but ends after {i} batches; pass `steps={i}`, the number "
                    "of batches per epoch"
                )
            if i >= start:
                yield self.pack(move(batch, self.device))

    def _restarting(self) -> Iterator[Any]:
        while True:
            while (batch := next(self.open, None)) is not None:  # `yield from` would close `open` with this generator
                yield batch
            self.open = iter(self.loader)
            if (first := next(self.open, None)) is None:
                raise CrbgError("the loader yields no batch, at its start or when it is iterated again")
            yield first


def length(loader: Any) -> int | None:
    """Return the number of batches; None if the loader has no length, as a DataLoader of an IterableDataset."""
    try:
        return len(loader)
    except TypeError:
        return None
