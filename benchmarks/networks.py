"""Measure images per second of training loops on deep networks, all in one run on this machine.

    python benchmarks/networks.py [--networks resnet20 vit_tiny] [--rounds 5] [--device auto] [--threads 2]

For each network, the benchmark times three kinds of loops: the "user's loop" that a user of PyTorch would write
(float32, a DataLoader, Adam), dense training by this project (bfloat16, channels last, batches computed on the device),
and CRBG's search with each source of noise and without noise. The last two run the methods `dense` and `crbg` in the
same way as an experiment. Every round times all loops, and ratios are computed within a round. "share of matmul rate"
compares the FLOP rate of a step (three times the FLOPs of a forward pass) with that of a large matrix product in the
same precision. Dense training by this project processes more images per second than the user's loop; "kept" is the
fraction of this gain that a search keeps.

Goals on a CPU: with counter-based noise, a step takes at most 1.10 times as long as a dense step, and at least 0.90 of
the gain is kept. Goals on a GPU: a step takes at most 1.15 times as long as a dense step, and the search needs at most
8 additional bytes of memory for each gated weight.
"""

import argparse
import copy
import math
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from publish import publish
from tabulate import tabulate
from torch import nn
from torch.nn.functional import cross_entropy
from torchvision.transforms import v2

from crbg import measure, methods, models
from crbg.data.datasets import info
from crbg.data.images import ImagePart
from crbg.data.loader import BatchLoader
from crbg.gates import kernels, triton
from crbg.gates.attach import weights
from crbg.gates.gaussian import Gaussian
from crbg.runs.provenance import cpu_name, revision
from crbg.training import device

# By name: model, its arguments, image size in pixels, batch size.
NETWORKS: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "resnet20": ("resnet20", {}, 32, 128),
    "conv4": ("conv4", {"norm": "batch"}, 32, 128),
    "vgg16": ("vgg16", {}, 32, 128),
    "resnet18": ("timm:resnet18", {"stem": "cifar"}, 32, 64),
    "resnet50": ("timm:resnet50", {"stem": "imagenet"}, 64, 64),
    "vit_tiny": ("timm:vit_tiny_patch16_224", {"patch_size": 8}, 32, 128),
    "swin_t": ("timm:swin_tiny_patch4_window7_224", {"patch_size": 4, "window_size": 4, "drop_path_rate": 0.0}, 32, 64),
}
WARM = 7  # untimed first steps; the midpoint of a short search, where CRBG computes a histogram, is one of them


def wait(where: torch.device) -> None:
    if where.type == "cuda":
        torch.cuda.synchronize(where)


class TimedBatches:
    """A loader's batches, which also time the search that iterates over them, after its first `WARM` steps."""

    def __init__(self, loader: BatchLoader, steps: int) -> None:
        self.loader, self.steps, self.seconds, self.where = loader, steps, 0.0, loader.part.device

    def __len__(self) -> int:
        return WARM + self.steps

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        batches, began = self.loader.epoch(0), 0.0
        for i in range(len(self)):
            if i == WARM:
                wait(self.where)
                began = time.perf_counter()
            yield next(batches)
        wait(self.where)
        self.seconds = time.perf_counter() - began


def search_cost(
    fresh: nn.Module, method: str, options: dict[str, Any], loader: BatchLoader, steps: int, precision: str
) -> tuple[float, float]:
    """Run a short search; return seconds per step and peak MiB on the GPU (0 on a CPU).

    Both are infinite if the GPU runs out of memory.
    """
    where, batches = loader.part.device, TimedBatches(loader, steps)
    model = copy.deepcopy(fresh).to(where)
    if where.type == "cuda":
        torch.cuda.reset_peak_memory_stats(where)
    task = methods.SearchTask(batches, 0.1, 1, 0, cross_entropy, precision=precision)
    try:
        methods.get(method).find(model, task, methods.options(method, options))
    except torch.OutOfMemoryError:
        return math.inf, math.inf
    peak = torch.cuda.max_memory_allocated(where) / 2**20 if where.type == "cuda" else 0.0
    return batches.seconds / steps, peak


