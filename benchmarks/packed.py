"""Measure the size of packed tickets and the time to pack and unpack 25 million weights.

    python benchmarks/packed.py [--out benchmarks/packed.md]

The first table compares the mask of each recorded ticket in several codes: one bit per weight, general compressors on
these bits, the entropy of the densities of the layers, and `crbg.packing` without and with the initial weights. The
second table measures the CPU time for random masks with the shapes of a ResNet-50, on one thread. Each packed mask is
unpacked and compared.
"""

import argparse
import importlib
import lzma
import tempfile
import time
import zlib
from pathlib import Path

import torch
from publish import publish
from tabulate import tabulate

from crbg import Mask, Ticket, models, packing, weights
from crbg.export.write import sizes
from crbg.rng import LAWS
from crbg.runs.provenance import cpu_name, revision

TICKETS = Path(__file__).parents[1] / "results/recorded/tickets"
COMPRESSORS = {
    "zlib": lambda b: zlib.compress(b, 9),
    "lzma": lambda b: lzma.compress(b, preset=9 | lzma.PRESET_EXTREME),
}


def packed(mask: Mask, contexts: packing.contexts.Contexts) -> tuple[bytes, float, float]:
    """Pack a mask; return its code, and the CPU seconds to pack and to unpack it."""
    start = time.process_time()
    data = packing.pack(mask, contexts)
    middle = time.process_time()
    again = packing.unpack(data, mask.shapes, contexts)
    end = time.process_time()
    if again != mask:
        raise SystemExit("an unpacked mask differs from the packed one")
    return data, middle - start, end - middle


def table_of_sizes(tickets: list[Path]) -> str:
    """Return the table of sizes."""
    compressors = dict(COMPRESSORS)
    try:
        compressors["brotli"] = importlib.import_module("brotli").compress
    except ImportError:
        print("brotli is not installed, so its column is left out")
    rows = []
    for path in tickets:
        ticket = Ticket.load(path)
        bits, entropy = ticket.mask.pack(), sizes(ticket.mask, 0)["entropy by layer"]
        plain = len(packed(ticket.mask, packing.contexts.none)[0])
        given = len(packed(ticket.mask, packing.contexts.from_seed(ticket.seed))[0]) if ticket.law in LAWS else plain
        with tempfile.TemporaryDirectory() as folder:
            file, old = Path(folder) / "packed", Path(folder) / "bits"
            ticket.save(file)
            ticket.save(old, pack="bits")
            total, share = file.stat().st_size, file.stat().st_size / old.stat().st_size
        others = [len(compress(bits)) for compress in compressors.values()]
        name, digest = path.name.split("-seed")[0].rsplit("-", 1)
        name = f"{name} ({digest[:6]})"
        rows.append([name, len(bits), *others, entropy, plain, given, given / entropy, total, share])
    head = ["ticket", "bits", *compressors, "entropy by layer", "packed, no weights", "packed", "packed / entropy"]
    formats = ("", *["d"] * (4 + len(compressors)), ".3f", "d", ".3f")
    return tabulate(rows, [*head, "file", "file / file with bits"], floatfmt=formats, tablefmt="pipe")


def table_of_seconds(densities: list[float]) -> str:
    """Return the table of times."""
    with torch.device("meta"):
        model = models.build("timm:resnet50", (3, 224, 224), 1000)
    shapes = {n: tuple(w.shape) for n, w in weights(model).items()}
    rows = []
    for density in densities:
        random = torch.Generator().manual_seed(0)
        mask = Mask({n: torch.rand(s, generator=random) < density for n, s in shapes.items()})
        data, pack, unpack = packed(mask, packing.contexts.from_seed(0))
        rows.append([density, mask.total, len(data), len(data) / sizes(mask, 0)["entropy by layer"], pack, unpack])
    head = ["density", "weights", "packed", "packed / entropy", "CPU seconds to pack", "to unpack"]
    return tabulate(rows, head, floatfmt=("g", "d", "d", ".3f", ".1f", ".1f"), tablefmt="pipe")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--densities", type=float, nargs="*", default=[0.01, 0.1], help="for the table of times")
    parser.add_argument("--out", type=Path, help="also write the tables to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    text = (
        "Sizes in bytes of the masks in `results/recorded/tickets`; the last two columns are for the whole file.\n\n"
        f"{table_of_sizes(sorted(TICKETS.glob('*.safetensors')))}\n\n"
        "Random masks with the shapes of a ResNet-50, one thread, one run. "
        f"{cpu_name()}, torch {torch.__version__.split('+')[0]}, revision {revision()}.\n\n"
        f"{table_of_seconds(args.densities)}\n"
    )
    publish(text, args.out)


if __name__ == "__main__":
    main()
