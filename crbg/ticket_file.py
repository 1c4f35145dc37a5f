"""The parts of a ticket file, and the checks of files from strangers. `docs/ticket-format.md` describes the format."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from crbg import models, packing
from crbg.errors import CrbgError
from crbg.gates.layers import unwrap
from crbg.gates.selection import raw_weight, weights
from crbg.masks.mask import Mask, Shapes, shapes_digest
from crbg.models.initial_weights import stored_weights, tensor_digest
from crbg.rng import LAWS
from crbg.training.model_state import tensors_of

# A reader refuses a format that it does not know, so each addition to the file that it would ignore has a new one.
BITS, GAINS, PACKED, FACTORS = FORMATS = (1, 2, 3, 4)
LARGEST = 2**33  # bytes; far more than the mask of any network that fits on a GPU
# Exceptions that a damaged or malicious file can cause; torch raises RuntimeError for impossible shapes.
_UNSOUND = (
    SafetensorError,
    ValueError,
    LookupError,
    TypeError,
    ArithmeticError,
    RuntimeError,
    AttributeError,
    AssertionError,
    MemoryError,
)


class OtherWeightsError(CrbgError):
    """The mask of a ticket is packed given weights that the reader has not passed."""


@contextmanager
def one_error(path: Path) -> Iterator[None]:
    """Convert every exception that a damaged file can cause into one `CrbgError` that names the file."""
    try:
        yield
    except OSError as error:
        raise CrbgError(f"cannot read the ticket {path}: {error.strerror}") from None
    except OtherWeightsError as error:
        raise CrbgError(f"cannot read the ticket {path}: {error}") from None
    except _UNSOUND as error:
        reason = str(error) if isinstance(error, CrbgError) else f"{type(error).__name__}: {error}"
        raise CrbgError(f"{path} is not a valid ticket: {reason}") from None


def read_header(data: bytes) -> dict[str, Any]:
    """Return the JSON metadata of a ticket file, with its format, distribution, seed and scale checked."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["crbg"])
    if not isinstance(header, dict):
        raise CrbgError("its header is not a JSON object")
    if header["format"] not in FORMATS:
        raise CrbgError(f"its format is {header['format']}, but this version of crbg reads {FORMATS}")
    check_draw(header["law"], header["seed"], header["scale"])
    return header


def check_draw(law: Any, seed: Any, scale: Any) -> None:
    """Check the values that determine the initial weights.

    Raises:
        CrbgError: the distribution is unknown, the seed is not an integer >= 0, or the scale is not a positive number.
    """
    if law not in (*LAWS, "given", "imagenet"):
        raise CrbgError(f"unknown distribution {law!r} of the initial weights")
    if type(seed) is not int or seed < 0:
        raise CrbgError(f"the seed of a ticket must be an integer >= 0, not {seed!r}")
    if type(scale) not in (int, float) or not 0 < scale < math.inf:
        raise CrbgError(f"the scale of a ticket must be a positive number, not {scale!r}")


def shapes_of(header: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the mask's tensors, from the header or from the network that it names."""
    if len(str(header["model"])) > 200:
        raise CrbgError("the name of its network is longer than 200 characters")
    if "shapes" in header or not header["model"]:
        return {str(n): tuple(map(int, s)) for n, s in header["shapes"].items()}
    # On the meta device, a malicious header that names a huge network allocates no memory.
    with torch.device("meta"):
        in_shape, classes = tuple(map(int, header["in"])), int(header["classes"])
        model = models.build(str(header["model"]), in_shape, classes, **header["args"])
    return {n: tuple(w.shape) for n, w in weights(model).items()}


def mask_of(header: Mapping[str, Any], tensors: Mapping[str, Tensor], model: nn.Module | None) -> Mask:
    """Return the mask of a ticket file; digests and sizes are checked before memory is taken."""
    shapes = shapes_of(header)
    if shapes_digest(shapes) != header["network"]:
        raise CrbgError("the shapes of its network do not match the digest in its header")
    if header["format"] == PACKED or (header["format"] == FACTORS and "packed" in tensors):
        given = contexts_of(header["contexts"], header["seed"], header["initial"], shapes, model)
        mask = packing.unpack(tensors["packed"].numpy().tobytes(), shapes, given)
    else:
        mask = Mask.unpack(tensors["mask"].numpy().tobytes(), shapes)
    if mask.digest() != header["mask"]:
        raise CrbgError("its mask does not match the digest in its header")
    return mask


def contexts_of(
    kind: str, seed: int, initial: str, shapes: Shapes, model: nn.Module | None
) -> packing.contexts.Contexts:
    """Return the contexts given which a mask is packed.

    Args:
        kind: "seed", "weights" or "none".
        seed: Seed of the initial weights.
        initial: Digest of the initial tensors.
        shapes: Shapes of the mask's tensors.
        model: A model with the initial weights, needed for "weights".

    Raises:
        OtherWeightsError: the model is missing, or its weights do not match the digest.
    """
    if kind == "seed":
        return packing.contexts.from_seed(seed)
    if kind == "none":
        return packing.contexts.none
    if kind != "weights":
        raise CrbgError(f"its mask is packed with unknown contexts {kind!r}")
    if model is None:
        raise OtherWeightsError(
            "its mask is packed given the initial weights; pass a model that has them: Ticket.load(path, model=model)"
        )
    inner = unwrap(model)
    if initial not in (tensor_digest(stored_weights(inner)), tensor_digest(tensors_of(inner))):
        raise OtherWeightsError("the mask is coded given the initial weights, but the model has other weights")
    return packing.contexts.from_weights(
        {n: raw_weight(inner, n).detach().float().cpu().contiguous().numpy() for n in shapes}
    )


def rest_digest(header: Mapping[str, Any], statistics: Mapping[str, Tensor], factors: Mapping[str, Tensor]) -> str:
    """Return the first half of the SHA-256 of the gains, the logit scale, the running statistics and the factors."""
    tensors = {**statistics, **{f"factors.{n}": f for n, f in factors.items()}}
    values = json.dumps([header.get("gain", {}), header.get("temperature", 1.0)], separators=(",", ":"), sort_keys=True)
    return hashlib.sha256(f"{values} {tensor_digest(tensors)}".encode()).hexdigest()[:32]


def gains_of(header: Mapping[str, Any], mask: Mask) -> dict[str, float]:
    """Return the factors on the kept weights, by name."""
    gains = {str(n): float(g) for n, g in header.get("gain", {}).items()}
    if not all(n in mask and math.isfinite(g) for n, g in gains.items()):
        raise CrbgError("its gains name a tensor outside the mask, or are not finite")
    return gains


def logit_scale_of(header: Mapping[str, Any]) -> float:
    """Return the factor on the logits in the loss of the search."""
    scale = float(header.get("temperature", 1.0))  # the key is older than the name of the attribute
    if not 0 < scale < math.inf:
        raise CrbgError(f"its logit scale must be a positive number, not {scale}")
    return scale
