"""The registry of architectures: looks up and builds networks by name."""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crbg.errors import CrbgError, suggest
from crbg.models import _arguments
from crbg.models._widths import zero_width

if TYPE_CHECKING:
    from torch import nn


@functools.cache
def families() -> dict[str, str]:
    """Map each module of this package to the pattern (`NAMES`) of the model names that it builds."""
    paths = sorted(p for folder in _folders() for p in folder.glob("[a-z]*.py"))
    return {path.stem: str(names) for path in paths if (names := _arguments.constant(path, "NAMES", None))}


def _folders() -> list[Path]:
    return [Path(folder) for folder in importlib.import_module("crbg.models").__path__]


def problems(name: str, arguments: Mapping[str, Any], law: str = "", kind: str = "") -> Iterator[str]:
    """Yield one message for each error in a model's name, arguments, kind of data or `imagenet` weights.

    This does not import torch. A module whose networks take other data than images names the kinds in `DATA`. Without
    `kind`, the kind of data is not checked.
    """
    try:
        stem = family(name)
    except CrbgError as error:
        yield str(error)
        return
    if stem != "timm" and re.search(r"[-x]0+(?!\d)", name):
        yield zero_width(name)
    source = _source(stem)
    if kind and kind not in (takes := _kinds(stem)):
        fitting = [f"/{pattern}/" for other, pattern in families().items() if kind in _kinds(other)]
        hint = (
            f"networks for {kind}: {', '.join(fitting)}"
            if fitting
            else f"no network takes {kind}; add it to `DATA` in a file of crbg/models"
        )
        yield f"{name} takes {' or '.join(takes)}, not {kind}; {hint}"
    yield from _arguments.problems(source, name, arguments)
    if law == "imagenet" and not _arguments.defines(source, "pretrained"):
        yield f"there are no ImageNet weights for {name!r}; `init: imagenet` works with timm models only"


def _source(stem: str) -> Path:
    return next(path for folder in _folders() if (path := folder / f"{stem}.py").exists())


def kinds(name: str) -> tuple[str, ...]:
    """Return the kinds of data that a network takes: `images`, `graph`, `series`, `text`.

    Raises:
        CrbgError: the model is unknown.
    """
    return _kinds(family(name))


def _kinds(stem: str) -> tuple[str, ...]:
    """Return the kinds of data that the networks of a module take."""
    return tuple(_arguments.constant(_source(stem), "DATA", ("images",)))


def family(name: str) -> str:
    """Return the name of the module that builds a model.

    Raises:
        CrbgError: the model is unknown.
    """
    for stem, pattern in families().items():
        if re.fullmatch(pattern, name):
            return stem
    examples = ["lenet-300-100", "timm:resnet18", "timm:vit_tiny_patch16_224"]
    known = "; ".join(f"{stem}: /{pattern}/" for stem, pattern in families().items())
    raise CrbgError(f"unknown model {name!r}: {suggest(name, examples)} (patterns: {known})")


def initial(
    name: str, in_shape: tuple[int, ...], classes: int, law: str, scale: float, seed: int, **options: Any
) -> tuple[nn.Module, dict[str, str]]:
    """Build a network with its initial tensors.

    With `law="imagenet"`, the tensors are timm's pretrained weights; a head or stem of a different shape is sampled
    from `kaiming_normal`.

    Args:
        name: Name of the model.
        in_shape: Shape of an input, (channels, height, width).
        classes: Number of outputs.
        law: Distribution of the weights, one of `crbg.rng.LAWS`, or "imagenet".
        scale: Scale of the distribution.
        seed: Seed of the network.
        **options: Arguments of the model.

    Returns:
        The network, and the role of each tensor by name.

    Raises:
        CrbgError: the model, one of its arguments or the distribution is unknown, or there are no pretrained weights.
    """
    from crbg.models.initial_weights import initialise

    if law != "imagenet":
        model = build(name, in_shape, classes, **options)
        return model, initialise(model, law, scale, seed)
    module = importlib.import_module(f"crbg.models.{family(name)}")
    if not hasattr(module, "pretrained"):
        raise CrbgError(f"there are no ImageNet weights for {name!r}; `init: imagenet` works with timm models only")
    model, own = module.pretrained(name, in_shape, classes, **options)
    return model, initialise(model, "kaiming_normal", scale, seed, own)


def build(name: str, in_shape: tuple[int, ...], classes: int, **options: Any) -> nn.Module:
    """Build a network for inputs of a shape, which is (channels, height, width) for images.

    Raises:
        CrbgError: the model or an argument is unknown.
    """
    module = importlib.import_module(f"crbg.models.{family(name)}")
    try:
        return module.build(name, in_shape, classes, **options)  # type: ignore[no-any-return]
    except TypeError as error:
        if "unexpected keyword argument" in str(error):
            raise CrbgError(f"model {name!r} does not take these model_args: {error}") from None
        raise
