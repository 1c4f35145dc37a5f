"""Any timm model: `timm:resnet50`, `timm:vit_base_patch16_224`, `timm:swin_tiny_patch4_window7_224`.

The number of channels, the image size and the number of classes are set from the data. Other `model_args` are passed to
`timm.create_model`, e.g. `patch_size: 4` for a ViT on images of 32 pixels. `stem: cifar` replaces the stem of a
residual network by a 3x3 convolution with stride 1, without max-pooling. ImageNet weights are downloaded by timm, or
read from the path in the environment variable CRBG_WEIGHTS, which is a file or a folder that contains NAME.safetensors.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from crbg.errors import CrbgError, reason, suggest
from crbg.models._arguments import FROM_DATA

NAMES = r"timm:[\w.]+"
# Error messages of failed downloads in this process, so that they are not retried: each failure takes a minute.
_absent: dict[str, str] = {}
SUFFIXES = (".safetensors", ".pth", ".bin")


def build(name: str, in_shape: tuple[int, ...], classes: int, stem: str = "imagenet", **options: Any) -> nn.Module:
    """Build a timm model without pretrained weights.

    Raises:
        CrbgError: timm has no such model, or the model does not accept the images or the arguments.
    """
    return _create(name, in_shape, classes, stem, options, {"pretrained": False})


def pretrained(
    name: str, in_shape: tuple[int, ...], classes: int, stem: str = "imagenet", **options: Any
) -> tuple[nn.Module, set[str]]:
    """Build a timm model with ImageNet weights.

    Returns:
        The model, and the names of the tensors without pretrained values, which belong to a new head or a replaced
        stem.

    Raises:
        CrbgError: the weights are not on this machine and cannot be downloaded, or the file does not contain them.
    """
    plain, place = _known(name), os.environ.get("CRBG_WEIGHTS")
    if not place and plain in _absent:
        raise CrbgError(_absent[plain])
    how: dict[str, Any] = {"pretrained": True}
    if place:
        path = _weights_file(plain, Path(place).expanduser())
        how["pretrained_cfg_overlay"] = {"file": str(path)}
    try:
        model = _create(name, in_shape, classes, stem, options, how)
    except CrbgError:
        raise
    except Exception as error:  # the type depends on the cause: a damaged file, another model's file, a failed download
        cause = reason(error, limit=160)
        if place:
            raise CrbgError(
                f"{path} does not contain weights of {plain!r} ({cause}); set CRBG_WEIGHTS to a file that does"
            ) from None
        build(name, in_shape, classes, stem, **options)  # raises if the model's arguments caused the error
        _absent[plain] = (
            f"ImageNet weights of {plain!r} are not on this machine and could not be downloaded "
            f"({cause}); set CRBG_WEIGHTS to a file that contains them, or to its folder"
        )
        raise CrbgError(_absent[plain]) from None
    config: Any = model.pretrained_cfg
    heads = config.get("classifier") or ()
    fresh = [heads] if isinstance(heads, str) else list(heads)
    fresh = fresh if config.get("num_classes") != classes else []
    fresh += ["conv1"] if stem == "cifar" else []
    return model, {n for n, _ in model.named_parameters() if any(n.startswith(f"{part}.") for part in fresh)}


def _weights_file(plain: str, path: Path) -> Path:
    """Return the file with a model's weights; `path` is the value of CRBG_WEIGHTS, a file or a folder."""
    if path.is_dir():
        candidates = [path / f"{plain}{suffix}" for suffix in SUFFIXES]
        path = next((file for file in candidates if file.exists()), candidates[0])
    if not path.is_file():
        raise CrbgError(f"CRBG_WEIGHTS is set, but there is no file {path} with ImageNet weights of {plain!r}")
    return path


def _known(name: str) -> str:
    """Return the name of a model in timm, without the prefix `timm:`.

    Raises:
        CrbgError: timm has no such model.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing timm emits deprecation warnings about its own modules
        import timm
    plain = name.removeprefix("timm:")
    if not timm.is_model(plain):
        raise CrbgError(f"timm has no model {plain!r}: {suggest(plain, timm.list_models())}")
    return plain


def _create(
    name: str, in_shape: tuple[int, ...], classes: int, stem: str, options: dict[str, Any], how: dict[str, Any]
) -> nn.Module:
    """Create a timm model for images of shape `in_shape`, and check that it accepts them.

    `options` contains the user's `model_args`, and `how` the arguments that this module sets for pretrained weights.
    """
    import timm

    plain = _known(name)
    if files := sorted(k for k in options if k.startswith(("checkpoint", "pretrained", "cache"))):
        raise CrbgError(
            f"model {name!r}: {', '.join(files)} would load other weights; leave it out, and use `init: imagenet` for "
            "pretrained ones"
        )
    if given := sorted(FROM_DATA & set(options)):
        raise CrbgError(
            f"model {name!r}: leave out {', '.join(given)} (set from the data; to enlarge the images, set `size`)"
        )
    known = {"num_classes": classes, "in_chans": in_shape[0], **options, **how}
    try:
        try:
            model = timm.create_model(plain, img_size=in_shape[1], **known)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            model = timm.create_model(plain, **known)
    except (AssertionError, TypeError, ValueError, ZeroDivisionError) as error:
        raise CrbgError(
            f"timm cannot build {plain!r} for images of shape {in_shape} with {options} ({error})"
        ) from None
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", 1)
    edges = zip(in_shape[1:], (patch, patch) if isinstance(patch, int) else patch, strict=True)
    if any(edge % p for edge, p in edges):
        raise CrbgError(
            f"patches of {patch} pixels do not divide images of {in_shape[1:]}; set model_args.patch_size or size"
        )
    if stem == "cifar":
        _replace_stem(name, model, in_shape[0])
    elif stem != "imagenet":
        raise CrbgError(f"unknown stem {stem!r}: {suggest(stem, ('imagenet', 'cifar'))}")
    _try(model, plain, in_shape)
    return model


def _replace_stem(name: str, model: nn.Module, channels: int) -> None:
    first = getattr(model, "conv1", None)
    if not isinstance(first, nn.Conv2d) or not isinstance(getattr(model, "maxpool", None), nn.Module):
        raise CrbgError(
            f"model {name!r} has no conv1 and maxpool that `stem: cifar` could replace; use `stem: imagenet`"
        )
    model.conv1 = nn.Conv2d(channels, first.out_channels, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()


@torch.no_grad()
def _try(model: nn.Module, plain: str, in_shape: tuple[int, ...]) -> None:
    """Run the model on one image, because some models can be built for any image size but accept only one."""
    was = model.training
    try:
        model.eval()(torch.zeros(1, *in_shape))
    except RuntimeError as error:
        own = getattr(model, "pretrained_cfg", {}).get("input_size", ("?",))
        raise CrbgError(
            f"{plain!r} cannot take images of shape {in_shape} ({error}); it expects {own}: set `size`"
        ) from None
    model.train(was)
