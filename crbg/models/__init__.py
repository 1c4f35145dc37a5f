"""Architectures: one module per family.

A module defines `NAMES`, a regular expression that matches the names of its models, and the function
`build(name, in_shape, classes, **options) -> nn.Module`. `NAMES` is read without importing the module, so that planning
does not import torch.
"""

from crbg.models.registry import build, families, family, initial, problems

__all__ = ["build", "families", "family", "initial", "problems"]
