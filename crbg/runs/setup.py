"""What a run works with: device, data, batches, the network with its initial weights."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from crbg import models
from crbg.data.loader import BatchLoader, Data, Part
from crbg.data.sources import load
from crbg.experiments.spec import Spec
from crbg.gates.attach import weights
from crbg.models.initial_weights import tensor_digest, unit_draw
from crbg.runs.stage_cache import StageCache
from crbg.training.clock import Clock


@dataclass
class Bench:
    """Where runs happen: device, data already loaded, folders. Holds no state that a result depends on."""

    results: Path
    data_dir: str | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    loaded: dict[str, Data] = field(default_factory=dict)

    def data(self, name: str, download: bool = True) -> Data:
        """Load a data set once for all runs of this process."""
        if name not in self.loaded:
            self.loaded[name] = load(name, self.data_dir, download=download).to(self.device)
        return self.loaded[name]


def training_part(spec: Spec, data: Data) -> Part:
    """Choose the images that a search may see."""
    part = data.train
    if spec.fit_on == "all":
        part = part.join(data.validation)
    return part.take(slice(spec.limit)) if spec.limit else part


def feed_of(spec: Spec, data: Data, seed: int) -> BatchLoader:
    """Make the minibatches of a run."""
    return BatchLoader(training_part(spec, data), spec.batch, seed, spec.flip, spec.crop)


def fresh(spec: Spec, data: Data, seed: int) -> tuple[nn.Module, dict[str, str]]:
    """Build the network with its initial tensors, and say what role each tensor has."""
    model, roles = models.initial(
        spec.model, data.in_shape, data.classes, spec.init, spec.scale, seed, **spec.model_args
    )
    return model.to(data.train.device), roles


def shelf_of(spec: Spec, seed: int, data: Data, results: Path, clock: Clock) -> StageCache:
    """Find the parts that this run shares with those of other methods, densities and options on its network, data and seed."""
    shared = replace(spec, density=None, method="random", options={}).canonical()
    machine = {"device": data.train.device.type, "torch": torch.__version__}
    return StageCache(results / "shelf", {"spec": shared, "seed": seed, "data": data.digest, **machine}, clock)


def draw_digest(spec: Spec, model: nn.Module, seed: int) -> str:
    """Digest of the unit draw: runs that differ only in the scale of their weights share it, and may be paired."""
    if spec.init == "imagenet":
        return tensor_digest(weights(model))
    draws = {n: torch.from_numpy(unit_draw(n, tuple(w.shape), spec.init, seed)) for n, w in weights(model).items()}
    return tensor_digest(draws)
