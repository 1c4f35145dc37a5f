"""Choose the weights that carry gates: by pattern, list or function; tied weights; weights that are exactly zero."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from crbg.errors import CrbgError, few, reason, suggest, warn
from crbg.gates.layers import (
    Slot,
    foreign,
    gateable,
    main_name,
    owners,
    raw,
    slot,
    slots,
    type_name,
    underlying,
    unwrap,
)

Where = str | Iterable[str] | Callable[[str, Tensor], bool] | None
TIED = ("refuse", "share")
_CHOICE = "_crbg_choice"  # attribute of the model for the duration of `choosing`


@dataclass(frozen=True)
class Selection:
    """Which weights of a model carry gates in a search of the library.

    Attributes:
        where: As for `crbg.attach`.
        tied: As for `crbg.attach`.
    """

    where: Where = None
    tied: str = "refuse"


@dataclass(frozen=True)
class Choice:
    """The chosen weights of one model.

    Attributes:
        names: Names of the weights.
        tied: As for `crbg.attach`.
        candidates: For each weight tensor that contains zeros, a boolean tensor that is True where it is not zero.
    """

    names: tuple[str, ...]
    tied: str = "refuse"
    candidates: Mapping[str, Tensor] = field(default_factory=dict)


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the raw weights that carry gates, by name, in the order of `model.named_modules()`.

    By default, these are the weights of linear, bilinear, convolution, attention and recurrent layers, and of layer
    types registered with `register_gated`, with or without an attached gate. Weights that other code computes (weight
    norm, spectral norm, pruning hooks) are left out. A weight shared by several layers appears once. During a search
    with `where`, only the chosen weights are returned.
    """
    model = unwrap(model)
    if (choice := _choice(model)) is not None:
        return {name: raw_weight(model, name) for name in choice.names}
    return {name: _raw(place) for name, place in gateable(model).items()}


def raw_weight(model: nn.Module, name: str) -> nn.Parameter:
    """Return a parameter by name, without evaluating its gate.

    Raises:
        CrbgError: the model has no parameter with this name.
    """
    return _raw(_place(unwrap(model), name))


def _place(model: nn.Module, name: str) -> Slot:
    if (place := slot(model, name)) is None:
        names = {*weights(model), *(n for n, _ in model.named_parameters())}
        raise CrbgError(f"the model has no weight {name!r}: {suggest(name, names)}")
    return place


def check_shapes(model: nn.Module, mask: Mapping[str, Tensor]) -> None:
    """Check that the tensors of a mask have the shapes of the weights of the same names.

    Raises:
        CrbgError: the model lacks a weight, or a shape differs.
    """
    for name, factors in mask.items():
        if (shape := tuple(raw_weight(model, name).shape)) != tuple(factors.shape):
            raise CrbgError(f"{name!r} has shape {shape} in the model but {tuple(factors.shape)} in the mask")


