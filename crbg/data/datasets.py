"""What is known of each data set without loading it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from crbg.errors import CrbgError, suggest


@dataclass(frozen=True)
class DataInfo:
    """Shape, sizes and the fixed standardisation of a data set."""

    name: str
    shape: tuple[int, int, int]
    classes: int
    train: int
    validation: int
    test: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    torchvision: str = ""
    digest: str = ""  # of data made from image files, as they were when they were made


INDEX = "index.json"

DATA = {
    d.name: d
    for d in (
        DataInfo("digits", (1, 28, 28), 10, 1197, 300, 300, (0.2240,), (0.3491,)),
        DataInfo("mnist", (1, 28, 28), 10, 50_000, 10_000, 10_000, (0.1307,), (0.3081,), "MNIST"),
        DataInfo("fashion_mnist", (1, 28, 28), 10, 50_000, 10_000, 10_000, (0.2860,), (0.3530,), "FashionMNIST"),
        DataInfo(
            "cifar10", (3, 32, 32), 10, 40_000, 10_000, 10_000,
            (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), "CIFAR10",
        ),
        DataInfo(
            "cifar100", (3, 32, 32), 100, 40_000, 10_000, 10_000,
            (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), "CIFAR100",
        ),
    )
}  # fmt: skip


def info(name: str) -> DataInfo:
    """Look a data set up by name; one made from image files (`crbg.data.folder`) has an index under the data root.

    Raises:
        CrbgError: there is none, or its index is damaged.
    """
    if name in DATA:
        return DATA[name]
    path = root() / name / INDEX
    if not path.exists():
        raise CrbgError(
            f"unknown data set {name!r}: {suggest(name, DATA)}; `crbg data {name} --images DIR --size S` makes one of folders of images "
            f"under {root()}"
        )
    try:
        made = json.loads(path.read_text())
        channels, height, width = made["shape"]
        return DataInfo(
            name, (channels, height, width), made["classes"], made["train"], made["validation"], made["test"], tuple(made["mean"]),
            tuple(made["std"]), digest=made["digest"],
        )  # fmt: skip
    except (ValueError, KeyError, TypeError) as error:
        raise CrbgError(f"{path} is damaged ({error}); delete {path.parent} and make it again") from None


def own() -> list[DataInfo]:
    """List the data sets under the data root that were made from image files."""
    return [info(p.parent.name) for p in sorted(root().glob(f"*/{INDEX}"))]


def root(data_dir: str | None = None) -> Path:
    """Find the data root: the argument, else CRBG_DATA, else ./data."""
    return Path(data_dir or os.environ.get("CRBG_DATA") or "data").expanduser()
