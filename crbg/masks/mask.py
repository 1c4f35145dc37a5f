"""The mask of a sparse network: which weights are kept, by parameter name."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from crbg.errors import CrbgError

Shapes = Mapping[str, tuple[int, ...]]


class Mask(Mapping[str, Tensor]):
    """An immutable mapping from parameter names to boolean tensors on the CPU; True means kept.

    Masks are compared, hashed and stored by their contents. `~`, `&` and `|` combine masks of equal shapes.

    Examples:
        >>> import torch
        >>> from crbg import Mask
        >>> mask = Mask({"fc1.weight": torch.tensor([[True, False]]), "fc2.weight": torch.tensor([[False, False]])})
        >>> mask
        Mask(1 of 4 kept in 2 tensors, density 0.25)
        >>> (~mask).kept
        3
        >>> Mask.unpack(mask.pack(), mask.shapes) == mask
        True

    Args:
        tensors: One boolean tensor for each weight tensor, by name; the tensors are copied.

    Raises:
        CrbgError: `tensors` is empty, a tensor has no elements, or a tensor is not boolean.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        if not tensors:
            raise CrbgError("a mask needs at least one tensor")
        for name, t in tensors.items():
            if t.numel() == 0:
                raise CrbgError(f"the mask of {name!r} is empty; a mask tensor needs at least one element")
            if t.dtype != torch.bool:
                raise CrbgError(f"the mask of {name!r} has dtype {t.dtype}; a mask must be boolean, True = keep")
        self._tensors = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mask) and self.digest() == other.digest()

    def __hash__(self) -> int:
        return hash(self.digest())

    def __repr__(self) -> str:
        return f"Mask({self.kept} of {self.total} kept in {len(self)} tensors, density {self.density:.4g})"

    @property
    def kept(self) -> int:
        """Number of kept weights."""
        return sum(int(t.sum()) for t in self.values())

    @property
    def total(self) -> int:
        """Total number of weights in the mask, kept or pruned."""
        return sum(t.numel() for t in self.values())

    @property
    def density(self) -> float:
        """Kept / total, in [0, 1]; sparsity is 1 - density."""
        return self.kept / self.total

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor."""
        return {name: tuple(t.shape) for name, t in self.items()}

    def counts(self) -> dict[str, dict[str, int]]:
        """Return `{"kept": ..., "total": ...}` for each tensor, the format used in records of runs."""
        return {n: {"kept": int(t.sum()), "total": t.numel()} for n, t in self.items()}

    def layer_kept(self) -> dict[str, int]:
        """Return the number of kept weights of each tensor."""
        return {name: int(t.sum()) for name, t in self.items()}

    def multipliers(self, gain: Mapping[str, float]) -> Mapping[str, Tensor]:
        """Return the mask times one factor per tensor; a missing factor is 1, and without factors it is the mask."""
        return {n: t * gain.get(n, 1.0) for n, t in self.items()} if any(g != 1 for g in gain.values()) else self

    def __invert__(self) -> Mask:
        return Mask({name: ~t for name, t in self.items()})

    def __and__(self, other: Mask) -> Mask:
        self.check_shapes(other.shapes)
        return Mask({name: t & other[name] for name, t in self.items()})

    def __or__(self, other: Mask) -> Mask:
        self.check_shapes(other.shapes)
        return Mask({name: t | other[name] for name, t in self.items()})

    def check_shapes(self, shapes: Shapes) -> None:
        """Check that the mask fits tensors of these shapes.

        Raises:
            CrbgError: a name or a shape differs; the message names the first difference.
        """
        own = self.shapes
        for name in [*own, *shapes]:
            if own.get(name) != shapes.get(name):
                raise CrbgError(
                    f"the mask does not fit: {name!r} is {own.get(name, 'absent')} in the mask and "
                    f"{shapes.get(name, 'absent')} in the network; the mask belongs to another network"
                )

    def digest(self) -> str:
        """Return the SHA-256 hash of names, shapes and mask bits, with tensors sorted by name."""
        return hashlib.sha256(shapes_digest(self.shapes).encode() + self.pack()).hexdigest()

    def pack(self) -> bytes:
        """Return the mask as bytes with one bit per weight: tensors sorted by name, the last byte padded with zeros."""
        bits = torch.cat([self[name].flatten() for name in sorted(self)])
        return np.packbits(bits.numpy()).tobytes()

    @classmethod
    def full(cls, tensors: Mapping[str, Tensor]) -> Mask:
        """Return the mask that keeps every weight of these tensors."""
        return cls({n: torch.ones(t.shape, dtype=torch.bool) for n, t in tensors.items()})

    @classmethod
    def unpack(cls, data: bytes, shapes: Shapes) -> Mask:
        """Restore a mask with tensors of these shapes from the bytes that `pack` returned.

        Raises:
            CrbgError: the number of bytes does not match the shapes, or a padding bit is set.
        """
        total = sum(math.prod(s) for s in shapes.values())
        if len(data) != (total + 7) // 8:
            raise CrbgError(f"a packed mask of {total} weights takes {(total + 7) // 8} bytes, not {len(data)}")
        bits = torch.from_numpy(np.unpackbits(np.frombuffer(data, np.uint8)).astype(bool))
        if bool(bits[total:].any()):
            raise CrbgError("the padding bits of a packed mask must be zero")
        names = sorted(shapes)
        parts = torch.split(bits[:total], [math.prod(shapes[n]) for n in names])
        return cls({n: p.reshape(shapes[n]) for n, p in zip(names, parts, strict=True)})


def shapes_digest(shapes: Shapes) -> str:
    """Return the SHA-256 hash of names and shapes, which identifies a network's architecture."""
    text = "\n".join(f"{name}:{','.join(map(str, shapes[name]))}" for name in sorted(shapes))
    return hashlib.sha256(text.encode()).hexdigest()