def rate(where: torch.device, precision: str) -> float:
    """Measure a large matrix product; return its FLOPs per second."""
    n = 8192 if where.type == "cuda" else 1024
    a = torch.randn(n, n, device=where, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    spent = []
    for _ in range(8):
        wait(where)
        start = time.perf_counter()
        a @ a
        wait(where)
        spent.append(time.perf_counter() - start)
    return 2 * n**3 / min(spent)


def user_batches(part: ImagePart, batch: int, workers: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield batches from a DataLoader with torchvision's transforms, one image at a time."""
    pictures, labels = [Image.fromarray(x.permute(1, 2, 0).numpy()) for x in part.x.cpu()], part.y.tolist()
    steps: list[Any] = [v2.Resize(part.size)] if part.size else []
    steps += [
        v2.RandomCrop(part.size or 32, padding=4, padding_mode="reflect"),
        v2.RandomHorizontalFlip(),
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
    ]
    turn = v2.Compose([*steps, v2.Normalize(part.mean.tolist(), part.std.tolist())])

    class Pictures(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return len(pictures)

        def __getitem__(self, i: int) -> tuple[Any, int]:
            return turn(pictures[i]), labels[i]

    loader = torch.utils.data.DataLoader(
        Pictures(), batch, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0
    )
    while True:
        yield from loader


def user_loop(
    fresh: nn.Module, batches: Iterator[tuple[torch.Tensor, torch.Tensor]], where: torch.device, steps: int
) -> float:
    """Train with the plain float32 loop; return seconds per step."""
    model = copy.deepcopy(fresh).to(where).train()
    adam = torch.optim.Adam(model.parameters(), lr=1e-3)
    began = 0.0
    for i in range(WARM + steps):
        if i == WARM:
            wait(where)
            began = time.perf_counter()
        x, y = next(batches)
        adam.zero_grad()
        cross_entropy(model(x.to(where)), y.to(where)).backward()
        adam.step()
    wait(where)
    return (time.perf_counter() - began) / steps


def loader_rate(batches: Iterator[tuple[torch.Tensor, torch.Tensor]], batch: int, count: int) -> float:
    """Iterate over a DataLoader without training; return images per second."""
    for _ in range(2):
        start = time.perf_counter()
        for _ in range(count):
            next(batches)
    return count * batch / (time.perf_counter() - start)


def batch_rate(loader: BatchLoader) -> float:
    """Iterate over this project's batches, augmented on the device, without training; return images per second."""
    for _ in range(2):
        wait(loader.part.device)
        start = time.perf_counter()
        seen = sum(len(y) for _, y in loader.epoch(1))
        wait(loader.part.device)
    return seen / (time.perf_counter() - start)


def sides(where: torch.device) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return the searches to time: by name, the method and its options."""
    out: dict[str, tuple[str, dict[str, Any]]] = {"dense": ("dense", {})}
    for source in ("normal", "antithetic", "counter"):
        out[f"gated, {source} noise"] = ("crbg", {"noise": 0.1, "source": source})
    out["gated, no noise"] = ("crbg", {"noise": 0.0})
    out["edge_popup"] = ("edge_popup", {})
    if where.type == "cuda" and triton.works(where):
        out["gated, normal noise, not fused"] = out["gated, normal noise"]
    return out


def measured(name: str, args: argparse.Namespace, where: torch.device, best: float) -> list[list[str]]:
    """Time one network; return a row for the user's loop and one for each search."""
    model, model_args, edge, batch = NETWORKS[name]
    entry, size = info("cifar10"), 0 if edge == 32 else edge
    images = max(2048, batch * (args.steps + WARM))
    pixels = torch.randint(0, 256, (images, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    part = ImagePart(pixels, torch.arange(images) % 10, torch.tensor(entry.mean), torch.tensor(entry.std), size=size)
    part = part.to(where)
    loader = BatchLoader(part, batch, 0, flip=True, crop=4)
    theirs = user_batches(part, batch, args.workers)
    fresh, _ = models.initial(model, (3, edge, edge), 10, "kaiming_normal", 1.0, 0, **model_args)
    ways = sides(where)
    times: dict[str, list[float]] = {side: [] for side in ("user's loop", *ways)}
    memory = dict.fromkeys(ways, 0.0)
    for round_ in range(args.rounds + 1):
        seconds = user_loop(fresh, theirs, where, args.steps)
        if round_:  # the first round warms up
            times["user's loop"].append(seconds)
        for side, (method, options) in ways.items():
            Gaussian.fuses = () if side.endswith("not fused") else ("cuda",)
            seconds, memory[side] = search_cost(fresh, method, options, loader, args.steps, args.precision)
            if round_:
                times[side].append(seconds)
    work = 3 * batch * measure.flops(fresh, torch.zeros(1, 3, edge, edge))["dense"]
    gated = sum(w.numel() for w in weights(fresh).values())
    rows = []
    for side, t in times.items():
        middle = statistics.median(t)
        if not math.isfinite(middle):
            rows.append([name, side, "out of memory", "", "", "", "", ""])
            continue
        ratio = statistics.median(a / b for a, b in zip(t, times["dense"], strict=True))
        keeps = [
            (1 / a - 1 / u) / (1 / d - 1 / u) for a, d, u in zip(t, times["dense"], times["user's loop"], strict=True)
        ]
        peak = memory.get(side, 0.0)
        more = f"{(peak - memory['dense']) * 2**20 / gated:+.1f}" if peak else ""
        speeds = [f"{batch / middle:.0f}", f"{ratio:.2f}", f"{statistics.median(keeps):.2f}"]
        share = f"{100 * work / middle / best:.0f} %"
        rows.append([f"{name}, {batch}", side, *speeds, share, f"{peak:.0f}" if peak else "", more])
        print(*rows[-1], sep="  ", flush=True)  # print immediately, because a later network may fail
    ours, plain = batch_rate(loader), loader_rate(theirs, batch, len(loader))
    print(f"{name}: batches alone {ours:.0f} images per second, the DataLoader {plain:.0f}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16"),
        default="bf16",
        help="precision of dense training and searches; the user's loop is always float32",
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=5,
        help="timed steps of each loop in a round; the controller measures the density every fifth step",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2, help="processes of the DataLoader")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    where = device.pick(args.device)
    device.check_precision(args.precision, where)
    best, rows = rate(where, args.precision), []
    for name in args.networks:
        rows += measured(name, args, where, best)
    head = [
        "network, batch",
        "step",
        "images / s",
        "ratio to dense",
        "kept",
        "share of matmul rate",
        "peak MiB",
        "bytes per weight over dense",
    ]
    chip = torch.cuda.get_device_name(where) if where.type == "cuda" else f"{cpu_name()}, {args.threads} thread(s)"
    text = (
        f"{chip}, {args.precision}, {args.rounds} rounds of {args.steps} steps, "
        f"torch {torch.__version__.split('+')[0]}, revision {revision()}, "
        f"gates {'compiled' if kernels.compiled() else 'in torch'}. "
        f"A large matrix product reaches {best / 1e9:.0f} GFLOP/s. The user's loop is plain PyTorch in float32 with a "
        "DataLoader. Dense training is faster; 'kept' is the fraction of this gain that a search keeps.\n\n"
        f"{tabulate(rows, head, tablefmt='pipe', disable_numparse=True)}\n"
    )
    publish(text, args.out)


if __name__ == "__main__":
    main()