def multiplied(model: nn.Module, multipliers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the raw weights times the given factors, by name, for `torch.func.functional_call`.

    The products have the dtypes of the weights.
    """
    weights = {n: raw_weight(model, n) for n in multipliers}
    return {n: (w * multipliers[n].to(w.device)).to(w.dtype) for n, w in weights.items()}


def candidates(model: nn.Module) -> Mapping[str, Tensor]:
    """Return which weights can be kept, for each tensor in which some cannot, because their value is exactly zero.

    The mapping is empty outside a search of the library: there, every weight is a candidate.
    """
    choice = _choice(unwrap(model))
    return {} if choice is None else choice.candidates


def candidate_mask(model: nn.Module) -> dict[str, Tensor]:
    """Return one boolean tensor for each weight: True where it can be kept."""
    some = candidates(model)
    return {n: some[n] if n in some else torch.ones_like(w, dtype=torch.bool) for n, w in weights(model).items()}


def choose(model: nn.Module, where: Where = None) -> dict[str, dict[str, Slot]]:
    """Return the places of each chosen weight: layers and attributes by name. Tied weights have several places.

    Args:
        model: A model without wrappers.
        where: As for `crbg.attach`; None stands for the current choice of a search, or else for all default weights.

    Raises:
        CrbgError: as for `crbg.attach`, except that tied weights are not refused.
    """
    if where is not None:
        chosen = _matching(model, where)
    elif (choice := _choice(model)) is not None:
        chosen = {name: _place(model, name) for name in choice.names}
    else:
        chosen = dict(slots(model))
    if not chosen and where is not None and (known := [name for name, _ in slots(model)]):
        raise CrbgError(f"where chooses no weight; the weights that can be gated by default are {few(known)}")
    if not chosen:
        raise CrbgError(
            f"{type(model).__name__} has no weight that can be gated by default, which are the weights of linear, "
            "bilinear, convolution, attention and recurrent layers; name other parameters in full with `where`"
        )
    for name, place in chosen.items():
        _check(name, place)
    every = owners(model)
    places = [every[id(_raw(place))] for place in chosen.values()]
    return {main_name(p): p for p in places}


def _matching(model: nn.Module, where: Where) -> dict[str, Slot]:
    """Return the weights that a pattern, a list or a function chooses; default weights in the order of the modules."""
    default = dict(slots(model))
    if callable(where):
        try:
            return {name: place for name, place in default.items() if where(name, underlying(*place))}
        except TypeError as error:
            raise CrbgError(f"where raised {reason(error)}; it must be a function of (name, weight)") from error
    chosen: dict[str, Slot] = {}
    for pattern in [where] if isinstance(where, str) else list(where or ()):
        if place := default.get(pattern) or slot(model, pattern):  # the dots of a full name are no wildcards
            chosen[pattern] = place
            continue
        try:
            matching = {n: place for n, place in default.items() if re.fullmatch(pattern, n)}
        except re.error as error:
            raise CrbgError(f"{pattern!r} is neither the name of a weight nor a regular expression ({error})") from None
        if not matching:
            others = [n for n, _ in model.named_parameters() if re.fullmatch(pattern, n)]
            if pattern in dict(model.named_modules()):
                hint = rf"for the weights of a whole layer, pass r'{re.escape(pattern)}\..*'"
            elif others:
                hint = f"{others[0]!r} has no gates by default; give its full name"
            else:
                hint = suggest(pattern, default)
            raise CrbgError(f"no weight matches {pattern!r}: {hint}")
        chosen |= matching
    return {name: chosen[name] for name in default | chosen if name in chosen}


def _check(name: str, place: Slot) -> None:
    layer, attribute = place
    if (other := foreign(layer, attribute)) is not None:
        raise CrbgError(
            f"{name!r} of {type_name(layer)} is computed by {other[0]}, so it cannot have a gate; remove this first "
            f"with `{other[1]}`, or leave the weight out with `where`"
        )
    if torch.nn.parameter.is_lazy(_raw(place)):
        raise CrbgError(f"{name!r} has no shape yet (lazy module); pass one batch through the model first")


def check_tied(places: Mapping[str, Slot], tied: str) -> None:
    """Check that a weight that gets a gate is not tied, unless its layers may share the gate.

    Raises:
        CrbgError: `tied` is unknown, or it is "refuse" and several layers use the weight.
    """
    if tied not in TIED:
        raise CrbgError(f"unknown value {tied!r} of `tied`: {suggest(tied, TIED)}")
    if len(places) > 1 and tied == "refuse":
        first, second, *_ = places
        raise CrbgError(
            f"{second!r} and {first!r} share one weight, and a gate on one of them would not affect the other; "
            'pass tied="share" for one gate on both, leave them out with `where`, or untie them'
        )


@contextmanager
def choosing(model: nn.Module, selection: Selection) -> Iterator[None]:
    """Let `weights(model)` and `attach` use the chosen weights only, inside the block.

    Weights that are exactly zero are no candidates inside the block. A tensor without any other weight is left out.
    Inside another such block for the same model, the choice of the outer block stays.

    Raises:
        CrbgError: as for `crbg.attach`, or all chosen weights are zero.
    """
    if _choice(model) is not None:  # an outer block has chosen
        yield
        return
    found = {}
    for name, places in choose(model, selection.where).items():
        check_tied(places, selection.tied)
        found[name] = raw_weight(model, name).detach() != 0
    empty = [name for name, there in found.items() if not bool(there.any())]
    if len(empty) == len(found):
        raise CrbgError("all weights that could carry gates are exactly zero; initialise the model first")
    if empty:
        warn(f"no gates on {', '.join(empty)}: all weights of a tensor are exactly zero")
    some = {name: there for name, there in found.items() if name not in empty and not bool(there.all())}
    setattr(model, _CHOICE, Choice(tuple(n for n in found if n not in empty), selection.tied, some))
    try:
        yield
    finally:
        delattr(model, _CHOICE)


def _choice(model: nn.Module) -> Choice | None:
    choice = model.__dict__.get(_CHOICE)
    return choice if isinstance(choice, Choice) else None


def tying(model: nn.Module) -> str:
    """Return what the current search does with tied weights; "refuse" outside a search."""
    choice = _choice(model)
    return "refuse" if choice is None else choice.tied


def _raw(place: Slot) -> nn.Parameter:
    return cast(nn.Parameter, raw(*place))
