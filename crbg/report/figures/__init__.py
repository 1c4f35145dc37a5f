"""Figures as PDF, PNG and SVG."""

from crbg.report.figures.inside import by_depth, by_head, histograms, inside
from crbg.report.figures.labels import Labels, label
from crbg.report.figures.latency import latency
from crbg.report.figures.method import method
from crbg.report.figures.panels import by_objective
from crbg.report.figures.robustness import robustness
from crbg.report.figures.theory import relaxation
from crbg.report.figures.views import draw

__all__ = [
    "Labels",
    "by_depth",
    "by_head",
    "by_objective",
    "draw",
    "histograms",
    "inside",
    "label",
    "latency",
    "method",
    "relaxation",
    "robustness",
]
