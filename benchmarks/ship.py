"""Measure tickets as C programs: latency beside onnxruntime, dense C and torch; flash and memory of a Cortex-M4.

    python benchmarks/ship.py [--rounds 300] [--out benchmarks/ship.md]

One thread. All variants take turns in each round, and the shortest time of each counts. Without onnxruntime
(`pip install onnx onnxscript onnxruntime`), its column is empty. The table of the microcontroller needs the tools that
examples/microcontroller/README.md names. Needs MNIST and CIFAR-10, see `crbg data`.
"""

import argparse
import ctypes
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from publish import publish
from tabulate import tabulate

from crbg import Ticket
from crbg.export import Examples, predictions, to_c
from crbg.export.c.host import STANDARD, Built, compile_c, pointer
from crbg.export.inputs import TIMED, shortest
from crbg.export.onnx import example_of, inference_session, to_onnx
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

# LeNet-300-100 as dense loops: one image with the units in the inner loop, which becomes vector code, and 16 images at
# a time in one vector, with four units in registers.
DENSE = """
typedef float lanes __attribute__((vector_size(64)));

static float leaky(float y, int active)
{
    return active && y < 0 ? y * 0.25f : y;
}

static void one(const float *w, const float *x, float *restrict y, int inputs, int units, int active)
{
    for (int j = 0; j < units; j++)
        y[j] = 0;
    for (int i = 0; i < inputs; i++)
        for (int j = 0; j < units; j++)
            y[j] += w[i * units + j] * x[i];
    for (int j = 0; j < units; j++)
        y[j] = leaky(y[j], active);
}

static void tile(const float *w, const lanes *x, lanes *restrict y, int inputs, int units, int active)
{
    lanes sum[4], quarter;
    for (int j = 0; j < units; j += 4) {
        int left = units - j < 4 ? units - j : 4;
        sum[0] = sum[1] = sum[2] = sum[3] = (lanes){0};
        for (int i = 0; i < inputs; i++)
            for (int u = 0; u < 4; u++)
                sum[u] += w[i * units + j + (u < left ? u : 0)] * x[i];
        for (int u = 0; u < left; u++) {
            quarter = sum[u] * (active ? 0.25f : 1.0f);
            for (int k = 0; k < 16; k++)
                y[j + u][k] = sum[u][k] < 0 ? quarter[k] : sum[u][k];
        }
    }
}

void network(const float *const *w, const float *x, float *y, int count);
void network(const float *const *w, const float *x, float *y, int count)
{
    static lanes in[784], a[300], b[100], out[10];
    float hidden[300], second[100];
    for (; count >= 16; count -= 16, x += 784 * 16, y += 10 * 16) {
        for (int i = 0; i < 784; i++)
            for (int k = 0; k < 16; k++)
                in[i][k] = x[k * 784 + i];
        tile(w[0], in, a, 784, 300, 1);
        tile(w[1], a, b, 300, 100, 1);
        tile(w[2], b, out, 100, 10, 0);
        for (int k = 0; k < 16; k++)
            for (int i = 0; i < 10; i++)
                y[k * 10 + i] = out[i][k];
    }
    for (; count; count--, x += 784, y += 10) {
        one(w[0], x, hidden, 784, 300, 1);
        one(w[1], hidden, second, 300, 100, 1);
        one(w[2], second, y, 100, 10, 0);
    }
}
"""


def dense_c(model: torch.nn.Module, folder: Path) -> Callable[[np.ndarray], Callable[[], None]]:
    """Compile LeNet-300-100 as dense loops; return a function that makes a call for some inputs."""
    (folder / "dense.c").write_text(DENSE)
    compile_c([folder / "dense.c"], folder / "dense.so", [*STANDARD, *NATIVE, "-shared", "-fPIC"])
    library = ctypes.CDLL(str(folder / "dense.so"))
    weights = [np.ascontiguousarray(p.detach().numpy().T) for p in model.parameters()]
    table = (ctypes.c_void_p * 3)(*(w.ctypes.data for w in weights))

    def call(x: np.ndarray) -> Callable[[], None]:
        y = np.zeros((len(x), 10), np.float32)
        arguments = (table, pointer(x), pointer(y), len(x))

        def run(_: Any = (x, y, weights)) -> None:
            library.network(*arguments)

        run()
        expected = model(torch.from_numpy(x)).detach().numpy()
        assert np.abs(y - expected).max() < 1e-4 * np.abs(expected).max()
        return run

    return call


@torch.inference_mode()
def latency(name: str, ticket: Ticket, data: str, rounds: int) -> list[list[Any]]:
    """Return one row per batch size: times in microseconds, and how many times faster the program is."""
    model, examples = ticket.model().eval(), Examples.load(data, ticket)
    session, rows = None, []
    with tempfile.TemporaryDirectory() as work:
        if importlib.util.find_spec("onnxruntime"):
            file = Path(work) / "model.onnx"
            to_onnx(model, example_of(ticket), file)
            session = inference_session(file)
        to_c(ticket, Path(work) / "c")
        program = Built(Path(work) / "c", flags=NATIVE)
        dense = dense_c(model, Path(work)) if ticket.model_name == "lenet-300-100" else None
    expected = predictions(model, examples.inputs).argmax(1).numpy()
    for batch in TIMED:
        inputs = examples.inputs.numpy()
        equal = int((program.predict(inputs, batch).argmax(1) == expected).sum())
        x = np.ascontiguousarray(inputs[:batch])
        calls: dict[str, Callable[[], Any]] = {
            "program": program.call(x, batch=batch > 1),
            "torch": partial(model, torch.from_numpy(x)),
        }
        if dense:
            calls["dense C"] = dense(x)
        if session:
            calls["onnxruntime"] = partial(session.run, None, {session.get_inputs()[0].name: x})
        times = dict(zip(calls, shortest(list(calls.values()), rounds), strict=True))
        others = [times.get(other) for other in ("onnxruntime", "dense C", "torch")]
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
