"""Architectures, one module for each family.

A module defines `NAMES`, a regular expression of the model names that it builds, and
`build(name, in_shape, classes, **options) -> nn.Module`. `NAMES` is read without importing the module, so planning
needs no torch.
"""

from crbg.models.registry import build, families, family, initial, problems

__all__ = ["build", "families", "family", "initial", "problems"]
