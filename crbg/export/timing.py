"""Compare networks by the time and the memory that they take."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from crbg.errors import CrbgError
from crbg.export import onnx
from crbg.export.inputs import check_computes, microseconds, outputs, rows
from crbg.measure.accuracy import eval_mode


def measure(networks: Mapping[str, nn.Module], example: Any) -> dict[str, Any]:
    """Measure networks beside each other on one thread: in onnxruntime with `crbg[export]`, or else in PyTorch.

    Args:
        networks: Networks by name; they run in eval mode and are not changed.
        example: A batch of inputs, as for `to_onnx`.

    Returns:
        For each network, the shortest time in microseconds of a batch of 1, 32 and 256 examples, among rounds in which
        the networks take turns, and the number of parameters. In onnxruntime also the peak memory in MiB of a new
        process on Linux, without its libraries, that loads the network and computes a batch of 256 examples.

    Raises:
        CrbgError: `networks` is no mapping, or a network cannot be exported.
    """
    if not isinstance(networks, Mapping):
        raise CrbgError('networks must be a mapping of names to networks, for example {"mine": model}')
    for name, model in networks.items():
        if not isinstance(model, nn.Module):
            raise CrbgError(f"{name!r} must be a network, not {type(model).__name__}")
        with eval_mode(model):
            check_computes(model, rows(example, 2))
    found: dict[str, Any] = {f"{name}, parameters": _count(model) for name, model in networks.items()}
    if not onnx.installed():
        return found | microseconds({f"{name}, PyTorch": partial(_run, m) for name, m in networks.items()}, example)
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{i}.onnx" for i, name in enumerate(networks)}
        ways: dict[str, Callable[[Any], list[Tensor]]] = {}
        for name, file in files.items():
            onnx.to_onnx(networks[name], example, file, tolerance=1e-4)
            ways[f"{name}, onnxruntime"] = onnx.session(file)
        found |= microseconds(ways, example)
        for name, file in files.items():
            found |= {f"{name}, {key}": size for key, size in onnx.peak_memory(file, example).items()}
    return found


def _run(model: nn.Module, x: Any) -> list[Tensor]:
    with eval_mode(model):
        return outputs(model, x)


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
