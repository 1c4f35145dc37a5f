"""Loading of data sets.

A data set is looked up in this order: (1) the file NAME.npz under the data root (`data_dir`, or the environment
variable CRBG_DATA), with the arrays train_x and test_x, uint8 (N, C, H, W), and train_y and test_y; (2) torchvision's
layout under the same root; (3) a download by torchvision. Data sets made from image files (`crbg.data.folder`) stay on
disk, and each batch is read when it is needed.
"""

from __future__ import annotations

import hashlib
import importlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from crbg.data.datasets import DataInfo, info, root
from crbg.data.images import ImagePart
from crbg.data.parts import Data
from crbg.data.splits import SPLIT_SEED, stratified
from crbg.errors import CrbgError, reason


def load(name: str, data_dir: str | None = None, download: bool = True, split: int = 0) -> Data:
    """Load a data set. For images, the validation part is a stratified sample of the training images.

    Graphs, text and series have fixed parts and are loaded by the module that `DataInfo` names.

    Args:
        name: Name of a data set.
        data_dir: The data root, see `crbg.data.datasets.root`.
        download: Whether torchvision may download the data.
        split: Seed of the validation split.

    Raises:
        CrbgError: the data set is unknown, missing or damaged, or its parts are fixed and `split` is not 0.
    """
    entry = info(name, data_dir)
    if entry.kind != "images":
        if split:
            raise CrbgError(f"the parts of {name} are fixed, so there is no split {split}; leave `split` out")
        module = importlib.import_module(f"crbg.data.{entry.loader or entry.kind}")
        return module.load(entry, root(data_dir), download)  # type: ignore[no-any-return]
    if entry.digest:
        return _from_folder(entry, root(data_dir) / name, split)
    arrays = _digits() if name == "digits" else _read(entry, root(data_dir), download)
    train_x, train_y, test_x, test_y = (arrays[k] for k in ("train_x", "train_y", "test_x", "test_y"))
    digest = hashlib.sha256()
    for a in (train_x, train_y, test_x, test_y):
        digest.update(np.ascontiguousarray(a).tobytes())
    held = stratified(train_y, entry.validation, split, f"validation/{name}")
    kept = np.setdiff1d(np.arange(len(train_y)), held)
    lossy = arrays.get("lossy_index", np.array([], np.int64))
    lossy_test = torch.from_numpy(np.asarray(lossy[lossy >= len(train_y)] - len(train_y), np.int64))
    mean, std = (torch.tensor(v, dtype=torch.float32) for v in (entry.mean, entry.std))

    def part(x: np.ndarray, y: np.ndarray) -> ImagePart:
        return ImagePart(torch.from_numpy(np.ascontiguousarray(x)), torch.from_numpy(y.astype(np.int64)), mean, std)

    parts = (part(train_x[kept], train_y[kept]), part(train_x[held], train_y[held]), part(test_x, test_y))
    in_train, in_validation = (int(np.isin(rows, lossy).sum()) for rows in (kept, held))
    counts = {"train": in_train, "validation": in_validation, "test": len(lossy_test)}
    return Data(name, *parts, entry.classes, digest.hexdigest(), lossy_test, counts)


def _from_folder(entry: DataInfo, folder: Path, split: int) -> Data:
    """Load a data set made from image files; its pixels are memory-mapped and not read into memory."""
    found = {}
    for part, count in (("train", entry.train + entry.validation), ("test", entry.test)):
        try:
            x, y = np.load(folder / f"{part}_x.npy", mmap_mode="c"), np.load(folder / f"{part}_y.npy")
        except (OSError, ValueError) as error:
            raise CrbgError(f"{folder} is damaged ({error}); delete it and run `crbg data` again") from None
        if x.dtype != np.uint8 or x.shape != (count, *entry.shape) or y.shape != (count,):
            raise CrbgError(
                f"{folder} is damaged: {part}_x is {x.dtype} {x.shape}, but the index requires "
                f"{(count, *entry.shape)}; delete it and run `crbg data` again"
            )
        found[part] = (torch.from_numpy(x), y)
    mean, std = (torch.tensor(v, dtype=torch.float32) for v in (entry.mean, entry.std))

    def part_of(which: str, rows: np.ndarray) -> ImagePart:
        x, y = found[which]
        return ImagePart(x, torch.from_numpy(y[rows]), mean, std, rows=torch.from_numpy(rows))

    held = stratified(found["train"][1], entry.validation, split, f"validation/{entry.name}")
    kept = np.setdiff1d(np.arange(len(found["train"][1])), held)
    parts = (part_of("train", kept), part_of("train", held), part_of("test", np.arange(entry.test)))
    return Data(entry.name, *parts, entry.classes, entry.digest, torch.tensor([], dtype=torch.int64))


