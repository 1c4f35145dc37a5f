"""A dense C program for fully connected networks, with which the speed of sparse programs is compared."""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from crbg.export.c.host import compile_c, pointer
from crbg.export.c.network import F32, Shape, Weighted, read


class _Layer(ctypes.Structure):
    """`struct layer` of parts/dense.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("weight", "shift", "slope")),
        *((name, ctypes.c_int) for name in ("inputs", "units")),
    )


class DenseProgram:
    """A compiled program that multiplies by all weights, for one input or 16 at a time.

    Args:
        model: A network of linear layers, batch norm and activations.
        in_shape: Shape of one input without the batch axis.
        flags: Flags for the compiler.

    Raises:
        CrbgError: there is no C compiler, it reports an error, or C programs do not support a layer.
    """

    def __init__(self, model: nn.Module, in_shape: Shape, flags: Sequence[str] = ("-O3",)) -> None:
        steps = [step for step in read(model, in_shape) if isinstance(step, Weighted)]
        self.outputs = steps[-1].outputs
        self._arrays = [_arrays(step) for step in steps]
        layers = [_Layer(*(a.ctypes.data for a in arrays), *arrays[0].shape) for arrays in self._arrays]
        self._layers = (_Layer * len(layers))(*layers)
        self._widest = max(max(a[0].shape) for a in self._arrays)
        # 64-byte alignment, as the vectors of the program need
        memory = np.zeros(32 * self._widest + 16, np.float32)
        self._work = memory[(-memory.ctypes.data % 64) // 4 :]
        source = resources.files("crbg.export.c").joinpath("parts/dense.c").read_text()
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "dense.c").write_text(source)
            compile_c([Path(folder) / "dense.c"], Path(folder) / "dense.so", [*flags, "-shared", "-fPIC"])
            self._function = ctypes.CDLL(str(Path(folder) / "dense.so")).dense

    def call(self, inputs: NDArray[Any]) -> Callable[[], F32]:
        """Return a function that computes the outputs, (N, outputs), of float32 inputs, (N, ...)."""
        x = np.ascontiguousarray(inputs, np.float32)
        y = np.zeros((len(x), self.outputs), np.float32)
        sizes, work = (len(self._layers), self._widest), pointer(self._work)
        arguments = (ctypes.byref(self._layers), *sizes, pointer(x), pointer(y), len(x), work)

        def run(_: Any = x) -> F32:  # the C function has only the address of x
            self._function(*arguments)
            return y

        return run


def fully_connected(model: nn.Module, in_shape: Shape) -> bool:
    """Return whether `DenseProgram` supports a network."""
    return all(isinstance(step, Weighted) and step.window is None for step in read(model, in_shape))


def _arrays(step: Weighted) -> tuple[F32, F32, F32]:
    """Return the weights, (inputs, units), with the scale of each unit folded in, the shifts and the slopes."""
    finish, units = step.finish, len(step.weight)
    scale = np.ones(units, np.float32) if finish.scale is None else finish.scale
    shift = np.zeros(units, np.float32) if finish.shift is None else finish.shift
    slope = np.broadcast_to(finish.slope, units)
    return tuple(np.ascontiguousarray(a, np.float32) for a in ((step.weight * scale[:, None]).T, shift, slope))  # type: ignore[return-value]
