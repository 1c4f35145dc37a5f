"""Minibatches by epoch, from a loader of one's own or from a later epoch on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from crbg.errors import CrbgError


class Batches(Protocol):
    """Minibatches by epoch: `BatchLoader`, or a wrapper around somebody's own loader."""

    def __len__(self) -> int: ...

    def epoch(self, epoch: int, start: int = 0) -> Iterable[tuple[Tensor, Tensor]]: ...


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
        """Share the same batches as `BatchLoader.shared` does."""
        mine, weight = cast(Any, self.batches).shared(k, n)
        return Later(mine, self.first), weight


class LoaderBatches:
    """Somebody's own loader, any iterable of (inputs, labels), walked once an epoch."""

    def __init__(self, loader: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> None:
        if not hasattr(loader, "__len__"):
            raise CrbgError(
                "the loader must have a length (batches per epoch): a DataLoader or a list of (x, y) batches"
            )
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
