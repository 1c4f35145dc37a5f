"""A controller that shifts the gates to their density instead of penalising them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from crbg.masks.select import Threshold, keep_count
from crbg.search.budget import Budget
from crbg.search.density_controller import Plan, Planned

_JUST_OPEN = 0.5 + 1e-6


class Shifted(Planned):
    """Keep the density on its path, up to ties and rounding: after each step, add one number to all mu.

    The number moves the k-th largest mu to just above 1/2, where k is the number of open gates on the path. There is no
    penalty, hence no lambda. Unlike the feedback of `Controlled`, the shift needs no time to react, so it also works in
    searches of a few dozen steps. With hard gates, the search is a global top-k search with straight-through gradients,
    because these do not depend on mu.

    With `by_layer`, there is one number for each gate tensor.

    Args:
        by_layer: Function of the gates' mu, by position, and of the density that returns the number of open gates in
            each tensor; None for one number for all tensors together.

    The other arguments are those of `Planned`.
    """

    def __init__(
        self,
        model: nn.Module,
        density: float,
        plan: Plan | None = None,
        anneal_to: float | None = None,
        budget: Budget | None = None,
        by_layer: Callable[[Mapping[str, torch.Tensor], float], Mapping[str, int]] | None = None,
    ):
        super().__init__(model, "induce_sparse", density, plan, anneal_to, budget)
        self.by_layer = by_layer
        self.groups = [[g] for g in self.gates] if by_layer else [self.gates]
        self.thresholds = [Threshold() for _ in self.groups]

    def after_backward(self, progress: float) -> None:
        """Add nothing to the gradients, unlike `Penalised`."""

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        super().after_step(progress)
        density = self.path(progress)
        if self.by_layer:
            counts = list(self.by_layer({str(i): g.mu.detach() for i, g in enumerate(self.gates)}, density).values())
        else:
            counts = [keep_count(density, self.total)]
        for gates, threshold, count in zip(self.groups, self.thresholds, counts, strict=True):
            every = torch.cat([g.mu.detach().flatten() for g in gates])
            threshold(every, max(1, count))
            for g in gates:
                g.mu.add_(_JUST_OPEN - threshold.last)
