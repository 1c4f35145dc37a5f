"""Architectures: one module per family.

A module defines `NAMES`, a regular expression that matches the names of its models, and the function
`build(name, in_shape, classes, **options) -> nn.Module`. `DATA` names the kinds of data that its models take, by
default images. Both constants are read without importing the module, so that planning does not import torch.
"""

from crbg.models.registry import build, families, family, initial, kinds, problems

__all__ = ["build", "families", "family", "initial", "kinds", "problems"]
