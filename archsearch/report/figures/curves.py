"""Loss over training steps, and the best loss over the search."""

from __future__ import annotations

from typing import TYPE_CHECKING
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from archsearch.report import style
from archsearch.report import view
from archsearch.report.figures import base

if TYPE_CHECKING:
    from archsearch.search import Run


def plot_loss_curves(run: Run) -> Figure:
    """Draw training loss over steps: the winner and the baselines in front of the others."""
    figure, axes = base.new_figure(height=4.2)
    rows = view.trained(run)
    if not len(rows):
        base.say(axes, "no candidate has been trained yet")
        return figure
    for index, (_, row) in enumerate(rows.iterrows()):
        label = "candidates" if index == 0 else "_nolegend_"
        _curve(axes, row, color=style.TRAINED, alpha=0.5, linewidth=0.8, label=label)
    for index, (_, row) in enumerate(view.baselines(run).iterrows()):
        dashes = base.DASHES[index % len(base.DASHES)]
        _curve(axes, row, color=style.BASELINE, linestyle=dashes, linewidth=1.6, zorder=4)
    winner = view.best(run)
    if winner is not None:
        _curve(axes, winner, color=style.BEST, linewidth=2, zorder=5)
    _limit_to_learning(axes, rows)
    base.grid(axes)
    base.count_along_x(axes)
    base.name_axes(axes, "Training loss", "step", "training loss, nats per token")
    axes.legend(fontsize=8.5, frameon=False, loc="upper right")
    return figure


def _curve(axes: Axes, row: pd.Series, **look: Any) -> None:
    points = view.curve(row)
    if points:
        look.setdefault("label", view.name(row) if "role" in row else None)
        axes.plot(*zip(*points, strict=True), **look)


def _limit_to_learning(axes: Axes, rows: pd.DataFrame) -> None:
    """Cut the first steps' fall off, so that the ends can be told apart."""
    curves = [points for _, row in rows.iterrows() if len(points := view.curve(row)) > 4]
    if curves:
        top = max(points[len(points) // 5][1] for points in curves)
        bottom = min(loss for points in curves for _, loss in points)
        axes.set_ylim(bottom - 0.05 * (top - bottom), top)


def plot_history(run: Run) -> Figure:
    """Draw held-out loss by candidate and the best feasible one so far."""
    figure, axes = base.new_figure(height=3.6)
    rows = view.trained(run)
    if not len(rows):
        base.say(axes, "no candidate has been trained yet")
        return figure
    feasible = rows[rows["feasible"].astype(bool)]
    others = rows[~rows["feasible"].astype(bool)]
    axes.scatter(feasible["number"], feasible["loss"], s=26, color=style.TRAINED, label="trained")
    if len(others):
        axes.scatter(
            others["number"],
            others["loss"],
            s=26,
            facecolors="none",
            edgecolors=style.MUTED,
            label="trained, misses a limit",
        )
    if len(feasible):
        axes.step(
            feasible["number"],
            feasible["loss"].cummin(),
            where="post",
            color=style.FRONT,
            linewidth=1.6,
            label="best so far",
        )
    failed = run.candidates[run.candidates["status"] == "failed"]
    for number in failed["number"]:
        axes.axvline(number, color=style.BEST, linewidth=0.8, linestyle=":", zorder=0)
    if len(failed):
        axes.plot([], [], color=style.BEST, linewidth=0.8, linestyle=":", label="failed")
    base.grid(axes)
    base.count_along_x(axes)
    base.name_axes(axes, "Search history", "candidate", "held-out loss, nats per token")
    base.legend_outside(axes)
    return figure
