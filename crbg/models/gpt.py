"""Small transformers for text, as GPT-2 (Radford et al. 2019), named by layers and width: `gpt-2x128`.

Each block normalises its inputs (pre-norm) and has causal attention with heads of 32 units and an MLP of four times
the width. There are no biases and no dropout, and the last layer does not share its weight with the embedding.
Embeddings of characters and of positions are scaled to unit variance, for the reason given in `crbg.models.recurrent`.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional

from crbg.errors import CrbgError

NAMES = r"gpt-\d+x\d+"
DATA = ("text",)
HEAD = 32


class Attention(nn.Module):
    """Causal attention with several heads; `qkv` computes queries, keys and values, in this order."""

    def __init__(self, width: int, qk_scale: float) -> None:
        super().__init__()
        self.num_heads, self.scale = width // HEAD, qk_scale / math.sqrt(HEAD)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, T, width) to the same shape."""
        n, t, width = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.num_heads, HEAD).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale)
        return self.out(mixed.transpose(1, 2).reshape(n, t, width))  # type: ignore[no-any-return]


class Block(nn.Module):
    """A block of a transformer: x + attention(norm(x)), and then x + mlp(norm(x))."""

    def __init__(self, width: int, qk_scale: float) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width, bias=False), Attention(width, qk_scale)
        self.norm2 = nn.LayerNorm(width, bias=False)
        up, down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)
        self.mlp = nn.Sequential(OrderedDict(up=up, act=nn.GELU(), down=down))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, T, width) to the same shape."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class GPT(nn.Module):
    """A transformer that predicts the next character at each position of a window."""

    def __init__(self, layers: int, width: int, context: int, classes: int, qk_scale: float) -> None:
        super().__init__()
        self.characters, self.positions = nn.Embedding(classes, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, qk_scale) for _ in range(layers)))
        self.norm, self.out = nn.LayerNorm(width, bias=False), nn.Linear(width, classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map characters (N, T), int64, to logits (N, classes, T).

        Raises:
            CrbgError: T is larger than the context of the network.
        """
        (_, length), context = x.shape, self.positions.num_embeddings
        if length > context:
            raise CrbgError(f"a window of {length} characters exceeds the context of {context}; use shorter windows")
        places = torch.arange(length, device=x.device)
        embedded = (self.characters(x), self.positions(places))
        h = sum(functional.rms_norm(e, e.shape[-1:]) for e in embedded)
        return self.out(self.norm(self.blocks(h))).transpose(1, 2)  # type: ignore[no-any-return]


def build(name: str, in_shape: tuple[int, ...], classes: int, qk_scale: float = 1.0) -> nn.Module:
    """Build the network for windows of `in_shape[0]` characters; `qk_scale` multiplies the logits of the attention.

    Raises:
        CrbgError: there is no layer, the width is no multiple of 32, or `qk_scale` is not positive.
    """
    layers, width = map(int, name.removeprefix("gpt-").split("x"))
    if layers < 1 or width < 1 or width % HEAD:
        raise CrbgError(f"model {name!r} needs at least one layer and a width that is a multiple of {HEAD}")
    if not qk_scale > 0:
        raise CrbgError(f"model_args.qk_scale must be above 0, not {qk_scale!r}; 1 is the usual scale")
    return GPT(layers, width, in_shape[0], classes, qk_scale)
