"""Gates that the tests of several modules attach."""

import torch

from crbg.gates.base import Gate
from crbg.gates.gaussian import Gaussian


class Counting(Gate):
    """A gate that leaves the weight as it is and counts its evaluations."""

    count = 0

    def effective(self, w):
        self.count += 1
        return w * 1.0


def half_open(name, w, **options):
    """Return a Gaussian gate with mu = 1/2 everywhere."""
    return Gaussian(torch.full_like(w, 0.5), **options)
