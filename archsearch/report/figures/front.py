"""Latency against held-out loss: all candidates, the Pareto line, the winner, the baselines."""

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


NEAR = 0.05  # share of an axis


def plot_front(run: Run) -> Figure:
    """Draw predicted latency (ms per token) against held-out loss (nats per token).

    A horizontal bar spans the 10th to 90th percentile measured on the built model, its tick
    stands at the median: its distance from the marker is the prediction's error.
    """
    figure, axes = base.new_figure(height=5.4)
    rows = view.trained(run)
    if not len(rows):
        base.say(axes, "no candidate has been trained yet")
        return figure
    _candidates(axes, rows)
    _target(axes, run)
    members = view.members(run)
    _limit_loss(axes, rows, view.shown(run))
    if len(members):
        _pareto(axes, members)
    for index, (_, row) in enumerate(view.baselines(run).iterrows()):
        _baseline(axes, row, base.MARKERS[index % len(base.MARKERS)])
    base.grid(axes)
    base.name_axes(
        axes,
        "Latency against held-out loss",
        "latency, ms per token (marker: predicted; bar: measured p10 to p90, tick: median)",
        "held-out loss, nats per token",
    )
    base.legend_outside(axes)
    return figure


def _candidates(axes: Axes, rows: pd.DataFrame) -> None:
    feasible = rows["feasible"].astype(bool)
    kinds: tuple[tuple[pd.DataFrame, str, dict[str, Any]], ...] = (
        (rows[feasible], "trained", {"color": style.TRAINED, "edgecolors": "white"}),
        (
            rows[~feasible],
            "trained, misses a limit",
            {"facecolors": "none", "edgecolors": style.MUTED},
        ),
    )
    for part, label, look in kinds:
        if len(part):
            axes.scatter(part["latency_us"] / 1e3, part["loss"], s=34, label=label, **look)


def _target(axes: Axes, run: Run) -> None:
    target = run.config.target_latency_ms
    if target:
        axes.axvline(target, color=style.MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
        axes.annotate(
            f"target {target:g} ms",
            (target, 1),
            xycoords=("data", "axes fraction"),
            xytext=(-3, -3),
            textcoords="offset points",
            rotation=90,
            ha="right",
            va="top",
            fontsize=8.5,
            color=style.MUTED,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )


def _pareto(axes: Axes, members: pd.DataFrame) -> None:
    x = members["latency_us"] / 1e3
    axes.step(x, members["loss"], where="post", color=style.FRONT, linewidth=1.6, zorder=3)
    front = members[members["role"] == "front"]
    axes.plot([], [], color=style.FRONT, marker="o", label="Pareto front")
    axes.scatter(front["latency_us"] / 1e3, front["loss"], s=52, color=style.FRONT, zorder=4)
    _numbers(axes, members)
    for _, row in members.iterrows():
        winner = row["role"] == "best"
        _measured(axes, row, style.BEST if winner else style.FRONT)
        if winner:
            axes.scatter(
                row["latency_us"] / 1e3,
                row["loss"],
                s=210,
                marker="*",
                color=style.BEST,
                edgecolors="white",
                zorder=6,
                label=f"best (#{row['number']:.0f})",
            )


def _numbers(axes: Axes, members: pd.DataFrame) -> None:
    """Number the members; neighbours too close for a number each share one text."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    pending: list[str] = []
    rows = [row for _, row in members.iterrows()]
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        pending.append(f"#{row['number']:.0f}")
        if following is not None and following["role"] != "best" and row["role"] != "best":
            across = (following["latency_us"] - row["latency_us"]) / 1e3 / (right - left)
            down = (row["loss"] - following["loss"]) / (top - bottom)
            if across < NEAR and down < NEAR:
                continue
        # below and to the left of a front there is nothing that a number could hide
        axes.annotate(
            " ".join(pending),
            (row["latency_us"] / 1e3, row["loss"]),
            xytext=(-6, -6),
            textcoords="offset points",
            ha="right",
            va="top",
            fontsize=8.5,
            color=style.BEST if row["role"] == "best" else style.FRONT,
        )
        pending = []


def _baseline(axes: Axes, row: pd.Series, marker: str) -> None:
    axes.scatter(
        row["latency_us"] / 1e3,
        row["loss"],
        s=58,
        marker=marker,
        color=style.BASELINE,
        edgecolors="white",
        zorder=5,
        label=str(row["label"]),
    )
    _measured(axes, row, style.BASELINE)


def _measured(axes: Axes, row: pd.Series, colour: str) -> None:
    if not view.was_timed(row):
        return
    low, middle, high = (row[f"measured_us_{q}"] / 1e3 for q in ("p10", "p50", "p90"))
    predicted = row["latency_us"] / 1e3
    axes.hlines(row["loss"], low, high, color=colour, linewidth=1.1, zorder=3)
    axes.hlines(
        row["loss"], *sorted((predicted, middle)), color=colour, linewidth=0.8, linestyle=":"
    )
    axes.plot([middle], [row["loss"]], marker="|", markersize=9, color=colour, zorder=3)


def _limit_loss(axes: Axes, rows: pd.DataFrame, shown: pd.DataFrame) -> None:
    """Keep a few very bad candidates from flattening the rest, and say how many are above."""
    bottom = min([rows["loss"].min(), *shown["loss"]])
    usual = rows["loss"].quantile(0.9)
    ceiling = max([2 * usual - bottom, *shown["loss"]])
    top = max([*rows["loss"][rows["loss"] <= ceiling], *shown["loss"]])
    above = int((rows["loss"] > ceiling).sum())
    room = 0.08 * (top - bottom) or 0.1
    # the numbers of the front need room below its lowest point
    axes.set_ylim(bottom - 1.6 * room, top + room)
    if above:
        axes.annotate(
            f"{above} more above",
            (1, 1),
            xycoords="axes fraction",
            ha="right",
            va="bottom",
            fontsize=8.5,
            color=style.MUTED,
        )
