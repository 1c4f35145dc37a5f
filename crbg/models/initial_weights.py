"""Initial weights from a seed, byte-identical on every machine, and the roles of a network's tensors."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from crbg import rng
from crbg.errors import CrbgError, few, suggest
from crbg.gates import layers
from crbg.gates.selection import check_shapes, raw_weight, weights
from crbg.rng import LAWS
from crbg.training.model_state import tensors_of

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def unit_draw(name: str, shape: tuple[int, ...], law: str, seed: int) -> np.ndarray:
    """Sample the unscaled weights of one tensor, as float64.

    Args:
        name: Name of the tensor, which selects the random stream.
        shape: Shape of the tensor.
        law: Distribution of the weights, one of `crbg.rng.LAWS`.
        seed: Seed of the network.

    Raises:
        CrbgError: the distribution is unknown.
    """
    count = math.prod(shape)
    if law in ("uniform", "uniform_fan"):
        flat = 2.0 * rng.uniform(count, seed, "init", name) - 1.0
    elif law == "signed_constant":
        flat = rng.sign(count, seed, "init", name)
    elif law == "kaiming_normal":
        flat = rng.normal(count, seed, "init", name)
    else:
        raise CrbgError(f"unknown distribution {law!r} of the initial weights: {suggest(law, LAWS)}")
    return flat.reshape(shape)


def law_scale(shape: tuple[int, ...], law: str, scale: float) -> float:
    """Return the factor by which the values of `unit_draw` are scaled.

    - `uniform`: scale. Every tensor has W ~ U[-scale, scale], as in the thesis with alpha = scale.
    - `uniform_fan`: scale * sqrt(6 / fan_in).
    - `signed_constant`, `kaiming_normal`: scale * sqrt(2 / fan_in).

    fan_in is the product of the sizes of all axes except the first.
    """
    fan_in = math.prod(shape[1:])
    return {
        "uniform": scale,
        "uniform_fan": scale * math.sqrt(6.0 / fan_in),
        "signed_constant": scale * math.sqrt(2.0 / fan_in),
        "kaiming_normal": scale * math.sqrt(2.0 / fan_in),
    }[law]


@torch.no_grad()
def initialise(
    model: nn.Module, law: str, scale: float, seed: int, only: Collection[str] | None = None
) -> dict[str, str]:
    """Sample the initial tensors of a model in place, and return the role of each tensor.

    - Weights that can be gated are sampled from the distribution `law`.
    - Gains of normalisation layers and LayerScale are set to 1, shifts and biases to 0. timm initialises some gains to
      0 or 1e-6; frozen at these values, they would disable their residual branches.
    - Embeddings and all other parameters are sampled from U[-0.02 sqrt(3), 0.02 sqrt(3)], with standard deviation 0.02.
    - Running statistics are reset. PReLU slopes keep their values.

    Args:
        model: The network; it is changed in place.
        law: Distribution of the weights: `uniform`, U[-scale, scale]; `uniform_fan`, U[-a, a] with a = scale times
            sqrt(6 / fan_in); `kaiming_normal`, N(0, s^2) with s = scale times sqrt(2 / fan_in); or `signed_constant`,
            which is s or -s.
        scale: Scale of the distribution, above 0; see `law_scale`.
        seed: Seed of the network.
        only: If given, only the tensors with these names are sampled.

    Returns:
        The role of each tensor by name: `gated`, `frozen` or `recalibrated` (running statistics).

    Raises:
        CrbgError: the distribution is unknown, or two modules share a weight.
    """
    roles: dict[str, str] = {}
    every = layers.owners(model)
    for name, w in weights(model).items():
        if len(places := every[id(w)]) > 1:
            raise CrbgError(f"{' and '.join(places)} share one weight, so its distribution is ambiguous; untie them")
        roles[name] = "gated"
        if only is None or name in only:
            values = unit_draw(name, tuple(w.shape), law, seed) * law_scale(tuple(w.shape), law, scale)
            w.copy_(torch.from_numpy(values.astype(np.float32)))
    owners = {f"{p}.{n}".lstrip("."): m for p, m in model.named_modules() for n, _ in m.named_parameters(recurse=False)}
    for name, parameter in model.named_parameters():
        if name in roles:
            continue
        roles[name] = "frozen"
        leaf = name.rsplit(".", 1)[-1]
        if isinstance(owners[name], nn.PReLU) or (only is not None and name not in only):
            continue
        if leaf.endswith("bias"):
            parameter.zero_()
        elif (
            isinstance(owners[name], _NORMS)
            or leaf.startswith(("gamma", "layer_scale", "scale"))
            or (parameter.ndim == 1 and leaf == "weight")
        ):
            parameter.fill_(1.0)
        else:
            flat = (2.0 * rng.uniform(parameter.numel(), seed, "init", name) - 1.0) * (0.02 * math.sqrt(3.0))
            parameter.copy_(torch.from_numpy(flat.astype(np.float32)).reshape(parameter.shape))
    for module in model.modules():
        if only is None and isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats:
            module.reset_running_stats()
    for name, _ in model.named_buffers():
        roles[name] = "recalibrated" if name.rsplit(".", 1)[-1] in RUNNING else "frozen"
    return roles


def norms(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the gains and shifts of the normalisation layers, by name."""
    return {
        f"{p}.{n}": t
        for p, m in model.named_modules()
        if isinstance(m, _NORMS)
        for n, t in m.named_parameters(recurse=False)
    }


RUNNING = ("running_mean", "running_var", "num_batches_tracked")


def stored_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a model's state_dict without the running statistics, which every training pass changes."""
    return {n: t for n, t in tensors_of(model).items() if n.rsplit(".", 1)[-1] not in RUNNING}


def fingerprints(model: nn.Module, mask: Mapping[str, Tensor]) -> dict[str, str]:
    """Return a short digest of each tensor of `stored_weights`, in which pruned weights count as 0.

    A model and the same model under the mask have equal fingerprints.
    """
    found = {}
    for name, t in stored_weights(model).items():
        kept = mask.get(name)
        if kept is not None and kept.shape == t.shape:
            t = torch.where(kept.to(t.device), t, torch.zeros_like(t))
        found[name] = tensor_digest({name: t})[:16]
    return found


def check_fingerprints(model: nn.Module, mask: Mapping[str, Tensor], expected: Mapping[str, str]) -> None:
    """Check that a model has the weights that a ticket was found on.

    Raises:
        CrbgError: the mask does not fit the model, or some tensors differ, are missing or are unexpected; the message
            names them.
    """
    check_shapes(model, mask)
    own = fingerprints(model, mask)
    wrong = [name for name in {**expected, **own} if own.get(name) != expected.get(name)]
    if wrong:
        fix = "load the initial weights first, or use `crbg.bake(model, mask)` to apply the mask alone"
        if all(not bool(raw_weight(model, n)[~t.bool()].any()) for n, t in mask.items()):
            fix = "all weights that the ticket drops are zero, so it seems to be applied already"
        raise CrbgError(
            f"the ticket was found on other weights: {few(wrong)} differ (of {len(expected)} tensors); {fix}"
        )


def tensor_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of all tensors (names, shapes, dtypes and bytes), sorted by name."""
    h = hashlib.sha256()
    for name in sorted(tensors):
        t = tensors[name].detach().cpu().contiguous()
        h.update(f"{name}:{tuple(t.shape)}:{t.dtype}".encode())
        h.update(t.reshape(-1).view(torch.uint8).numpy().tobytes())
    return h.hexdigest()
