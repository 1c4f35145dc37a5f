"""Data sets: descriptions, which need neither the data nor torch, and loading (in `sources` and `loader`)."""

from crbg.data.datasets import DATA, INDEX, DataInfo, info, own, root

__all__ = ["DATA", "INDEX", "DataInfo", "info", "own", "root"]
