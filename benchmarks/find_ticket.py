"""Measure what `find_ticket` costs beside a plain loop that trains the same gates.

    python benchmarks/find_ticket.py [--rounds 5] [--epochs 10]

Both run the same number of steps on 9 000 of 10 000 random images, with the same gates, gains, density path and
optimiser, on one thread. `find_ticket` also checks the first batch, chooses the temperature, compares and hashes
weights, and measures the ticket and the initial network on 1 000 held-out images. Each round times both, and
`find_ticket` with `precision="auto"` too. The goal is a ratio of at most 1.05.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from publish import publish
from tabulate import tabulate
from torch import Tensor, nn
from torch.nn import functional as F
from zoo_tasks import mlp

from crbg import find_ticket
from crbg.defaults import POLISHED
from crbg.gates import attach
from crbg.gates.gaussian import Gaussian
from crbg.runs.provenance import cpu_name, revision
from crbg.search.density_controller import Plan, Shifted
from crbg.search.gain import scaled, variance_gains
from crbg.training.schedules import plateau

DENSITY, BATCH = 0.1, 128


def cnn() -> nn.Module:
    """Build a convolutional network of two layers with batch norm."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 49, 10),
    )


def plain_loop(model: nn.Module, x: Tensor, y: Tensor, epochs: int) -> None:
    """Train the gates of `find_ticket`'s default for `crbg`, without anything around it."""

    def gate(name: str, w: Tensor) -> Gaussian:
        return Gaussian(0.5 + POLISHED["mu0_spread"] * torch.randn_like(w), noise=POLISHED["noise"], penalty_sigma=0.5)

    with scaled(model, variance_gains(model, DENSITY)), attach.frozen(model), attach.gated(model, gate):
        hook = Shifted(model, DENSITY, Plan(polish=POLISHED["polish"]))
        rate, betas = POLISHED["lr"], (POLISHED["beta1"], POLISHED["beta2"])
        adam = torch.optim.Adam([g.mu for g in hook.gates], rate, betas, fused=True)
        steps = epochs * -(-len(x) // BATCH)
        done = 0
        model.train()
        for _ in range(epochs):
            for rows in torch.randperm(len(x)).split(BATCH):
                progress = done / steps
                adam.param_groups[0]["lr"] = rate * plateau(progress)
                hook.before_forward(progress)
                adam.zero_grad()
                F.cross_entropy(model(x[rows]), y[rows]).backward()
                adam.step()
                hook.after_step(progress)
                done += 1


def seconds(action: Callable[[], object]) -> float:
    """Return the CPU seconds of a call."""
    started = time.process_time()
    action()
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x, y = torch.randn(10_000, 1, 28, 28), torch.randint(0, 10, (10_000,))
    rows = []
    for name, build in {"LeNet-300-100": partial(mlp, 784, 300, 100, 10), "CNN with batch norm": cnn}.items():
        rounds = []
        for _ in range(args.rounds + 1):  # the first round warms up
            plain = seconds(partial(plain_loop, build(), x[:9000], y[:9000], args.epochs))
            search = partial(find_ticket, data=(x, y), density=DENSITY, epochs=args.epochs, batch=BATCH)
            rounds.append(
                (plain, seconds(partial(search, build())), seconds(partial(search, build(), precision="auto")))
            )
        del rounds[0]
        middle = [f"{statistics.median(column):.2f}" for column in zip(*rounds, strict=True)]
        ratios = [f"{statistics.median(r[i] / r[0] for r in rounds):.3f}" for i in (1, 2)]
        rows.append([name, *middle, *ratios])
    heads = ["network", "plain loop, CPU s", "find_ticket", "precision auto", "ratio", "ratio, precision auto"]
    table = tabulate(rows, heads, "github", disable_numparse=True)
    publish(
        f"{cpu_name()}, 1 thread, {args.epochs} epochs of 9 000 images, batch {BATCH}, median of {args.rounds} rounds, "
        f"torch {torch.__version__.split('+')[0]}, revision {revision()}. Goal: a ratio of at most 1.05.\n\n{table}\n",
        args.out,
    )


if __name__ == "__main__":
    main()
