"""Mask: which weights are kept, by parameter name. The currency of the project; may import torch and `errors` only."""

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
    """Boolean tensors on the CPU by parameter name, True = kept. Immutable; every way in is validated.

    Raises:
        CrbgError: a tensor is not boolean, or there is nothing to mask.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        if not tensors or any(t.numel() == 0 for t in tensors.values()):
            raise CrbgError("a mask needs at least one tensor, and none of them empty")
        for name, t in tensors.items():
            if t.dtype != torch.bool:
                raise CrbgError(f"mask of {name!r} has dtype {t.dtype}; a mask is boolean, True = keep")
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
        """Number of weights kept."""
        return sum(int(t.sum()) for t in self.values())

    @property
    def total(self) -> int:
        """Number of weights masked or kept."""
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
        """Count the kept and all weights of each tensor, in the form of a record."""
        return {n: {"kept": int(t.sum()), "total": t.numel()} for n, t in self.items()}

    def layer_kept(self) -> dict[str, int]:
        """Count the kept weights of each tensor."""
        return {name: int(t.sum()) for name, t in self.items()}

    def __invert__(self) -> Mask:
        return Mask({name: ~t for name, t in self.items()})

    def __and__(self, other: Mask) -> Mask:
        self.check_shapes(other.shapes)
        return Mask({name: t & other[name] for name, t in self.items()})

    def __or__(self, other: Mask) -> Mask:
        self.check_shapes(other.shapes)
        return Mask({name: t | other[name] for name, t in self.items()})

    def check_shapes(self, shapes: Shapes) -> None:
        """Refuse a mask that was made for other tensors, and name the first that differs."""
        mine = self.shapes
        for name in [*mine, *shapes]:
            if mine.get(name) != shapes.get(name):
                raise CrbgError(
                    f"the mask does not fit: {name!r} is {mine.get(name, 'absent')} in the mask and "
                    f"{shapes.get(name, 'absent')} in the network; is this ticket for another network?"
                )

    def digest(self) -> str:
        """SHA-256 over names, shapes and bits, in the order of the names."""
        return hashlib.sha256(shapes_digest(self.shapes).encode() + self.pack()).hexdigest()

    def pack(self) -> bytes:
        """Pack eight weights into a byte, tensors in the order of their names, the last byte padded with zeros."""
        bits = torch.cat([self[name].flatten() for name in sorted(self)])
        return np.packbits(bits.numpy()).tobytes()

    @classmethod
    def full(cls, tensors: Mapping[str, Tensor]) -> Mask:
        """Keep every weight of these tensors."""
        return cls({n: torch.ones(t.shape, dtype=torch.bool) for n, t in tensors.items()})

    @classmethod
    def unpack(cls, data: bytes, shapes: Shapes) -> Mask:
        """Read back what `pack` wrote for tensors of these shapes; raises CrbgError when the length does not fit."""
        total = sum(math.prod(s) for s in shapes.values())
        if len(data) != (total + 7) // 8:
            raise CrbgError(f"a packed mask of {total} weights has {(total + 7) // 8} bytes, not {len(data)}")
        bits = torch.from_numpy(np.unpackbits(np.frombuffer(data, np.uint8)).astype(bool))
        if bool(bits[total:].any()):
            raise CrbgError("the padding bits of a packed mask must be zero")
        names = sorted(shapes)
        parts = torch.split(bits[:total], [math.prod(shapes[n]) for n in names])
        return cls({n: p.reshape(shapes[n]) for n, p in zip(names, parts, strict=True)})


def shapes_digest(shapes: Shapes) -> str:
    """SHA-256 of names and shapes, which tells networks apart."""
    text = "\n".join(f"{name}:{','.join(map(str, shapes[name]))}" for name in sorted(shapes))
    return hashlib.sha256(text.encode()).hexdigest()
