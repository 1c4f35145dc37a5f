"""A ticket on disk: seed + law + bit-packed mask + digests. It needs no weights, loads without pickle, and proves itself.

The container is safetensors with one tensor `mask` (uint8, eight weights a byte) and, where a network carries
re-estimated running statistics, one tensor for each. The header's JSON says how the initial weights are drawn; digests
of shapes, mask and initial weights are checked on the way in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from crbg import models
from crbg.errors import CrbgError
from crbg.gates.attach import bake, weights
from crbg.masks.mask import Mask, shapes_digest
from crbg.models.initial_weights import initialise, tensor_digest
from crbg.rng import LAWS
from crbg.storage.atomic import write_bytes

FORMAT = 1
# What a hostile or damaged file can make its readers raise; torch reports impossible shapes as RuntimeError.
_UNSOUND = (
    SafetensorError, ValueError, LookupError, TypeError, ArithmeticError, RuntimeError, AttributeError, AssertionError, MemoryError,
)  # fmt: skip
LARGEST = 2**33  # bytes; far above any mask of a network that fits a GPU


@dataclass(frozen=True)
class Ticket:
    """Everything that rebuilds a sparse network: `Ticket.load(path).model()`.

    `initial` is the digest of all initial tensors, `network` that of the names and shapes of the gated ones. A network
    that is not in the registry has model "" and is rebuilt with `apply`.
    """

    mask: Mask
    seed: int
    law: str
    scale: float
    model_name: str
    in_shape: tuple[int, ...]
    classes: int
    initial: str
    model_args: Mapping[str, Any] = field(default_factory=dict)
    statistics: Mapping[str, Tensor] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Name the network, what is kept of it, and how its weights are drawn; not the mask itself."""
        what = self.model_name or "a network outside the registry"
        kept = f"{self.mask.kept} of {self.mask.total} weights kept ({self.mask.density:.4g})"
        return f"Ticket({what}, {kept}, seed={self.seed}, law={self.law!r}, scale={self.scale:g})"

    def save(self, path: Path | str) -> None:
        """Write the ticket atomically."""
        packed = torch.frombuffer(bytearray(self.mask.pack()), dtype=torch.uint8)
        header = {
            "format": FORMAT, "model": self.model_name, "args": dict(self.model_args), "in": list(self.in_shape),
            "classes": self.classes, "seed": self.seed, "law": self.law, "scale": self.scale, "initial": self.initial,
            "network": shapes_digest(self.mask.shapes), "mask": self.mask.digest(),
        }  # fmt: skip
        if (
            not self.model_name or _shapes(header) != self.mask.shapes
        ):  # a gate on units leaves the first layer without one
            header["shapes"] = {n: list(s) for n, s in self.mask.shapes.items()}
        tensors = {"mask": packed, **{f"statistics.{k}": v.cpu().contiguous() for k, v in self.statistics.items()}}
        write_bytes(Path(path), save_tensors(tensors, {"crbg": json.dumps(header, separators=(",", ":"))}))

    @classmethod
    def load(cls, path: Path | str) -> Ticket:
        """Read a ticket and check its digests.

        Raises:
            CrbgError: the file is truncated, damaged, too large, or not a ticket.
        """
        path = Path(path)
        try:
            if path.stat().st_size > LARGEST:
                raise CrbgError(f"{path} is too large for a ticket")
            data = path.read_bytes()
            tensors, header = load_tensors(data), _header(data)
            shapes = _shapes(header)
            mask = Mask.unpack(tensors["mask"].numpy().tobytes(), shapes)
            if header["format"] != FORMAT:
                raise CrbgError(f"format {header['format']}, this version reads {FORMAT}")
            if shapes_digest(shapes) != header["network"]:
                raise CrbgError("the network it names has other shapes now than when it was saved")
            if mask.digest() != header["mask"]:
                raise CrbgError("the mask does not have the digest that the header gives")
            if header["law"] not in (*LAWS, "given", "imagenet"):
                raise CrbgError(f"unknown initial law {header['law']!r}")
            return cls(
                mask, int(header["seed"]), str(header["law"]), float(header["scale"]), str(header["model"]),
                tuple(map(int, header["in"])), int(header["classes"]), str(header["initial"]), dict(header["args"]),
                {k.removeprefix("statistics."): v for k, v in tensors.items() if k.startswith("statistics.")},
            )  # fmt: skip
        except OSError as error:
            raise CrbgError(f"cannot read the ticket {path}: {error.strerror}") from None
        except _UNSOUND as error:
            raise CrbgError(f"{path} is not a sound ticket: {type(error).__name__}: {error}") from None

    def model(self) -> nn.Module:
        """Rebuild the network: initial weights from the seed, checked, times the mask."""
        if not self.model_name:
            raise CrbgError("this ticket is for a network outside the registry: use ticket.apply(model)")
        if self.law == "imagenet":
            drawn = (self.law, self.scale, self.seed)
            return self.apply(
                models.initial(self.model_name, self.in_shape, self.classes, *drawn, **self.model_args)[0]
            )
        return self.apply(models.build(self.model_name, self.in_shape, self.classes, **self.model_args))

    def apply(self, model: nn.Module) -> nn.Module:
        """Draw the initial weights into a model of the same shapes and write the mask into them.

        With the laws "given" and "imagenet" the model must hold its initial weights already.

        Raises:
            CrbgError: the model is another network, or its initial weights are not the ticket's.
        """
        self.mask.check_shapes({n: tuple(w.shape) for n, w in weights(model).items() if n in self.mask})
        if self.law in LAWS:
            initialise(model, self.law, self.scale, self.seed)
        if tensor_digest(dict(model.state_dict())) != self.initial:
            raise CrbgError("the initial weights do not have the ticket's digest: another network, version or law")
        bake(model, self.mask)
        model.load_state_dict(dict(self.statistics), strict=False)
        return model

    def describe(self) -> dict[str, Any]:
        """Say what the ticket is, without its bits."""
        plain = {k: v for k, v in asdict(self).items() if k not in ("mask", "statistics")}
        return plain | {"kept": self.mask.kept, "total": self.mask.total, "density": self.mask.density}


def _header(data: bytes) -> dict[str, Any]:
    size = int.from_bytes(data[:8], "little")
    header = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["crbg"])
    if not isinstance(header, dict):
        raise CrbgError("its header is not an object")
    return header


def _shapes(header: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    if len(str(header["model"])) > 200:
        raise CrbgError("the name of its network is too long to be one")
    if "shapes" in header or not header["model"]:
        return {str(n): tuple(map(int, s)) for n, s in header["shapes"].items()}
    # On the meta device: a hostile header that names a giant network takes no memory.
    with torch.device("meta"):
        model = models.build(
            str(header["model"]), tuple(map(int, header["in"])), int(header["classes"]), **header["args"]
        )
    return {n: tuple(w.shape) for n, w in weights(model).items()}
