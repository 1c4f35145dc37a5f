"""Sources of minibatches: the protocol, an adapter for a user's loader, and a source that starts at a later epoch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from crbg.errors import CrbgError


class Batches(Protocol):
    """The protocol of a source of minibatches; `BatchLoader` and `LoaderBatches` implement it.

    `len` is the number of batches in an epoch. `epoch(e, start)` yields the pairs (inputs, labels) of epoch e, from
    batch `start` on.
    """

    def __len__(self) -> int: ...

    def epoch(self, epoch: int, start: int = 0) -> Iterable[tuple[Tensor, Tensor]]: ...


class Later:
    """A source that starts at epoch `first` of another source, to continue an earlier training stage."""

    def __init__(self, batches: Batches, first: int) -> None:
        self.batches, self.first = batches, first

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int, start: int = 0) -> Iterable[tuple[Tensor, Tensor]]:
        """Yield the batches of epoch `first + epoch` of the source."""
        return self.batches.epoch(self.first + epoch, start)

    def shared(self, k: int, n: int) -> tuple[Later, float]:
        """Return the batches of process k of n and the factor on its mean loss, as `BatchLoader.shared` does."""
        own, weight = cast(Any, self.batches).shared(k, n)
        return Later(own, self.first), weight


class LoaderBatches:
    """Batches from a user's loader: any iterable of (inputs, labels) with a length, iterated once per epoch.

    Raises:
        CrbgError: the loader has no length, or can be iterated only once.
    """

    def __init__(self, loader: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> None:
        if not hasattr(loader, "__len__"):
            raise CrbgError(
                "the loader must have a length, the number of batches per epoch; pass a DataLoader or a list of (x, y)"
            )
        if isinstance(loader, Iterator):
            raise CrbgError("the loader can be iterated only once; pass a DataLoader or a list of (x, y) batches")
        self.loader, self.device = loader, device

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of an epoch, moved to the device, from batch `start` on."""
        for i, (x, y) in enumerate(self.loader):
            if i >= start:
                yield x.to(self.device), y.to(self.device)
