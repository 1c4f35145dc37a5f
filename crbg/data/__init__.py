"""Data sets: what is known of each without loading it (no torch here), and in `sources` and `loader` the images themselves."""

from crbg.data.datasets import DATA, INDEX, DataInfo, info, own, root

__all__ = ["DATA", "INDEX", "DataInfo", "info", "own", "root"]
