"""Data sets of image files: folders of classes, turned once into arrays of pixels that are read from disk as they are needed.

`crbg data NAME --images DIR --size S` reads DIR/train/<class>/* and DIR/val/<class>/* (or DIR/test), as ImageNet lies,
scales the shorter side of each image to S pixels, keeps the middle, and writes train_x.npy and test_x.npy, uint8 (N, 3,
S, S), with labels and an index under the data root. A part of any size then costs no memory of a GPU, and any batch of
it is one gather.
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

PARTS = {"train": ("train",), "test": ("val", "test")}


def prepare(
    name: str, images: Path, size: int, root: Path, tell: Callable[[str], None] = lambda text: None, batch: int = 256
) -> Path:
    """Write the arrays of a data set and its index; one that was interrupted goes on where it was.

    Raises:
        CrbgError: folders or classes are missing, a file is no image, or a data set of this name and another size is
            there.
    """
    from torchvision.datasets import ImageFolder

    if name in DATA:
        raise CrbgError(f"{name!r} is a data set that is known already; choose another name")
    out, partial = root / name, root / f"{name}.partial"
    if out.exists() and not (out / INDEX).exists():
        raise CrbgError(f"{out} is there already and no prepared data set; choose another name, or move it away")
    if size < 8:
        raise CrbgError(f"size {size}: images of at least 8 pixels are needed")
    if (out / INDEX).exists():
        there = json.loads((out / INDEX).read_text())
        if there["shape"][1] != size:
            raise CrbgError(f"{out} holds images of {there['shape'][1]} pixels; choose another name for {size}")
        return out
    sets: dict[str, ImageFolder] = {}
    for part, folders in PARTS.items():
        where = next((images / f for f in folders if (images / f).is_dir()), None)
        if where is None:
            raise CrbgError(f"{images} has no folder {' or '.join(folders)} with a folder of images for each class")
        try:
            sets[part] = ImageFolder(str(where), transform=functools.partial(_square, size=size))
        except FileNotFoundError as error:
            raise CrbgError(f"{where}: {str(error).splitlines()[0]}") from None
    if sets["train"].classes != sets["test"].classes:
        only = sorted(set(sets["train"].classes) ^ set(sets["test"].classes))
        raise CrbgError(f"train and test have different classes: only one of them has {', '.join(only[:5])}")
    partial.mkdir(parents=True, exist_ok=True)
    state_file = partial / "state.json"
    files = {p: hashlib.sha256("\n".join(f for f, _ in s.samples).encode()).hexdigest() for p, s in sets.items()}
    fresh: dict[str, Any] = {
        "size": size,
        "files": files,
        "done": dict.fromkeys(sets, 0),
        "sum": [0] * 3,
        "squares": [0] * 3,
    }
    state = json.loads(state_file.read_text()) if state_file.exists() else fresh
    lost = any(done and not (partial / f"{p}_x.npy").exists() for p, done in state["done"].items())
    if lost or (state["size"], state["files"]) != (size, files):
        state = fresh  # the images are others now
    for part, images_of in sets.items():
        _fill(part, images_of, partial, state, state_file, batch, tell)
    digest = hashlib.sha256()
    for part, s in sets.items():
        np.save(partial / f"{part}_y.npy", np.asarray(s.targets, np.int64))
        pixels = np.load(partial / f"{part}_x.npy", mmap_mode="r")
        for i in range(0, len(pixels), 1024):
            digest.update(np.ascontiguousarray(pixels[i : i + 1024]).tobytes())
        digest.update(np.asarray(s.targets, np.int64).tobytes())
    count = len(sets["train"]) * size * size
    mean = [s / (255 * count) for s in state["sum"]]
    std = [max(1e-3, (q / (255 * 255 * count) - m * m) ** 0.5) for q, m in zip(state["squares"], mean, strict=True)]
    held = max(len(sets["train"].classes), len(sets["train"]) // 25)  # the share that ImageNet's 50 000 are
    index = {
        "shape": [3, size, size], "classes": len(sets["train"].classes), "train": len(sets["train"]) - held, "validation": held,
        "test": len(sets["test"]), "mean": mean, "std": std, "digest": digest.hexdigest(),
    }  # fmt: skip
    write_json(partial / INDEX, index)
    state_file.unlink()
    partial.replace(out)
    return out


def _fill(
    part: str,
    images: Any,
    folder: Path,
    state: dict[str, Any],
    state_file: Path,
    batch: int,
    tell: Callable[[str], None],
) -> None:
    """Decode the images that are still missing, in their order, and note how far it came."""
    path, n, size = folder / f"{part}_x.npy", len(images), state["size"]
    pixels = np.lib.format.open_memmap(path, "r+" if state["done"][part] else "w+", np.uint8, (n, 3, size, size))
    rest = torch.utils.data.Subset(images, range(state["done"][part], n))
    workers = min(16, (os.cpu_count() or 1) - 1) if len(rest) > 1000 else 0
    began, first, noted = time.monotonic(), state["done"][part], time.monotonic()
    for x, _ in _decoded(torch.utils.data.DataLoader(rest, batch, num_workers=workers), images.root):
        at = state["done"][part]
        pixels[at : at + len(x)] = x.numpy()
        if part == "train":
            whole = x.to(torch.int64)  # whole numbers add up to the same whatever was interrupted
            state["sum"] = [a + int(b) for a, b in zip(state["sum"], whole.sum((0, 2, 3)), strict=True)]
            state["squares"] = [
                a + int(b) for a, b in zip(state["squares"], whole.square().sum((0, 2, 3)), strict=True)
            ]
        state["done"][part] = at + len(x)
        if time.monotonic() - noted > 10 or state["done"][part] == n:
            pixels.flush()
            write_json(state_file, state)
            noted = time.monotonic()
            left = (noted - began) / (state["done"][part] - first) * (n - state["done"][part])
            tell(f"{part}: {state['done'][part]} of {n} images, about {left / 60:.0f} min left")


def _decoded(loader: Any, where: str) -> Iterator[Any]:
    try:
        yield from loader
    except OSError as error:  # PIL's error for a file that is no image names the file or its first bytes
        raise CrbgError(
            f"{where}: an image cannot be read ({error}); mend or remove it, then go on with the same command"
        ) from None


def _square(image: Any, size: int) -> torch.Tensor:
    """Scale the shorter side to `size`, keep the middle, as uint8 (3, size, size)."""
    from PIL import Image

    width, height = image.size
    scale = size / min(width, height)
    image = image.convert("RGB").resize(
        (max(size, round(width * scale)), max(size, round(height * scale))), Image.Resampling.BILINEAR
    )
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return torch.from_numpy(np.asarray(image.crop((left, top, left + size, top + size))).copy()).permute(2, 0, 1)
