"""Sparse networks as C programs without dependencies."""

from crbg.export.c.host import Built
from crbg.export.c.write import to_c

__all__ = ["Built", "to_c"]
