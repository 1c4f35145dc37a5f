"""Sparse networks as C programs without dependencies."""

from crbg.export.c.write import to_c

__all__ = ["to_c"]
