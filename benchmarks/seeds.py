"""Measure whether it is faster to train several seeds of one network together than one after the other.

    python benchmarks/seeds.py [--models resnet20] [--batch 128] [--seeds 4] [--precision fp32] [--device auto]

"one by one" steps the networks one after the other. "vmap" stacks weights and running statistics of all seeds
and maps one functional step over them (torch.func), with a separate batch for each seed. "streams" (GPUs only) uses one
CUDA stream per seed. All variants do the same SGD step on the same batches, and their losses are compared first. A
fourth variant, several processes on one GPU (`gpu_share` in config.yaml), is not measured here.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from publish import publish
from tabulate import tabulate
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.functional import cross_entropy

from crbg import models
from crbg.runs.provenance import cpu_name, revision
from crbg.training import device

Step = Callable[[], list[float]]


def networks(name: str, seeds: int, where: torch.device) -> list[torch.nn.Module]:
    return [models.initial(name, (3, 32, 32), 10, "kaiming_normal", 1.0, s)[0].to(where).train() for s in range(seeds)]


def in_turn(nets: list[torch.nn.Module], x: Tensor, y: Tensor, cast: torch.dtype | None, streams: bool) -> Step:
    """Return a function that does one step of each network; `x` has shape (seeds, batch, 3, 32, 32)."""
    sgds = [torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, fused=True) for net in nets]
    lanes = [torch.cuda.Stream(x.device) if streams else None for _ in nets]

    def step() -> list[float]:
        losses = []
        for net, sgd, lane, a, b in zip(nets, sgds, lanes, x, y, strict=True):
            with torch.cuda.stream(lane) if lane else nullcontext():
                sgd.zero_grad()
                with torch.autocast(x.device.type, cast, enabled=cast is not None):
                    loss = cross_entropy(net(a), b)
                loss.backward()
                sgd.step()
                losses.append(loss.detach())
        if streams:
            torch.cuda.synchronize(x.device)
        return torch.stack(losses).tolist()

    return step


def together(nets: list[torch.nn.Module], x: Tensor, y: Tensor, cast: torch.dtype | None) -> Step:
    """Return a function that does one step of all networks at once."""
    parameters, buffers = stack_module_state(nets)
    sgd = torch.optim.SGD(parameters.values(), 0.1, momentum=0.9, fused=True)

    def loss_of(p: dict[str, Tensor], b: dict[str, Tensor], a: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(functional_call(nets[0], (p, b), (a,)), labels)

    def step() -> list[float]:
        sgd.zero_grad()
        with torch.autocast(x.device.type, cast, enabled=cast is not None):
            losses = vmap(loss_of)(parameters, buffers, x, y)
        losses.sum().backward()
        sgd.step()
        return losses.detach().tolist()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["lenet-300-100", "resnet20"])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    where = device.pick(args.device)
    cast = torch.bfloat16 if args.precision == "bf16" else None
    rows = []
    for name in args.models:
        for seeds in args.seeds:
            noise = torch.Generator().manual_seed(0)
            x = torch.randn(seeds, args.batch, 3, 32, 32, generator=noise).to(where)
            y = torch.randint(0, 10, (seeds, args.batch), generator=noise).to(where)
            ways: dict[str, Step] = {
                "one by one": in_turn(networks(name, seeds, where), x, y, cast, streams=False),
                "vmap": together(networks(name, seeds, where), x, y, cast),
            }
            if where.type == "cuda":
                ways["streams"] = in_turn(networks(name, seeds, where), x, y, cast, streams=True)
            first = torch.tensor([step() for step in ways.values()])
            torch.testing.assert_close(
                first, first[:1].expand_as(first), rtol=1e-4 if cast is None else 2e-2, atol=1e-4
            )
            times: dict[str, list[float]] = {way: [] for way in ways}
            for round_ in range(args.rounds + 1):
                for way, step in ways.items():
                    start = time.perf_counter()
                    step()  # it returns losses on the CPU, so it waits for the device
                    if round_:  # the first round warms up
                        times[way].append(time.perf_counter() - start)
            for way, t in times.items():
                ratio = statistics.median(a / b for a, b in zip(t, times["one by one"], strict=True))
                rows.append([name, seeds, way, f"{1000 * statistics.median(t) / seeds:.1f}", f"{ratio:.2f}"])
    chip = torch.cuda.get_device_name(where) if where.type == "cuda" else f"{cpu_name()}, {args.threads} thread(s)"
    head = ["network", "seeds", "step", "ms per seed", "ratio to one by one"]
    publish(
        f"{chip}, batch {args.batch}, {args.precision}, {args.rounds} rounds, torch {torch.__version__.split('+')[0]}, "
        f"revision {revision()}.\n\n{tabulate(rows, head, tablefmt='pipe', disable_numparse=True)}\n",
        args.out,
    )


if __name__ == "__main__":
    main()
