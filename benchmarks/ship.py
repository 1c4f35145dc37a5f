"""Measure tickets as C programs: latency beside onnxruntime, dense C and torch; flash and memory of a Cortex-M4.

    python benchmarks/ship.py [--rounds 300] [--out benchmarks/ship.md]

One thread. All variants take turns in each round, and the shortest time of each counts. Without onnxruntime
(`pip install onnx onnxscript onnxruntime`), its column is empty. The table of the microcontroller needs the tools that
examples/microcontroller/README.md names. Needs MNIST and CIFAR-10, see `crbg data`.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from publish import publish
from tabulate import tabulate

from crbg import Ticket
from crbg.export import Examples, predictions, to_c
from crbg.export.c.host import Built
from crbg.export.c.target import dense_ways
from crbg.export.inputs import TIMED, shortest
from crbg.runs.provenance import cpu_name, revision

FOLDER = Path(__file__).parents[1]
TICKETS = FOLDER / "results/recorded/tickets"
NATIVE = ("-O3", "-march=native")
LENETS = {  # recorded tickets of LeNet-300-100 on MNIST, by density
    0.01: "crbg-lenet-300-100-mnist-d0.01-60d8d00240734d1a-seed10",
    0.022: "crbg-lenet-300-100-mnist-d0.022-f3eaac86fbba2110-seed10",
    0.06: "crbg-lenet-300-100-mnist-d0.06-9c7082a4cebab88c-seed10",
    0.1: "crbg-lenet-300-100-mnist-d0.1-368cdd496340e31c-seed10",
    0.5: "crbg-lenet-300-100-mnist-d0.5-b683b55d8a3162a3-seed10",
}
CONV2 = "crbg-conv2-cifar10-d0.1-2bd2b14c75823005-seed10"


@torch.inference_mode()
def latency(name: str, ticket: Ticket, data: str, rounds: int) -> list[list[Any]]:
    """Return one row per batch size: times in microseconds, and how many times faster the program is."""
    model, examples, rows = ticket.model().eval(), Examples.load(data, ticket), []
    with tempfile.TemporaryDirectory() as work:
        ways = dense_ways(ticket, model, Path(work))
        to_c(ticket, Path(work) / "c")
        program = Built(Path(work) / "c", flags=NATIVE)
    expected = predictions(model, examples.inputs).argmax(1).numpy()
    for batch in TIMED:
        inputs = examples.inputs.numpy()
        equal = int((program.predict(inputs, batch).argmax(1) == expected).sum())
        x = np.ascontiguousarray(inputs[:batch])
        calls = {"program": program.call(x, batch=batch > 1)} | {name: prepare(x) for name, prepare in ways.items()}
        times = dict(zip(calls, shortest(list(calls.values()), rounds), strict=True))
        others = [times.get(other) for other in ("onnxruntime", "C", "torch")]
        factors = [None if t is None else t / times["program"] for t in others]
        micro = [None if t is None else 1e6 * t for t in (times["program"], *others)]
        rows.append([name, batch, *micro, *factors, f"{equal} of {len(expected)}"])
    return rows


def microcontroller(tickets: dict[float, Ticket], images: int = 1000) -> list[list[Any]]:
    """Return one row per ticket and way to obtain its weights; no rows if a tool is missing."""
    if not all(map(shutil.which, ("make", "arm-none-eabi-gcc", "arm-none-eabi-size", "qemu-system-arm"))):
        return []
    rows = []
    with tempfile.TemporaryDirectory() as work:
        folder = shutil.copytree(
            FOLDER / "examples/microcontroller", Path(work) / "example", ignore=shutil.ignore_patterns("build")
        )
        for density, ticket in tickets.items():
            for draw in ("fly", "stored"):
                shutil.rmtree(folder / "build", ignore_errors=True)
                ticket.save(folder / "ticket.safetensors")
                command = [sys.executable, "export.py", "ticket.safetensors", "--draw", draw, "--images", str(images)]
                subprocess.run(command, cwd=folder, check=True, capture_output=True)
                make = ["make", "measure-arm", "test-arm"]
                text = subprocess.run(make, cwd=folder, check=True, capture_output=True, text=True).stdout
                code, data, bss = map(int, re.findall(r"^\s*(\d+)\s+(\d+)\s+(\d+)\s+\d+\s+\w+\s+build", text, re.M)[0])
                found = {key: int(re.findall(rf"^{key} (\d+)", text, re.M)[0]) for key in ("instructions", "stack")}
                header = (folder / "build/digits.h").read_text()
                sizes = {key: int(n) for key, n in re.findall(r"#define DIGITS_(\w+) (\d+)", header)}
                ram = data + bss + sizes["INPUTS"] + 4 * (sizes["WORK"] + sizes["OUTPUTS"])
                equal = f"{images} of {images}"  # otherwise `make test-arm` fails
                rows.append([density, draw, code + data, ram, found["stack"], found["instructions"] / 1e6, equal])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--out", type=Path, help="also write the tables to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    tickets = {density: Ticket.load(TICKETS / f"{name}.safetensors") for density, name in LENETS.items()}
    rows = [
        row
        for density, ticket in tickets.items()
        for row in latency(f"LeNet-300-100, {density:g}", ticket, "mnist", args.rounds)
    ]
    rows += latency("Conv-2, 0.1", Ticket.load(TICKETS / f"{CONV2}.safetensors"), "cifar10", args.rounds)
    head = ["network, density", "batch", "C program", "onnxruntime", "dense C", "torch"]
    head += ["x onnxruntime", "x dense C", "x torch", "equal predictions"]
    table = tabulate(rows, head, tablefmt="pipe", floatfmt=("", "", *(".1f",) * 7, ""), missingval="")
    small = microcontroller({density: tickets[density] for density in (0.01, 0.022, 0.1)})
    text = (
        f"Tickets as C programs (`crbg export --to c`), one thread, {cpu_name()}, gcc {' '.join(NATIVE)}, "
        f"torch {torch.__version__.split('+')[0]}, revision {revision()}. Shortest time of {args.rounds} rounds in "
        "microseconds; in each round, all variants take turns. The columns with x state how many times faster the C "
        "program is.\n\n"
        f"{table}\n\n"
        "LeNet-300-100 on a Cortex-M4, arm-none-eabi-gcc -Os. Flash: code and tables of the program. RAM: its static "
        "data, the image as bytes, the work memory and the outputs. Stack, instructions for one image and predictions: "
        "measured in QEMU.\n\n"
    )
    head = ["density", "weights", "flash, bytes", "RAM, bytes", "stack, bytes", "million instructions"]
    missing = "Skipped: the tools for Arm are missing."
    text += tabulate(small, [*head, "equal predictions"], tablefmt="pipe") if small else missing
    publish(f"{text}\n", args.out)


if __name__ == "__main__":
    main()
