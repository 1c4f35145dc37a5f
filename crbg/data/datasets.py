"""Shapes, sizes and statistics of data sets, without loading them."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from crbg.data.metrics import ACCURACY, BITS, MSE, Metric
from crbg.errors import CrbgError, suggest


@dataclass(frozen=True)
class DataInfo:
    """Description of a data set.

    Attributes:
        shape: Shape of an input: (channels, height, width) of an image, (features,) of a node, (length,) of a sequence.
        classes: Number of outputs of a network: classes, characters, or steps of a forecast.
        train: Number of training examples, excluding the validation part.
        mean: Mean of each channel over the training images, for pixels scaled to [0, 1].
        std: Standard deviation of each channel.
        torchvision: Name of the torchvision class; empty if there is none.
        digest: SHA-256 of pixels and labels, if the data set was made from image files; otherwise empty.
        kind: `images`, `graph`, `text`, `series` or `teacher`. Networks state which kinds they take.
        metric: What is measured; it determines the loss.
        examples: What one example is, in the plural.
        loader: Module of `crbg.data` that loads a data set without images; empty for the one named as the kind.
    """

    name: str
    shape: tuple[int, ...]
    classes: int
    train: int
    validation: int
    test: int
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    torchvision: str = ""
    digest: str = ""
    kind: str = "images"
    metric: Metric = ACCURACY
    examples: str = "images"
    loader: str = ""


INDEX = "index.json"
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
CIFAR100_MEAN, CIFAR100_STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)

DATA = {
    d.name: d
    for d in (
        DataInfo("digits", (1, 28, 28), 10, 1197, 300, 300, (0.2240,), (0.3491,)),
        DataInfo("mnist", (1, 28, 28), 10, 50_000, 10_000, 10_000, (0.1307,), (0.3081,), "MNIST"),
        DataInfo("fashion_mnist", (1, 28, 28), 10, 50_000, 10_000, 10_000, (0.2860,), (0.3530,), "FashionMNIST"),
        DataInfo("cifar10", (3, 32, 32), 10, 40_000, 10_000, 10_000, CIFAR10_MEAN, CIFAR10_STD, "CIFAR10"),
        DataInfo("cifar100", (3, 32, 32), 100, 40_000, 10_000, 10_000, CIFAR100_MEAN, CIFAR100_STD, "CIFAR100"),
        DataInfo("cora", (1433,), 7, 140, 500, 1000, kind="graph", examples="nodes"),
        DataInfo("toy_graph", (32,), 4, 80, 120, 200, kind="graph", examples="nodes"),
        DataInfo("shakespeare", (128,), 65, 6971, 871, 871, kind="text", metric=BITS, examples="windows"),
        DataInfo("toy_text", (32,), 16, 320, 40, 40, kind="text", metric=BITS, examples="windows"),
        DataInfo("sunspots", (96,), 12, 1768, 614, 615, kind="series", metric=MSE, examples="windows"),
        DataInfo("italy_power", (24,), 2, 548, 274, 274, kind="series", examples="days", loader="labelled_series"),
        DataInfo("linear_teacher", (16,), 10, 1197, 300, 300, kind="teacher", metric=MSE, examples="vectors"),
        DataInfo("toy_series", (48,), 6, 547, 195, 195, kind="series", metric=MSE, examples="windows"),
        DataInfo("toy_waves", (24,), 3, 360, 120, 120, kind="series", examples="series", loader="labelled_series"),
    )
}


def info(name: str, data_dir: str | None = None) -> DataInfo:
    """Return the description of a built-in data set, or of one that `crbg.data.folder` made from image files.

    Args:
        name: Name of the data set.
        data_dir: The data root, see `root`.

    Raises:
        CrbgError: the name is unknown, or the index of the data set is damaged.
    """
    if name in DATA:
        return DATA[name]
    path = root(data_dir) / name / INDEX
    if not path.exists():
        raise CrbgError(
            f"unknown data set {name!r}: {suggest(name, DATA)}; `crbg data {name} --images DIR --size S` makes one "
            f"from folders of images, under {root(data_dir)}"
        )
    try:
        index = json.loads(path.read_text())
        channels, height, width = index["shape"]
        return DataInfo(
            name,
            (channels, height, width),
            classes=index["classes"],
            train=index["train"],
            validation=index["validation"],
            test=index["test"],
            mean=tuple(index["mean"]),
            std=tuple(index["std"]),
            digest=index["digest"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise CrbgError(f"{path} is damaged ({error}); delete {path.parent} and run `crbg data` again") from None


def own(data_dir: str | None = None) -> list[DataInfo]:
    """Return descriptions of all data sets under the data root that were made from image files."""
    return [info(p.parent.name, data_dir) for p in sorted(root(data_dir).glob(f"*/{INDEX}"))]


_configured: str | None = None


def set_root(data_dir: str | None) -> None:
    """Set the default data root of this process: `data_dir` of the configuration, or None if it has none.

    A spec contains the name of its data set only, so this root must be known before specs are built.
    """
    global _configured
    _configured = data_dir


def root(data_dir: str | None = None) -> Path:
    """Return the data root.

    It is `data_dir` if given, else the one set by `set_root`, else the environment variable CRBG_DATA, else ./data.
    """
    return Path(data_dir or _configured or os.environ.get("CRBG_DATA") or "data").expanduser()
