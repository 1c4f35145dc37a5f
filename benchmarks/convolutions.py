"""Measure a gated step of ResNet-50 at 64 pixels in bfloat16, with and without convolutions as matrix products.

    python benchmarks/convolutions.py [--rounds 8] [--out benchmarks/convolutions.md]

`crbg.training.small_convolutions` describes the products. Rounds take turns, and the ratio is the median of the ratios
within a round. Batch 64, Adam, one thread.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from publish import publish
from torch.nn.functional import cross_entropy

from crbg import attach, models
from crbg.gates.gaussian import Gaussian
from crbg.runs.provenance import cpu_name, revision
from crbg.training import precision
from crbg.training.small_convolutions import faster


def main() -> None:
    """Measure, print a sentence, and write it to a file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, _ = models.initial("timm:resnet50", (3, 64, 64), 10, "uniform", 0.05, 0, stem="imagenet")
    model.requires_grad_(False).to(memory_format=torch.channels_last)
    attach(model, lambda name, w: Gaussian(torch.full_like(w, 0.5), noise=0.0))
    adam = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3, fused=True)
    x = torch.randn(64, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    y = torch.randint(10, (64,))

    def step(products: bool) -> float:
        precision.faster = lambda device: products
        start = time.perf_counter()
        with precision.computing(torch.device("cpu"), "bf16"):
            loss = cross_entropy(model(x).float(), y)
        adam.zero_grad()
        loss.backward()
        adam.step()
        return time.perf_counter() - start

    step(False), step(True)  # warm-up
    rounds = [(step(False), step(True)) for _ in range(args.rounds)]
    plain, products = map(statistics.median, zip(*rounds, strict=True))
    ratio = statistics.median(b / a for a, b in rounds)
    publish(
        f"{cpu_name()}, one thread, torch {torch.__version__}, revision {revision()}. A gated step of ResNet-50 at 64 "
        f"pixels, batch 64, bfloat16: {plain:.2f} s, with matrix products {products:.2f} s, ratio {ratio:.2f} (median "
        f"of {args.rounds} rounds). They are {'' if faster(x.device) else 'not '}used on this processor.\n",
        args.out,
    )


if __name__ == "__main__":
    main()
