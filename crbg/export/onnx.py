"""The target `onnx`: the sparse network as an ONNX file, checked in onnxruntime. It needs the extra `crbg[export]`."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from crbg import models
from crbg.errors import CrbgError, innermost, reason
from crbg.export.check import Examples, compare, predictions
from crbg.export.inputs import (
    TIMED,
    arguments,
    check_computes,
    copied,
    dynamic_shapes,
    first_output,
    microseconds,
    outputs,
    rows,
    worst_difference,
)
from crbg.gates.attach import attached_gates, bake
from crbg.rng import LAWS
from crbg.ticket import Ticket
from crbg.training.trees import tensors

FILE = "model.onnx"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")

# Runs in a new process, so that nothing else counts. Linux reports the current and the peak memory in KiB.
_CHILD = """
import re, sys
import numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
feed = dict(numpy.load(sys.argv[2]))
def memory(kind):
    return int(re.search(kind + r":\\s+(\\d+)", open("/proc/self/status").read())[1])
before = memory("VmRSS")
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
session.run(None, {i.name: feed[str(n)] for n, i in enumerate(session.get_inputs())})
print(memory("VmHWM") - before)
"""


def to_onnx(
    model: nn.Module,
    example: Any,
    path: Path | str,
    *,
    metadata: Mapping[str, str] | None = None,
    tolerance: float = 1e-6,
) -> float:
    """Write a network as an ONNX file with a dynamic batch size, and compare it with the network in onnxruntime.

    The network is exported in eval mode and on the CPU; gates are evaluated once. The file contains pruned weights as
    zeros, so it is as large and as slow as that of the dense network. Only `shrink` makes the network smaller.

    Args:
        model: Any module. It is not changed.
        example: A batch of inputs: a tensor, a tuple of positional arguments, or a mapping of keyword arguments. The
            examples lie on the first axis of each tensor.
        path: The file. An existing file is replaced only if the comparison succeeds.
        metadata: Text to store in the file (`metadata_props`).
        tolerance: Largest difference of an output at batch sizes 1, 2 and 5, relative to the largest output.

    Returns:
        The largest relative difference found.

    Raises:
        CrbgError: the extra is missing, the network cannot be exported, or the outputs differ by more than `tolerance`.
    """
    require(*PACKAGES)
    if not isinstance(path, str | Path):
        raise CrbgError(f"path must be the name of a file, not {type(path).__name__}: to_onnx(model, example, path)")
    path = Path(path).expanduser()
    if path.is_dir():
        raise CrbgError(f"{path} is a folder; pass the path of the file to write")
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = copied(model).eval()
    if attached_gates(plain):
        bake(plain)
    check_computes(plain, rows(example, 2))
    program = _export(plain, rows(example, 2))
    program.model.metadata_props.update(metadata or {})
    partial = path.with_name(f".{path.name}.partial")
    try:
        program.save(partial)
        try:
            run = session(partial)
        except Exception as error:  # of types of onnxruntime
            raise CrbgError(f"onnxruntime does not support the file: {reason(error)}; try model.float()") from error
        worst = worst_difference(plain, run, example)
        if not worst <= tolerance:
            raise CrbgError(
                f"the outputs of the ONNX file differ by {worst:.2g} of the largest output, more than {tolerance:g}; "
                "the file was removed; if this is close enough, for example in half precision, pass a larger tolerance"
            )
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return worst


def require(*packages: str) -> None:
    """Check that optional packages are installed.

    Raises:
        CrbgError: one is missing.
    """
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise CrbgError(f"{', '.join(missing)} not found: run `pip install crbg[export]`")


def installed() -> bool:
    """Return whether all packages are installed that `to_onnx` needs."""
    return all(map(importlib.util.find_spec, PACKAGES))


def inference_session(path: Path) -> Any:
    """Return a session of onnxruntime with one thread."""
    onnxruntime = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def session(path: Path) -> Callable[[Any], list[Tensor]]:
    """Return a function that runs an ONNX file in onnxruntime, on one thread."""
    running = inference_session(path)
    names = [value.name for value in running.get_inputs()]

    def run(x: Any) -> list[Tensor]:
        feed = dict(zip(names, (t.numpy() for t in tensors(x)), strict=True))
        return [torch.from_numpy(out) for out in running.run(None, feed)]

    return run


def peak_memory(file: Path, example: Any) -> dict[str, float]:
    """Return the memory in MiB that loading a file and computing a large batch takes; empty if not on Linux."""
    inputs: dict[str, Any] = {str(i): t.numpy() for i, t in enumerate(tensors(rows(example, TIMED[-1])))}
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "inputs.npz", **inputs)
        command = [sys.executable, "-c", _CHILD, str(file), str(Path(folder) / "inputs.npz")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {}
    return {f"batch {TIMED[-1]}, peak memory, MiB": max(0, int(done.stdout.split()[-1])) / 1024}


def _export(model: nn.Module, example: Any) -> Any:
    """Return the ONNX program of a network in eval mode."""
    args, keywords = arguments(example)
    shapes = dynamic_shapes(example)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # they concern the code of torch.onnx
            return torch.onnx.export(model, args, kwargs=keywords, dynamo=True, dynamic_shapes=shapes, verbose=False)
    except Exception as error:  # of many types, depending on the operation that fails
        raise CrbgError(f"torch.onnx cannot export {type(model).__name__}: {reason(innermost(error))}") from error


def describe(ticket: Ticket) -> dict[str, str]:
    """Return what a ticket is, as text: the metadata of an exported network."""
    weights = f"{ticket.law}, scale {ticket.scale:g}, seed {ticket.seed}" if ticket.law in LAWS else "stored weights"
    return {
        "crbg.model": ticket.model_name,
        "crbg.density": f"{ticket.mask.density:.6g}",
        "crbg.mask": ticket.mask.digest(),
        "crbg.weights": weights,
    }


def example_of(ticket: Ticket) -> Tensor:
    """Return random inputs of a ticket's network.

    Raises:
        CrbgError: the inputs are a graph.
    """
    takes, generator = models.kinds(ticket.model_name), torch.Generator().manual_seed(0)
    if "graph" in takes:
        raise CrbgError(
            f"{ticket.model_name} needs a graph as an example; in Python, pass one to "
            "`to_onnx(ticket.model(), example, path)` or `shrink(ticket.model(), None, example)` of crbg.export"
        )
    if "text" in takes:
        return torch.randint(ticket.classes, (2, *ticket.in_shape), generator=generator)
    return torch.randn(2, *ticket.in_shape, generator=generator)


def write(ticket: Ticket, folder: Path, draw: str | None) -> dict[str, Any]:
    """Write the ticket's network as an ONNX file."""
    metadata = describe(ticket)
    worst = to_onnx(ticket.model(), example_of(ticket), folder / FILE, metadata=metadata)
    return {"largest relative difference": worst, **metadata}


def check(ticket: Ticket, folder: Path, examples: Examples) -> dict[str, Any]:
    """Compare the predictions of the file in onnxruntime with those of the ticket's network."""
    run = session(folder / FILE)
    found = first_output(run, examples.inputs)
    return compare(examples, predictions(ticket.model(), examples.inputs), found)


def bench(ticket: Ticket, folder: Path) -> dict[str, Any]:
    """Measure onnxruntime and PyTorch on one thread each, and the memory that onnxruntime takes."""
    model, example = ticket.model().eval(), example_of(ticket)
    times = microseconds({"onnxruntime": session(folder / FILE), "PyTorch": lambda x: outputs(model, x)}, example)
    return times | {f"onnxruntime, {key}": size for key, size in peak_memory(folder / FILE, example).items()}
