"""The times of tickets as C programs, read from the table that benchmarks/ship.py writes."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

TABLE, NETWORK = Path("benchmarks/ship.md"), "LeNet-300-100"
WAYS = {"program": "C program", "onnxruntime": "onnxruntime", "dense": "dense C", "torch": "torch"}


def read(path: Path = TABLE) -> pd.DataFrame:
    """Return one row per density and batch size, with the microseconds of each way to run LeNet-300-100.

    The table is empty if the benchmark was not run.
    """
    text = path.read_text() if path.exists() else ""
    number = r" *([\d.]+) *\|"
    found = re.findall(rf"^\| *{NETWORK}, ([\d.]+) *\|{number * (1 + len(WAYS))}", text, re.MULTILINE)
    return pd.DataFrame([map(float, row) for row in found], columns=["density", "batch", *WAYS])
