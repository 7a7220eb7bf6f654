"""The look that all figures share, without pyplot and its global state."""

from __future__ import annotations

from io import BytesIO

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from archsearch.report import style

WIDTH_INCHES = 9.0
DPI = 150
MARKERS = ("s", "D", "^", "v", "P", "X", "<", ">")
DASHES = ("--", ":", "-.")


def new_figure(height: float, width: float = WIDTH_INCHES) -> tuple[Figure, Axes]:
    """One empty plot, `width` by `height` inches."""
    figure = empty_figure(height, width)
    return figure, quiet(figure.add_subplot())


def empty_figure(height: float, width: float = WIDTH_INCHES) -> Figure:
    """`width` by `height` inches without plots."""
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
    return Figure(figsize=(width, height), layout=layout)


def quiet(axes: Axes) -> Axes:
    """The plot with thin, grey lines around it, where there are any."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(style.MUTED)
    axes.tick_params(colors=style.INK, labelsize=9, length=3, color=style.MUTED)
    axes.set_axisbelow(True)
    return axes


def name_axes(axes: Axes, title: str, x: str, y: str = "") -> None:
    """Set the title and the labels of both axes."""
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=style.INK)
    axes.set_xlabel(x, fontsize=9.5, color=style.INK)
    axes.set_ylabel(y, fontsize=9.5, color=style.INK)


def grid(axes: Axes, which: str = "both") -> None:
    """Draw quiet grid lines along `which` axis."""
    axes.grid(axis=which, color=style.GRID, linewidth=0.8)  # type: ignore[arg-type]


def count_along_x(axes: Axes) -> None:
    """Put ticks at whole numbers only: steps and candidates have no halves."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def legend_outside(axes: Axes) -> None:
    """Put the legend right of the plot, where it hides no point."""
    axes.legend(fontsize=8.5, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def say(axes: Axes, text: str) -> None:
    """Fill an empty plot with a sentence instead."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", va="center", color=style.INK, transform=axes.transAxes)


def png(figure: Figure, dpi: int = DPI) -> bytes:
    """The figure as the bytes of a PNG file."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor="white")
    return buffer.getvalue()
