"""Conv-2, Conv-4, Conv-6 and Conv-8 (Frankle & Carbin 2019): `conv2`, `conv4`, `conv6`, `conv8`.

The networks have pairs of 3x3 convolutions, each pair followed by 2x2 max-pooling, then two hidden layers of 256 units.
Layers have no biases. `norm="batch"` adds batch norm without gains and shifts after every layer except the last;
`width` multiplies all hidden widths.
"""

from __future__ import annotations

from torch import nn

from crbg.errors import CrbgError, suggest

NAMES = r"conv[2468]"
NORMS = ("none", "batch")


def build(name: str, in_shape: tuple[int, ...], classes: int, norm: str = "none", width: float = 1.0) -> nn.Module:
    """Build the network; its layers are called conv1, conv2, ..., fc1, fc2, fc3.

    Raises:
        CrbgError: the normalisation is unknown, the images are too small for the pooling, or a layer would have no
            units.
    """
    if norm not in NORMS:
        raise CrbgError(f"model_args.norm: unknown normalisation {norm!r}: {suggest(norm, NORMS)}")
    pairs, (channels, *size) = int(name[-1]) // 2, in_shape
    widths = [round(w * width) for w in (64, 128, 256, 512)[:pairs]]
    if min(size) < 2**pairs or min(*widths, round(256 * width)) < 1:
        raise CrbgError(
            f"{name} with width {width} cannot take images of shape {in_shape}: it halves them {pairs} times, and "
            "every layer needs at least one unit"
        )
    net, batch = nn.Sequential(), norm == "batch"

    def add(layer: nn.Module, out: int, kind: type[nn.Module]) -> None:
        stem = "conv" if isinstance(layer, nn.Conv2d) else "fc"
        number = sum(n.startswith(stem) for n, _ in net.named_children()) + 1
        net.add_module(f"{stem}{number}", layer)
        if batch:
            net.add_module(f"norm_{stem}{number}", kind(out, affine=False))
        net.add_module(f"act_{stem}{number}", nn.ReLU())

    for i, w in enumerate(widths, start=1):
        add(nn.Conv2d(channels, w, 3, padding=1, bias=False), w, nn.BatchNorm2d)
        add(nn.Conv2d(w, w, 3, padding=1, bias=False), w, nn.BatchNorm2d)
        net.add_module(f"pool{i}", nn.MaxPool2d(2))
        channels = w
    net.add_module("flatten", nn.Flatten())
    features = channels * (size[0] >> pairs) * (size[1] >> pairs)
    for _ in range(2):
        add(nn.Linear(features, hidden := round(256 * width), bias=False), hidden, nn.BatchNorm1d)
        features = hidden
    net.add_module("fc3", nn.Linear(features, classes, bias=False))
    return net
