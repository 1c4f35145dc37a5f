"""Measure the cost of a gated training step relative to a dense step: LeNet-300-100, batch 256, fp32, one thread.

    python benchmarks/step.py [--model lenet-300-100] [--batch 256] [--rounds 15]

Every variant does the work of one step of `fit`: hooks, forward pass, backward pass, optimiser. Each round times all
variants, and ratios are computed within a round, so a temporary slowdown of the machine affects both steps of a ratio.
Goals on one thread: a gated step takes at most 2.0 times as long as a dense step with independent normal noise, and at
most 1.4 times as long with counter-based noise, which gives the same accuracy (`lenet_noise_counter`).
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from publish import publish
from tabulate import tabulate
from torch.nn.functional import cross_entropy

from crbg import models
from crbg.gates import attach
from crbg.gates.base import Gate
from crbg.gates.concrete import Concrete, HardConcrete
from crbg.gates.gaussian import Gaussian
from crbg.gates.scores import Rounded, Sampled, TopK
from crbg.models.initial_weights import initialise
from crbg.runs.provenance import cpu_name, revision
from crbg.search import density_controller
from crbg.search.gradbalance import GemMinerPruning, GlobalThreshold, GradBalance, Redraw
from crbg.search.variational import Variational
from crbg.training.hooks import SearchHook


def stepper(
    model: torch.nn.Module,
    search: SearchHook,
    optimiser: torch.optim.Optimizer,
    x: torch.Tensor,
    y: torch.Tensor,
    loss_of: Callable[..., torch.Tensor] = cross_entropy,
) -> Callable[[], None]:
    def step() -> None:
        search.before_forward(0.7)
        optimiser.zero_grad()
        loss = loss_of(model(x), y)
        loss.backward()
        search.after_backward(0.7)
        optimiser.step()
        search.after_step(0.7)
        float(loss.detach())

    return step


def variants(name: str, x: torch.Tensor, y: torch.Tensor) -> dict[str, Callable[[], None]]:
    """Return a step function for each variant, by name."""
    out = {}

    def fresh() -> torch.nn.Module:
        model = models.build(name, tuple(x.shape[1:]), 10)
        initialise(model, "uniform", 0.25, 0)
        return model

    dense = fresh()
    out["dense"] = stepper(dense, SearchHook(), torch.optim.Adam(dense.parameters(), lr=1e-3, fused=True), x, y)
    for label, options in {
        "gated, no noise": {"noise": 0.0},
        "gated, normal": {"noise": 0.25},
        "gated, antithetic": {"noise": 0.25, "source": "antithetic"},
        "gated, counter": {"noise": 0.25, "source": "counter"},
    }.items():
        for steering in ("fixed lambda", "controlled"):
            model = fresh()
            for p in model.parameters():
                p.requires_grad_(False)
            attach.attach(model, lambda n, w, o=options: Gaussian(torch.full_like(w, 0.5), **o))
            for g in attach.attached_gates(model).values():
                g.sampling = True
            search = (
                density_controller.Penalised(model, "induce_sparse", 1.0)
                if steering == "fixed lambda"
                else density_controller.Controlled(model, "induce_sparse", 0.1)
            )
            adam = torch.optim.Adam([g.mu for g in search.gates], lr=0.02, fused=True)
            out[f"{label}, {steering}"] = stepper(model, search, adam, x, y)
    for label, (make, learn) in rivals_of().items():
        model = fresh()
        for p in model.parameters():
            p.requires_grad_(False)
        attach.attach(model, make)
        for g in attach.attached_gates(model).values():
            g.sampling = True
        optimiser, search = learn(list(attach.attached_gates(model).values()), dict(attach.weights(model)))
        out[label] = stepper(model, search, optimiser, x, y)
    model = fresh()
    noisy = Variational(model, -10.0, 3.0).__enter__()
    both = [*noisy.weights.values(), *noisy.log_sigma2.parameters()]
    plain = stepper(
        model,
        noisy,
        torch.optim.Adam(both, lr=1e-3, fused=True),
        x,
        y,
        lambda out, y: cross_entropy(out, y) + noisy.penalty(),
    )
    out["sparse_vd"] = plain
    return out


Parts = tuple[Callable[..., Gate], Callable[..., tuple[torch.optim.Optimizer, SearchHook]]]


def rivals_of() -> dict[str, Parts]:
    """Return for each other method two functions, for 10 % density: one makes its gates, one its optimiser and hook."""
    sgd = partial(torch.optim.SGD, lr=0.1, momentum=0.9)

    def popup(n: str, w: torch.Tensor) -> Gate:
        return TopK(w * 1.0, w.numel() // 10, 10**0.5)

    def tenth(gates: list[Any]) -> int:
        return sum(p.numel() for g in gates for p in g.parameters()) // 10

    def adam(gates: list[Any]) -> torch.optim.Optimizer:
        return torch.optim.Adam([g.logit for g in gates], lr=0.1, fused=True)

    return {
        "edge_popup": (popup, lambda gates, w: (sgd([g.score for g in gates]), SearchHook())),
        "edge_popup_global": (
            popup,
            lambda gates, w: (sgd([g.score for g in gates]), GlobalThreshold(gates, 0.1, 0.1)),
        ),
        "iterand": (popup, lambda gates, w: (sgd([g.score for g in gates]), Redraw(w, gates, 0, 300, 0.1))),
        "gem_miner": (
            lambda n, w: Rounded(torch.rand_like(w)),
            lambda gates, w: (sgd([g.p for g in gates]), GemMinerPruning(gates, tenth(gates), 10, 0.0)),
        ),
        "supermask": (
            lambda n, w: Sampled(torch.full_like(w, -2.2), False),
            lambda gates, w: (sgd([g.v for g in gates]), SearchHook()),
        ),
        "concrete": (
            lambda n, w: Concrete(torch.full_like(w, -2.2)),
            lambda gates, w: (adam(gates), GradBalance(gates, tenth(gates))),
        ),
        "hard_concrete": (
            lambda n, w: HardConcrete(torch.full_like(w, -2.2)),
            lambda gates, w: (adam(gates), GradBalance(gates, tenth(gates))),
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="lenet-300-100")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=20, help="steps of each variant in a round")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    x, y = torch.randn(args.batch, 1, 28, 28), torch.randint(0, 10, (args.batch,))
    steps = variants(args.model, x, y)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(args.rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            for _ in range(args.steps):
                step()
            if round_:  # the first round warms up
                times[name].append((time.perf_counter() - start) / args.steps * 1e3)
    rows = []
    for name, t in times.items():
        ratios = [a / b for a, b in zip(t, times["dense"], strict=True)]
        rows.append([name, statistics.median(t), statistics.median(ratios), min(ratios), max(ratios)])
    table = tabulate(rows, ["step", "median ms", "ratio to dense", "min", "max"], floatfmt=".2f", tablefmt="pipe")
    setting = (
        f"{args.model}, batch {args.batch}, fp32, {args.threads} thread(s), {args.rounds} rounds of {args.steps} steps"
    )
    where = f"{cpu_name()}, torch {torch.__version__.split('+')[0]}, revision {revision()}"
    text = f"{setting}. {where}. Ratios are computed within each round.\n\n{table}\n"
    publish(text, args.out)


if __name__ == "__main__":
    main()
