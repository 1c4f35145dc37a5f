"""Leave out what cannot change the output: dead units, and the weights from and to them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from crbg.errors import CrbgError
from crbg.export.c.network import F32, Finish, Pointwise, Step, Weighted

Flags = NDArray[np.bool_]  # one per unit or channel


def prune_dead(steps: list[Step]) -> list[Flags]:
    """Set all weights from and to dead units to zero, in place.

    A unit (channel) is dead if its output is always zero, or if no later unit uses it.

    Returns:
        Which units are alive, after each step. All outputs of the last step count as alive.

    Raises:
        CrbgError: no path of kept weights from the input to the output is left.
    """
    zero = np.zeros(steps[0].in_shape[0], bool)
    alive: list[Flags] = []
    for step in steps:
        zero = _zero_outputs(step, np.repeat(zero, step.in_shape[0] // len(zero)))
        alive.append(~zero)
    alive[-1] = np.ones_like(zero)
    for i in reversed(range(1, len(steps))):
        step, before = steps[i], alive[i - 1]
        if isinstance(step, Weighted):
            alive[i - 1] = before & _any_input(_needed_inputs(step, alive[i]), before)
        else:  # a channel that is zero before a pointwise step can differ from zero after it
            alive[i - 1] = _any_input(alive[i], before)
    if isinstance(steps[0], Weighted):
        _needed_inputs(steps[0], alive[0])  # sets the weights to dead units to zero
    if not all(bool(flags.any()) for flags in alive):
        raise CrbgError("no path of kept weights leads from the input to the output, so the output is constant")
    return alive


def _any_input(inputs: Flags, units: Flags) -> Flags:
    """Return which units have a flagged input in the next step, which may have several inputs per unit."""
    return np.asarray(inputs.reshape(len(units), -1).any(axis=1), bool)


def _zero_outputs(step: Step, zero: Flags) -> Flags:
    """Remove the weights from inputs that are always zero, and return which outputs are always zero."""
    if isinstance(step, Weighted):
        for unit, columns in enumerate(by_channel(step)):
            columns[zero.reshape(step.groups, -1)[group_of(step, unit)]] = 0
        zero = np.asarray(~step.weight.any(axis=1), bool)
    if isinstance(step, Weighted | Pointwise) and step.finish.shift is not None:
        zero = zero & (step.finish.shift == 0)
    return zero


def _needed_inputs(step: Weighted, needed: Flags) -> Flags:
    """Remove the weights to outputs that are not needed, and return which inputs are needed."""
    step.weight[~needed] = 0
    used = np.zeros((step.groups, step.in_shape[0] // step.groups), bool)
    for unit, columns in enumerate(by_channel(step)):
        used[group_of(step, unit)] |= columns.any(1)
    return used.reshape(-1)


def by_channel(step: Weighted) -> F32:
    """Return a view of the weights, (units, channels of a group, taps); each input of a linear layer is a channel."""
    return step.weight.reshape(len(step.weight), step.in_shape[0] // step.groups, -1)


def group_of(step: Weighted, unit: int) -> int:
    """Return the group of an output channel."""
    return unit * step.groups // len(step.weight)


def compact(steps: list[Step], alive: list[Flags]) -> list[Step]:
    """Return the steps without dead units; convolutions have one group then."""
    order = np.arange(steps[0].in_shape[0])  # the units that are left before a step
    before, small = len(order), list[Step]()
    for step, flags in zip(steps, alive, strict=True):
        size = step.in_shape[0] // before  # inputs per unit; above 1 if a linear layer follows channels
        inputs = (order[:, None] * size + np.arange(size)).reshape(-1)
        before = step.out_shape[0]
        if isinstance(step, Weighted):
            order = np.flatnonzero(flags)
            weight = _ungrouped(step)[order][:, inputs].reshape(len(order), -1)
            step = replace(step, weight=weight, groups=1)
        else:
            order = inputs
        if isinstance(step, Weighted | Pointwise):
            step = replace(step, finish=_selected(step.finish, order))
        in_shape, out_shape = (len(inputs), *step.in_shape[1:]), (len(order), *step.out_shape[1:])
        small.append(replace(step, in_shape=in_shape, out_shape=out_shape))
    return small


def _ungrouped(step: Weighted) -> F32:
    """Return the weights with zeros for the channels of other groups, (units, channels, taps)."""
    weights = by_channel(step)
    if step.groups == 1:
        return weights
    units, per_group, taps = weights.shape
    full = np.zeros((units, step.groups, per_group, taps), np.float32)
    for unit in range(units):
        full[unit, group_of(step, unit)] = weights[unit]
    return full.reshape(units, -1, taps)


def _selected(finish: Finish, units: NDArray[np.int64]) -> Finish:
    chosen = {name: getattr(finish, name) for name in ("scale", "shift", "slope")}
    return replace(finish, **{n: v[units] for n, v in chosen.items() if v is not None and len(v) > 1})
