"""Figures of a run; each function takes a run and returns a matplotlib Figure of its own."""

from archsearch.report.figures.base import png
from archsearch.report.figures.curves import plot_history
from archsearch.report.figures.curves import plot_loss_curves
from archsearch.report.figures.front import plot_front
from archsearch.report.figures.latency import plot_latency_by_operator
from archsearch.report.figures.patterns import plot_patterns

__all__ = [
    "plot_front",
    "plot_history",
    "plot_latency_by_operator",
    "plot_loss_curves",
    "plot_patterns",
    "png",
]
