"""The defaults of `find_ticket`.

They differ from the defaults of the methods' `Options`, which recorded runs depend on. They were chosen on the
development tasks of the zoo (`benchmarks/zoo.py`) and judged on others; benchmarks/zoo.md has both tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from crbg import methods
from crbg.errors import CrbgError, suggest
from crbg.search.gain import variance_gains

GAINS = ("variance", "none")
# `crbg` with a target density. The options of Adam and the small logits matter most in searches of less than 100 steps.
POLISHED = {
    "noise": 0.0,
    "firmness": 0.0,
    "polish": 0.5,
    "steer": "shift",
    "mu0_spread": 0.2,
    "lr": 0.04,
    "schedule": "plateau",
    "beta1": 0.5,
    "beta2": 0.99,
    "spread": 0.7,
}
# The outputs of the first batch would be too large where no temperature of logits can be chosen, as in a regression.
UNSCALED = 0.7
CHANGING = ("pretrain", "joint_lr", "finetune", "signed")  # options of `crbg` that change weights
NOISELESS = {"noise": 0.0, "steer": "penalty"}  # what `signed` and `product` need


@dataclass(frozen=True)
class Settings:
    """The settings of a search: the method's options, the gains of the weights, and the name of the variant.

    The variant is named after the defaults that were used; options that the caller gives can differ from them.
    """

    options: Any
    gains: dict[str, float]
    variant: str


def choose(
    model: nn.Module,
    method: str,
    given: Mapping[str, Any],
    density: float | None,
    gain: str | None,
    scalable: bool = False,
) -> Settings:
    """Complete the options that the caller of `find_ticket` gives.

    Args:
        model: The network, without gates.
        method: Name of the method.
        given: Options of the method that the caller gives.
        density: The requested density.
        gain: `variance`, `none`, or None for the default: `variance` for polished `crbg` with frozen weights.
        scalable: Whether the loss is a cross entropy of logits whose scale can be chosen.

    Raises:
        CrbgError: the gain or an option is unknown or out of range, or a gain is requested where it has no meaning.
    """
    if gain is not None and gain not in GAINS:
        raise CrbgError(f"unknown gain {gain!r}: {suggest(gain, GAINS)}")
    frozen = methods.traits(method).weights == "frozen" and not any(given.get(o) for o in CHANGING)
    plain = frozen and given.get("granularity", "weight") == "weight"
    if gain == "variance" and not plain:
        raise CrbgError(f"gain 'variance' needs one gate per weight and frozen weights; leave `gain` out for {method}")
    parts, polished = [method], False
    if method == "crbg":
        given = {**_crbg(model, density, given, scalable), **given}
        polished = bool(given.get("polish"))
        parts.append("polished" if polished else "thesis")
    scaled = plain and (gain == "variance" or (gain is None and polished))
    if scaled:
        parts.append("gain variance")
    if scaled and method == "edge_popup":
        given = {"scaled": False, **given}  # the gain contains the factor sqrt(1 / density)
    # Without a density, `crbg` starts with half of the gates open.
    gains = variance_gains(model, density or 0.5) if scaled else {}
    if polished and not scalable:
        gains = {name: UNSCALED * g for name, g in gains.items()}
    return Settings(methods.options(method, given), gains, ", ".join(parts))


def completed(method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Add the options that another given option needs."""
    needed = method == "crbg" and (given.get("signed") or given.get("product"))
    return {**(NOISELESS if needed else {}), **given}


def _crbg(model: nn.Module, density: float | None, given: Mapping[str, Any], scalable: bool) -> dict[str, Any]:
    """Return the defaults of `crbg`.

    With gates on weights and a requested density, the variant is `polished`: gates without noise and without penalties,
    shifted to the density, and hard gates in the second half of the search. Otherwise, or if the caller gives `polish`
    0, it is the thesis's form.
    """
    chosen: dict[str, Any] = {"temperature": 0.0} if scalable else {}
    if next(model.parameters()).device.type == "cpu":
        # As accurate as independent samples (experiment lenet_noise_counter), at almost no cost.
        chosen["source"] = "counter"
    if (
        density is not None
        and given.get("granularity", "weight") == "weight"
        and given.get("polish", POLISHED["polish"])
    ):
        chosen |= POLISHED
    return chosen
