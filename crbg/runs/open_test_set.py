"""Evaluate finished runs on the test set: each run once, and only runs whose spec was selected."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
import yaml

from crbg.errors import CrbgError
from crbg.experiments.record import Evaluation, Record, WithoutLossy
from crbg.experiments.spec import Spec, folder
from crbg.runs.artifacts import reopen
from crbg.runs.readings import evaluation_batch, measured, read_all
from crbg.runs.setup import Workspace, set_up
from crbg.storage.atomic import read_json, write_json


def evaluate(spec: Spec, seed: int, workspace: Workspace) -> Evaluation | None:
    """Measure a finished run on the test set, once: later calls return the stored evaluation.

    Returns:
        The evaluation, or None for a run whose search collapsed.

    Raises:
        CrbgError: the spec is not listed in `workspace.selected` (paper/selected.yaml), the run is not finished, or
            the digest of its mask differs from the recorded one.
    """
    if workspace.selected is not None:
        check_selected(spec, workspace.selected)
    where = folder(workspace.results, spec, seed)
    path, stored = where / "record.json", where / "evaluation.json"
    record = Record.from_json(read_json(path), str(path))
    if stored.exists():
        return Evaluation.from_json(read_json(stored, "evaluation"), str(stored))
    if not record.ok:
        return None
    data = workspace.data(spec.data, split=spec.split).sized(spec.size)
    setup = set_up(spec, seed, data)
    found = reopen(where, setup.model, record.digests.gates)
    if found.mask.digest() != record.digests.mask:
        raise CrbgError(f"{where}: the digest of the mask differs from the recorded one; repeat the run")
    without_lossy = None
    test = read_all(setup, found, data.test)
    if len(data.lossy_test):
        kept = torch.ones(len(data.test), dtype=torch.bool)
        kept[data.lossy_test] = False
        exact = data.test.take(kept)
        trained = found.start is not None
        read = measured(setup.model, found.mask, data, exact, trained, found, evaluation_batch(spec))
        without_lossy = WithoutLossy(len(exact), read)
    out = Evaluation(spec.digest(), seed, found.mask.digest(), data.digest, test, without_lossy)
    write_json(stored, out.to_json())
    return out


def check_selected(spec: Spec, selected: Path) -> None:
    """Check that the file of selected settings lists a spec and so allows its evaluation on the test set.

    Raises:
        CrbgError: the file is missing, damaged, or does not list the spec.
    """
    try:
        listed = _listed(selected.absolute(), selected.stat().st_mtime_ns)
    except FileNotFoundError:
        listed = frozenset()
    if spec.digest() not in listed:
        raise CrbgError(
            f"{spec.slug()} is not listed in {selected}; only specs listed there may be evaluated on the test set; "
            "`crbg select` writes this file"
        )


@lru_cache(maxsize=4)
def _listed(selected: Path, changed: int) -> frozenset[str]:
    """Read the digests under `evaluate`; the file is read again only after it has changed."""
    try:
        body = yaml.safe_load(selected.read_text()) or {}
        return frozenset(digest for specs in body.get("evaluate", {}).values() for digest in specs)
    except (yaml.YAMLError, AttributeError, TypeError) as error:
        raise CrbgError(f"{selected} is damaged ({type(error).__name__}: {error}); run `crbg select` again") from None
