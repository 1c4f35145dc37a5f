"""Data sets from folders of images, converted once to pixel arrays on disk.

`crbg data NAME --images DIR --size S` reads DIR/train/<class>/* and DIR/val/<class>/* (or DIR/test), the layout of
ImageNet. It converts each image to 8-bit RGB, scales the shorter side to S pixels, and crops the centre. Under the
data root it writes train_x.npy and test_x.npy, uint8 (N, 3, S, S), the labels, and an index. The arrays are
memory-mapped when used: the data set takes no GPU memory whatever its size, and a batch is one gather operation.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from crbg.data.datasets import DATA, INDEX
from crbg.errors import CrbgError
from crbg.storage.atomic import write_json

PARTS = {"train": ("train",), "test": ("val", "test")}  # folder names of each split; the first that exists is used
STATE = "state.json"


def prepare(
    name: str, images: Path, size: int, root: Path, tell: Callable[[str], None] = lambda text: None, batch: int = 256
) -> Path:
    """Convert folders of images to the arrays and the index of a data set; continue a conversion that was interrupted.

    Args:
        name: Name of the new data set.
        images: Folder that contains the folders train and val (or test), each with one folder of images per class.
        size: Edge length of the converted images, in pixels.
        root: The data root; the data set is written to `root / name`.
        tell: Called with each line of progress output.
        batch: Number of images to decode at a time.

    Returns:
        The folder of the data set.

    Raises:
        CrbgError: folders or classes are missing, a file is not an image that can be used, all training pixels are
            equal, or the name is already in use.
    """
    out, partial = root / name, root / f"{name}.partial"
    if _exists(name, out, size):
        return out
    sets = _image_sets(images, size)
    partial.mkdir(parents=True, exist_ok=True)
    state = _state(partial, sets, size)
    for part, image_set in sets.items():
        _fill(part, image_set, partial, state, batch, tell)
    values = len(sets["train"]) * size * size
    if all(values * squares == total**2 for total, squares in zip(state["sum"], state["squares"], strict=True)):
        raise CrbgError(f"{images}: all training images have the same constant colour; check the files")
    _write_index(partial, sets, state)
    (partial / STATE).unlink()
    partial.replace(out)
    return out


def _exists(name: str, out: Path, size: int) -> bool:
    """Return whether the data set already exists; raise if the name or the size cannot be used."""
    if name in DATA:
        raise CrbgError(f"{name!r} is the name of a built-in data set; choose another name")
    if out.exists() and not (out / INDEX).exists():
        raise CrbgError(f"{out} exists and is not a prepared data set; choose another name, or move the folder")
    if size < 8:
        raise CrbgError(f"size {size} is too small; choose at least 8 pixels")
    if not (out / INDEX).exists():
        return False
    pixels = json.loads((out / INDEX).read_text())["shape"][1]
    if pixels != size:
        other = f"choose another name for images of {size} pixels, or delete this folder"
        raise CrbgError(f"{out} contains images of {pixels} pixels; {other}")
    return True


def _image_sets(images: Path, size: int) -> dict[str, Any]:
    """Open the image folders of both splits, and check that they have the same classes."""
    from torchvision.datasets import ImageFolder

    sets: dict[str, ImageFolder] = {}
    for part, folders in PARTS.items():
        where = next((images / f for f in folders if (images / f).is_dir()), None)
        if where is None:
            raise CrbgError(f"{images} has no folder {' or '.join(folders)} with a folder of images for each class")
        try:
            sets[part] = ImageFolder(str(where), loader=_rgb, transform=functools.partial(_square, size=size))
        except FileNotFoundError as error:
            raise CrbgError(f"{where}: {str(error).splitlines()[0]}") from None
    if sets["train"].classes != sets["test"].classes:
        only = sorted(set(sets["train"].classes) ^ set(sets["test"].classes))
        raise CrbgError(
            f"train and test have different classes: only one of the two has {', '.join(only[:5])}; "
            "add a folder for every class to both"
        )
    return sets


def _state(partial: Path, sets: dict[str, Any], size: int) -> dict[str, Any]:
    """Return the state of an interrupted conversion, or a new state if there is no conversion to continue.

    The state contains the number of converted images in each split, and the sums over training pixels from which the
    mean and the standard deviation are computed.
    """
    files = {p: hashlib.sha256("\n".join(f for f, _ in s.samples).encode()).hexdigest() for p, s in sets.items()}
    fresh = {"size": size, "files": files, "done": dict.fromkeys(sets, 0), "sum": [0] * 3, "squares": [0] * 3}
    if not (partial / STATE).exists():
        return fresh
    state: dict[str, Any] = json.loads((partial / STATE).read_text())
    lost = any(done and not (partial / f"{p}_x.npy").exists() for p, done in state["done"].items())
    changed = (state["size"], state["files"]) != (size, files)
    return fresh if lost or changed else state


def _fill(part: str, images: Any, folder: Path, state: dict[str, Any], batch: int, tell: Callable[[str], None]) -> None:
    """Decode the remaining images in order, and save the state about every 10 seconds."""
    path, n, size = folder / f"{part}_x.npy", len(images), state["size"]
    pixels = np.lib.format.open_memmap(path, "r+" if state["done"][part] else "w+", np.uint8, (n, 3, size, size))
    rest = torch.utils.data.Subset(images, range(state["done"][part], n))
    workers = min(16, (os.cpu_count() or 1) - 1) if len(rest) > 1000 else 0
    began, first, saved = time.monotonic(), state["done"][part], time.monotonic()
    for x, _ in _decoded(torch.utils.data.DataLoader(rest, batch, num_workers=workers), images.root):
        at = state["done"][part]
        pixels[at : at + len(x)] = x.numpy()
        if part == "train":
            whole = x.to(torch.int64)  # integer sums are exact, so interruptions do not change them
            for key, sums in (("sum", whole.sum((0, 2, 3))), ("squares", whole.square().sum((0, 2, 3)))):
                state[key] = [a + int(b) for a, b in zip(state[key], sums, strict=True)]
        state["done"][part] = done = at + len(x)
        if time.monotonic() - saved > 10 or done == n:
            pixels.flush()
            write_json(folder / STATE, state)
            saved = time.monotonic()
            left = (saved - began) / (done - first) * (n - done)
            tell(f"{part}: {done} of {n} images, about {left / 60:.0f} min left")


def _write_index(folder: Path, sets: dict[str, Any], state: dict[str, Any]) -> None:
    """Write the labels and the index: sizes, statistics of the training pixels, and a digest of all arrays."""
    digest = hashlib.sha256()
    for part, s in sets.items():
        np.save(folder / f"{part}_y.npy", np.asarray(s.targets, np.int64))
        pixels = np.load(folder / f"{part}_x.npy", mmap_mode="r")
        for i in range(0, len(pixels), 1024):
            digest.update(np.ascontiguousarray(pixels[i : i + 1024]).tobytes())
        digest.update(np.asarray(s.targets, np.int64).tobytes())
    train, size = sets["train"], state["size"]
    count = len(train) * size * size
    mean = [s / (255 * count) for s in state["sum"]]
    std = [max(1e-3, (q / (255 * 255 * count) - m * m) ** 0.5) for q, m in zip(state["squares"], mean, strict=True)]
    validation = max(len(train.classes), len(train) // 25)  # 4 % of the images, about 50 000 for ImageNet
    index = {
        "shape": [3, size, size],
        "classes": len(train.classes),
        "train": len(train) - validation,
        "validation": validation,
        "test": len(sets["test"]),
        "mean": mean,
        "std": std,
        "digest": digest.hexdigest(),
    }
    write_json(folder / INDEX, index)


def _decoded(loader: Any, where: str) -> Iterator[Any]:
    try:
        yield from loader
    except OSError as error:
        why = str(error).strip().splitlines()[-1].removeprefix("OSError: ")  # a worker's message contains its traceback
        raise CrbgError(
            f"{where}: an image cannot be read ({why}); repair or remove it, then repeat the command to continue"
        ) from None


def _rgb(path: str) -> Any:
    """Read an image as 8-bit RGB. 16-bit and float pixels are scaled, transparent ones are composited onto white.

    Raises:
        OSError: the file is not an image, or its pixels have no known range.
    """
    from PIL import Image

    with Image.open(path) as image:
        if image.mode.startswith("I") or image.mode == "F":
            return Image.fromarray(_eight_bit(image, path)).convert("RGB")
        if image.has_transparency_data:
            white = Image.new("RGBA", image.size, "white")
            return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
        return image.convert("RGB")


def _eight_bit(image: Any, path: str) -> np.ndarray:
    """Scale grey pixels to uint8: 16-bit ones from [0, 65535], and floats from [0, 1]."""
    pixels = np.asarray(image)
    if image.mode.startswith("I;16") or image.format == "PNG":
        top = 65535.0
    elif image.mode == "F" and pixels.min() >= 0 and pixels.max() <= 1:
        top = 1.0
    else:
        raise OSError(
            f"{path}: its {image.mode} pixels range from {pixels.min():g} to {pixels.max():g}; "
            "only 8-bit and 16-bit pixels and floats in [0, 1] can be used"
        )
    return (pixels * (255.0 / top)).round().astype(np.uint8)


def _square(image: Any, size: int) -> torch.Tensor:
    """Scale the shorter side of an image to `size`, and return the central crop, uint8 (3, size, size)."""
    from PIL import Image

    width, height = image.size
    scale = size / min(width, height)
    image = image.resize((max(size, round(width * scale)), max(size, round(height * scale))), Image.Resampling.BILINEAR)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return torch.from_numpy(np.asarray(image.crop((left, top, left + size, top + size))).copy()).permute(2, 0, 1)
