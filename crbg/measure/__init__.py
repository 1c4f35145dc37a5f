"""Measurements on a network: accuracy, batch norm statistics, sparsity and FLOPs."""

from crbg.measure.accuracy import accuracy, eval_mode, keeping_modes, outputs, quality, training_mode, without_dropout
from crbg.measure.batch_norm import has_batch_norm, recalibrated, running, running_statistics
from crbg.measure.flops import flops, layer_flops
from crbg.measure.relaxation import relaxation
from crbg.measure.sparsity import ACTIVATIONS, alive, dead_units, heads, shares, silent_units

__all__ = [
    "ACTIVATIONS",
    "accuracy",
    "alive",
    "dead_units",
    "eval_mode",
    "flops",
    "has_batch_norm",
    "heads",
    "keeping_modes",
    "layer_flops",
    "outputs",
    "quality",
    "recalibrated",
    "relaxation",
    "running",
    "running_statistics",
    "shares",
    "silent_units",
    "training_mode",
    "without_dropout",
]
