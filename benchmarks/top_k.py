"""Measure the time to compute edge-popup's masks, relative to a full sort, for the layers of ResNet-18.

    python benchmarks/top_k.py [--rounds 7]

Scores change a little between two masks, as they do between two steps of a search. Each mask is compared with the mask
from a full sort, and the benchmark stops if they differ. Two memory layouts are measured, contiguous and channels last.
The goal is at most a fifth of the time of the sort, summed over all layers.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from publish import publish
from tabulate import tabulate

from crbg.gates.scores import TopK
from crbg.runs.provenance import cpu_name, revision

SHAPES = {  # weight shapes of a ResNet-18 for CIFAR, and the number of layers with each shape
    (64, 3, 3, 3): 1,
    (64, 64, 3, 3): 4,
    (128, 64, 3, 3): 1,
    (128, 128, 3, 3): 3,
    (128, 64, 1, 1): 1,
    (256, 128, 3, 3): 1,
    (256, 256, 3, 3): 3,
    (256, 128, 1, 1): 1,
    (512, 256, 3, 3): 1,
    (512, 512, 3, 3): 3,
    (512, 256, 1, 1): 1,
    (10, 512): 1,
}


def by_sort(score: torch.Tensor, k: int) -> torch.Tensor:
    """Mark the k largest |s| by sorting a contiguous copy, as the public code of edge-popup does."""
    size = score.detach().abs().contiguous().flatten()
    mask = torch.zeros_like(size, dtype=torch.bool)
    mask[size.sort(descending=True, stable=True).indices[:k]] = True
    return mask.reshape(score.shape)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--density", type=float, default=0.1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for layout in (torch.contiguous_format, torch.channels_last):
        spent: dict[str, list[float]] = {"mask": [], "sort": []}
        torch.manual_seed(0)
        gates = []
        for shape, count in SHAPES.items():
            for _ in range(count):
                w = torch.randn(shape)
                score = w.to(memory_format=layout) if w.dim() == 4 else w
                gates.append(TopK(score, round(args.density * score.numel())))
        for round_ in range(args.rounds + 1):
            times = dict.fromkeys(spent, 0.0)
            for g in gates:
                g.score.data += 1e-3 * torch.randn_like(g.score)
                start = time.perf_counter()
                mask = g.kept()
                middle = time.perf_counter()
                wanted = by_sort(g.score, g.k)
                times["mask"] += middle - start
                times["sort"] += time.perf_counter() - middle
                if not torch.equal(mask, wanted):
                    raise SystemExit(f"masks of {tuple(g.score.shape)} differ")
            if round_:  # the first round has no earlier threshold
                for name, seconds in times.items():
                    spent[name].append(seconds)
        shares = [a / b for a, b in zip(spent["mask"], spent["sort"], strict=True)]
        mask_ms, sort_ms = (1e3 * statistics.median(spent[n]) for n in ("mask", "sort"))
        rows.append(
            [str(layout).removeprefix("torch."), mask_ms, sort_ms, statistics.median(shares), min(shares), max(shares)]
        )
    head = ["layout", "masks, median ms", "sorts, median ms", "ratio", "min", "max"]
    table = tabulate(rows, head, floatfmt=("", ".1f", ".1f", ".3f", ".3f", ".3f"), tablefmt="pipe")
    total = sum(torch.Size(s).numel() * n for s, n in SHAPES.items())
    text = (
        f"All {sum(SHAPES.values())} layers of a ResNet-18 ({total / 1e6:.1f} M scores), density {args.density}, fp32, "
        f"{args.threads} thread(s), {args.rounds} rounds, identical masks. {cpu_name()}, "
        f"torch {torch.__version__.split('+')[0]}, revision {revision()}.\n\n{table}\n"
    )
    publish(text, args.out)


if __name__ == "__main__":
    main()
