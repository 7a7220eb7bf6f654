"""Where a token's time goes: predicted latency by operator, with the measured total beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from archsearch import operators
from archsearch.report import style
from archsearch.report import view
from archsearch.report.figures import base

if TYPE_CHECKING:
    from archsearch.search import Run

# parts that are not operators: one grey, told apart by hatching
HATCHES = ("//", "\\\\", "..", "xx", "++", "--")


def plot_latency_by_operator(run: Run) -> Figure:
    """Draw a stacked bar of predicted ms per token for each row of the front and baseline."""
    rows = view.shown(run)
    figure, axes = base.new_figure(height=1.5 + 0.36 * max(1, len(rows)))
    shares = [view.parts(row) for _, row in rows.iterrows()]
    if not any(shares):
        base.say(axes, "there is no front yet")
        return figure
    left = [0.0] * len(shares)
    for part, look in _looks(shares).items():
        widths = [share.get(part, 0.0) / 1e3 for share in shares]
        axes.barh(
            range(len(shares)), widths, left=left, height=0.68, linewidth=0.6, label=part, **look
        )
        left = [start + width for start, width in zip(left, widths, strict=True)]
    _measured(axes, run)
    base.name_axes(axes, "Latency by operator", "predicted ms per token")
    axes.set_yticks(range(len(rows)), [view.name(row) for _, row in rows.iterrows()])
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    base.grid(axes, "x")
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles,
        [_title(label) for label in labels],
        loc="outside right upper",
        fontsize=8.5,
        frameon=False,
        handlelength=1.4,
    )
    return figure


def _looks(shares: list[dict[str, float]]) -> dict[str, dict[str, Any]]:
    """Fill and hatch of each part: operators in the zoo's order, then the rest."""
    found = {part for share in shares for part in share}
    zoo = [operator.code for operator in operators.OPERATORS if operator.code in found]
    looks = {code: {"color": style.colour(code), "edgecolor": "white"} for code in zoo}
    rest = sorted(found - set(zoo))
    for index, part in enumerate(rest):
        hatch = HATCHES[index % len(HATCHES)]
        looks[part] = {"color": "#F4F5F6", "edgecolor": style.OTHER, "hatch": hatch}
    return looks


def _title(part: str) -> str:
    for operator in operators.OPERATORS:
        if operator.code == part:
            return operator.title
    return part.replace("_", " ")


def _measured(axes: Axes, run: Run) -> None:
    label = "measured p10 to p90, median"
    for y, (_, row) in enumerate(view.shown(run).iterrows()):
        if not view.was_timed(row):
            continue
        low, middle, high = (row[f"measured_us_{q}"] / 1e3 for q in ("p10", "p50", "p90"))
        axes.errorbar(
            [middle],
            [y],
            xerr=[[middle - low], [high - middle]],
            color=style.INK,
            marker="|",
            markersize=11,
            linewidth=1.2,
            label=label,
        )
        label = "_nolegend_"
