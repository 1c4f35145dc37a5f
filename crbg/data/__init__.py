"""Data sets: shapes and sizes without loading them (no torch), and images in the modules `sources` and `loader`."""

from crbg.data.datasets import DATA, INDEX, DataInfo, info, own, root

__all__ = ["DATA", "INDEX", "DataInfo", "info", "own", "root"]
