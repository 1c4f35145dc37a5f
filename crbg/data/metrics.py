"""What is measured on a data set: accuracy, bits per character or a squared error. Does not import torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A measure of the quality of a network on a data set.

    Attributes:
        key: Name in records.
        title: Name in figures and tables.
        unit: Unit with a leading space, or an empty string.
        larger_is_better: The direction: whether a larger value is a better one.
        digits: Number of decimal places of a mean in tables.
        tolerance: Largest difference of a result that is measured again on another machine, where rounding differs.
        constant: The best constant prediction, which needs no network.
    """

    key: str
    title: str
    unit: str = ""
    larger_is_better: bool = True
    digits: int = 2
    tolerance: float = 0.05  # 5 of 10 000 images
    constant: str = "the most frequent class"

    @property
    def label(self) -> str:
        """The title with the unit in parentheses, for axes and headers."""
        return f"{self.title} ({self.unit.strip()})" if self.unit else self.title

    def text(self, value: float) -> str:
        """Format a value with its unit."""
        return f"{value:.{self.digits}f}{self.unit}"

    def better(self, value: float) -> float:
        """Return a number that is larger for better values."""
        return value if self.larger_is_better else -value


ACCURACY = Metric("accuracy", "accuracy", " %")
BITS = Metric("bits_per_character", "bits per character", " bits", False, 3, 0.002, "the frequencies of the characters")
MSE = Metric("mse", "mean squared error", "", False, 4, 0.0005, "the mean of the targets")
METRICS = {m.key: m for m in (ACCURACY, BITS, MSE)}
