"""Accuracy on corrupted images, and weights that the masks of two methods share."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from crbg.report.figures.labels import Labels, label
from crbg.report.figures.style import band, colour, figure, legend_below
from crbg.report.stats import t_interval

TRAINED = "dense_trained"


def robustness(rows: pd.DataFrame, path: Path, labels: Labels) -> Path:
    """Draw accuracy on each kind of images, and the Jaccard index of each pair of arms beside chance.

    The accuracy of an arm is the difference to the trained dense network, paired by seed.

    Args:
        rows: Values of `crbg robustness`.
        path: Path of the figure without its ending.
        labels: Names of arms.
    """
    with figure(path):
        drawn, (left, right) = plt.subplots(1, 2, figsize=(6.8, 2.6), width_ratios=(1.1, 1), layout="constrained")
        by_seed = rows[rows.measure == "accuracy"].pivot_table("value", ["arm", "seed"], "with", sort=False)
        kinds, arms = list(by_seed.columns), [a for a in by_seed.index.unique("arm") if a != TRAINED]
        for i, arm in enumerate(arms):
            differences = (by_seed.loc[arm] - by_seed.loc[TRAINED]).dropna()
            at = [x + 0.13 * (i - (len(arms) - 1) / 2) for x in range(len(kinds))]
            band(left, at, [list(differences[kind]) for kind in kinds], i, label(arm, labels), "none")
        left.axhline(0, color="black", lw=0.7)
        left.set_xticks(range(len(kinds)), kinds, rotation=30)
        left.set_ylabel("accuracy above that of\nthe trained network (points)")
        both = rows[rows.measure.isin(["jaccard", "chance"])]
        names = [f"{label(a, labels)} / {label(b, labels)}" for a, b in both[["arm", "with"]].values]
        texts = list(dict.fromkeys(names))[::-1]
        for y, text in enumerate(texts):
            pair = both[[name == text for name in names]]
            found = t_interval(list(100 * pair[pair.measure == "jaccard"].value))
            right.errorbar(found.mean, y, xerr=found.bar, fmt="o", color=colour(0), ms=3.5, capsize=2, lw=1)
            right.plot(100 * pair[pair.measure == "chance"].value.mean(), y, "o", color=colour(0), mfc="none", ms=3.5)
        right.set_yticks(range(len(texts)), texts, fontsize=6)
        right.set_xlim(left=0)
        right.set_xlabel("Jaccard index of masks (%); hollow: chance")
        legend_below(drawn, 3)
    return path
