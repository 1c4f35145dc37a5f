"""Compile a C program on this machine and call it, to compare its outputs with those of the network."""

from __future__ import annotations

import ctypes
import math
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crbg.errors import CrbgError
from crbg.export.c.network import F32

STANDARD = ("-std=c99", "-Wall", "-Wextra", "-pedantic")


class Built:
    """A program of `to_c`, compiled and loaded into this process.

    Args:
        folder: The folder with NAME.c and NAME.h.
        name: As for `to_c`.
        flags: Flags for the compiler.

    Raises:
        CrbgError: there is no C compiler, or it reports an error.

    Attributes:
        inputs: Number of floats of one input.
        outputs: Number of floats of one output.
        batched: Whether the program has a function for batches.
    """

    def __init__(self, folder: Path | str, name: str = "model", flags: Sequence[str] = ("-O3",)) -> None:
        try:
            header = (Path(folder) / f"{name}.h").read_text()
        except OSError as error:
            raise CrbgError(f"cannot read {folder}/{name}.h: {error.strerror}; write it with to_c") from None
        sizes = {key: int(n) for key, n in re.findall(rf"#define {name.upper()}_(\w+) (\d+)", header)}
        self.inputs, self.outputs, self.batched = sizes["INPUTS"], sizes["OUTPUTS"], "BATCH_WORK" in sizes
        with tempfile.TemporaryDirectory() as work:
            library = Path(work) / f"{name}.so"
            compile_c([Path(folder) / f"{name}.c"], library, [*STANDARD, *flags, "-shared", "-fPIC"])
            self._functions = ctypes.CDLL(str(library))
        self._name, self._kind = name, np.uint8 if "const uint8_t *input" in header else np.float32
        self._work = np.zeros(max(sizes["WORK"], sizes.get("BATCH_WORK", 0)), np.float32)
        if f"{name}_init" in header:
            self._functions[f"{name}_init"]()

    def predict(self, inputs: NDArray[Any], batch: int = 0) -> F32:
        """Return the outputs for inputs of shape (N, ...), as float32 (N, outputs).

        Args:
            inputs: The inputs, as float32 or, for a program that takes pixels, as uint8.
            batch: Number of inputs per call of `NAME_predict_batch`; 0 calls `NAME_predict` for each input.

        Raises:
            CrbgError: the type or the number of values of an input is wrong, or the program has no function for
                batches.
        """
        if self._kind == np.uint8 and np.asarray(inputs).dtype != np.uint8:
            raise CrbgError(f"the program takes pixels of type uint8 from 0 to 255, not {np.asarray(inputs).dtype}")
        if batch and not self.batched:
            raise CrbgError("a program that draws its weights on the fly has no function for batches; leave batch out")
        x = np.ascontiguousarray(inputs, self._kind)
        x = x.reshape(len(x), math.prod(x.shape[1:]))
        if x.shape[1] != self.inputs:
            raise CrbgError(f"the program takes {self.inputs} values per input, not {x.shape[1]}")
        y = np.zeros((len(x), self.outputs), np.float32)
        function = self._functions[f"{self._name}_predict{'_batch' if batch else ''}"]
        for i in range(0, len(x), batch or 1):
            count = [ctypes.c_size_t(min(batch, len(x) - i))] if batch else []
            function(pointer(x[i:]), pointer(y[i:]), *count, pointer(self._work))
        return y

    def call(self, inputs: NDArray[Any], batch: bool) -> Callable[[], None]:
        """Return a function that computes the outputs of some inputs, (N, ...), to measure its time.

        Args:
            inputs: The inputs, of the type that the program takes.
            batch: Whether to compute them with one call of `NAME_predict_batch`, or only the first with `NAME_predict`.
        """
        y = np.zeros((len(inputs), self.outputs), np.float32)
        function = self._functions[f"{self._name}_predict{'_batch' if batch else ''}"]
        count = [ctypes.c_size_t(len(inputs))] if batch else []
        arguments = (pointer(inputs), pointer(y), *count, pointer(self._work))
        kept = (inputs, y, self._work)  # the C function has only their addresses

        def run(_: Any = kept) -> None:
            function(*arguments)

        return run


def pointer(array: NDArray[Any]) -> ctypes.c_void_p:
    """Return the address of an array as an argument of a C function."""
    return ctypes.c_void_p(array.ctypes.data)


def compile_c(sources: Sequence[Path], out: Path, flags: Sequence[str]) -> None:
    """Compile C files with the compiler that the environment variable CC names, or with cc, gcc or clang.

    Raises:
        CrbgError: there is no compiler, or it reports an error.
    """
    command = [*compiler(), *flags, "-o", str(out), *map(str, sources)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[:200])
        raise CrbgError(f"{command[0]} cannot compile {sources[0]}: {first}")


def compiler() -> list[str]:
    """Return the command of the C compiler.

    Raises:
        CrbgError: there is none.
    """
    names = [os.environ["CC"]] if os.environ.get("CC") else ["cc", "gcc", "clang"]
    for name in names:
        if (words := name.split()) and shutil.which(words[0]):
            return words
    raise CrbgError(
        f"no C compiler found ({', '.join(names)}), which is needed to check or measure the program; install gcc or "
        "clang, set the environment variable CC, or leave out --check and --bench"
    )
