"""Nemotron-Flash beside dense models: what was measured here, and what its paper prints."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from archsearch.latency.table6 import Line
from archsearch.report import style
from archsearch.report.figures import base

Value = Callable[[Line], float | None]

DECODING: dict[str, Any] = {"s": 46, "marker": "o", "color": style.FRONT, "zorder": 3}
WITH_PREFILL: dict[str, Any] = {
    "s": 46,
    "marker": "o",
    "facecolors": "white",
    "edgecolors": style.FRONT,
    "linewidths": 1.4,
    "zorder": 3,
}
PAPER: dict[str, Any] = {"s": 34, "marker": "D", "color": style.OTHER, "zorder": 2}
# columns of ratios, in widths of the plot
COLUMNS = (1.13, 1.33)


def plot_comparison(found: Sequence[Line], device: str, paper_device: str) -> Figure:
    """Draw latency and throughput of every model, here and in the paper, and beside them how many
    times as fast Nemotron-Flash is."""
    figure = base.empty_figure(1.9 + 0.3 * len(found), width=11.0)
    if all(line.latency_s is None and line.tokens_per_s is None for line in found):
        base.say(figure.add_subplot(), "nothing was measured yet")
        return figure
    left, right = figure.subplots(1, 2, sharey=True)
    _points(left, found, lambda line: line.latency_s, "measured", DECODING)
    _points(left, found, lambda line: line.paper_latency_s, "", PAPER)
    _points(right, found, lambda line: line.tokens_per_s, f"measured on {device}", DECODING)
    _points(
        right,
        found,
        lambda line: line.total_tokens_per_s,
        "measured, prefill included",
        WITH_PREFILL,
    )
    _points(right, found, lambda line: line.paper_tokens_per_s, f"paper, {paper_device}", PAPER)
    right.set_xscale("log")
    left.set_xlim(left=0)
    _ratios(left, found, lambda line: line.latency_times, lambda line: line.paper_latency_times)
    _ratios(
        right, found, lambda line: line.throughput_times, lambda line: line.paper_throughput_times
    )
    base.name_axes(left, "Latency", "seconds at batch 1")
    base.name_axes(right, "Throughput at the largest batch that fits", "tokens/s")
    for half in (left, right):
        base.grid(base.quiet(half))
        half.tick_params(axis="y", length=0)
        half.tick_params(axis="x", which="minor", color=style.MUTED)
        half.xaxis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:,g}"))
    left.set_yticks(range(len(found)), [_name(line) for line in found])
    for tick, line in zip(left.get_yticklabels(), found, strict=True):
        tick.set_fontweight("bold" if _leads(line) else "normal")
    left.set_ylim(len(found) - 0.5, -0.5)
    handles, labels = right.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=3, fontsize=8.5, frameon=False
    )
    return figure


def _points(
    axes: Axes, found: Sequence[Line], value: Value, label: str, look: dict[str, Any]
) -> None:
    """One point per model that has the value."""
    values = [(value(line), y) for y, line in enumerate(found)]
    known = [(x, y) for x, y in values if x is not None]
    if known:
        axes.scatter([x for x, _ in known], [y for _, y in known], label=label, **look)


def _ratios(axes: Axes, found: Sequence[Line], here: Value, paper: Value) -> None:
    """Two columns right of the plot: Nemotron-Flash's advantage here, and in the paper."""
    place: dict[str, Any] = {
        "transform": axes.get_yaxis_transform(),
        "ha": "right",
        "va": "center",
        "fontsize": 8.5,
    }
    axes.text(COLUMNS[1], -1.15, "Flash is faster", color=style.INK, **place)
    columns = zip(("here", "in paper"), (here, paper), (style.FRONT, style.MUTED), strict=True)
    for (head, value, colour), x in zip(columns, COLUMNS, strict=True):
        axes.text(x, -0.7, head, color=colour, **place)
        for y, line in enumerate(found):
            ratio = value(line)
            # a model beside itself says nothing
            if ratio is not None and not _leads(line):
                axes.text(x, y, f"{ratio:.1f}×", color=colour, **place)


def _leads(line: Line) -> bool:
    """Whether it is what others are held against."""
    return line.name == line.against


def _name(line: Line) -> str:
    return line.name if len(line.name) <= 24 else f"{line.name[:23]}…"
