"""Series to classify: days of Italian electricity demand, and small generated waves.

`italy_power` is ItalyPowerDemand of the UCR archive: the demand of 24 hours, each day standardised. The classes are
October to March (1) and April to September (0). The archive has 67 training and 1 029 test days. 67 days are too few to
choose settings on a part of them, so both files are joined and split into three stratified parts (50, 25 and 25 %).
Accuracies are therefore not comparable with those published for the archive's split.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from crbg import rng
from crbg.data.datasets import DataInfo
from crbg.data.files import Source, fetch
from crbg.data.parts import Data, Part, TensorPart, digest_of
from crbg.data.splits import SPLIT_SEED, stratified
from crbg.errors import CrbgError

ADDRESS = "https://raw.githubusercontent.com/sktime/sktime/v0.30.0/sktime/datasets/data/ItalyPowerDemand/"
FILES = {
    f"ItalyPowerDemand_{part}.ts": Source(f"{ADDRESS}ItalyPowerDemand_{part}.ts", digest)
    for part, digest in (
        ("TRAIN", "341269cb7e6cef96846b30e774580beec79addb93848ba360145219115a74b7c"),
        ("TEST", "26122451f87dd0387ef90b18bc8a86c041371b8a1c068004922b939971247144"),
    )
}
CLASSES = {"1": 1, "2": 0}  # October to March, April to September
NOISE = 0.2  # standard deviation of the noise of generated waves, whose values lie between -1 and 1


def load(entry: DataInfo, root: Path, download: bool = True) -> Data:
    """Load `italy_power`, or generate `toy_waves`.

    Args:
        entry: Description of the data set; `shape` is the length of a series.
        root: The data root.
        download: Whether the files may be downloaded.

    Raises:
        CrbgError: a file is missing or damaged, or has another number of series than `entry`.
    """
    if entry.name == "toy_waves":
        x, y = waves(entry)
    else:
        texts = fetch(entry.name, FILES, root, download)
        files = [read(text.decode("ascii", "replace"), str(root / entry.name / n)) for n, text in texts.items()]
        x, y = (np.concatenate(arrays) for arrays in zip(*files, strict=True))
    if x.shape != (entry.train + entry.validation + entry.test, *entry.shape):
        raise CrbgError(f"{entry.name} has series of shape {x.shape}, which is not what `crbg list data` states")
    parts = split(x, y, entry)
    naive = {"nearest neighbour": lambda part: nearest_neighbour(parts[0], part)}
    return Data(entry.name, *parts, entry.classes, digest_of(parts), metric=entry.metric, naive=naive)


def read(text: str, place: str) -> tuple[np.ndarray, np.ndarray]:
    """Read a file of the archive: lines `value,value,...:class` after the line `@data`.

    Args:
        text: The content.
        place: Name of the file, for error messages.

    Returns:
        Series (N, T), float32, and classes (N,), int64.

    Raises:
        CrbgError: there is no series, a line is damaged, a value is missing, or the lengths differ.
    """
    lines = text.partition("@data")[2].split()
    rows, labels = [], []
    for number, line in enumerate(lines, 1):
        values, _, label = line.rpartition(":")
        try:
            rows.append([float(v) for v in values.split(",")])
            labels.append(CLASSES[label])
        except (ValueError, KeyError):
            raise CrbgError(
                f"{place}: series {number} needs numbers and the class 1 or 2, but it is {line!r}"
            ) from None
    x = np.array(rows, np.float32) if len({len(row) for row in rows}) == 1 else np.array([np.nan])
    if not np.isfinite(x).all():
        raise CrbgError(f"{place} needs at least one series, finite values, and series of one length")
    return x, np.array(labels, np.int64)


def waves(entry: DataInfo) -> tuple[np.ndarray, np.ndarray]:
    """Generate square, triangle and sawtooth waves of random phase and period, with noise.

    Only operations that every machine rounds in the same way are used, so there is no sine.
    """
    count, (length,) = entry.train + entry.validation + entry.test, entry.shape
    y = np.arange(count) % entry.classes
    phase, period = (rng.uniform(count, 0, entry.name, name)[:, None] for name in ("phase", "period"))
    turns = (phase + np.arange(length) / (6.0 + 6.0 * period)) % 1.0
    shapes = np.stack([np.where(turns < 0.5, 1.0, -1.0), 4.0 * np.abs(turns - 0.5) - 1.0, 2.0 * turns - 1.0])
    noise = rng.normal(count * length, 0, entry.name, "noise").reshape(count, length)
    return (shapes[y, np.arange(count)] + NOISE * noise).astype(np.float32), y


def split(x: np.ndarray, y: np.ndarray, entry: DataInfo) -> tuple[TensorPart, TensorPart, TensorPart]:
    """Return stratified training, validation and test parts with inputs (N, T) and classes (N,)."""
    rest, parts = np.arange(len(y)), []
    for name, count in (("test", entry.test), ("validation", entry.validation)):
        held = rest[stratified(y[rest], count, SPLIT_SEED, f"{name}/{entry.name}")]
        rest = np.setdiff1d(rest, held)
        parts.append(held)
    test, validation, train = (TensorPart(torch.from_numpy(x[i]), torch.from_numpy(y[i])) for i in (*parts, rest))
    return train, validation, test


def nearest_neighbour(train: TensorPart, part: Part) -> float:
    """Return the accuracy on a part, in per cent, if a series gets the class of the nearest training series."""
    x, y = part.batch(slice(None))
    distances: Tensor = torch.cdist(x.cpu().double(), train.x.cpu().double())
    return 100 * float((train.y.cpu()[distances.argmin(1)] == y.cpu()).double().mean())
