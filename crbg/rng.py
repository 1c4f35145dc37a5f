"""Portable random streams: integers from the counter-based generator Philox4x64, mapped to floats reproducibly.

A seed and a path of names select an independent stream, e.g. `stream(seed, "init", "fc1.weight")`. The mapping uses
only integer operations and + - * / sqrt in IEEE double precision, which every machine rounds in the same way. A seed
therefore gives byte-identical numbers on every machine, which torch's initialisers and the C library's `log` do not
guarantee.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
BLOCK = 1 << 16  # numbers to map at a time; a block fits into a CPU cache
LAWS = ("uniform", "uniform_fan", "signed_constant", "kaiming_normal")  # distributions of initial weights

# Coefficients of Wichura's AS 241 (PPND16), relative error below 1e-15: centre (A/B), tail (C/D), far tail (E/F).
# fmt: off
_A = (3.3871328727963666080, 1.3314166789178437745e2, 1.9715909503065514427e3, 1.3731693765509461125e4,
      4.5921953931549871457e4, 6.7265770927008700853e4, 3.3430575583588128105e4, 2.5090809287301226727e3)
_B = (1.0, 4.2313330701600911252e1, 6.8718700749205790830e2, 5.3941960214247511077e3,
      2.1213794301586595867e4, 3.9307895800092710610e4, 2.8729085735721942674e4, 5.2264952788528545610e3)
_C = (1.42343711074968357734, 4.63033784615654529590, 5.76949722146069140550, 3.64784832476320460504,
      1.27045825245236838258, 2.41780725177450611770e-1, 2.27238449892691845833e-2, 7.74545014278341407640e-4)
_D = (1.0, 2.05319162663775882187, 1.67638483018380384940, 6.89767334985100004550e-1,
      1.48103976427480074590e-1, 1.51986665636164571966e-2, 5.47593808499534494600e-4, 1.05075007164441684324e-9)
_E = (6.65790464350110377720, 5.46378491116411436990, 1.78482653991729133580, 2.96560571828504891230e-1,
      2.65321895265761230930e-2, 1.24266094738807843860e-3, 2.71155556874348757815e-5, 2.01033439929228813265e-7)
_F = (1.0, 5.99832206555887937690e-1, 1.36929880922735805310e-1, 1.48753612908506148525e-2,
      7.86869131145613259100e-4, 1.84631831751005468180e-5, 1.42151175831644588870e-7, 2.04426310338993978564e-15)


# fmt: on


def stream(seed: int, *names: str) -> np.random.Philox:
    """Return the random stream for a seed and a path of names; its key is the first 128 bits of their SHA-256."""
    path = "/".join((str(int(seed)), *names)).encode()
    return np.random.Philox(key=np.frombuffer(hashlib.sha256(path).digest()[:16], np.dtype("<u8")).astype(np.uint64))


def integers(count: int, seed: int, *names: str) -> NDArray[np.uint64]:
    """Draw `count` 64-bit integers."""
    return np.asarray(stream(seed, *names).random_raw(count), np.uint64)


def uniform(count: int, seed: int, *names: str) -> F64:
    """Draw u = (i + 1/2) / 2^23 from the top 23 bits i of each integer.

    The values are exact in float32, symmetric about 1/2, and never 0 or 1.
    """
    return ((integers(count, seed, *names) >> np.uint64(41)).astype(np.float64) + 0.5) * 2.0**-23


def sign(count: int, seed: int, *names: str) -> F64:
    """Draw -1 or 1 from the top bit of each integer."""
    return (integers(count, seed, *names) >> np.uint64(63)).astype(np.float64) * 2.0 - 1.0


def normal(count: int, seed: int, *names: str) -> F64:
    """Draw standard normal numbers by applying the inverse CDF (Wichura 1988, AS 241) to 52-bit uniform numbers."""
    u = ((integers(count, seed, *names) >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    return inverse_normal_cdf(u)


def permutation(count: int, seed: int, *names: str) -> NDArray[np.int64]:
    """Return a random permutation of 0, ..., count - 1, the stable argsort of one random integer per item."""
    return np.argsort(integers(count, seed, *names), kind="stable")


def torch_seed(seed: int, *names: str) -> int:
    """Return a seed for torch's global generator, which generates the noise of gates."""
    return int(integers(1, seed, *names)[0] >> np.uint64(1))


def inverse_normal_cdf(u: F64) -> F64:
    """Return x with Phi(x) = u for u in (0, 1), using only + - * / and sqrt; blocks are computed in parallel."""
    flat = np.ascontiguousarray(u, np.float64).reshape(-1)
    out = np.empty_like(flat)

    def block(start: int) -> None:
        out[start : start + BLOCK] = _inverse(flat[start : start + BLOCK])

    starts = range(0, flat.size, BLOCK)
    if len(starts) < 8:
        for start in starts:
            block(start)
    else:
        with ThreadPoolExecutor(processors()) as pool:  # numpy releases the GIL while it computes
            list(pool.map(block, starts))
    return out.reshape(np.shape(u))


def processors() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _inverse(u: F64) -> F64:
    q = u - 0.5
    out = q * _ratio(0.180625 - q * q, _A, _B)
    outer = np.abs(q) > 0.425
    q, u = q[outer], u[outer]
    r = np.sqrt(-_log(np.minimum(u, 1.0 - u)))
    out[outer] = np.where(r <= 5.0, _ratio(r - 1.6, _C, _D), _ratio(r - 5.0, _E, _F)) * np.where(q < 0, -1.0, 1.0)
    return out


def _ratio(r: F64, top: tuple[float, ...], bottom: tuple[float, ...]) -> F64:
    return _horner(r, top) / _horner(r, bottom)


def _horner(r: F64, coefficients: tuple[float, ...]) -> F64:
    total: Any = coefficients[-1]
    for c in coefficients[-2::-1]:
        total = total * r + c
    return np.asarray(total, np.float64)


def _log(x: F64) -> F64:
    """Return the natural logarithm, as e ln 2 + 2 artanh(s) with s = (m - 1) / (m + 1).

    |s| < 0.172, so 12 terms of the series reach double precision.
    """
    m, e = np.frexp(x)
    small = m < np.sqrt(0.5)
    m, e = np.where(small, m * 2.0, m), e - small
    s = (m - 1.0) / (m + 1.0)
    series = _horner(s * s, tuple(1.0 / (2 * i + 1) for i in range(12)))
    return np.asarray(e * 0.6931471805599453 + 2.0 * s * series, np.float64)
