"""Measure how much faster networks run in onnxruntime without their dead units.

    python benchmarks/shrunk.py [--networks lenet vgg16 resnet20] [--out benchmarks/shrunk.md]

It needs the extra `crbg[export]`. For each network, weights are trained, a search closes half of the units
(`granularity="stream"`), the kept weights are trained again, and the dead units are cut out. For comparison, a random
half of the units of an untrained network is cut out. Searches on CIFAR-10 are short: their accuracies do not show what
the method can reach. The networks with and without dead units are timed in interleaved rounds on one thread.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from publish import publish
from tabulate import tabulate
from torch import Tensor, nn

from crbg import Mask, find_ticket, models, weights
from crbg.data.sources import load
from crbg.export import measure, shrink
from crbg.export.inputs import TIMED
from crbg.gates.attach import bake
from crbg.gates.coupling import shared_units, trace
from crbg.gates.layers import columns_of
from crbg.measure.accuracy import accuracy
from crbg.runs.provenance import cpu_name, revision


@dataclass(frozen=True)
class Case:
    """A network, its data, and the length of the search."""

    model: str
    data: str
    images: int
    epochs: int  # before, in and after the search; 0: only a random half of the units is cut out
    factor: float  # the speed-up that this project aims at, at one batch size at least


CASES = {
    "lenet": Case("lenet-300-100", "mnist", 20000, 4, 1.5),
    "vgg16": Case("vgg16", "cifar10", 4, 0, 3.0),  # a search takes too long for a benchmark
    "resnet20": Case("resnet20", "cifar10", 5000, 6, 2.0),
}


def searched(model: nn.Module, x: Tensor, y: Tensor, epochs: int) -> nn.Module:
    """Train the weights, search for half of the units, and train the kept weights."""
    found = find_ticket(
        model,
        (x, y),
        0.5,
        granularity="stream",
        steer="shift_layers",  # half of the units of each layer: libraries compute 8 or 16 channels at a time
        epochs=epochs,
        pretrain=epochs,
        finetune=epochs,
        batch=64,
        lr=0.05,
        validation=0.0,
        precision="auto",  # bfloat16 where it pays; accuracies and times are measured in float32
    )
    return found.apply(model)


def at_random(model: nn.Module, x: Tensor) -> nn.Module:
    """Close a random half of the units of each layer or stream."""
    units = shared_units(trace(model.eval(), lambda: model(x[:2])), model)
    generator, open_units, mask = torch.Generator().manual_seed(0), {}, {}
    for name, own in units.items():
        if own not in open_units:
            order = torch.randperm(len(own), generator=generator)
            open_units[own] = (order < max(1, len(own) // 2)).float()
        w = weights(model)[name]
        mask[name] = columns_of(model, name).expand(open_units[own], w).expand(w.shape).bool()
    return bake(model, Mask(mask))


def measured(name: str, case: Case, images: int, how: str) -> list[list[object]]:
    """Return the rows of one network: its size, accuracy and speed with and without the dead units."""
    data = load(case.data)
    model, _ = models.initial(case.model, data.in_shape, data.classes, "kaiming_normal", 1.0, 0)
    x, y = data.train.inputs(slice(images)), data.train.y[:images]
    start = time.perf_counter()
    sparse = (searched(model, x, y, case.epochs) if how == "searched" else at_random(model, x)).eval()
    seconds = time.perf_counter() - start
    small = shrink(sparse, None, x[:4]).eval()
    held = data.validation
    batches = [(held.inputs(slice(i, i + 100)), held.y[i : i + 100]) for i in range(0, min(2000, len(held.y)), 100)]
    both = [accuracy(network, batches) if how == "searched" else None for network in (sparse, small)]
    found = measure({"dense": sparse, "shrunk": small}, x[:4])
    counts = [found[f"{key}, parameters"] for key in ("dense", "shrunk")]
    print(f"{name}, {how}: {seconds:.0f} s, {both}", flush=True)
    return [
        [f"{name}, {how}", *counts, *both, size, before, after, before / after, case.factor]
        for size in TIMED
        for before, after in [[found[f"{key}, onnxruntime, batch {size}, microseconds"] for key in ("dense", "shrunk")]]
    ]


HEADERS = [
    "network and units",
    "parameters",
    "without dead units",
    "accuracy, %",
    "without dead units, %",
    "batch",
    "time, µs",
    "without dead units, µs",
    "times faster",
    "aim",
]


def main() -> None:
    """Measure, print the table, and write it to a file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--images", type=int, help="images for the searches, instead of those of each network")
    parser.add_argument("--how", nargs="+", choices=("searched", "random"), default=("searched", "random"))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in args.networks:
        for how in args.how if CASES[name].epochs else ("random",):
            rows += measured(name, CASES[name], args.images or CASES[name].images, how)
    table = tabulate(
        rows,
        HEADERS,
        tablefmt="github",
        missingval="-",
        floatfmt=("", "", "", ".1f", ".1f", "", ".0f", ".0f", ".2f", "g"),
    )
    lengths = "; ".join(
        f"{n}: {c.data}, {args.images or c.images} images, {c.epochs} epochs each" for n, c in CASES.items() if c.epochs
    )
    publish(
        f"# Networks without their dead units\n\n{cpu_name()}, one thread, onnxruntime, revision {revision()}.\n\n"
        f'Half of the units are closed. *searched*: training, search with `granularity="stream"` and training of the '
        f"kept weights ({lengths}). Accuracies are on up to 2 000 validation images. *random*: a random half of the "
        f"units of each layer or stream of an untrained network.\n\n{table}\n",
        args.out,
    )


if __name__ == "__main__":
    main()
