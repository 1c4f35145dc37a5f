"""Any network of timm, unmodified: `timm:resnet18`, `timm:vit_tiny_patch16_224`, `timm:swin_tiny_patch4_window7_224`.

Built without pretrained weights, for the images at hand (`in_chans`, and `img_size` where the network takes one).
Further `model_args` go to `timm.create_model`.
"""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

from crbg.errors import CrbgError, choose

NAMES = r"timm:[\w.]+"


def build(name: str, in_shape: tuple[int, ...], classes: int, **options: Any) -> nn.Module:
    """Build a timm model by its name after the colon."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing timm warns of its own deprecated modules
        import timm
    plain = name.removeprefix("timm:")
    files = sorted(k for k in options if k.startswith(("checkpoint", "pretrained", "cache")))
    if files:
        raise CrbgError(f"model {name!r}: {', '.join(files)} would read weights from elsewhere; initial weights come from the seed")
    if not timm.is_model(plain):
        raise CrbgError(f"timm has no model {plain!r}: {choose(plain, timm.list_models())}")
    known = {"num_classes": classes, "in_chans": in_shape[0], **options}
    try:
        return timm.create_model(plain, pretrained=False, img_size=in_shape[1], **known)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        return timm.create_model(plain, pretrained=False, **known)
