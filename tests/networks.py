"""Small networks, masks and tensors, reproducible from a seed."""

import torch
from torch import nn

from crbg.gates.attach import weights
from crbg.masks.mask import Mask


def random_mask(model, density=0.3, seed=0):
    g = torch.Generator().manual_seed(seed)
    return Mask({n: torch.rand(w.shape, generator=g) < density for n, w in weights(model).items()})


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def same_bytes(a, b):
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


class Tiny(nn.Module):
    """A user-defined network that is not in the model registry: a convolution, batch norm and a linear layer."""

    def __init__(self, outputs=3):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.Linear(6 * 16, outputs)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).relu().flatten(1))


def tiny(outputs=3, seed=0):
    torch.manual_seed(seed)
    return Tiny(outputs)
