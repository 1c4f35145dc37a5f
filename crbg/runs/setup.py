"""Prepare a run: workspace, data, batches, and the network with its initial weights."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from crbg import methods, models
from crbg.data.loader import BatchLoader
from crbg.data.parts import Data, Part
from crbg.data.sources import load
from crbg.experiments.spec import Spec
from crbg.gates.attach import weights
from crbg.models.initial_weights import tensor_digest, unit_draw
from crbg.runs.stage_cache import StageCache
from crbg.training.clock import Clock


@dataclass
class Workspace:
    """Folders, device and loaded data sets of the runs in one process. No result depends on its state.

    Attributes:
        results: Folder of the runs.
        data_dir: Folder of the data sets.
        device: Device of models and images.
        loaded: Data sets in memory, by name, with `:SPLIT` for a split other than 0.
        selected: File that lists the specs that may be evaluated on the test set. None in a demonstration, where all
            specs may be evaluated because the results are not evidence.
    """

    results: Path
    data_dir: str | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    loaded: dict[str, Data] = field(default_factory=dict)
    selected: Path | None = Path("paper/selected.yaml")

    def data(self, name: str, download: bool = True, split: int = 0) -> Data:
        """Return a data set with the given split, which is loaded once for all runs of this process."""
        key = f"{name}:{split}" if split else name
        if key not in self.loaded:
            self.loaded[key] = load(name, self.data_dir, download=download, split=split).to(self.device)
        return self.loaded[key]


@dataclass(frozen=True)
class RunSetup:
    """The inputs that all stages of a run share.

    Attributes:
        data: The data set, at the image size of the spec.
        model: The network on its device. It contains the initial tensors until the search changes them.
        roles: Role of each tensor by name: gated, frozen, recalibrated.
        loader: Minibatches of the training images.
    """

    spec: Spec
    seed: int
    data: Data
    model: nn.Module
    roles: dict[str, str]
    loader: BatchLoader

    @property
    def steps(self) -> int:
        """Number of optimiser steps of the whole run."""
        spec = self.spec
        return round(methods.work(spec.method, spec.resolved(), spec.density, spec.epochs) * len(self.loader))


def set_up(spec: Spec, seed: int, data: Data) -> RunSetup:
    """Build the network and the minibatches of a run."""
    model, roles = initial_model(spec, data, seed)
    return RunSetup(spec, seed, data, model, roles, training_loader(spec, data, seed))


def initial_model(spec: Spec, data: Data, seed: int) -> tuple[nn.Module, dict[str, str]]:
    """Build the network with the initial tensors of a seed; return it with the role of each tensor."""
    model, roles = models.initial(
        spec.model, data.in_shape, data.classes, spec.init, spec.scale, seed, **spec.model_args
    )
    return model.to(data.train.device), roles


def training_part(spec: Spec, data: Data) -> Part:
    """Return the training images of a run."""
    part = data.train
    if spec.fit_on == "all":
        part = part.join(data.validation)
    return part.take(slice(spec.limit)) if spec.limit else part


def training_loader(spec: Spec, data: Data, seed: int) -> BatchLoader:
    """Return the loader of the training batches of a run."""
    return BatchLoader(training_part(spec, data), spec.batch, seed, spec.flip, spec.crop)


def stage_cache_for(setup: RunSetup, results: Path, clock: Clock) -> StageCache:
    """Return the cache of stages shared by all methods, densities and options on this network, data and seed."""
    shared = replace(setup.spec, density=None, method="random", options={}, weight_bits=0, watch_images=0).canonical()
    machine = {"device": setup.data.train.device.type, "torch": torch.__version__}
    key = {"spec": shared, "seed": setup.seed, "data": setup.data.digest, **machine}
    return StageCache(results / "shelf", key, clock)  # an old name, kept so that existing stages are found


def draw_digest(spec: Spec, model: nn.Module, seed: int) -> str:
    """Return the digest of the initial weights before scaling. Runs that differ only in `scale` share it."""
    if spec.init == "imagenet":
        return tensor_digest(weights(model))
    draws = {n: torch.from_numpy(unit_draw(n, tuple(w.shape), spec.init, seed)) for n, w in weights(model).items()}
    return tensor_digest(draws)
