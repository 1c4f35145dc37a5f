"""The test set, opened once for a finished run."""

from __future__ import annotations

from typing import Any

import torch

from crbg.errors import CrbgError
from crbg.experiments.spec import Spec, folder
from crbg.runs.artifacts import reopen
from crbg.runs.readings import accuracy, evaluation_batch, read_all
from crbg.runs.setup import Bench, fresh
from crbg.storage.atomic import read_json, write_json


def evaluate(spec: Spec, seed: int, bench: Bench) -> dict[str, Any]:
    """Open the test set for one finished run, once: a second call returns the evaluation that is there.

    Raises:
        CrbgError: the run is not finished, or its mask is not the one its record names.
    """
    where = folder(bench.results, spec, seed)
    record = read_json(where / "record.json")
    if (where / "evaluation.json").exists():
        return read_json(where / "evaluation.json", "evaluation")
    if record["status"] != "ok":
        return record
    data = bench.data(spec.data).sized(spec.size)
    model, _ = fresh(spec, data, seed)
    found = reopen(where, model, record["digests"].get("gates"))
    if found.mask.digest() != record["digests"]["mask"]:
        raise CrbgError(f"{where}: the mask is not the one its record names; run the cell again")
    out: dict[str, Any] = {"digest": spec.digest(), "seed": seed, "mask": found.mask.digest(), "data": data.digest}
    out["test"] = read_all(spec, seed, data, model, found, data.test)
    if len(data.lossy_test):
        kept = torch.ones(len(data.test), dtype=torch.bool)
        kept[data.lossy_test] = False
        exact = data.test.take(kept)
        out["test_without_lossy"] = {
            "images": len(exact),
            "binary": accuracy(model, found.mask, data, exact, found.start is not None, found, evaluation_batch(spec)),
        }
    write_json(where / "evaluation.json", out)
    return out
