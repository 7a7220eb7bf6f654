"""Predicted against measured whole models: how far a latency table is to be trusted."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from matplotlib.ticker import PercentFormatter

from archsearch.latency.agreement import Comparison
from archsearch.latency.calibration import group_key
from archsearch.report import style
from archsearch.report.figures import base

# a phase, and in decode whether there is more than one row
LOOKS = {
    ("decode", False): ("decode, batch 1", style.FRONT, "o"),
    ("decode", True): ("decode, larger batches", "#44AA99", "s"),
    ("prefill", False): ("prefill", style.BEST, "^"),
    ("train", False): ("training", style.BASELINE, "D"),
}
HEIGHT_INCHES = 5.2


def plot_calibration(comparisons: Sequence[Comparison], device: str) -> Figure:
    """Draw predicted over measured ms of every comparison, and below its relative error."""
    figure = base.empty_figure(HEIGHT_INCHES)
    if not comparisons:
        base.say(figure.add_subplot(), "no model was measured yet")
        return figure
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2.2, 1))
    for half in (above, below):
        base.grid(base.quiet(half))
    measured = [one.measured_us / 1e3 for one in comparisons]
    ends = [0.8 * min(measured), 1.25 * max(measured)]
    above.plot(ends, ends, color=style.MUTED, linewidth=0.9, zorder=1)
    for key, (label, colour, marker) in LOOKS.items():
        alike = [c for c in comparisons if group_key(c.shape.phase, c.shape.batch) == key]
        x = [one.measured_us / 1e3 for one in alike]
        look = {"s": 22, "color": colour, "marker": marker, "linewidths": 0, "alpha": 0.8}
        if alike:
            above.scatter(x, [one.predicted_us / 1e3 for one in alike], label=label, **look)
            below.scatter(x, [one.error for one in alike], **look)
    above.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
    below.axhline(0, color=style.MUTED, linewidth=0.9, zorder=1)
    for axis in (above.xaxis, above.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    below.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    limit = 1.15 * max(0.06, max(abs(one.error) for one in comparisons))
    below.set_ylim(-limit, limit)
    base.name_axes(above, f"Whole models on {device}", "", "predicted ms")
    base.name_axes(below, "", "measured ms", "error")
    base.legend_outside(above)
    return figure
