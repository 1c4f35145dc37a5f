"""Images a second of gated and dense training steps in deep networks, and of the data, all in one run on this machine.

    python benchmarks/networks.py [--models resnet20 timm:resnet50] [--batch 256] [--precision bf16] [--device auto]

Both sides do what a run does: the method's own search on images of CIFAR-10's shape that lie on the device. Rounds alternate between
them, and the ratio is taken round by round. "share" is what the dense step reaches of the rate of a large matrix product in the same
precision, counting three times the FLOPs of a forward pass. The data are compared with a loop over torch's DataLoader with
torchvision's crops and flips. Goals on a GPU: at most 1.15 x dense, and at most 8 bytes of memory more for each gated weight.
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

from crbg import device, fused, measure, methods, models
from crbg.attach import weights
from crbg.data import info
from crbg.data.images import Feed, Part
from crbg.gate import Gaussian
from crbg.run import cpu_name, revision

KNOWN: dict[str, dict[str, Any]] = {  # model_args of the networks as the experiments build them
    "conv4": {"norm": "batch"},
    "timm:resnet18": {"stem": "cifar"},
    "timm:resnet50": {"stem": "cifar"},
    "timm:wide_resnet50_2": {"stem": "cifar"},
    "timm:vit_base_patch16_224": {"patch_size": 4},
    "timm:vit_tiny_patch16_224": {"patch_size": 4},
    "timm:swin_tiny_patch4_window7_224": {"patch_size": 2, "window_size": 4, "drop_path_rate": 0.0},
}
WARM = 3  # steps before the clock starts


def wait(where: torch.device) -> None:
    if where.type == "cuda":
        torch.cuda.synchronize(where)


class Watched:
    """The batches of a feed, and the time that a search spends on those after the first few."""

    def __init__(self, feed: Feed, steps: int) -> None:
        self.feed, self.steps, self.seconds, self.where = feed, steps, 0.0, feed.part.device

    def __len__(self) -> int:
        return WARM + self.steps

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        batches, began = self.feed.epoch(0), 0.0
        for i in range(len(self)):
            if i == WARM:
                wait(self.where)
                began = time.perf_counter()
            yield next(batches)
        wait(self.where)
        self.seconds = time.perf_counter() - began


def once(fresh: nn.Module, method: str, options: dict[str, Any], feed: Feed, steps: int, precision: str) -> tuple[float, float]:
    """Seconds a step and peak memory in MiB (0 on a CPU) of one short search; infinite seconds where the memory does not suffice."""
    where, batches = feed.part.device, Watched(feed, steps)
    model = copy.deepcopy(fresh).to(where)
    if where.type == "cuda":
        torch.cuda.reset_peak_memory_stats(where)
    task = methods.Task(batches, 0.1, 1, 0, cross_entropy, precision=precision)
    try:
        methods.get(method).find(model, task, methods.options(method, options))
    except torch.OutOfMemoryError:
        return math.inf, math.inf
    peak = torch.cuda.max_memory_allocated(where) / 2**20 if where.type == "cuda" else 0.0
    return batches.seconds / steps, peak


def rate(where: torch.device, precision: str) -> float:
    """FLOPs a second of a large matrix product."""
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


def loader_rate(part: Part, batch: int, workers: int) -> float:
    """Images a second of the loop that one writes with torch and torchvision: one image at a time, cropped, mirrored, standardised."""
    pictures, labels = [Image.fromarray(x.permute(1, 2, 0).numpy()) for x in part.x.cpu()], part.y.tolist()
    steps = [
        v2.RandomCrop(32, padding=4, padding_mode="reflect"),
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
    for timed in (False, True):
        start, seen = time.perf_counter(), 0
        for x, _ in loader:
            seen += len(x.to(part.x.device))
        if timed:
            wait(part.x.device)
    return seen / (time.perf_counter() - start)


def feed_rate(feed: Feed) -> float:
    """Images a second of our batches, augmented on the device."""
    for _ in range(2):
        wait(feed.part.device)
        start = time.perf_counter()
        seen = sum(len(y) for _, y in feed.epoch(1))
        wait(feed.part.device)
    return seen / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["conv4", "resnet20", "timm:vit_tiny_patch16_224"])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--steps", type=int, default=4, help="steps of each side in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="processes of the DataLoader")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write the tables here too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    where, entry = device.pick(args.device), info("cifar10")
    images = max(2048, args.batch * (args.steps + WARM))
    pixels = torch.randint(0, 256, (images, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    part = Part(pixels, torch.arange(images) % 10, torch.tensor(entry.mean), torch.tensor(entry.std)).to(where)
    feed = Feed(part, args.batch, 0, flip=True, crop=4)
    best, rows = rate(where, args.precision), []
    for name in args.models:
        fresh, _ = models.initial(name, (3, 32, 32), 10, "kaiming_normal", 1.0, 0, **KNOWN.get(name, {}))
        sides: dict[str, tuple[str, dict[str, Any]]] = {
            "dense": ("dense", {}),
            "gated": ("crbg", {"noise": 0.25}),
            "gated, no noise": ("crbg", {"noise": 0.0}),
            "edge_popup": ("edge_popup", {}),
        }
        if where.type == "cuda" and fused.works(where):
            sides["gated, not fused"] = sides["gated"]
        times: dict[str, list[float]] = {side: [] for side in sides}
        memory = dict.fromkeys(sides, 0.0)
        for round_ in range(args.rounds + 1):
            for side, (method, options) in sides.items():
                Gaussian.fuses = () if side == "gated, not fused" else ("cuda",)
                seconds, memory[side] = once(fresh, method, options, feed, args.steps, args.precision)
                if round_:  # the first round warms up
                    times[side].append(seconds)
        work = 3 * args.batch * measure.flops(fresh, torch.zeros(1, 3, 32, 32))["dense"]
        gated = sum(w.numel() for w in weights(fresh).values())
        for side, t in times.items():
            ratio = statistics.median(a / b for a, b in zip(t, times["dense"], strict=True))
            middle = statistics.median(t)
            if not math.isfinite(middle):
                rows.append([name, side, "out of memory", "", "", "", ""])
                continue
            more = f"{(memory[side] - memory['dense']) * 2**20 / gated:+.1f}" if memory["dense"] else ""
            share = f"{100 * work / middle / best:.0f} %"
            rows.append(
                [name, side, f"{args.batch / middle:.0f}", f"{ratio:.2f}", share, f"{memory[side]:.0f}" if memory[side] else "", more]
            )
            print(*rows[-1], sep="  ", flush=True)  # what follows may fail
    head = ["network", "step", "images / s", "ratio to dense", "share of the matrix rate", "peak MiB", "bytes a weight over dense"]
    ours, theirs = feed_rate(feed), loader_rate(part, args.batch, args.workers)
    chip = torch.cuda.get_device_name(where) if where.type == "cuda" else f"{cpu_name()}, {args.threads} thread(s)"
    text = (
        f"{chip}, batch {args.batch}, {args.precision}, {args.rounds} rounds of {args.steps} steps, "
        f"torch {torch.__version__.split('+')[0]}, revision {revision()}. A matrix product reaches {best / 1e9:.0f} GFLOP/s.\n\n"
        f"{tabulate(rows, head, tablefmt='pipe', disable_numparse=True)}\n\n"
        f"Batches of augmented images alone: {ours:.0f} images a second, {ours / theirs:.1f} times the DataLoader's {theirs:.0f} "
        f"({args.workers} workers).\n"
    )
    publish(text, args.out)


if __name__ == "__main__":
    main()
