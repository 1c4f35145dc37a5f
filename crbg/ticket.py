"""Tickets on disk: a seed, the distribution of the initial weights, a bit-packed mask, and digests to verify them.

A ticket file contains no weights and is loaded without pickle. It is a safetensors file with the mask, either as bits
(a tensor `mask`, uint8, eight weights per byte) or packed (a tensor `packed`, see `crbg.packing`), and the re-estimated
running statistics of batch norm, if the network has any. JSON metadata in the header states how to generate the initial
weights. Loading checks the digests of the shapes and the mask; rebuilding the network checks the digest of the initial
weights. `docs/ticket-format.md` describes the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from crbg import models, packing, ticket_file
from crbg.errors import CrbgError, suggest
from crbg.gates.attach import bake
from crbg.gates.layers import slot, unwrap
from crbg.gates.selection import raw_weight
from crbg.masks.mask import Mask, shapes_digest
from crbg.models.initial_weights import check_fingerprints, initialise, stored_weights, tensor_digest
from crbg.rng import LAWS
from crbg.search.snapshot import restored_on_error
from crbg.storage.atomic import write_bytes
from crbg.training.model_state import put_tensors, tensors_of

PACKS = ("auto", "bits")


@dataclass(frozen=True)
class Ticket:
    """All information needed to rebuild a sparse network from its seed.

    `Ticket.load(path).model()` rebuilds a network of the registry (`crbg.models`). For any other model, use
    `Ticket.load(path).apply(model)`.

    Examples:
        >>> import torch
        >>> from crbg import Mask, Ticket, initialise, weights
        >>> from crbg.models import build
        >>> from crbg.models.initial_weights import tensor_digest
        >>> net = build("lenet-4", (1, 2, 2), classes=2)
        >>> _ = initialise(net, "uniform", scale=0.1, seed=0)
        >>> mask = Mask({name: w > 0 for name, w in weights(net).items()})
        >>> initial = tensor_digest(net.state_dict())
        >>> Ticket(mask, 0, "uniform", 0.1, "lenet-4", (1, 2, 2), 2, initial).save("ticket.safetensors")
        >>> sparse = Ticket.load("ticket.safetensors").model()
        >>> bool((sparse.fc1.weight >= 0).all())
        True

    Attributes:
        mask: Mask of the kept weights.
        seed: Seed of the initial weights.
        law: Distribution of the initial weights: one of `crbg.rng.LAWS`, "imagenet" for timm's pretrained weights, or
            "given" for weights that the user provides.
        scale: Scale of the distribution.
        model_name: Name of the model in the registry of architectures; empty for other models.
        in_shape: Shape of an input, (channels, height, width).
        classes: Number of outputs.
        initial: Digest of all initial tensors (`crbg.models.initial_weights.tensor_digest`).
        model_args: Arguments of the architecture.
        statistics: Running statistics of batch norm in the sparse network, by name.
        tensors: Fingerprints of the initial tensors, by name (`crbg.models.initial_weights.fingerprints`); empty in
            tickets of recorded runs.
        gain: Factor on the kept weights of each tensor, by name; 1 if a name is missing.
        logit_scale: Factor on the logits in the loss of the search (`SearchResult.logit_scale`). Not used by `apply`.
        factors: Integer factors on the kept weights, by name: int8 tensors of the shapes of the mask, 1 for pruned
            weights. A missing tensor has factors of 1.
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
    tensors: Mapping[str, str] = field(default_factory=dict)
    gain: Mapping[str, float] = field(default_factory=dict)
    logit_scale: float = 1.0
    factors: Mapping[str, Tensor] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Return a short text: network, number of kept weights, seed and distribution, but not the mask itself."""
        what = self.model_name or "a network outside the registry"
        kept = f"{self.mask.kept} of {self.mask.total} weights kept ({self.mask.density:.4g})"
        return f"Ticket({what}, {kept}, seed={self.seed}, law={self.law!r}, scale={self.scale:g})"

    def save(self, path: Path | str, pack: str = "auto", model: nn.Module | None = None) -> None:
        """Write the ticket atomically. A leading `~` in the path stands for the home folder.

        Args:
            path: The file.
            pack: "auto" packs the mask if this makes the file smaller (`crbg.packing`). "bits" stores one bit per
                weight; such a file is read faster, also by earlier versions of this package.
            model: A model with the initial weights, for tickets whose weights are not drawn from a seed. If this makes
                the file smaller, by up to a tenth, the mask is packed given these weights, and `load` needs the model.

        Raises:
            WriteError: the disk is full, or the folder is not writable.
            CrbgError: `pack` is unknown, the model has other weights, or `load` would refuse the ticket.
        """
        write_bytes(Path(path).expanduser(), self.to_bytes(pack, model))

    def to_bytes(self, pack: str = "auto", model: nn.Module | None = None) -> bytes:
        """Return the contents of the file that `save` writes; arguments and errors as there."""
        if pack not in PACKS:
            raise CrbgError(f"unknown value pack={pack!r}: {suggest(pack, PACKS)}")
        ticket_file.check_draw(self.law, self.seed, self.scale)
        planes = {f"factors.{n}": plane for n, plane in packing.factors.encode(self.mask, self.factors).items()}
        files = [self._serialise(ticket_file.BITS, {}, {"mask": self.mask.pack(), **planes})]
        if pack == "auto" and self.mask.total <= packing.LARGEST:
            for kind in ["seed"] if self.law in LAWS else ["none"] if model is None else ["none", "weights"]:
                given = ticket_file.contexts_of(kind, self.seed, self.initial, self.mask.shapes, model)
                packed = {"packed": packing.pack(self.mask, given), **planes}
                files.append(self._serialise(ticket_file.PACKED, {"contexts": kind}, packed))
        return min(files, key=len)

    def _serialise(self, form: int, extra: dict[str, Any], coded: Mapping[str, bytes]) -> bytes:
        """Return the bytes of a ticket file, given its format, more header entries, and the coded mask and factors."""
        tensors = {name: torch.frombuffer(bytearray(data), dtype=torch.uint8) for name, data in coded.items()}
        tensors |= {f"statistics.{k}": v.cpu().contiguous() for k, v in self.statistics.items()}
        header = json.dumps(self._header(form) | extra, separators=(",", ":"))
        return save_tensors(tensors, {"crbg": header})

    def _header(self, form: int) -> dict[str, Any]:
        header = {
            "format": form,
            "model": self.model_name,
            "args": dict(self.model_args),
            "in": list(self.in_shape),
            "classes": self.classes,
            "seed": self.seed,
            "law": self.law,
            "scale": self.scale,
            "initial": self.initial,
            "network": shapes_digest(self.mask.shapes),
            "mask": self.mask.digest(),
        }
        if gain := {n: g for n, g in self.gain.items() if g != 1}:
            header |= {"format": max(form, ticket_file.GAINS), "gain": gain}
        if self.logit_scale != 1:
            header["temperature"] = self.logit_scale
        if self.factors:
            header["format"] = ticket_file.FACTORS
        if gain or self.logit_scale != 1 or self.statistics or self.factors:
            header["rest"] = ticket_file.rest_digest(header, self.statistics, self.factors)
        # A mask from unit gates does not always cover all weights of the network.
        if not self.model_name or ticket_file.shapes_of(header) != self.mask.shapes:
            header["shapes"] = {n: list(s) for n, s in self.mask.shapes.items()}
        if self.tensors:
            header["tensors"] = dict(self.tensors)
        return header

    @classmethod
    def load(cls, path: Path | str, model: nn.Module | None = None) -> Ticket:
        """Load a ticket and check its digests.

        Args:
            path: The file.
            model: A model with the initial weights; needed if the ticket was saved with `model`.

        Raises:
            CrbgError: the file is missing, truncated, damaged, too large, or not a ticket, or the model is missing or
                has other weights.
        """
        path = Path(path).expanduser()
        with ticket_file.one_error(path):
            if (size := path.stat().st_size) > ticket_file.LARGEST:
                raise CrbgError(f"it has {size} bytes, too many for a ticket")
            data = path.read_bytes()
            tensors, header = load_tensors(data), ticket_file.read_header(data)
            mask = ticket_file.mask_of(header, tensors, model)
            parts: dict[str, dict[str, Tensor]] = {"statistics": {}, "factors": {}}
            for name, t in tensors.items():
                part, _, rest = name.partition(".")
                parts.get(part, {})[rest] = t
            statistics, planes = parts["statistics"], {n: t.numpy().tobytes() for n, t in parts["factors"].items()}
            if planes and header["format"] != ticket_file.FACTORS:
                raise CrbgError(f"its format is {header['format']}, which has no factors")
            factors = packing.factors.decode(mask, planes) if planes else {}
            if "rest" in header and header["rest"] != ticket_file.rest_digest(header, statistics, factors):
                raise CrbgError("its gains, logit scale, factors or running statistics do not match the digest")
            return cls(
                mask=mask,
                seed=header["seed"],
                law=header["law"],
                scale=float(header["scale"]),
                model_name=str(header["model"]),
                in_shape=tuple(map(int, header["in"])),
                classes=int(header["classes"]),
                initial=str(header["initial"]),
                model_args=dict(header["args"]),
                statistics=statistics,
                tensors={str(n): str(digest) for n, digest in header.get("tensors", {}).items()},
                gain=ticket_file.gains_of(header, mask),
                logit_scale=ticket_file.logit_scale_of(header),
                factors=factors,
            )

    def model(self) -> nn.Module:
        """Rebuild the sparse network: generate the initial weights, check their digest, and apply the mask.

        Raises:
            CrbgError: the network is not in the registry, or its initial weights do not match the ticket's digest.
        """
        if not self.model_name:
            raise CrbgError("this ticket is for a network outside the registry; use ticket.apply(model)")
        if self.law == "imagenet":
            drawn = (self.law, self.scale, self.seed)
            return self.apply(
                models.initial(self.model_name, self.in_shape, self.classes, *drawn, **self.model_args)[0]
            )
        return self.apply(models.build(self.model_name, self.in_shape, self.classes, **self.model_args))

    def apply(self, model: nn.Module) -> nn.Module:
        """Turn a model into the sparse network, in place: generate its initial weights, check them, apply the mask.

        If `law` is "given" or "imagenet", the model must already contain the initial weights.

        Returns:
            The same model.

        Raises:
            CrbgError: the shapes of the model differ from those of the mask, or its initial weights do not match the
                ticket's digest. Running statistics may differ. If the ticket has fingerprints, the error names the
                tensors that differ, and the model may be sparse already.
        """
        inner = unwrap(model)
        places = {n: slot(inner, n) for n in self.mask}
        self.mask.check_shapes({n: tuple(raw_weight(inner, n).shape) for n, place in places.items() if place})
        with restored_on_error(inner):
            if self.law in LAWS:
                initialise(inner, self.law, self.scale, self.seed)
            # Older tickets contain the digest of all tensors, running statistics included.
            if self.initial not in (tensor_digest(stored_weights(inner)), tensor_digest(tensors_of(inner))):
                if self.law in LAWS or not self.tensors:
                    raise CrbgError(self._other_weights())
                check_fingerprints(inner, self.mask, self.tensors)
            bake(inner, self.factors)  # in the order of the search, so that numbers are rounded in the same way
            bake(inner, self.mask.multipliers(self.gain))
            put_tensors(inner, self.statistics)
        return model

    def _other_weights(self) -> str:
        """Return an error message for initial weights that do not match the digest."""
        if self.law in LAWS:
            return (
                f"weights drawn from law={self.law!r}, scale={self.scale:g} and seed={self.seed} do not match the "
                "ticket's digest; one of the three is not that of the search, or the model is a different network or "
                "comes from a different version of its code"
            )
        return (
            "the initial weights do not match the ticket's digest; the model is a different network, was trained, or "
            "comes from a different version of its code"
        )

    def describe(self) -> dict[str, Any]:
        """Return the ticket's fields as plain values; the mask is replaced by the counts of kept and total weights."""
        plain = {k: v for k, v in asdict(self).items() if k not in ("mask", "statistics", "tensors", "factors")}
        return plain | {"kept": self.mask.kept, "total": self.mask.total, "density": self.mask.density}
