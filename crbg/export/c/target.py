"""The target `c` of `crbg export`."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from crbg.errors import CrbgError
from crbg.export.c.dense import DenseProgram, fully_connected
from crbg.export.c.host import Built
from crbg.export.c.write import to_c
from crbg.export.check import Examples, compare, predictions
from crbg.export.inputs import TIMED, one_thread, shortest
from crbg.export.onnx import example_of, inference_session, installed, to_onnx
from crbg.measure.accuracy import eval_mode
from crbg.ticket import Ticket

ARM = ("arm-none-eabi-gcc", "-mcpu=cortex-m4", "-mthumb", "-mfpu=fpv4-sp-d16", "-mfloat-abi=hard", "-Os", "-std=c99")
T = TypeVar("T")


def write(ticket: Ticket, folder: Path, draw: str | None) -> dict[str, Any]:
    """Write model.c and model.h; see `crbg.export.to_c`."""
    return to_c(ticket, folder, draw or "stored")


def check(ticket: Ticket, folder: Path, examples: Examples) -> dict[str, Any]:
    """Compile the program, run it on the examples, and compare its predictions with those of the ticket's network.

    Raises:
        CrbgError: there is no C compiler, or a prediction differs.
    """
    found = torch.from_numpy(Built(folder).predict(examples.inputs.numpy()))
    return compare(examples, predictions(ticket.model(), examples.inputs), found)


def bench(ticket: Ticket, folder: Path) -> dict[str, Any]:
    """Measure the time for batches of several sizes, and the size of the program on a Cortex-M4.

    The program and the dense network in PyTorch, in onnxruntime if it is installed, and as a C program if it is fully
    connected, run on one thread. They take turns, and the shortest of several rounds counts.
    """
    model, program = ticket.model(), _fast(Built, folder)
    found: dict[str, Any] = {}
    with one_thread(), eval_mode(model), torch.inference_mode(), tempfile.TemporaryDirectory() as place:
        others = dense_ways(ticket, model, Path(place))
        for batch in TIMED if program.batched else TIMED[:1]:
            x = np.random.default_rng(0).standard_normal((batch, *ticket.in_shape), np.float32)
            ours, *theirs = shortest([program.call(x, batch=batch > 1), *(prepare(x) for prepare in others.values())])
            found[f"C program, batch {batch}, microseconds"] = 1e6 * ours
            for name, seconds in zip(others, theirs, strict=True):
                found[f"C program, batch {batch}, times faster than dense {name}"] = seconds / ours
    return found | arm_sizes(folder)


def dense_ways(ticket: Ticket, model: nn.Module, folder: Path) -> dict[str, Callable[[Any], Callable[[], Any]]]:
    """Return, for each way to run a ticket's network as a dense one, a function that prepares a call for some inputs.

    The ways are `torch`, `onnxruntime` if it is installed, and `C` if the network is fully connected. Files are written
    into the folder.
    """
    ways: dict[str, Callable[[Any], Callable[[], Any]]] = {"torch": lambda x: partial(model, torch.from_numpy(x))}
    if installed():
        to_onnx(model, example_of(ticket), folder / "model.onnx")
        session = inference_session(folder / "model.onnx")
        name = session.get_inputs()[0].name
        ways["onnxruntime"] = lambda x: partial(session.run, None, {name: x})
    if fully_connected(model, ticket.in_shape):
        ways["C"] = _fast(DenseProgram, model, ticket.in_shape).call
    return ways


def arm_sizes(folder: Path) -> dict[str, Any]:
    """Return the flash and static memory of a program on a Cortex-M4; empty without a cross compiler.

    Flash contains code and tables. RAM contains static data and what the caller provides, that is the input, the work
    memory and the outputs, without the stack.
    """
    if not all(map(shutil.which, (ARM[0], "arm-none-eabi-size"))):
        return {}
    with tempfile.TemporaryDirectory() as work:
        code = Path(work) / "model.o"
        done = subprocess.run([*ARM, "-c", "-o", code, folder / "model.c"], capture_output=True, check=False)
        if done.returncode:
            return {}
        said = subprocess.run(["arm-none-eabi-size", code], capture_output=True, text=True, check=True).stdout
    text, data, bss = map(int, said.splitlines()[1].split()[:3])
    sizes = {key: int(n) for key, n in re.findall(r"#define MODEL_(\w+) (\d+)", (folder / "model.h").read_text())}
    ram = data + bss + 4 * (sizes["INPUTS"] + sizes["WORK"] + sizes["OUTPUTS"])
    return {"Cortex-M4: flash, bytes": text + data, "Cortex-M4: RAM, bytes": ram}


def _fast(build: Callable[..., T], *arguments: Any) -> T:
    """Compile for the processor of this machine, if the compiler knows it."""
    try:
        return build(*arguments, flags=("-O3", "-march=native"))
    except CrbgError:
        return build(*arguments)
