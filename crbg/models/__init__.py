"""Architectures: one file each. A file states which names it answers to and builds them.

A file holds `NAMES`, a regular expression for the model names it knows (read without importing the file, so planning
needs no torch), and `build(name, in_shape, classes, **options) -> nn.Module`.
"""

from crbg.models.registry import build, families, family, initial, problems

__all__ = ["build", "families", "family", "initial", "problems"]
