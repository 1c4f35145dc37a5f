"""The target `onnx`: the sparse network as an ONNX file, checked in onnxruntime. The extra `crbg[export]` is needed."""

from __future__ import annotations

import copy
import importlib.util
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crbg.errors import CrbgError, reason
from crbg.export.check import Examples, compare
from crbg.gates.attach import attached_gates, bake
from crbg.gates.layers import unwrap
from crbg.measure.accuracy import eval_mode
from crbg.ticket import Ticket
from crbg.training.forward import outputs_and_labels
from crbg.training.trees import map_tensors, tensors

FILE = "model.onnx"
BATCHES = (1, 2, 5)  # sizes at which the file is compared with the network
ROUNDS = 20


def to_onnx(
    model: nn.Module,
    example: Any,
    path: Path | str,
    *,
    metadata: Mapping[str, str] | None = None,
    tolerance: float = 1e-6,
) -> float:
    """Write a network as an ONNX file with a dynamic batch size, and compare it with the network in onnxruntime.

    The network is exported in eval mode and on the CPU, with the weights of all its gates, and is not changed. ONNX has
    no sparse weights: the file has the size of the dense network. `shrink` removes dead units first.

    Args:
        model: Any module.
        example: A batch of inputs, with the examples on the first axis of each tensor: a tensor, a tuple of positional
            arguments, or a mapping of keyword arguments.
        path: The file. An existing file is replaced if everything succeeds.
        metadata: Text to store in the file (`metadata_props`).
        tolerance: Largest difference of an output at batch sizes 1, 2 and 5, relative to the largest output.

    Returns:
        The largest difference that was found.

    Raises:
        CrbgError: the extra is missing, the network cannot be exported, or the outputs differ by more than `tolerance`.
            The file is not written then.
    """
    require("onnx", "onnxscript", "onnxruntime")
    path = Path(path).expanduser()
    plain = copy.deepcopy(unwrap(model)).cpu()
    if attached_gates(plain):
        bake(plain)
    plain.eval()
    two = _rows(example, 2)
    # A size of 1 would be compiled into the graph.
    program = _export(plain, two)
    program.model.metadata_props.update(metadata or {})
    partial = path.with_name(f".{path.name}.partial")
    try:
        program.save(partial)
        worst = _largest_difference(plain, example, partial)
        if not worst <= tolerance:
            raise CrbgError(
                f"the outputs of the ONNX file differ by {worst:.2g} of the largest output, more than {tolerance:g}; "
                "no file was written"
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
        raise CrbgError(f"{', '.join(missing)} is not installed; run `pip install crbg[export]`")


def _export(model: nn.Module, example: Any) -> Any:
    """Return the ONNX program of a network in eval mode."""
    args, keywords = _arguments(example)
    dims = map_tensors(lambda t: t, (args, keywords))
    sizes = _dynamic(dims[0]), _dynamic(dims[1])
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # from within torch.onnx
            return torch.onnx.export(
                model,
                args,
                kwargs=keywords,
                dynamo=True,
                dynamic_shapes=(*sizes[0], *sizes[1].values()) if not keywords else dict(sizes[1]),
                verbose=False,
            )
    except Exception as error:  # of many types, depending on the operation that fails
        raise CrbgError(f"torch.onnx cannot export {type(model).__name__}: {reason(error, limit=200)}") from error
