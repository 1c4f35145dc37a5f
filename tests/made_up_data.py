"""The data set used by the tests of `crbg.data`."""

from crbg.data.datasets import DataInfo

SMALL = DataInfo("mnist", (2, 4, 4), 3, 30, 9, 12, (0.1, 0.4), (0.3, 0.2), "MNIST")
