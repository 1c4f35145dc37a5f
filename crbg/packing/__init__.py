"""Compact codes of masks: a model predicts each bit, and an entropy coder spends -log2(probability) bits on it."""

from crbg.packing import contexts, factors
from crbg.packing.stream import LARGEST, pack, unpack

__all__ = ["LARGEST", "contexts", "factors", "pack", "unpack"]