def _digits() -> dict[str, np.ndarray]:
    """Load scikit-learn's 1797 digits (8x8 pixels), enlarged and padded to 28x28; 300 form the test split."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = np.repeat(np.repeat(bunch.images * (255.0 / 16.0), 3, axis=1), 3, axis=2).round().astype(np.uint8)
    x = np.pad(x, ((0, 0), (2, 2), (2, 2)))[:, None]
    test = stratified(bunch.target, 300, SPLIT_SEED, "test/digits")
    rest = np.setdiff1d(np.arange(len(x)), test)
    return {"train_x": x[rest], "train_y": bunch.target[rest], "test_x": x[test], "test_y": bunch.target[test]}


def _read(entry: DataInfo, folder: Path, download: bool) -> dict[str, np.ndarray]:
    path = folder / f"{entry.name}.npz"
    if not path.exists():
        return _torchvision(entry, folder, download)
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {k: archive[k] for k in archive.files}
    except Exception as error:  # numpy, zipfile and zlib raise different errors for a damaged archive
        raise CrbgError(f"{path} is damaged ({error}); replace it, or delete it to download the data") from None
    for key in ("train_x", "train_y", "test_x", "test_y"):
        if key not in arrays:
            raise CrbgError(f"{path} has no array {key!r}; it needs train_x, train_y, test_x and test_y")
    for part in ("train", "test"):
        x, y = arrays[f"{part}_x"], arrays[f"{part}_y"]
        if x.dtype != np.uint8 or x.shape[1:] != entry.shape or y.shape != (len(x),):
            raise CrbgError(
                f"{path}: {part}_x is {x.dtype} {x.shape}, {part}_y {y.shape}; expected uint8 (N, {entry.shape}), (N,)"
            )
        if y.min() < 0 or y.max() >= entry.classes:
            raise CrbgError(
                f"{path}: {part}_y has labels {y.min()} to {y.max()}, but {entry.name} has {entry.classes} classes"
            )
    return arrays


def _layout(maker: Any, folder: Path) -> Path:
    """Return a file or folder that a data set of torchvision reads under the data root."""
    if hasattr(maker, "base_folder"):  # CIFAR
        return folder / str(maker.base_folder)
    return folder / str(maker.__name__) / "raw" / str(maker.resources[0][0]).removesuffix(".gz")


def _torchvision(entry: DataInfo, folder: Path, download: bool) -> dict[str, np.ndarray]:
    import torchvision

    maker = getattr(torchvision.datasets, entry.torchvision)
    try:
        sets = {part: maker(str(folder), train=part == "train", download=download) for part in ("train", "test")}
    except Exception as error:  # torchvision raises RuntimeError, URLError and others for failed downloads
        failed = f", and could not be downloaded ({reason(error, limit=None)})" if download else ""
        raise CrbgError(
            f"data set {entry.name!r} is neither at {folder / (entry.name + '.npz')} nor, in torchvision's layout, at "
            f"{_layout(maker, folder)}{failed}; "
            "set CRBG_DATA (or `data_dir` in config.yaml) to the folder that contains it"
        ) from None
    out: dict[str, np.ndarray] = {}
    for part, s in sets.items():
        x = np.asarray(s.data)
        out[f"{part}_x"] = x[:, None] if x.ndim == 3 else x.transpose(0, 3, 1, 2)
        out[f"{part}_y"] = np.asarray(s.targets)
    return out
