"""Layer patterns as coloured strips, the front's above the baselines'."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patches import Rectangle

from archsearch import operators
from archsearch.report import style
from archsearch.report import view
from archsearch.report.figures import base

if TYPE_CHECKING:
    from archsearch.search import Run

ROW_INCHES = 0.36
MOST_CODES = 40  # layers in a strip, above which codes would overlap


def plot_patterns(run: Run) -> Figure:
    """Draw one strip per member of the front and per baseline, first layer at the left."""
    rows = view.shown(run)
    figure, axes = base.new_figure(height=1.5 + ROW_INCHES * max(1, len(rows)))
    if not len(rows):
        base.say(axes, "there is no front yet")
        return figure
    strips = [view.codes(row) for _, row in rows.iterrows()]
    longest = max(len(codes) for codes in strips)
    for y, codes in enumerate(strips):
        _strip(axes, y, codes, with_codes=longest <= MOST_CODES)
    _facts(axes, rows)
    base.name_axes(axes, "Layer patterns of the front and the baselines", "")
    axes.set_xlim(0, longest)
    axes.set_ylim(len(rows) - 0.4, -1.2)
    axes.set_xticks([])
    axes.set_yticks(range(len(rows)), [view.name(row) for _, row in rows.iterrows()])
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    _legend(figure, {code for codes in strips for code in codes})
    return figure


def _strip(axes: Axes, y: int, codes: list[str], *, with_codes: bool) -> None:
    for x, code in enumerate(codes):
        fill = style.colour(code)
        axes.add_patch(
            Rectangle((x, y - 0.36), 1, 0.72, facecolor=fill, edgecolor="white", linewidth=1)
        )
        if with_codes:
            axes.text(
                x + 0.5, y, code, ha="center", va="center", fontsize=7, color=style.ink_on(fill)
            )


def _facts(axes: Axes, rows: pd.DataFrame) -> None:
    """Width, parameters, latency and loss as columns right of the strips."""
    columns = {
        "width": [f"{row['hidden_size']:.0f}" for _, row in rows.iterrows()],
        "params, M": [f"{row['parameters'] / 1e6:.2f}" for _, row in rows.iterrows()],
        "ms/token": [f"{view.latency_us(row) / 1e3:.3f}" for _, row in rows.iterrows()],
        "loss": [f"{row['loss']:.3f}" for _, row in rows.iterrows()],
    }
    for index, (head, cells) in enumerate(columns.items()):
        for y, text in enumerate([head, *cells], start=-1):
            axes.annotate(
                text,
                (1, y if y >= 0 else -0.8),
                xycoords=("axes fraction", "data"),
                xytext=(44 + 54 * index, 0),
                textcoords="offset points",
                ha="right",
                va="center",
                fontsize=8.5,
                color=style.INK if y >= 0 else style.MUTED,
            )


def _legend(figure: Figure, used: set[str]) -> None:
    handles = [
        Patch(facecolor=style.colour(operator.code), label=f"{operator.code}  {operator.title}")
        for operator in operators.OPERATORS
        if operator.code in used
    ]
    figure.legend(
        handles=handles,
        loc="outside lower left",
        ncols=min(4, len(handles)),
        fontsize=8.5,
        frameon=False,
        handlelength=1.2,
    )
