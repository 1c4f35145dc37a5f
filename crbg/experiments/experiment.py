"""What a configuration defines: experiments with their arms, and cells. A cell is a spec with a seed, in one arm.

This module does not import torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from crbg.data.metrics import Metric
from crbg.errors import CrbgError, suggest
from crbg.experiments.spec import Spec

Key = tuple[str, int]  # digest of the spec, and seed


@dataclass(frozen=True)
class Cell:
    """One run: a spec with a seed, and the experiment and arm it belongs to."""

    experiment: str
    arm: str
    spec: Spec
    seed: int

    @property
    def key(self) -> Key:
        """The spec's digest and the seed, which identify a run even if several experiments share it."""
        return self.spec.digest(), self.seed


def distinct(cells: Iterable[Cell]) -> dict[Key, Cell]:
    """Map the key of each run to its cell; if several experiments share the run, to the cell of the first one."""
    out: dict[Key, Cell] = {}
    for c in cells:
        out.setdefault(c.key, c)
    return out


@dataclass(frozen=True)
class Job:
    """Cells that one process executes one after the other."""

    name: str
    experiment: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Experiment:
    """Arms that are compared to answer one question.

    Attributes:
        role: `tune` and `ablation` use validation images only; `main` is evaluated on the test set.
        gpu: Number of GPUs on each of `nodes` nodes that share the batches of one run; 0 if no GPU is required.
        against: Experiment whose arms have the same names; the two are compared on validation images.
        view: Kind of its figure; `x` is the spec field on the x-axis of a `lines` figure.
        labels: Names of arms and penalties in figures.
    """

    name: str
    about: str
    role: str
    targets: tuple[str, ...]
    cells_per_job: int
    tuned_by: tuple[str, ...]
    chosen: frozenset[str]  # arms for which paper/selected.yaml contains settings
    groups: Mapping[float | None, tuple[float | None, ...]]
    cells: tuple[Cell, ...]
    gpu: int
    nodes: int
    against: str | None
    view: str
    x: str
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def metric(self) -> Metric:
        """The metric of its runs."""
        return self.cells[0].spec.metric

    def label(self, name: str) -> str:
        """Return the name of an arm or a penalty in figures: its label in the configuration if any, else `name`."""
        return self.labels.get(name, name)

    def jobs(self) -> list[Job]:
        """Split the cells into jobs. The split depends on the configuration only, not on which runs are done."""
        unique = list({c.key: c for c in self.cells}.values())
        parts = [unique[i : i + self.cells_per_job] for i in range(0, len(unique), self.cells_per_job)]
        out = []
        for i, part in enumerate(parts):
            tag = hashlib.sha256(repr([c.key for c in part]).encode()).hexdigest()[:8]
            out.append(Job(f"{self.name}-{i:03d}-{tag}", self.name, tuple(part)))
        return out


@dataclass(frozen=True)
class Config:
    """The whole configuration, after all checks."""

    files: tuple[str, ...]
    results: Path
    paper: Path
    data_dir: str | None
    reuse: str
    threads: int
    device: str
    experiments: Mapping[str, Experiment]
    demonstration: bool
    gpu_share: int  # processes that may use one GPU at the same time
    save_every: int  # seconds between two checkpoints of a run
    labels: Mapping[str, str] = field(default_factory=dict)  # names of arms and penalties in figures
    robustness: Mapping[str, Sequence[str]] = field(default_factory=dict)  # conditions on runs, by experiment

    def experiment(self, name: str) -> Experiment:
        """Return the experiment with this name, or raise CrbgError."""
        if name not in self.experiments:
            hint = "" if len(self.files) > 1 else f"; an overlay needs `--config {self.files[0]} OVERLAY.yaml`"
            known = suggest(name, self.experiments)
            raise CrbgError(f"no experiment {name!r} in {', '.join(self.files)}: {known}{hint}")
        return self.experiments[name]

    def unchosen(self, cells: Iterable[Cell]) -> list[str]:
        """Return the arms of these cells that are tuned but have no chosen settings yet."""
        tuned = {
            e.name: {c.arm for t in e.tuned_by for c in self.experiments[t].cells} for e in self.experiments.values()
        }
        return sorted(
            {
                f"{c.experiment}.{c.arm}"
                for c in cells
                if c.arm in tuned[c.experiment] - self.experiments[c.experiment].chosen
            }
        )

    def targets(self) -> dict[str, list[Experiment]]:
        """Group the experiments by target; the target `all` contains every experiment."""
        out: dict[str, list[Experiment]] = {"all": list(self.experiments.values())}
        for e in self.experiments.values():
            for t in e.targets:
                out.setdefault(t, []).append(e)
        return out
