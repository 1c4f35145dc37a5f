"""Any network of timm: `timm:resnet50`, `timm:vit_base_patch16_224`, `timm:swin_tiny_patch4_window7_224`.

Built for the images at hand (`in_chans`, and `img_size` where the network takes one); further `model_args` go to
`timm.create_model`, e.g. `patch_size: 4` for a ViT on 32 pixels. `stem: cifar` gives a residual network a 3x3 first
convolution with stride 1 and no maximum after it. Weights of ImageNet come from timm's hub, or from where CRBG_WEIGHTS
says: a file, or a folder with NAME.safetensors.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from crbg.errors import CrbgError, suggest

NAMES = r"timm:[\w.]+"
_absent: dict[
    str, str
] = {}  # what this process could not download: a hub that is out of reach takes a minute to say so
SUFFIXES = (".safetensors", ".pth", ".bin")


def build(name: str, in_shape: tuple[int, ...], classes: int, stem: str = "imagenet", **options: Any) -> nn.Module:
    """Build a timm model by its name after the colon, without any weights of others."""
    return _create(name, in_shape, classes, stem, options, {"pretrained": False})


def pretrained(
    name: str, in_shape: tuple[int, ...], classes: int, stem: str = "imagenet", **options: Any
) -> tuple[nn.Module, set[str]]:
    """Build it with weights trained on ImageNet; the second part names the tensors that are not from there: head and changed stem.

    Raises:
        CrbgError: the weights are not on this machine and cannot be downloaded, or the file does not hold them.
    """
    plain, place = _known(name), os.environ.get("CRBG_WEIGHTS")
    if not place and plain in _absent:
        raise CrbgError(_absent[plain])
    how: dict[str, Any] = {"pretrained": True}
    if place:
        path = Path(place).expanduser()
        if path.is_dir():
            path = next(
                (path / f"{plain}{s}" for s in SUFFIXES if (path / f"{plain}{s}").exists()),
                path / f"{plain}{SUFFIXES[0]}",
            )
        if not path.is_file():
            raise CrbgError(
                f"CRBG_WEIGHTS names {place}, and there is no file {path} with ImageNet weights of {plain!r}"
            )
        how["pretrained_cfg_overlay"] = {"file": str(path)}
    try:
        model = _create(name, in_shape, classes, stem, options, how)
    except CrbgError:
        raise
    except Exception as error:  # a damaged file, another network's file, no network: each fails in its own way
        text = " ".join(str(error).split())[:160]
        if place:
            raise CrbgError(f"{path} does not hold weights of {plain!r} ({type(error).__name__}: {text})") from None
        build(name, in_shape, classes, stem, **options)  # says so if it is the model's arguments that are wrong
        _absent[plain] = (
            f"ImageNet weights of {plain!r} are not here and could not be downloaded ({type(error).__name__}: {text}); "
            "set CRBG_WEIGHTS to a file that holds them, or to a folder with such files"
        )
        raise CrbgError(_absent[plain]) from None
    known: Any = model.pretrained_cfg
    heads = known.get("classifier") or ()
    own = [heads] if isinstance(heads, str) else list(heads)
    own = own if known.get("num_classes") != classes else []
    own += ["conv1"] if stem == "cifar" else []
    return model, {n for n, _ in model.named_parameters() if any(n.startswith(f"{head}.") for head in own)}


def _known(name: str) -> str:
    """Return timm's own name of a model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing timm warns of its own deprecated modules
        import timm
    plain = name.removeprefix("timm:")
    if not timm.is_model(plain):
        raise CrbgError(f"timm has no model {plain!r}: {suggest(plain, timm.list_models())}")
    return plain


def _create(
    name: str, in_shape: tuple[int, ...], classes: int, stem: str, options: dict[str, Any], how: dict[str, Any]
) -> nn.Module:
    import timm

    plain = _known(name)
    if files := sorted(k for k in options if k.startswith(("checkpoint", "pretrained", "cache"))):
        raise CrbgError(
            f"model {name!r}: {', '.join(files)} would read weights from elsewhere; `init: imagenet` says so openly"
        )
    if given := sorted({"in_chans", "num_classes", "img_size"} & set(options)):
        raise CrbgError(
            f"model {name!r}: {', '.join(given)} follow from the data (`size` enlarges its images); leave them out"
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
            f"patches of {patch} pixels do not divide images of {in_shape[1:]}: set model_args.patch_size, or size"
        )
    if stem == "cifar":
        first = getattr(model, "conv1", None)
        if not isinstance(first, nn.Conv2d) or not isinstance(getattr(model, "maxpool", None), nn.Module):
            raise CrbgError(f"model {name!r} has no stem of conv1 and maxpool that `stem: cifar` could replace")
        model.conv1 = nn.Conv2d(in_shape[0], first.out_channels, 3, padding=1, bias=False)
        model.maxpool = nn.Identity()
    elif stem != "imagenet":
        raise CrbgError(f"unknown stem {stem!r}: {suggest(stem, ('imagenet', 'cifar'))}")
    _try(model, plain, in_shape)
    return model


@torch.no_grad()
def _try(model: nn.Module, plain: str, in_shape: tuple[int, ...]) -> None:
    """Pass one image through: some networks are built for any size and take only their own."""
    was = model.training
    try:
        model.eval()(torch.zeros(1, *in_shape))
    except RuntimeError as error:
        own = getattr(model, "pretrained_cfg", {}).get("input_size", ("?",))
        raise CrbgError(
            f"{plain!r} cannot take images of shape {in_shape} ({error}); its own is {own}: set size"
        ) from None
    model.train(was)
