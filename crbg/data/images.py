"""Image data as uint8 tensors that live on the device, split by a rule that everyone can repeat.

Sources, in this order: NAME.npz under the data root (`data_dir`, or the environment variable CRBG_DATA) with train_x, test_x
uint8 (N, C, H, W) and train_y, test_y; torchvision's layout under the same root; a download by torchvision. Data made from image
files (`crbg.data.folder`) stay on disk where they are large, and a batch is read as it is needed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from crbg import rng
from crbg.data import DataInfo, info, root
from crbg.errors import CrbgError

SPLIT_SEED = 0  # the seed of the one fixed validation split of every data set


FILL = 1000 * 28 * 28  # numbers in a batch that is only looked at


@dataclass(frozen=True)
class Part:
    """Images uint8 (N, C, H, W) and labels int64 (N,), with what turns pixels into inputs; a `size` above 0 enlarges them to it.

    With `rows` the part is those rows of a larger `x`, which stays where it is when the part moves to a device.
    """

    x: Tensor
    y: Tensor
    mean: Tensor
    std: Tensor
    size: int = 0
    rows: Tensor | None = None

    def __len__(self) -> int:
        return len(self.y)

    @property
    def device(self) -> torch.device:
        """The device on which batches are made."""
        return self.y.device

    def pixels(self, index: Tensor | slice) -> Tensor:
        """Take images, uint8 (n, C, H, W), to the device."""
        if self.rows is None:
            return self.x[index]
        return self.x[self.rows[index.cpu() if isinstance(index, Tensor) else index]].to(self.device)

    def inputs(self, index: Tensor | slice) -> Tensor:
        """Make a batch of inputs of these images."""
        return self.standardise(self.pixels(index))

    def standardise(self, x: Tensor) -> Tensor:
        """(pixel / 255 - mean) / std per channel, float32; then enlarged, bilinearly, where a size is set."""
        scale = (1.0 / (255.0 * self.std)).reshape(-1, 1, 1)
        out = x.to(torch.float32).mul_(scale).sub_((self.mean / self.std).reshape(-1, 1, 1))
        return torch.nn.functional.interpolate(out, self.size, mode="bilinear") if self.size else out

    def batches(self, size: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Walk through all images in order, `size` at a time; by default as many as leave a convolution in a processor's cache."""
        channels, height, width = self.x.shape[1:]
        size = size or min(1000, max(64, FILL // (channels * (self.size**2 or height * width))))
        for i in range(0, len(self), size):
            yield self.inputs(slice(i, i + size)), self.y[i : i + size]

    def to(self, device: torch.device) -> Part:
        """Move everything to a device, rows of something larger excepted."""
        fields = ("x", "y", "mean", "std") if self.rows is None else ("y", "mean", "std")
        return replace(self, **{f: getattr(self, f).to(device) for f in fields})

    def take(self, kept: Tensor | slice) -> Part:
        """Keep some of the images, by a slice, a mask or numbers."""
        if self.rows is None:
            return replace(self, x=self.x[kept], y=self.y[kept])
        return replace(self, rows=self.rows[kept.cpu() if isinstance(kept, Tensor) else kept], y=self.y[kept])

    def join(self, other: Part) -> Part:
        """Put the images of another part of the same data behind these."""
        y = torch.cat([self.y, other.y])
        if self.rows is None or other.rows is None:
            return replace(self, x=torch.cat([self.x, other.x]), y=y)
        return replace(self, rows=torch.cat([self.rows, other.rows]), y=y)


@dataclass(frozen=True)
class Data:
    """Training, validation and test part of a data set, with the digest that records quote."""

    name: str
    train: Part
    validation: Part
    test: Part
    classes: int
    digest: str
    lossy_test: Tensor
    lossy: Mapping[str, int] = field(default_factory=dict)  # images of each part that were decoded from JPEG copies

    @property
    def in_shape(self) -> tuple[int, ...]:
        """Shape of one input, (C, H, W)."""
        channels, *size = self.train.x.shape[1:]
        return (channels, *([self.train.size] * 2 if self.train.size else size))

    def sized(self, size: int) -> Data:
        """Enlarge the inputs to size x size pixels; 0 leaves them as they are."""
        return replace(self, **{p: replace(getattr(self, p), size=size) for p in ("train", "validation", "test")}) if size else self

    def to(self, device: torch.device) -> Data:
        """Move all parts to a device."""
        return replace(self, **{p: getattr(self, p).to(device) for p in ("train", "validation", "test")})


@dataclass(frozen=True)
class Feed:
    """Shuffled minibatches of one part, made on its device.

    Order and augmentation are pure functions of (seed, epoch), so a resumed run needs no loader state. `flip` mirrors half of
    the images; `crop` moves each by up to so many pixels in both directions, what is missing at the edge reflected. `mine` = (k, n)
    gives every n-th example of each batch from the k-th on, where n processes share them.
    """

    part: Part
    size: int
    seed: int
    flip: bool = False
    crop: int = 0
    mine: tuple[int, int] = (0, 1)

    def __post_init__(self) -> None:
        if not 1 <= self.size <= len(self.part):
            raise CrbgError(f"batch size {self.size} does not fit {len(self.part)} training images")
        if not 0 <= self.crop < min(self.part.x.shape[2:]):
            raise CrbgError(f"crop {self.crop} does not fit images of {tuple(self.part.x.shape[2:])} pixels")

    def __len__(self) -> int:
        return len(self.part) // self.size

    def plain(self) -> Feed:
        """Give the same batches without augmentation."""
        return replace(self, flip=False, crop=0)

    def shared(self, k: int, n: int) -> tuple[Feed, float]:
        """Give every n-th example of each batch from the k-th on, and the factor on their mean loss that makes the n's average the batch's.

        Raises:
            CrbgError: there are fewer examples in a batch than processes.
        """
        if self.size < n:
            raise CrbgError(f"a batch of {self.size} cannot be shared by {n} processes; make the batch larger or use fewer")
        return replace(self, mine=(k, n)), len(range(k, self.size, n)) * n / self.size

    def order(self, epoch: int) -> Tensor:
        """Permute the images for an epoch; the incomplete last batch is dropped."""
        return torch.from_numpy(rng.permutation(len(self.part), self.seed, "order", str(epoch)))

    def digest(self) -> str:
        """SHA-256 of the first epoch's order with the batch size, which tells whether two runs saw the same batches."""
        return hashlib.sha256(f"{self.size}:".encode() + self.order(0).numpy().astype("<i8").tobytes()).hexdigest()

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (inputs, labels) from batch `start` on; only `mine` of each."""
        order = self.order(epoch).to(self.part.device)
        shift, coins = self.drawn(epoch) if self.flip or self.crop else (None, None)
        for i in range(start, len(self)):
            at = slice(i * self.size + self.mine[0], (i + 1) * self.size, self.mine[1])
            if shift is None:
                yield self.part.inputs(order[at]), self.part.y[order[at]]
                continue
            rows, columns = self.moves(shift[:, at], None if coins is None else coins[at])
            channels = torch.arange(self.part.x.shape[1], device=order.device)[:, None, None]
            # Rows of something larger are fetched first; from memory one gather does both.
            source, places = (
                (self.part.x, order[at]) if self.part.rows is None else (self.part.pixels(order[at]), torch.arange(len(order[at])))
            )
            places = places.to(order.device)[:, None, None, None]
            moved = source[places, channels, rows[:, None, :, None], columns[:, None, None, :]]
            yield self.part.standardise(moved), self.part.y[order[at]]

    def drawn(self, epoch: int) -> tuple[Tensor, Tensor | None]:
        """Draw by how many rows and columns each image of an epoch moves, (2, N), and which are mirrored, (N,), where any are."""
        n, device = len(self.part), self.part.device
        moved = rng.integers(2 * n, self.seed, "crop", str(epoch)) % np.uint64(2 * self.crop + 1)
        coins = torch.from_numpy(rng.sign(n, self.seed, "flip", str(epoch)) > 0).to(device) if self.flip else None
        return torch.from_numpy(moved.astype(np.int64) - self.crop).reshape(2, n).to(device), coins

    def moves(self, shift: Tensor, coins: Tensor | None) -> tuple[Tensor, Tensor]:
        """Say which row and which column of its image each row and column of the augmented image shows, (n, H) and (n, W)."""
        (height, width), device = self.part.x.shape[2:], shift.device
        rows = _reflected(torch.arange(height, device=device) + shift[0, :, None], height)
        columns = _reflected(torch.arange(width, device=device) + shift[1, :, None], width)
        return rows, columns if coins is None else torch.where(coins[:, None], width - 1 - columns, columns)


def _reflected(place: Tensor, size: int) -> Tensor:
    """Turn places up to size - 1 beyond an edge back into the image, the edge itself shown once."""
    return size - 1 - (size - 1 - place.abs()).abs()


def load(name: str, data_dir: str | None = None, download: bool = True) -> Data:
    """Load a data set and split it: a stratified validation part drawn once, with seed 0, from the training images.

    Raises:
        CrbgError: unknown, missing or damaged data; the message names the file, the path and the variable.
    """
    entry = info(name)
    if entry.digest:
        return _made(entry, root(data_dir) / name)
    arrays = _digits() if name == "digits" else _read(entry, root(data_dir), download)
    train_x, train_y, test_x, test_y = (arrays[k] for k in ("train_x", "train_y", "test_x", "test_y"))
    digest = hashlib.sha256()
    for a in (train_x, train_y, test_x, test_y):
        digest.update(np.ascontiguousarray(a).tobytes())
    held = stratified(train_y, entry.validation, SPLIT_SEED, f"validation/{name}")
    kept = np.setdiff1d(np.arange(len(train_y)), held)
    lossy = arrays.get("lossy_index", np.array([], np.int64))
    lossy_test = torch.from_numpy(np.asarray(lossy[lossy >= len(train_y)] - len(train_y), np.int64))
    mean, std = (torch.tensor(v, dtype=torch.float32) for v in (entry.mean, entry.std))

    def part(x: np.ndarray, y: np.ndarray) -> Part:
        return Part(torch.from_numpy(np.ascontiguousarray(x)), torch.from_numpy(y.astype(np.int64)), mean, std)

    return Data(
        name,
        part(train_x[kept], train_y[kept]),
        part(train_x[held], train_y[held]),
        part(test_x, test_y),
        entry.classes,
        digest.hexdigest(),
        lossy_test,
        {"train": int(np.isin(kept, lossy).sum()), "validation": int(np.isin(held, lossy).sum()), "test": len(lossy_test)},
    )


def _made(entry: DataInfo, folder: Path) -> Data:
    """Load data made from image files; pixels are mapped, not read."""
    found = {}
    for part, count in (("train", entry.train + entry.validation), ("test", entry.test)):
        try:
            x, y = np.load(folder / f"{part}_x.npy", mmap_mode="c"), np.load(folder / f"{part}_y.npy")
        except (OSError, ValueError) as error:
            raise CrbgError(f"{folder} is damaged ({error}); delete it and make it again") from None
        if x.dtype != np.uint8 or x.shape != (count, *entry.shape) or y.shape != (count,):
            raise CrbgError(
                f"{folder}: {part}_x is {x.dtype} {x.shape}, its index says {(count, *entry.shape)}; delete it and make it again"
            )
        found[part] = (torch.from_numpy(x), y)
    mean, std = (torch.tensor(v, dtype=torch.float32) for v in (entry.mean, entry.std))

    def part_of(which: str, rows: np.ndarray) -> Part:
        x, y = found[which]
        return Part(x, torch.from_numpy(y[rows]), mean, std, rows=torch.from_numpy(rows))

    held = stratified(found["train"][1], entry.validation, SPLIT_SEED, f"validation/{entry.name}")
    kept = np.setdiff1d(np.arange(len(found["train"][1])), held)
    parts = (part_of("train", kept), part_of("train", held), part_of("test", np.arange(entry.test)))
    return Data(entry.name, *parts, entry.classes, entry.digest, torch.tensor([], dtype=torch.int64))


def stratified(labels: np.ndarray, count: int, seed: int, stream: str) -> np.ndarray:
    """Draw `count` indices with the class shares of `labels`; the largest remainders get the places left over."""
    classes, totals = np.unique(labels, return_counts=True)
    exact = totals * count / len(labels)
    quota = np.floor(exact).astype(int)
    quota[np.argsort(quota - exact, kind="stable")[: count - quota.sum()]] += 1
    order = rng.permutation(len(labels), seed, stream)
    chosen = [order[labels[order] == c][:q] for c, q in zip(classes, quota, strict=True)]
    return np.sort(np.concatenate(chosen))


def _digits() -> dict[str, np.ndarray]:
    """scikit-learn's 1 797 digits, 8x8 pixels of 0..16: each pixel enlarged 3x, then padded to 28x28; 300 are the test part."""
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
    except Exception as error:  # a damaged archive fails in numpy, zipfile or zlib, each with errors of its own
        raise CrbgError(f"{path} is damaged ({error}); make the file again or delete it to download the data") from None
    for key in ("train_x", "train_y", "test_x", "test_y"):
        if key not in arrays:
            raise CrbgError(f"{path} holds no array {key!r}; it needs train_x, train_y, test_x, test_y")
    for part in ("train", "test"):
        x, y = arrays[f"{part}_x"], arrays[f"{part}_y"]
        if x.dtype != np.uint8 or x.shape[1:] != entry.shape or y.shape != (len(x),):
            raise CrbgError(f"{path}: {part}_x is {x.dtype} {x.shape}, {part}_y {y.shape}; expected uint8 (N, {entry.shape}), (N,)")
        if y.min() < 0 or y.max() >= entry.classes:
            raise CrbgError(f"{path}: {part}_y holds label {y.max()}, but {entry.name} has {entry.classes} classes")
    return arrays


def _short(error: Exception) -> str:
    """Say in one line why a download failed."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:90]}{'...' if len(text) > 90 else ''}"


def _torchvision(entry: DataInfo, folder: Path, download: bool) -> dict[str, np.ndarray]:
    import torchvision

    maker = getattr(torchvision.datasets, entry.torchvision)
    try:
        sets = {part: maker(str(folder), train=part == "train", download=download) for part in ("train", "test")}
    except Exception as error:  # torchvision raises RuntimeError, URLError and others for the same cause
        raise CrbgError(
            f"data set {entry.name!r} is neither at {folder / (entry.name + '.npz')} nor in torchvision's layout under "
            f"{folder}, and could not be downloaded ({_short(error)}); "
            "set CRBG_DATA (or data_dir in config.yaml) to the folder that holds it"
        ) from None
    out: dict[str, np.ndarray] = {}
    for part, s in sets.items():
        x = np.asarray(s.data)
        out[f"{part}_x"] = x[:, None] if x.ndim == 3 else x.transpose(0, 3, 1, 2)
        out[f"{part}_y"] = np.asarray(s.targets)
    return out
